"""Early stopping: the estimators' own, saved in checkpoints, and skorch's, given as a user callback.

skorch's `EarlyStopping` is not used for the estimators' own: its tolerance is relative, and it cannot be resumed.
"""

import copy
import math

from skorch.callbacks import EarlyStopping as SkorchEarlyStopping

from .checkpoint import Resumable


class EarlyStopping(Resumable):
    """Stop when the validation loss has not improved for a while, and restore the best weights.

    Parameters
    ----------
    patience : int
        Epochs without an improvement before the training stops.
    tol : float
        Smallest improvement, in nats per sample.
    n_wait : int
        Epochs at the beginning that do not count: those of the KL warm-up.

    Attributes
    ----------
    stops_ : bool
        Whether the training should stop.
    """

    def __init__(self, patience, tol, n_wait=0):
        self.patience, self.tol, self.n_wait = patience, tol, n_wait

    def on_train_begin(self, net, **kwargs):
        """Reset the state."""
        self.lowest_, self.reference_, self.n_without_, self.state_ = math.inf, math.inf, 0, None

    def on_epoch_end(self, net, **kwargs):
        """Compare the validation loss of the epoch."""
        if len(net.history) <= self.n_wait:
            return
        loss = net.history[-1]["valid_loss"]
        if loss < self.lowest_:
            self.lowest_, self.state_ = loss, copy.deepcopy(net.module_.state_dict())
        improved = loss < self.reference_ - self.tol
        self.reference_, self.n_without_ = (loss, 0) if improved else (self.reference_, self.n_without_ + 1)

    def on_train_end(self, net, **kwargs):
        """Restore the best weights."""
        if self.state_ is not None:
            net.module_.load_state_dict(self.state_)

    def state(self, net):
        """Return the state that `resume` needs."""
        numbers = {"lowest_": float(self.lowest_), "reference_": float(self.reference_)}
        return numbers | {"n_without_": self.n_without_, "state_": copy.deepcopy(self.state_)}

    def resume(self, net, state):
        """Continue from a state."""
        vars(self).update(copy.deepcopy(state))

    @property
    def stops_(self):  # noqa: D102
        return self.n_without_ >= self.patience


def should_stop(net, group):
    """Return whether a callback of any process asks to stop: ours, or one of scikit-learn."""
    asked = any(getattr(callback, "stops_", False) for _, callback in net.callbacks_)
    return any(group.all_gather_int(asked))


def was_stopped_by_skorch(net):
    """Return whether skorch's early stopping raised a KeyboardInterrupt, its only way to end a training."""
    stoppers = [callback for _, callback in net.callbacks_ if isinstance(callback, SkorchEarlyStopping)]
    return any(getattr(callback, "misses_", 0) == callback.patience for callback in stoppers)
