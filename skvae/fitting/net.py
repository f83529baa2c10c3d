"""skorch nets for training: the objective, the optimizer, the schedules and the records."""

import inspect
import math
import re
from functools import partial

import torch
from skorch import NeuralNet
from skorch.callbacks import Callback, GradientNormClipping, LRScheduler
from skorch.exceptions import SkorchException
from skorch.helper import predefined_split
from torch import nn
from tqdm import tqdm

from .batches import RowDataset, TrainingBatches, ValidationBatches, is_placeholder, standardized
from .checkpoint import Resumable
from .data_parallel import JointLosses, JointSteps
from .distributed import SINGLE_PROCESS
from .evaluation import normal_points

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
# Factors of the learning rate, by the share of the training that is done.
LR_SCHEDULES = {
    "cosine": lambda share: 0.5 * (1 + math.cos(math.pi * share)),
    "exponential": lambda share: 0.01**share,
    "linear": lambda share: 1 - 0.99 * share,
}
NOT_MONITORED = re.compile("^(batches|epoch|dur|event_.*|.*_batch_count|.*_batch_size)$")  # in the history
COMPILE_MODES = {mode: mode for mode in ("reduce-overhead", "max-autotune")}  # other than torch's default


class NegativeELBO(nn.Module):
    """Loss of a batch: mean over samples of ``beta * kl - log_likelihood``, in nats.

    With ``beta = 1`` it is minus the evidence lower bound; other values are the beta-VAE of Higgins et al. 2017. Where
    samples are paired, ``consistency`` times the mutual information of clusters between the pairs is subtracted. In
    training the KL may be warmed up by ``kl_scale``, and each latent dimension has ``free_bits`` nats without cost, in
    the mean over the batch (Kingma et al. 2016, equation 15).
    """

    def __init__(self, beta=1.0, free_bits=0.0, consistency=0.0):
        super().__init__()
        self.beta, self.free_bits, self.consistency, self.kl_scale = beta, free_bits, consistency, 1.0

    def forward(self, elbo, target):
        """Return the loss of a batch; the ELBO includes the samples, so that the target is not used."""
        parts, beta = elbo.kl_parts.mean(0), self.beta
        if self.training:
            beta = beta * self.kl_scale
            parts = parts.clamp(min=self.free_bits) if self.free_bits else parts
        loss = beta * parts.sum() - elbo.log_likelihood.mean()
        return loss if elbo.agreement is None else loss - self.consistency * elbo.agreement.mean()


class EpochNet(NeuralNet):
    """skorch's net, but without waiting for the device after each batch: on an accelerator, the losses stay there.

    The history of batches has tensors until the epoch is over, and numbers then: they are read all at once, with the
    sums of `ELBOTerms`. An error of a callback that asks for a missing record names the records.
    """

    validation_advice = ""  # how to get records of validation samples

    def notify(self, method_name, **kwargs):
        """Call a method of the net and of its callbacks.

        Raises
        ------
        ValueError
            If a callback asks for a record that is missing.
        """
        getattr(self, method_name)(self, **kwargs)
        for name, callback in self.callbacks_:
            try:
                getattr(callback, method_name)(self, **kwargs)
            except (KeyError, ValueError, SkorchException) as error:
                missing = _missing_record(error, callback)
                if missing is None:
                    raise
                level = "batch" if method_name.startswith("on_batch") else "epoch"
                raise ValueError(self._explain_missing(name, missing, level)) from error

    def _explain_missing(self, name, missing, level):
        """Return a message that names the existing records, and how to get the missing one."""
        row = self.history[-1] if self.history else {}
        row = row["batches"][-1] if level == "batch" else row
        records = [key for key in row if not NOT_MONITORED.search(key)]
        similar = missing.replace("valid_", "train_")
        advice = [f"monitor={similar!r}"] if similar != missing and similar in records else []
        advice += [self.validation_advice] if "valid_" in missing and self.validation_advice else []
        advice = advice or [f"one of these, or a callback before it that records {missing!r}"]
        return (
            f"The callback {name!r} asks for {missing!r}, but the records of this {level} are "
            f"{', '.join(records) or 'none'}; use {', or '.join(advice)}."
        )

    def run_single_epoch(self, iterator, training, prefix, step_fn, **fit_params):
        """Train or validate for an epoch."""
        if iterator is None:
            return
        waiting, n_batches = [], 0
        reads_later = self._reads_losses_later()
        for batch in iterator:
            self.notify("on_batch_begin", batch=batch, training=training)
            step = step_fn(batch, **fit_params)
            loss = step["loss"].detach()
            n_batches += 1
            if reads_later:
                waiting.append(loss)
            self.history.record_batch(f"{prefix}_loss", loss if reads_later else loss.item())
            self.history.record_batch(f"{prefix}_batch_size", 0 if is_placeholder(batch) else len(batch[0]["u"]))
            self.notify("on_batch_end", batch=batch, training=training, **step)
        if waiting:
            rows = self.history[-1]["batches"][-n_batches:]

            def write(losses):
                for row, loss in zip(rows, losses, strict=True):
                    row[f"{prefix}_loss"] = loss

            self.read_later(torch.stack(waiting), write)
        self.history.record(f"{prefix}_batch_count", n_batches)

    def read_later(self, values, use):
        """Read numbers (m,) of the device at the end of the epoch, and call a function with a list of them."""
        self.unread_.append((values, use))

    def on_epoch_begin(self, net, **kwargs):
        """Clear the numbers to read."""
        super().on_epoch_begin(net, **kwargs)
        self.unread_ = []

    def on_epoch_end(self, net, **kwargs):
        """Read numbers from the device, all at once, before any callback looks at the history."""
        super().on_epoch_end(net, **kwargs)
        for _, callback in self.callbacks_:
            if isinstance(callback, ELBOTerms):
                callback.read_means_later(net)
        if self.unread_:
            numbers = torch.cat([values for values, _ in self.unread_]).tolist()
            for values, use in self.unread_:
                use(numbers[: len(values)])
                del numbers[: len(values)]
        self.unread_ = []

    def _reads_losses_later(self):
        """Return whether reading a loss would wait for the device."""
        return torch.device(self.device).type != "cpu"


