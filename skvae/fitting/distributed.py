"""Process groups: the sums, samples and errors that processes share while they fit one model.

Each process has a shard of the samples; all samples are the shards in the order of the ranks. Code that fits a model
takes a group with the methods of `SingleProcess`. For one process they do nothing; those of `Group` are collectives of
`torch.distributed`.

Before each collective, the processes exchange a few bytes that say which one comes next. A process that has failed
sends this instead, and the others raise its error rather than wait for it. They also raise if they are out of step.
"""

import atexit
import gc
import math
import multiprocessing
import os
import threading
import weakref
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
LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what launchers such as torchrun set
_CURRENT = ContextVar("processes", default=None)
_TENSORS_TO_FILL = torch.inference_mode(False)  # which old versions of torch do not fill if they are made for inference
_LEFT = []  # not empty when this process has left its group, or lost the others


class SingleProcess:
    """One process, which has all rows."""

    rank, size = 0, 1

    def all_gather_int(self, number):
        """A whole number of every process, by rank."""
        return [number]

    def all_reduce_sum(self, *parts):
        """Sums over the processes of numbers and tensors, in float64: the same to the last bit on all."""
        return parts

    def all_gather(self, rows):
        """The rows (n, ...) of all processes, from those of each (m, ...)."""
        return rows

    def take_global(self, rows, indices):
        """Rows with these indices among those of all processes (b, ...), on all."""
        return rows[indices]

    def row_offset(self, n_rows):
        """How many rows the processes before this one have, if it has so many."""
        return 0

    def shard_indices(self, indices, start, n_rows):
        """Which of the rows with these indices a process has: indices among its own, and the `BatchShard`."""
        return indices, self

    def broadcast(self, value):
        """The tensor of the first process, on all."""
        return value

    def all_gather_object(self, value):
        """A small value of any kind of every process, by rank."""
        return [value]

    def rank_generator(self, generator):
        """A generator with draws of its own for each process."""
        return generator

    def fail(self, error):
        """Tell the others of an error."""

    def leave(self):
        """Take part no more, where the others can not be told why: they see a closed connection."""

    def close(self):
        """Wait for the others, and raise if one of them has failed."""


SINGLE_PROCESS = SingleProcess()


