"""Process groups: sums, gathered tensors and errors of processes that fit one model together.

Each process has a shard of the samples; all samples are the shards in the order of the ranks. Code that fits a model
takes a `ProcessGroup`: a `SingleProcess`, whose collectives return their arguments, or a `Group` of
`torch.distributed`.

Before each collective, the processes exchange a header of a few bytes that names it. A process that has failed sends
this instead, and the others raise its error rather than wait for it. They also raise if their headers differ.
"""

import atexit
import gc
import math
import multiprocessing
import os
import threading
import weakref
from abc import ABC, abstractmethod
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.distributed as dist

COLLECTIVES = (
    "failed",
    "done",
    "all_gather_int",
    "all_reduce_sum",
    "all_gather",
    "assemble_rows",
    "broadcast",
    "all_gather_object",
)
ERRORS = {"ValueError": ValueError, "TypeError": TypeError, "MemoryError": MemoryError}  # others are a RuntimeError
LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # set by torchrun and similar launchers
_CURRENT = ContextVar("processes", default=None)
_OUT_OF_INFERENCE_MODE = torch.inference_mode(False)  # old versions of torch cannot fill inference tensors
_LEFT_GROUPS = []  # ranks of this process in groups that it has left, or whose connection is lost


class Collectives(ABC):
    """Sums over processes and rows of all processes.

    Attributes
    ----------
    rank, size : int
        Number of this process, and number of processes.
    """

    rank, size = 0, 1

    @abstractmethod
    def all_reduce_sum(self, *parts):
        """Sum numbers and tensors over the processes, in float64: to the last bit the same in all."""

    @abstractmethod
    def all_gather(self, rows):
        """Concatenate the rows (m, ...) of the processes (n, ...)."""

    @abstractmethod
    def take_global(self, rows, indices):
        """Return rows (b, ...) by their indices among the rows of all processes."""


class ProcessGroup(Collectives):
    """Processes that fit one model together."""

    @abstractmethod
    def all_gather_int(self, number):
        """Return the integers of the processes, by rank."""

    @abstractmethod
    def row_offset(self, n_rows):
        """Return the number of rows in the processes of lower rank; this one has ``n_rows``."""

    @abstractmethod
    def shard_indices(self, indices, offset, n_rows):
        """Return the indices of a batch that are of this process, among its own rows, and the batch's `Collectives`.

        Parameters
        ----------
        indices : Tensor of shape (b,)
            Among the rows of all processes, and the same in all.
        offset : int
            See `row_offset`.
        n_rows : int
            Rows of this process.
        """

    @abstractmethod
    def broadcast(self, value):
        """Return the tensor of the first process."""

    @abstractmethod
    def all_gather_object(self, value):
        """Return small picklable values of the processes, by rank."""

    @abstractmethod
    def rank_generator(self, generator):
        """Return a generator for draws that differ between the processes."""

    @abstractmethod
    def fail(self, error):
        """Send an error to the other processes, which raise it."""

    @abstractmethod
    def leave(self):
        """Leave the group where no error can be sent: the others see a closed connection."""

    @abstractmethod
    def close(self):
        """Wait for the other processes; raise the error of one that has failed."""


class SingleProcess(ProcessGroup):
    """A process with all rows: collectives return their arguments."""

    def all_reduce_sum(self, *parts):
        return parts

    def all_gather(self, rows):
        return rows

    def take_global(self, rows, indices):
        return rows[indices]

    def all_gather_int(self, number):
        return [number]

    def row_offset(self, n_rows):
        return 0

    def shard_indices(self, indices, offset, n_rows):
        return indices, self

    def broadcast(self, value):
        return value

    def all_gather_object(self, value):
        return [value]

    def rank_generator(self, generator):
        return generator

    def fail(self, error):
        pass

    def leave(self):
        pass

    def close(self):
        pass


SINGLE_PROCESS = SingleProcess()