def _missing_record(error, callback):
    """Return the name of the record that a callback looked up in vain in the history; None for another error."""
    error = error if isinstance(error, KeyError) else error.__context__  # of a callback that explains it
    if not isinstance(error, KeyError) or not error.args or not isinstance(error.args[0], str):
        return None
    key = error.args[0]
    if match := re.fullmatch("Key (.+) was not found in history[.]", key):
        return match[1].strip("'")
    return key if key == getattr(callback, "monitor", None) or key.startswith(("train_", "valid_")) else None


class JointNet(JointSteps, EpochNet):
    """A net for data parallel training."""


class ELBOTerms(Callback):
    """Record the mean log-likelihood and KL of each epoch, without waiting for the device at each batch.

    They are means over the training samples, and over the validation samples if there are any. Of pairs, the
    mutual information of clusters is recorded, too, of the mixture that has most of it.

    Parameters
    ----------
    group : ProcessGroup
        The process group that trains.
    """

    def __init__(self, group=SINGLE_PROCESS):
        self.group = group

    def on_epoch_begin(self, net, **kwargs):
        """Reset the sums."""
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

        def record(names, divisor, values):
            self.means_ |= {name: value / divisor for name, value in zip(names, values, strict=True)}

        for part, sums in self.sums_.items():
            sums, n_rows = self.group.all_reduce_sum(sums, self.n_rows_[part])
            net.read_later(sums / n_rows, partial(record, [f"{part}_log_likelihood", f"{part}_kl"], 1))
        if self.agreements_:
            agreement, n_processes = self.group.all_reduce_sum(torch.stack(self.agreements_).mean(), 1)
            net.read_later(agreement[None], partial(record, ["train_agreement"], n_processes))

    def on_epoch_end(self, net, **kwargs):
        """Record the means."""
        for name, mean in self.means_.items():
            net.history.record(name, mean)


class KLWarmUp(Callback):
    """Let the weight of the KL grow linearly over the first epochs (Bowman et al. 2016)."""

    def __init__(self, n_epochs):
        self.n_epochs = n_epochs

    def on_epoch_begin(self, net, **kwargs):
        """Set the weight of this epoch."""
        net.criterion_.kl_scale = min(1.0, len(net.history) / (self.n_epochs + 1))


class EpochProgress(Resumable):
    """Show a progress bar over the epochs, with the loss."""

    def __init__(self, description):
        self.description = description

    def on_train_begin(self, net, **kwargs):
        """Open the bar."""
        self.bar_ = tqdm(total=net.max_epochs, desc=self.description, unit="epoch")

    def state(self, net):
        """Return the state that `resume` needs: none but the history."""
        return {}

    def resume(self, net, state):
        """Show the epochs that are done."""
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