class Group:
    """The processes of the default group of `torch.distributed`, with the verbs of `SingleProcess`."""

    def __init__(self):
        self.rank, self.size, self.is_open = dist.get_rank(), dist.get_world_size(), True
        self._backends = dict(part.split(":") for part in dist.get_backend_config().split(","))
        self._device = torch.device("cpu" if "cpu" in self._backends else next(iter(self._backends)))

    def all_gather_int(self, number):
        """See `SingleProcess`."""
        return self._announce("all_gather_int", value=int(number))

    @_TENSORS_TO_FILL
    def all_reduce_sum(self, *parts):
        """See `SingleProcess`."""
        tensors = [part for part in parts if isinstance(part, torch.Tensor)]
        place = self._place(tensors[0]) if tensors else self._device
        flat = torch.cat([_wide(part, place).flatten() for part in parts])
        self._announce("all_reduce_sum", flat.numel())
        self._run(dist.all_reduce, flat)
        sizes = [part.numel() if isinstance(part, torch.Tensor) else 1 for part in parts]
        return tuple(_like(part, total) for part, total in zip(parts, flat.split(sizes), strict=True))

    @_TENSORS_TO_FILL
    def all_gather(self, rows):
        """See `SingleProcess`."""
        sizes = self._announce("all_gather", math.prod(rows.shape[1:]), rows.element_size(), len(rows))
        sent = torch.zeros(max(sizes), *rows.shape[1:], dtype=rows.dtype, device=self._place(rows))
        sent[: len(rows)] = rows
        found = [torch.empty_like(sent) for _ in sizes]
        self._run(dist.all_gather, found, sent)
        return torch.cat([part[:size] for part, size in zip(found, sizes, strict=True)]).to(rows.device)

    def take_global(self, rows, indices):
        """See `SingleProcess`."""
        own, shard = self.shard_indices(indices, self.row_offset(len(rows)), len(rows))
        return shard.all_gather(rows[own])

    def row_offset(self, n_rows):
        """See `SingleProcess`."""
        return sum(self.all_gather_int(n_rows)[: self.rank])

    def shard_indices(self, indices, start, n_rows):
        """See `SingleProcess`."""
        places = ((indices >= start) & (indices < start + n_rows)).nonzero().flatten()
        return indices[places] - start, BatchShard(self, places, len(indices))

    @_TENSORS_TO_FILL
    def assemble_rows(self, rows, places, n_rows):
        """Rows (n_rows, ...) on all processes, from those that each has and their places."""
        whole = torch.zeros(n_rows, *rows.shape[1:], dtype=rows.dtype, device=self._place(rows))
        whole[places.to(whole.device)] = rows.to(whole.device)
        self._announce("assemble_rows", whole.numel(), whole.element_size())
        self._run(dist.all_reduce, whole)  # to add zeros changes nothing
        return whole.to(rows.device)

    @_TENSORS_TO_FILL
    def broadcast(self, value):
        """See `SingleProcess`."""
        sent = value.to(self._place(value), copy=True).contiguous()
        self._announce("broadcast", sent.numel(), sent.element_size())
        self._run(dist.broadcast, sent, 0)
        return sent.to(value.device)

    def all_gather_object(self, value):
        """See `SingleProcess`."""
        self._announce("all_gather_object")
        return self._objects(value)

    def rank_generator(self, generator):
        """See `SingleProcess`."""
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        return torch.Generator(generator.device).manual_seed(seed + self.rank)

    def fail(self, error):
        """See `SingleProcess`."""
        if not self.is_open:
            return
        kind = next((name for name, known in ERRORS.items() if isinstance(error, known)), type(error).__name__)
        try:
            self._announce("failed", item_size=0)
            self._objects((self.rank, kind, str(error)))
        except RuntimeError:  # the others are gone; the reason to fail is what matters
            pass
        self.is_open = False

    def leave(self):
        """See `SingleProcess`."""
        if not self.is_open:
            return
        self.is_open = False
        _LEFT.append(self.rank)
        if "nccl" not in self._backends.values():  # whose end waits for what the others do not send any more
            dist.destroy_process_group()

    def close(self):
        """See `SingleProcess`."""
        self._announce("done")

    @_TENSORS_TO_FILL
    def _announce(self, verb, n_numbers=0, item_size=8, value=0):
        """Tell the others what comes next, and a number; return the numbers of all.

        Raises
        ------
        Exception
            What another process has raised.
        RuntimeError
            If the processes are out of step, or not to be reached.
        """
        if not self.is_open:
            raise RuntimeError("These processes have stopped to fit together; start all of them again.")
        code = COLLECTIVES.index(verb) * 2**52 + item_size * 2**46 + n_numbers  # zero for "failed"
        own = torch.tensor([code, value], device=self._device)
        found = [torch.empty_like(own) for _ in range(self.size)]
        self._run(dist.all_gather, found, own)
        codes, values = zip(*(part.tolist() for part in found), strict=True)
        if verb != "failed" and len({*codes}) > 1:
            self.is_open = False
            if 0 in codes:
                raise _error_of(self.size, self._objects(None))
            raise RuntimeError(
                f"The {self.size} processes are out of step: they did not call the same methods with the same "
                "parameters and as many features. Start all of them again, with the same script."
            )
        return list(values)

    @_TENSORS_TO_FILL
    def _objects(self, value):
        found = [None] * self.size
        self._run(dist.all_gather_object, found, value)
        return found

    def _run(self, function, *args):
        try:
            function(*args)
        except RuntimeError as error:
            raise self.lost(error) from error

    def means_loss(self, error):
        """Whether an error of a call of torch says that the others are not to be reached."""
        return isinstance(error, dist.DistError) or any(name in str(error) for name in ("gloo", "NCCL", "ProcessGroup"))

    def lost(self, error):
        """The error to raise where the others can not be reached; nothing is asked of them any more."""
        self.is_open = False
        _LEFT.append(self.rank)
        reason = str(error).strip().split("\n")[0].split(". ")[0]
        return RuntimeError(
            f"Another of the {self.size} processes has stopped, or can not be reached, so that process {self.rank} "
            f"stops too. Start all of them again; a fit with checkpoint= goes on from its last epoch. ({reason})"
        )

    def _place(self, tensor):
        """Where a tensor is brought to be sent."""
        kind = tensor.device.type
        fits = kind in self._backends and (kind == "cpu" or self._backends[kind] == "nccl")
        return tensor.device if fits else self._device