class Group(ProcessGroup):
    """The default group of `torch.distributed`."""

    def __init__(self):
        self.rank, self.size, self.is_open = dist.get_rank(), dist.get_world_size(), True
        self._backends = dict(part.split(":") for part in dist.get_backend_config().split(","))
        self._device = torch.device("cpu" if "cpu" in self._backends else next(iter(self._backends)))

    @_OUT_OF_INFERENCE_MODE
    def all_reduce_sum(self, *parts):
        tensors = [part for part in parts if isinstance(part, torch.Tensor)]
        device = self._transport_device(tensors[0]) if tensors else self._device
        flat = torch.cat([_to_float64(part, device).flatten() for part in parts])
        self._exchange_headers("all_reduce_sum", flat.numel())
        self._call(dist.all_reduce, flat)
        sizes = [part.numel() if isinstance(part, torch.Tensor) else 1 for part in parts]
        return tuple(_restore_type(total, part) for part, total in zip(parts, flat.split(sizes), strict=True))

    @_OUT_OF_INFERENCE_MODE
    def all_gather(self, rows):
        sizes = self._exchange_headers("all_gather", math.prod(rows.shape[1:]), rows.element_size(), len(rows))
        padded = torch.zeros(max(sizes), *rows.shape[1:], dtype=rows.dtype, device=self._transport_device(rows))
        padded[: len(rows)] = rows
        gathered = [torch.empty_like(padded) for _ in sizes]
        self._call(dist.all_gather, gathered, padded)
        return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)]).to(rows.device)

    def take_global(self, rows, indices):
        own, shard = self.shard_indices(indices, self.row_offset(len(rows)), len(rows))
        return shard.all_gather(rows[own])

    def all_gather_int(self, number):
        return self._exchange_headers("all_gather_int", value=int(number))

    def row_offset(self, n_rows):
        return sum(self.all_gather_int(n_rows)[: self.rank])

    def shard_indices(self, indices, offset, n_rows):
        positions = ((indices >= offset) & (indices < offset + n_rows)).nonzero().flatten()
        return indices[positions] - offset, BatchShard(self, positions, len(indices))

    @_OUT_OF_INFERENCE_MODE
    def assemble_rows(self, rows, positions, n_rows):
        """Assemble rows (n_rows, ...) from those of each process and their positions."""
        assembled = torch.zeros(n_rows, *rows.shape[1:], dtype=rows.dtype, device=self._transport_device(rows))
        assembled[positions.to(assembled.device)] = rows.to(assembled.device)
        self._exchange_headers("assemble_rows", assembled.numel(), assembled.element_size())
        self._call(dist.all_reduce, assembled)  # adding zeros changes nothing
        return assembled.to(rows.device)

    @_OUT_OF_INFERENCE_MODE
    def broadcast(self, value):
        buffer = value.to(self._transport_device(value), copy=True).contiguous()
        self._exchange_headers("broadcast", buffer.numel(), buffer.element_size())
        self._call(dist.broadcast, buffer, 0)
        return buffer.to(value.device)

    def all_gather_object(self, value):
        self._exchange_headers("all_gather_object")
        return self._gather_objects(value)

    def rank_generator(self, generator):
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        return torch.Generator(generator.device).manual_seed(seed + self.rank)

    def fail(self, error):
        if not self.is_open:
            return
        name = next((name for name, cls in ERRORS.items() if isinstance(error, cls)), type(error).__name__)
        try:
            self._exchange_headers("failed", item_size=0)
            self._gather_objects((self.rank, name, str(error)))
        except RuntimeError:  # the connection is lost; the first error is what matters
            pass
        self.is_open = False

    def leave(self):
        if not self.is_open:
            return
        self.is_open = False
        _LEFT_GROUPS.append(self.rank)
        if "nccl" not in self._backends.values():  # which would wait for collectives that the others do not start
            dist.destroy_process_group()

    def close(self):
        self._exchange_headers("done")

    @_OUT_OF_INFERENCE_MODE
    def _exchange_headers(self, collective, n_numbers=0, item_size=8, value=0):
        """Announce the next collective, and an integer, to the other processes; return the integers by rank.

        Raises
        ------
        Exception
            The error of another process.
        RuntimeError
            If the processes announce different collectives, or the connection is lost.
        """
        if not self.is_open:
            raise RuntimeError("The processes no longer fit together after an earlier error; restart all of them.")
        code = COLLECTIVES.index(collective) * 2**52 + item_size * 2**46 + n_numbers  # zero for "failed"
        header = torch.tensor([code, value], device=self._device)
        headers = [torch.empty_like(header) for _ in range(self.size)]
        self._call(dist.all_gather, headers, header)
        codes, values = zip(*(part.tolist() for part in headers), strict=True)
        if collective != "failed" and len({*codes}) > 1:
            self.is_open = False
            if 0 in codes:
                raise _first_error(self.size, self._gather_objects(None))
            raise RuntimeError(
                f"The {self.size} processes are out of step: they did not call the same methods with the same "
                "parameters and number of features. Restart all of them with the same script."
            )
        return list(values)

    @_OUT_OF_INFERENCE_MODE
    def _gather_objects(self, value):
        values = [None] * self.size
        self._call(dist.all_gather_object, values, value)
        return values

    def _call(self, function, *args):
        try:
            function(*args)
        except RuntimeError as error:
            raise self.connection_error(error) from error

    def is_connection_error(self, error):
        """Return whether an error of torch means that the connection to another process is lost."""
        return isinstance(error, dist.DistError) or any(name in str(error) for name in ("gloo", "NCCL", "ProcessGroup"))

    def connection_error(self, error):
        """Leave the group after the connection is lost; return the error to raise."""
        self.is_open = False
        _LEFT_GROUPS.append(self.rank)
        reason = str(error).strip().split("\n")[0].split(". ")[0]
        return RuntimeError(
            f"Another of the {self.size} processes has stopped or cannot be reached, so process {self.rank} stops too. "
            f"Restart all of them; a fit with checkpoint= resumes from its last epoch. ({reason})"
        )

    def _transport_device(self, tensor):
        """Return the device from which a tensor is sent."""
        device_type = tensor.device.type
        is_supported = device_type in self._backends and (device_type == "cpu" or self._backends[device_type] == "nccl")
        return tensor.device if is_supported else self._device


