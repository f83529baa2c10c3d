"""What networks are trained on and how far, and what is recorded of it."""

import hashlib
import math
from dataclasses import dataclass, replace
from numbers import Real

import torch

from ..fitting.batches import some_rows
from ..fitting.devices import is_out_of_memory
from ..fitting.distributed import current_group
from ..fitting.parallel import count_batches
from ..fitting.snapshots import Checkpoint, JointCheckpoint, recorded
from ..fitting.training import fit_module

BOOKKEEPING = ("train_batch_count", "valid_batch_count", "train_loss_best", "valid_loss_best")  # of skorch
ROWS_FOR_DIAGNOSTICS = 5_000


@dataclass(frozen=True)
class Task:
    """What networks are to be trained on, and how far."""

    rows: torch.Tensor
    held_out: torch.Tensor | None
    generator: torch.Generator
    device: torch.device
    seed: int
    max_epochs: int
    going_on: bool  # with networks, and perhaps the state of their optimizer, that were trained before
    optimizer_state: dict | None
    checkpoint: Checkpoint | JointCheckpoint | None
    whole_numbers: bool  # whether rows are, so that nothing can lie between them
    n_together: int = 1_024  # rows that go through the networks at once, outside of training

    def train(self, model, plan, noise_size, **changes):
        """Train a model in place; return its net."""
        task = replace(self, **changes)
        return fit_module(
            model,
            task.rows,
            plan,
            noise_size=noise_size,
            generator=task.generator,
            device=task.device,
            validation_rows=task.held_out,
            optimizer_state=task.optimizer_state,
            checkpoint=task.checkpoint,
            keeps=task.going_on and task.checkpoint is None,  # else the file has it, to go on from there
            group=current_group(),
        )


def fingerprint(estimator, *facts):
    """A text that tells fits apart: a hash of the estimator's parameters and of facts, numbers or rows."""
    found = hashlib.blake2b(digest_size=16)
    passive = {"checkpoint", "device", "verbose"}
    params = {name: value for name, value in estimator.get_params(deep=False).items() if name not in passive}
    for name, value in [("class", type(estimator).__name__), *sorted(params.items())]:
        parts = value if isinstance(value, list | tuple) else [value]
        plain = all(isinstance(part, str | Real | None) for part in parts)
        found.update(f"{name}={value if plain else type(value).__name__};".encode())
    for fact in facts:
        if fact is None or isinstance(fact, Real):
            found.update(f"{fact};".encode())
            continue
        found.update(f"{len(fact)};".encode())
        some = fact if isinstance(fact, torch.Tensor) else some_rows(fact, ROWS_FOR_DIAGNOSTICS)
        for part in some.split(ROWS_FOR_DIAGNOSTICS // 5):
            found.update(part.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def history_of(net, n_before):
    """The epochs of a net, numbered after those before, with what callbacks of the user's recorded."""
    epochs = [{key: value for key, value in row.items() if key not in BOOKKEEPING} for row in recorded(net)]
    return [{**row, "epoch": n_before + row["epoch"]} for row in epochs]


def to_device(model, device):
    """The model on a device, its buffers in float64 where there is float64."""
    return model.to(torch.float32).to(device) if device.type == "mps" else model.to(device)


def exact_buffers(module):
    """Copies of the buffers in float64, by their names: the units of features need all their digits."""
    return {name: buffer.clone() for name, buffer in module.named_buffers() if buffer.dtype == torch.float64}


def with_exact_buffers(model, exact):
    """The model on the CPU after a training without float64, with the buffers of its likelihood as they were before."""
    model.cpu()
    for name, buffer in exact.items():
        owner, _, own_name = name.rpartition(".")
        setattr(model.likelihood.get_submodule(owner), own_name, buffer)
    return model


def is_missing_on_mps(error, device):
    """Return whether an error names a limit of mps: a missing kernel or dtype, or too large a size."""
    is_limit = isinstance(error, RuntimeError | TypeError) and not is_out_of_memory(error)
    return device.type == "mps" and is_limit and "MPS" in str(error)


def check_precision(precision, device):
    """Raise if the networks would be slower in this precision than in float32.

    Raises
    ------
    ValueError
        If the device has no instructions for bfloat16.
    """
    if precision == "bf16" and not has_bf16(device):
        raise ValueError(
            f"precision='bf16' is far slower than float32 on this {device.type}, which has no instructions for it; use "
            "precision='float32', or another device."
        )


def has_bf16(device):
    """Whether the device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
        return any(check is not None and check() for check in checks)
    return False


def choose_epochs(max_epochs, n_samples, batch_size):
    """Resolve "auto": about ``64 sqrt(n_samples)`` gradient steps, but not more than 100 epochs or 300 steps."""
    if max_epochs == "auto":
        n_batches = count_batches(n_samples, batch_size)
        # More epochs overfit small tables: on held-out rows their bound falls apart.
        return min(math.ceil(64 * math.sqrt(n_samples) / n_batches), max(100, math.ceil(300 / n_batches)))
    return max_epochs
