"""Epochs of a training, each from a state that it can go back to."""

import math

from skorch.callbacks import EarlyStopping

from .devices import is_out_of_memory
from .distributed import SINGLE_PROCESS
from .parallel import JointOutOfMemory
from .snapshots import put_back, recorded, schedules, take_snapshot
from .warnings import warn


class Interrupted(BaseException):
    """A training was interrupted, and its net is as it was after the last whole epoch. It is raised from the reason."""

    def __init__(self, net):
        super().__init__()
        self.net = net


class Epochs:
    """Epochs until the end, or until a callback has seen enough.

    Parameters
    ----------
    net : skorch.NeuralNet
    model : LatentModel
        That of the net, not compiled.
    dataset : Rows
    generator : torch.Generator
    plan : Plan
    best : BestWeights or None
        Says when to stop.
    checkpoint : Checkpoint or None
        Where the state is written after each epoch.
    keeps : bool
        Whether an interruption leaves the net as it was after the last whole epoch.
    group : SingleProcess or Group
        The processes that train.
    """

    def __init__(self, net, model, dataset, generator, plan, best, checkpoint, keeps=False, group=SINGLE_PROCESS):
        self.net, self.model, self.dataset, self.generator, self.group = net, model, dataset, generator, group
        self.plan, self.best, self.checkpoint, self.keeps = plan, best, checkpoint, keeps
        self.n_halved = 0

    def train(self):
        """Train; return what interrupted it, if the epochs before are kept, else None."""
        good = self._snapshot()
        while good["epochs_done"] < self.plan.max_epochs and not self._is_enough():
            try:
                self.net.fit_loop(self.dataset, epochs=1)  # unlike fit, it lets Ctrl-C through
                new = self._snapshot()
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt) and _stopped_by_callback(self.net):
                    return None
                is_short = is_out_of_memory(error)
                if is_short and self._can_halve_batches(error):
                    self._halve_batches()
                    self.go_back(good)
                    continue
                self._leave()
                if is_short or not self.keeps or good["epochs_done"] == 0:
                    raise
                self.go_back(good)
                return error
            last = self.net.history[-1]
            if not math.isfinite(last["train_loss"]):
                self._halve_rate(last, good)
                continue
            good = new
            if self.checkpoint is not None:
                self.checkpoint.keep({**good, "history": recorded(self.net)})
        return None

    def go_back(self, snapshot):
        """Continue from a snapshot."""
        put_back(self.net, self.model, self.generator, snapshot, own_modules=self.plan.own_modules)

    def _leave(self):
        """Take part no more. What averages gradients goes first.

        The last to let go of a group waits for its threads, and they may wait for Python's lock, which is free only if
        it is Python that lets go.
        """
        if getattr(self.net, "averaged", None) is not None:
            self.net.averaged.drop()
        self.group.leave()

    def _snapshot(self):
        return take_snapshot(self.net, self.model, self.generator)

    def _is_enough(self):
        """Whether a callback has seen enough."""
        asked = any(getattr(callback, "stops_", False) for _, callback in self.net.callbacks_)
        return any(self.group.all_gather_int(asked or (self.best is not None and self.best.exhausted)))

    def _halve_rate(self, last, good):
        """Go back to the last good epoch with half the learning rate, once; then raise."""
        terms = {"log-likelihood": last["train_log_likelihood"], "KL": last["train_kl"]}
        broken = [name for name, value in terms.items() if not math.isfinite(value)] or ["agreement of views"]
        found = (
            f"The training loss became {last['train_loss']} in epoch {last['epoch']}, by its {' and '.join(broken)} "
            f"(log-likelihood {terms['log-likelihood']:.6g}, KL {terms['KL']:.6g})"
        )
        if self.n_halved:
            raise ValueError(
                f"{found}, with half of {self.plan.lr_name}={self.plan.lr:g} too. Decrease {self.plan.lr_name}, clip "
                "gradients with max_grad_norm, or scale the input data."
            )
        self.n_halved += 1
        if self.group.rank == 0:
            warn(
                f"{found}. The training goes on from epoch {good['epochs_done']} with half the learning rate.",
                RuntimeWarning,
            )
        self.go_back(good)
        for group in self.net.optimizer_.param_groups:
            group["lr"] *= 0.5
            group["initial_lr"] = group.get("initial_lr", 2 * group["lr"]) * 0.5
        for schedule in schedules(self.net):
            scheduler = schedule.lr_scheduler_
            scheduler.base_lrs = [0.5 * lr for lr in scheduler.base_lrs]

    def _can_halve_batches(self, error):
        """Whether smaller batches help: they can be smaller, and all processes know."""
        return self.net.batch_size >= 4 and (self.group.size == 1 or isinstance(error, JointOutOfMemory))

    def _halve_batches(self):
        """Use smaller batches."""
        if self.net.batch_size == self.plan.batch_size and self.group.rank == 0:
            warn(
                f"The device ran out of memory with batches of {self.plan.batch_size} rows; the training goes on with "
                "smaller ones.",
                RuntimeWarning,
            )
        self.net.batch_size //= 2


def _stopped_by_callback(net):
    """Whether the interrupt came from skorch's early stopping, which has no other way to say that it is done."""
    stoppers = [callback for _, callback in net.callbacks_ if isinstance(callback, EarlyStopping)]
    return any(getattr(callback, "misses_", 0) == callback.patience for callback in stoppers)