class BatchShard(Collectives):
    """Collectives of a batch, of which each process has some rows.

    Parameters
    ----------
    group : Group
    positions : Tensor of shape (b,)
        Of the rows of this process in the batch.
    n_rows : int
        Rows of the batch, in all processes.
    """

    def __init__(self, group, positions, n_rows):
        self.group, self.positions, self.n_rows = group, positions, n_rows
        self.rank, self.size = group.rank, group.size

    def all_reduce_sum(self, *parts):
        return self.group.all_reduce_sum(*parts)

    def all_gather(self, rows):
        return self.group.assemble_rows(rows, self.positions, self.n_rows)

    def take_global(self, rows, indices):
        own = self.positions.new_full((self.n_rows,), -1)
        own[self.positions] = torch.arange(len(self.positions), device=own.device)
        own = own[indices]
        positions = (own >= 0).nonzero().flatten()
        return self.group.assemble_rows(rows[own[positions]], positions, len(indices))


def _to_float64(part, device):
    """Convert a number or a tensor to a tensor in float64 on a device."""
    part = part.detach() if isinstance(part, torch.Tensor) else torch.tensor(part, dtype=torch.float64)
    return part.to(device).to(torch.float64)


def _restore_type(total, part):
    """Convert a sum to the type, shape and dtype of its parts."""
    if isinstance(part, torch.Tensor):
        return total.view(part.shape).to(part.device, part.dtype)
    return int(total) if isinstance(part, int) else float(total)


def _first_error(n_processes, errors):
    """Return the error of the first process that has failed."""
    rank, name, text = next(error for error in errors if error is not None)
    detail = text if name in ERRORS else f"{name}: {text}"
    return ERRORS.get(name, RuntimeError)(f"Process {rank} of {n_processes} has failed: {detail}")


@contextmanager
def distributed_fit():
    """Fit with the processes of the default group, if there is one, and fail together.

    A nested context changes nothing. If the environment of a launcher such as torchrun is set and there is no group
    yet, one is made. Threads other than the main one fit alone, and so do processes started by `multiprocessing`,
    unless they have made a group.

    Raises
    ------
    Exception
        The error of another process, with its rank.
    """
    if _CURRENT.get() is not None:
        yield
        return
    group = _default_group()
    token = _CURRENT.set(group)
    try:
        yield
        group.close()
    except Exception as error:
        group.fail(error)
        raise
    finally:
        _CURRENT.reset(token)


@contextmanager
def alone():
    """Fit without the other processes."""
    token = _CURRENT.set(SINGLE_PROCESS)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def current_group():
    """Return the processes that take part in the current fit."""
    return _CURRENT.get() or SINGLE_PROCESS


def _default_group():
    """Return the group of this process, made if necessary, or `SINGLE_PROCESS`."""
    if threading.current_thread() is not threading.main_thread() or not dist.is_available():
        return SINGLE_PROCESS
    if _LEFT_GROUPS:
        raise RuntimeError("An earlier fit of these processes was interrupted by an error; restart all of them.")
    if not dist.is_initialized():
        is_launched = all(name in os.environ for name in LAUNCHER_VARIABLES) and int(os.environ["WORLD_SIZE"]) > 1
        if not is_launched or multiprocessing.current_process().name != "MainProcess":
            return SINGLE_PROCESS
        _make_group()
    return Group() if dist.get_world_size() > 1 else SINGLE_PROCESS


def _make_group():
    """Make the default group from the environment; the GPU of each process is that of its local rank."""
    # Not every build of torch has these modules. Functions of the first have the group at the time of its import as
    # the default of a parameter: imported later, by DistributedDataParallel, they would keep the group alive.
    import torch.distributed.nn
    from torch.distributed.rendezvous import rendezvous

    on_gpus = torch.cuda.is_available() and dist.is_nccl_available()
    if on_gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    # The store of the launcher outlives a restart, and still has the addresses of the processes before it.
    store, rank, size = next(iter(rendezvous("env://")))
    store = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    backend = "cpu:gloo,cuda:nccl" if on_gpus else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    # By a weak reference: connections of a group that is left have to close.
    atexit.register(_destroy_group, weakref.ref(dist.group.WORLD))


def _destroy_group(group):
    """Destroy the group that a fit has made before the interpreter exits.

    A thread of the group that frees a tensor later would wait for the lock of the interpreter, and abort the process.
    """
    gc.collect()  # DistributedDataParallel refers to the group too
    is_ours = dist.is_initialized() and dist.group.WORLD is group()
    if is_ours and not (_LEFT_GROUPS and "nccl" in dist.get_backend_config()):  # which would wait for the others
        dist.destroy_process_group()
