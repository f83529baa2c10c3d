"""skorch's nets for trainings: the objective, the optimizer, the schedules and the callbacks."""

import inspect
import math
import re
from functools import partial

import torch
from skorch import NeuralNet
from skorch.callbacks import GradientNormClipping, LRScheduler
from skorch.exceptions import SkorchException
from skorch.helper import predefined_split
from torch import nn

from .batches import FixedBatches, RowBatches, Rows, standardized
from .callbacks import ELBOTerms, EpochProgress, KLWarmUp
from .parallel import JointLosses, JointSteps, is_placeholder
from .quadrature import normal_points

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
    """The loss: mean over rows of ``beta * kl - log_likelihood``, in nats.

    With ``beta = 1`` it is minus the evidence lower bound; other values are the beta-VAE of Higgins et al. 2017. Where
    the rows have two views, ``consistency`` is the weight of what these agree on, which is taken off the loss. In
    training the KL may be warmed up, and each latent dimension has ``free_bits`` nats without cost, in the mean over
    the batch (Kingma et al. 2016, equation 15).
    """

    def __init__(self, beta=1.0, free_bits=0.0, consistency=0.0):
        super().__init__()
        self.beta, self.free_bits, self.consistency, self.warmth = beta, free_bits, consistency, 1.0

    def forward(self, elbo, target):
        """Loss of a batch; the rows are already inside the ELBO, so the target is not used."""
        parts, beta = elbo.kl_parts.mean(0), self.beta
        if self.training:
            beta = beta * self.warmth
            parts = parts.clamp(min=self.free_bits) if self.free_bits else parts
        loss = beta * parts.sum() - elbo.log_likelihood.mean()
        return loss if elbo.agreement is None else loss - self.consistency * elbo.agreement.mean()


class EpochNet(NeuralNet):
    """skorch's net, but without waiting for the device after each batch: on an accelerator, the losses stay there.

    The history of batches has tensors until the epoch is over, and numbers then: they are read all at once, with what
    `ELBOTerms` has summed. A callback that asks it for a record that there is not is told which there are.
    """

    validation_advice = ""  # how to get records of validation rows

    def notify(self, method_name, **kwargs):
        """Call a method of the net and of its callbacks.

        Raises
        ------
        ValueError
            If a callback asks for a record that there is not.
        """
        getattr(self, method_name)(self, **kwargs)
        for name, callback in self.callbacks_:
            try:
                getattr(callback, method_name)(self, **kwargs)
            except (KeyError, ValueError, SkorchException) as error:
                missing = missing_record(error, callback)
                if missing is None:
                    raise
                level = "batch" if method_name.startswith("on_batch") else "epoch"
                raise ValueError(self._explain_missing(name, missing, level)) from error

    def _explain_missing(self, name, missing, level):
        """Say which records there are beside a missing one, and how to get it."""
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
        waiting, later, n_batches = [], self._reads_losses_later(), 0
        for batch in iterator:
            self.notify("on_batch_begin", batch=batch, training=training)
            step = step_fn(batch, **fit_params)
            loss = step["loss"].detach()
            n_batches += 1
            if later:
                waiting.append(loss)
            self.history.record_batch(f"{prefix}_loss", loss if later else loss.item())
            self.history.record_batch(f"{prefix}_batch_size", 0 if is_placeholder(batch) else len(batch[0]["u"]))
            self.notify("on_batch_end", batch=batch, training=training, **step)
        if waiting:
            rows = self.history[-1]["batches"][-n_batches:]
            self.read_later(torch.stack(waiting), partial(_write_losses, rows, f"{prefix}_loss"))
        self.history.record(f"{prefix}_batch_count", n_batches)

    def read_later(self, values, use):
        """Have numbers (m,) of the device read at the end of the epoch, and a function called with a list of them."""
        self.unread_.append((values, use))

    def on_epoch_begin(self, net, **kwargs):
        """Begin with nothing to read."""
        super().on_epoch_begin(net, **kwargs)
        self.unread_ = []

    def on_epoch_end(self, net, **kwargs):
        """Read what is on the device, all at once, before any callback looks at the history."""
        super().on_epoch_end(net, **kwargs)
        for _, callback in self.callbacks_:
            if isinstance(callback, ELBOTerms):
                callback.read_means_later(net)
        if self.unread_:
            found = torch.cat([values for values, _ in self.unread_]).tolist()
            for values, use in self.unread_:
                use(found[: len(values)])
                del found[: len(values)]
        self.unread_ = []

    def _reads_losses_later(self):
        """Whether reading a loss would wait for the device."""
        return torch.device(self.device).type != "cpu"