def make_net(model, plan, data, n_steps, callbacks):
    """Return the net that trains a model as a plan says.

    Parameters
    ----------
    model : LatentModel
    plan : Plan
    data : TrainingData
    n_steps : int
        Iterations of the whole training.
    callbacks : list of skorch.callbacks.Callback
        Those of the training itself, which come after the records and before the plan's.
    """
    optimizer = OPTIMIZERS.get(plan.optimizer, plan.optimizer)
    settings = {"optimizer__lr": plan.lr, "optimizer__weight_decay": plan.weight_decay}
    if has_fused_steps(optimizer, data.device):
        settings["optimizer__fused"] = True  # one kernel for all parameters: the largest single saving in an epoch
    if data.validation_rows is not None:
        settings["iterator_valid"] = ValidationBatches
        settings["iterator_valid__points"] = normal_points(8, plan.latent_dim).to(data.device, torch.float32)
        settings["iterator_valid__standardize"] = partial(standardized, model)
    net = (EpochNet if data.group.size == 1 else JointNet)(
        torch.compile(model, mode=COMPILE_MODES.get(plan.compile)) if plan.compile else model,
        criterion=NegativeELBO,
        criterion__beta=plan.beta,
        criterion__free_bits=plan.free_bits,
        criterion__consistency=plan.consistency,
        optimizer=optimizer,
        max_epochs=plan.max_epochs,
        batch_size=plan.batch_size,
        iterator_train=TrainingBatches,
        iterator_train__noise_shape=(plan.latent_dim,) if plan.n_draws == 1 else (plan.n_draws, plan.latent_dim),
        iterator_train__generator=data.generator,
        iterator_train__standardize=partial(standardized, model),
        iterator_train__view_of=plan.view_of,
        iterator_train__group=data.group,
        iterator_train__neighbors=data.neighbors,
        # Without this skorch would hold out a fifth of the rows.
        train_split=None if data.validation_rows is None else predefined_split(RowDataset(data.validation_rows)),
        callbacks=_net_callbacks(plan, n_steps, callbacks, data.group),
        device=data.device,
        verbose=0,
        **settings,
    ).initialize()
    net.validation_advice = plan.validation_advice if data.validation_rows is None else ""
    return net if data.group.size == 1 else net.set_group(data.group, uses_all=not plan.user_modules)


def unwrapped_module(net):
    """Return the model that a net trains, not compiled."""
    return getattr(net.module_, "_orig_mod", net.module_)


def has_fused_steps(optimizer, device):
    """Return whether an optimizer has one kernel for all parameters; on mps that depends on the version of torch."""
    if "fused" not in inspect.signature(optimizer).parameters:
        return False
    if torch.device(device).type != "mps":
        return True
    try:
        optimizer([torch.zeros(1, device=device, requires_grad=True)], lr=1e-3, fused=True)
    except RuntimeError:
        return False
    return True


def load_optimizer_state(optimizer, state):
    """Give an optimizer the state of an earlier one, but not its settings, which may have changed."""
    settings = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, fresh in zip(optimizer.param_groups, settings, strict=True):
        for name in set(group) - set(fresh) - {"params"}:
            del group[name]
        group.update(fresh)


def _net_callbacks(plan, n_steps, callbacks, group):
    """Return the callbacks of a training with their names, ours before the user's."""
    ours = [ELBOTerms(group)] if group.size == 1 else [JointLosses(), ELBOTerms(group)]
    if plan.kl_warmup_epochs:
        ours.append(KLWarmUp(plan.kl_warmup_epochs))
    if plan.lr_schedule is not None:
        factor = LR_SCHEDULES.get(plan.lr_schedule) if isinstance(plan.lr_schedule, str) else plan.lr_schedule
        by_step = LRScheduler(
            policy="LambdaLR", lr_lambda=lambda step: factor(min(step / n_steps, 1.0)), step_every="batch"
        )
        ours.append(by_step)
    if plan.max_grad_norm is not None:
        ours.append(GradientNormClipping(plan.max_grad_norm))
    ours += callbacks
    if plan.progress is not None:
        ours.append(EpochProgress(plan.progress))
    # Users may name theirs as they like, so that ours have names of their own.
    named = [item if isinstance(item, tuple) else (f"skvae.{type(item).__name__}", item) for item in plan.callbacks]
    return [(f"skvae.{type(item).__name__}", item) for item in ours] + named
