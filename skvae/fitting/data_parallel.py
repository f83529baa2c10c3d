"""Data parallel training by the processes of a group: averaged gradients and joint records."""

import gc
import inspect

import torch
from skorch import NeuralNet
from skorch.callbacks import Callback
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..models.networks import LatentNorm
from .devices import is_out_of_memory

# Statistics of batch normalisation are shared after an epoch, not in each step; torch calls this by two names.
_KNOWN = inspect.signature(DistributedDataParallel).parameters
UNSHARED_BUFFERS = {"forward_sync_buffers" if "forward_sync_buffers" in _KNOWN else "broadcast_buffers": False}


class JointOutOfMemory(torch.cuda.OutOfMemoryError):
    """Out-of-memory error of one process, of which all processes know."""


class AveragedGradients:
    """Apply a module, and average its gradients over processes by `torch.nn.parallel.DistributedDataParallel`.

    Parameters
    ----------
    uses_all : bool
        Whether every parameter has a gradient in every step.
    """

    def __init__(self, uses_all):
        self.uses_all, self._wrapped, self._parameters = uses_all, None, []

    def __call__(self, module, **inputs):
        """Return the output of the module, whose parameters may differ from those of the step before."""
        parameters = list(module.parameters())
        if [*map(id, parameters)] != [*map(id, self._parameters)]:
            self.drop()
            settings = {"find_unused_parameters": not self.uses_all, "gradient_as_bucket_view": True}
            self._wrapped = DistributedDataParallel(module, **settings | UNSHARED_BUFFERS)
            self._parameters = parameters
        return self._wrapped(**inputs)

    def drop(self):
        """Drop the reducer of the gradients, which would continue to run and refers to the group."""
        self._wrapped, self._parameters = None, []
        gc.collect()


class JointSteps(NeuralNet):
    """Mixin of a net for data parallel training, before `NeuralNet` in the bases of a class.

    The target of a batch is the weight of its mean loss. After each epoch all processes record the mean loss over all
    rows, and batch normalization uses the means of their statistics.
    """

    def set_group(self, group, uses_all):
        """Train with the processes of a group; return the net."""
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
            average_batch_norm(self.module_, sum(sizes), self.group)

    def infer(self, x, **fit_params):
        """Apply the module; in training, average its gradients."""
        if not self.module_.training:
            return super().infer(x, **fit_params)
        return self.averaged(self.module_, **x)

    def train_step_single(self, batch, **fit_params):
        """Compute the loss of a batch and the gradients averaged over processes."""
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
        output = None if self.is_short else self._loss_of(x, weight)
        if output is None:  # the other processes wait for gradients; the epoch will not count
            self.is_short = True
            x, weight = {name: part[:2] for name, part in x.items()}, 0 * weight
            y_pred = self.infer(x)
            output = y_pred, self.get_loss(y_pred, weight, X=x, training=True)
        y_pred, loss = output
        (loss * weight).backward()
        return {"loss": loss, "y_pred": y_pred}

    def _loss_of(self, x, weight):
        """Return the prediction and the loss, or None if the memory of the device is too small for them."""
        try:
            y_pred = self.infer(x)
            return y_pred, self.get_loss(y_pred, weight, X=x, training=True)
        except RuntimeError as error:
            if self.group.is_connection_error(error) or not is_out_of_memory(error):
                raise
            return None


class JointLosses(Callback):
    """Record the mean losses over the rows of all processes, the same to the last bit in each."""

    def on_epoch_end(self, net, **kwargs):
        """Record the losses of the epoch."""
        for prefix, loss in net.joint_losses.items():
            net.history.record(f"{prefix}_loss", loss)


def average_batch_norm(model, n_rows, group):
    """Average the statistics of batch normalization over processes, weighted by their numbers of rows."""
    norms = [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm | LatentNorm)]
    parts = [part for module in norms for part in module.buffers(recurse=False)]
    if group.size == 1 or not parts:
        return
    *sums, total = group.all_reduce_sum(*(n_rows * part for part in parts), n_rows)
    for part, summed in zip(parts, sums, strict=True):
        mean = summed / total
        part.copy_(mean if part.is_floating_point() else mean.round())