def _write_losses(rows, name, losses):
    """Put the losses of batches into their rows of the history."""
    for row, loss in zip(rows, losses, strict=True):
        row[name] = loss


def missing_record(error, callback):
    """Return the name of the record that a callback looked up in vain in the history; None for another error."""
    error = error if isinstance(error, KeyError) else error.__context__  # of a callback that explains it
    if not isinstance(error, KeyError) or not error.args or not isinstance(error.args[0], str):
        return None
    key = error.args[0]
    if found := re.fullmatch("Key (.+) was not found in history[.]", key):
        return found[1].strip("'")
    return key if key == getattr(callback, "monitor", None) or key.startswith(("train_", "valid_")) else None


class JointNet(JointSteps, EpochNet):
    """A net that several processes train."""


def make_net(model, plan, n_steps, noise_size, generator, device, validation_rows, best, group):
    """The net that trains a model as a plan says; see `fit_module`."""
    optimizer = OPTIMIZERS.get(plan.optimizer, plan.optimizer)
    settings = {"lr": plan.lr, "weight_decay": plan.weight_decay}
    if has_fused_steps(optimizer, device):
        settings["fused"] = True  # one kernel for all parameters: the largest single saving in an epoch
    validation = {}
    if validation_rows is not None:
        points = normal_points(8, noise_size).to(device, torch.float32)
        validation = {"iterator_valid": FixedBatches, "iterator_valid__points": points}
        validation["iterator_valid__standardize"] = partial(standardized, model)
    net = (EpochNet if group.size == 1 else JointNet)(
        torch.compile(model, mode=COMPILE_MODES.get(plan.compile)) if plan.compile else model,
        criterion=NegativeELBO,
        criterion__beta=plan.beta,
        criterion__free_bits=plan.free_bits,
        criterion__consistency=plan.consistency,
        optimizer=optimizer,
        **{f"optimizer__{name}": value for name, value in settings.items()},
        max_epochs=plan.max_epochs,
        batch_size=plan.batch_size,
        iterator_train=RowBatches,
        iterator_train__noise_shape=(noise_size,) if plan.n_draws == 1 else (plan.n_draws, noise_size),
        iterator_train__generator=generator,
        iterator_train__standardize=partial(standardized, model),
        iterator_train__view_of=plan.view_of,
        iterator_train__group=group,
        **validation,
        # Without this skorch would hold out a fifth of the rows.
        train_split=None if validation_rows is None else predefined_split(Rows(validation_rows)),
        callbacks=_callbacks(plan, n_steps, best, group),
        device=device,
        verbose=0,
    ).initialize()
    net.validation_advice = plan.validation_advice if validation_rows is None else ""
    return net if group.size == 1 else net.begin(group, uses_all=not plan.own_modules)


def has_fused_steps(optimizer, device):
    """Whether an optimizer has one kernel for all parameters; on mps that depends on the version of torch."""
    if "fused" not in inspect.signature(optimizer).parameters:
        return False
    if torch.device(device).type != "mps":
        return True
    try:
        optimizer([torch.zeros(1, device=device, requires_grad=True)], lr=1e-3, fused=True)
    except RuntimeError:
        return False
    return True


def remember(optimizer, state):
    """Give an optimizer the state of an earlier one, but not its settings, which may have changed."""
    settings = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, fresh in zip(optimizer.param_groups, settings, strict=True):
        for name in set(group) - set(fresh) - {"params"}:
            del group[name]
        group.update(fresh)


def _callbacks(plan, n_steps, best, group):
    """The plan's callbacks with their names, ours before the user's."""
    found = [ELBOTerms(group)] if group.size == 1 else [JointLosses(), ELBOTerms(group)]
    if plan.kl_warmup_epochs:
        found.append(KLWarmUp(plan.kl_warmup_epochs))
    if plan.lr_schedule is not None:
        factor = LR_SCHEDULES.get(plan.lr_schedule) if isinstance(plan.lr_schedule, str) else plan.lr_schedule
        by_step = partial_schedule(factor, n_steps)
        found.append(LRScheduler(policy="LambdaLR", lr_lambda=by_step, step_every="batch"))
    if plan.max_grad_norm is not None:
        found.append(GradientNormClipping(plan.max_grad_norm))
    if best is not None:
        found.append(best)
    if plan.progress is not None:
        found.append(EpochProgress(plan.progress))
    # Users may name theirs as they like, so that ours have names of their own.
    return [
        item if isinstance(item, tuple) else (f"skvae.{type(item).__name__}", item)
        for item in (*found, *plan.callbacks)
    ]


def partial_schedule(factor, n_steps):
    """The factor of the learning rate in a step, counted from zero."""
    return lambda step: factor(min(step / n_steps, 1.0))
