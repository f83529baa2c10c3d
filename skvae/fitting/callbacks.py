"""What happens beside the gradient steps: records, warm-up, stopping, progress."""

import copy
import math
from abc import abstractmethod
from functools import partial

import torch
from skorch.callbacks import Callback
from tqdm import tqdm

from .distributed import SINGLE_PROCESS
from .parallel import is_placeholder


class Resumable(Callback):
    """A callback with a state, which is part of that of a training."""

    @abstractmethod
    def state(self, net):
        """What `resume` needs: numbers and tensors."""

    @abstractmethod
    def resume(self, net, state):
        """Go on from a state."""


class ELBOTerms(Callback):
    """Record the mean log-likelihood and KL of each epoch, without waiting for the device at each batch.

    They are those of the rows of training, and of the validation rows if there are any. With views, the agreement of
    the mixture that has most of it, too.

    Parameters
    ----------
    group : SingleProcess or Group
        The processes that have shards of the rows.
    """

    def __init__(self, group=SINGLE_PROCESS):
        self.group = group

    def on_epoch_begin(self, net, **kwargs):
        """Forget the last epoch."""
        self.sums_, self.n_rows_, self.agreements_, self.means_ = {}, {}, [], {}

    def on_batch_end(self, net, batch, training, y_pred, **kwargs):
        """Add the terms of a batch."""
        if is_placeholder(batch):
            return
        part = "train" if training else "valid"
        sums = torch.stack([y_pred.log_likelihood.detach().sum(), y_pred.kl_parts.detach().sum()])
        self.sums_[part] = self.sums_.get(part, 0.0) + sums
        self.n_rows_[part] = self.n_rows_.get(part, 0) + len(y_pred.log_likelihood)
        if y_pred.agreement is not None:
            self.agreements_.append(y_pred.agreement.detach().max())

    def read_means_later(self, net):
        """Let the net read the means, with all that it reads from the device at the end of an epoch."""
        for part, sums in self.sums_.items():
            sums, n_rows = self.group.all_reduce_sum(sums, self.n_rows_[part])
            net.read_later(sums / n_rows, partial(self._keep, [f"{part}_log_likelihood", f"{part}_kl"], 1))
        if self.agreements_:
            agreement, n_processes = self.group.all_reduce_sum(torch.stack(self.agreements_).mean(), 1)
            net.read_later(agreement[None], partial(self._keep, ["train_agreement"], n_processes))

    def _keep(self, names, divisor, values):
        self.means_ |= {name: value / divisor for name, value in zip(names, values, strict=True)}

    def on_epoch_end(self, net, **kwargs):
        """Put the means into the history."""
        for name, mean in self.means_.items():
            net.history.record(name, mean)


class KLWarmUp(Callback):
    """Let the weight of the KL grow linearly over the first epochs (Bowman et al. 2016)."""

    def __init__(self, n_epochs):
        self.n_epochs = n_epochs

    def on_epoch_begin(self, net, **kwargs):
        """Set the share of the weight for this epoch."""
        net.criterion_.warmth = min(1.0, len(net.history) / (self.n_epochs + 1))


class BestWeights(Resumable):
    """Keep the weights with the lowest validation loss, and say when it has not fallen for long.

    Parameters
    ----------
    patience : int
        Epochs without an improvement before `exhausted` is true.
    tol : float
        What counts as an improvement, in nats per row.
    n_wait : int
        Epochs at the beginning that do not count: those of the KL warm-up.
    """

    def __init__(self, patience, tol, n_wait=0):
        self.patience, self.tol, self.n_wait = patience, tol, n_wait

    def on_train_begin(self, net, **kwargs):
        """Forget an earlier training."""
        self.lowest_, self.reference_, self.n_without_, self.state_ = math.inf, math.inf, 0, None

    def on_epoch_end(self, net, **kwargs):
        """Look at the validation loss of the epoch."""
        if len(net.history) <= self.n_wait:
            return
        loss = net.history[-1]["valid_loss"]
        if loss < self.lowest_:
            self.lowest_, self.state_ = loss, copy.deepcopy(net.module_.state_dict())
        improved = loss < self.reference_ - self.tol
        self.reference_, self.n_without_ = (loss, 0) if improved else (self.reference_, self.n_without_ + 1)

    def on_train_end(self, net, **kwargs):
        """Put the best weights back."""
        if self.state_ is not None:
            net.module_.load_state_dict(self.state_)

    def state(self, net):
        """What `resume` needs."""
        numbers = {"lowest_": float(self.lowest_), "reference_": float(self.reference_)}
        return numbers | {"n_without_": self.n_without_, "state_": copy.deepcopy(self.state_)}

    def resume(self, net, state):
        """Go on from a state."""
        vars(self).update(copy.deepcopy(state))

    @property
    def exhausted(self):
        """Whether to stop."""
        return self.n_without_ >= self.patience


class EpochProgress(Resumable):
    """One progress bar over the epochs, with the loss beside it."""

    def __init__(self, description):
        self.description = description

    def on_train_begin(self, net, **kwargs):
        """Open the bar."""
        self.bar_ = tqdm(total=net.max_epochs, desc=self.description, unit="epoch")

    def state(self, net):
        """What `resume` needs: nothing that is not in the history."""
        return {}

    def resume(self, net, state):
        """Show the epochs that were done."""
        if hasattr(self, "bar_"):  # not where nothing is left to do
            self.bar_.n = len(net.history)
            self.bar_.refresh()

    def on_epoch_end(self, net, **kwargs):
        """Advance the bar."""
        self.bar_.set_postfix(loss=f"{net.history[-1]['train_loss']:.4g}", refresh=False)
        self.bar_.update()

    def on_train_end(self, net, **kwargs):
        """Close the bar."""
        self.bar_.close()
