"""Training by several processes: equal numbers of steps, averaged gradients, joint records."""

import gc
import inspect
import math

import torch
from skorch import NeuralNet
from skorch.callbacks import Callback
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .devices import is_out_of_memory

# Statistics of batch normalisation are shared after an epoch, not in each step; torch calls this by two names.
_KNOWN = inspect.signature(DistributedDataParallel).parameters
UNSHARED_BUFFERS = {"forward_sync_buffers" if "forward_sync_buffers" in _KNOWN else "broadcast_buffers": False}


class JointOutOfMemory(torch.cuda.OutOfMemoryError):
    """A device of one of the processes has run out of memory, and all of them know."""


def count_batches(n_rows, batch_size):
    """Number of batches of about this size, none of them with a single row unless there is only one."""
    return max(1, min(math.ceil(n_rows / batch_size), n_rows // 2))


def count_steps(n_rows, batch_size):
    """Number of steps in an epoch of processes with so many rows each: no more than one of them has batches for."""
    return min(count_batches(sum(n_rows), batch_size), max(max(1, n // 2) for n in n_rows))


def dealt_sizes(n_rows, n_steps):
    """Rows of a process in each step (n_steps,): at least two, or none in some steps if there are too few.

    Parameters
    ----------
    n_rows : int
        Of the process.
    n_steps : int
    """
    n_parts = min(n_steps, max(1, n_rows // 2))
    parts, sizes = torch.arange(n_parts), torch.zeros(n_steps, dtype=torch.int64)
    sizes[parts * n_steps // n_parts] = n_rows // n_parts + (parts < n_rows % n_parts).long()
    return sizes


def step_weights(n_rows, n_steps, group):
    """What the mean loss of a process counts in each step, so that the mean over processes is that over rows.

    None for one process.
    """
    if group.size == 1:
        return None
    sizes = [dealt_sizes(n, n_steps) for n in n_rows]
    return group.size * sizes[group.rank] / sum(sizes)


def is_placeholder(batch):
    """Whether a batch is there for the sake of the step alone: its process has no rows left for it."""
    weight = batch[1]
    return weight.ndim == 0 and not weight


class AveragedGradients:
    """A module whose gradients are averaged over processes, by `torch.nn.parallel.DistributedDataParallel`.

    Parameters
    ----------
    uses_all : bool
        Whether every parameter has a gradient in every step.
    """

    def __init__(self, uses_all):
        self.uses_all, self._wrapped, self._parameters = uses_all, None, []

    def __call__(self, module, **inputs):
        """What the module gives. Its parameters may be others than those of the step before."""
        parameters = list(module.parameters())
        if [*map(id, parameters)] != [*map(id, self._parameters)]:
            self.drop()
            settings = {"find_unused_parameters": not self.uses_all, "gradient_as_bucket_view": True}
            self._wrapped = DistributedDataParallel(module, **settings | UNSHARED_BUFFERS)
            self._parameters = parameters
        return self._wrapped(**inputs)

    def drop(self):
        """Forget what averages the gradients, which would go on, and has the group."""
        self._wrapped, self._parameters = None, []
        gc.collect()


class JointSteps(NeuralNet):
    """What a net does otherwise if several processes train it, before `NeuralNet` in a class.

    Batches come with the weight of their mean loss. After each epoch all processes know the mean loss over the rows of
    all, and batch normalisation has the means of their statistics.
    """

    def begin(self, group, uses_all):
        """Train with the processes of a group."""
        self.group, self.averaged, self.is_short, self.joint_losses = group, AveragedGradients(uses_all), False, {}
        return self

    def run_single_epoch(self, iterator, training, prefix, step_fn, **fit_params):
        """Train or validate for an epoch."""
        super().run_single_epoch(iterator, training, prefix, step_fn, **fit_params)
        if iterator is None:
            return
        batches = [batch for batch in self.history[-1]["batches"] if f"{prefix}_loss" in batch]
        sizes, losses = ([batch[f"{prefix}_{name}"] for batch in batches] for name in ("batch_size", "loss"))
        if losses and isinstance(losses[0], torch.Tensor):
            losses = torch.stack(losses).tolist()
        total = sum(loss * size for loss, size in zip(losses, sizes, strict=True) if size)
        total, n_rows, n_short = self.group.all_reduce_sum(float(total), sum(sizes), int(self.is_short))
        if n_short:
            self.is_short = False
            raise JointOutOfMemory("The device of a process has too little memory for a batch.")
        self.joint_losses[prefix] = total / n_rows
        if training:
            share_statistics(self.module_, sum(sizes), self.group)

    def infer(self, x, **fit_params):
        """Apply the module; in training, with gradients that will be averaged."""
        if not self.module_.training:
            return super().infer(x, **fit_params)
        return self.averaged(self.module_, **x)

    def train_step_single(self, batch, **fit_params):
        """Compute the loss of a batch and the gradients of all."""
        self._set_training(True)
        try:
            return self._step(*batch)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if self.group.is_connection_error(error):
                raise self.group.connection_error(error) from error
            raise

    def _step(self, x, weight):
        found = None if self.is_short else self._loss_of(x, weight)
        if found is None:  # the others wait for gradients; the epoch will not count
            self.is_short = True
            x, weight = {name: part[:2] for name, part in x.items()}, 0 * weight
            y_pred = self.infer(x)
            found = y_pred, self.get_loss(y_pred, weight, X=x, training=True)
        y_pred, loss = found
        (loss * weight).backward()
        return {"loss": loss, "y_pred": y_pred}

    def _loss_of(self, x, weight):
        """Prediction and loss, or None if the memory of the device is too small for them."""
        try:
            y_pred = self.infer(x)
            return y_pred, self.get_loss(y_pred, weight, X=x, training=True)
        except RuntimeError as error:
            if self.group.is_connection_error(error) or not is_out_of_memory(error):
                raise
            return None


class JointLosses(Callback):
    """Put the mean losses over the rows of all processes into the history, the same to the last bit in all."""

    def on_epoch_end(self, net, **kwargs):
        """Record them."""
        for prefix, loss in net.joint_losses.items():
            net.history.record(f"{prefix}_loss", loss)


def share_statistics(model, n_rows, group):
    """Give batch normalisation the means of the statistics of all processes, weighted by their numbers of rows."""
    found = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    parts = [part for module in found for part in module.buffers(recurse=False)]
    if group.size == 1 or not parts:
        return
    *sums, total = group.all_reduce_sum(*(n_rows * part for part in parts), n_rows)
    for part, summed in zip(parts, sums, strict=True):
        mean = summed / total
        part.copy_(mean if part.is_floating_point() else mean.round())