def _wide(part, place):
    """A number or a tensor in float64, where it is sent from."""
    part = part.detach() if isinstance(part, torch.Tensor) else torch.tensor(part, dtype=torch.float64)
    return part.to(place).to(torch.float64)


class BatchShard:
    """Shards of a batch, with methods of `SingleProcess`; indices are positions among the rows of all processes.

    Parameters
    ----------
    group : Group
    places : Tensor of shape (b,)
        Of the rows that this process has.
    n_rows : int
        Rows of all processes.
    """

    def __init__(self, group, places, n_rows):
        self.group, self.places, self.n_rows = group, places, n_rows
        self.rank, self.size, self.all_reduce_sum = group.rank, group.size, group.all_reduce_sum

    def all_gather(self, rows):
        """See `SingleProcess`."""
        return self.group.assemble_rows(rows, self.places, self.n_rows)

    def take_global(self, rows, indices):
        """See `SingleProcess`."""
        own = self.places.new_full((self.n_rows,), -1)
        own[self.places] = torch.arange(len(self.places), device=own.device)
        found = own[indices]
        places = (found >= 0).nonzero().flatten()
        return self.group.assemble_rows(rows[found[places]], places, len(indices))


@contextmanager
def distributed_fit():
    """Fit with the processes of the default group, if there is one, and fail together.

    Within another such block nothing changes. Where a launcher such as torchrun has set the environment, and there is
    no group yet, it is made. Threads beside the main one fit alone, and so do processes started by `multiprocessing`,
    unless they have made a group.

    Raises
    ------
    Exception
        What another process has raised, with its number.
    """
    if _CURRENT.get() is not None:
        yield
        return
    group = _find()
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
    """The processes that fit together now."""
    return _CURRENT.get() or SINGLE_PROCESS


def _find():
    """The group of this process, or `SINGLE_PROCESS`."""
    if threading.current_thread() is not threading.main_thread() or not dist.is_available():
        return SINGLE_PROCESS
    if _LEFT:
        raise RuntimeError("An earlier fit of these processes was broken off in the middle; start all of them again.")
    if not dist.is_initialized():
        launched = all(name in os.environ for name in LAUNCHED) and int(os.environ["WORLD_SIZE"]) > 1
        if not launched or multiprocessing.current_process().name != "MainProcess":
            return SINGLE_PROCESS
        _make_group()
    return Group() if dist.get_world_size() > 1 else SINGLE_PROCESS


def _make_group():
    """Make the default group from the environment; on GPUs, each process has that of its local rank."""
    # Not every build of torch has these. Functions of the second have the group of the time of their import as the
    # default of a parameter: imported later, as DistributedDataParallel does, they would keep it for good.
    import torch.distributed.nn
    from torch.distributed.rendezvous import rendezvous

    on_gpus = torch.cuda.is_available() and dist.is_nccl_available()
    if on_gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    # The store of the launcher outlives a restart, and knows where the processes of the time before were.
    store, rank, size = next(iter(rendezvous("env://")))
    store = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    backend = "cpu:gloo,cuda:nccl" if on_gpus else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    # By a weak reference: connections of a group that is left have to break.
    atexit.register(_end_group, weakref.ref(dist.group.WORLD))


def _end_group(group):
    """Let the threads of the group that was made here come to their end before the interpreter does.

    One that frees a tensor later wants the lock of an interpreter that is gone, and aborts the process.
    """
    gc.collect()  # what averages gradients has the group too
    is_ours = dist.is_initialized() and dist.group.WORLD is group()
    if is_ours and not (_LEFT and "nccl" in dist.get_backend_config()):  # which would wait for the others
        dist.destroy_process_group()


def _like(part, total):
    """A sum in the form of what was summed."""
    if isinstance(part, torch.Tensor):
        return total.view(part.shape).to(part.device, part.dtype)
    return int(total) if isinstance(part, int) else float(total)


def _error_of(n_processes, found):
    """The error of the first process that has failed."""
    rank, kind, text = next(part for part in found if part is not None)
    detail = text if kind in ERRORS else f"{kind}: {text}"
    return ERRORS.get(kind, RuntimeError)(f"Process {rank} of {n_processes} has failed: {detail}")
