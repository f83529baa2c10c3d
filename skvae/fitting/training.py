"""Gradient training of modules through skorch: the objective, the batches and the loop."""

import inspect
import math
import warnings
from collections.abc import Callable
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial

import torch
from skorch import NeuralNet
from skorch.callbacks import EarlyStopping, GradientNormClipping, LRScheduler
from skorch.helper import predefined_split
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import Dataset

from ..models.networks import set_generator
from .callbacks import BestWeights, ELBOTerms, EpochProgress, KLWarmUp
from .snapshots import put_back, recorded, schedules, take_snapshot
from .sources import shuffled

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
# Factors of the learning rate, by the share of the training that is done.
LR_SCHEDULES = {
    "cosine": lambda share: 0.5 * (1 + math.cos(math.pi * share)),
    "exponential": lambda share: 0.01**share,
    "linear": lambda share: 1 - 0.99 * share,
}
COMPILE_MODES = {mode: mode for mode in ("reduce-overhead", "max-autotune")}  # other than torch's default
ROWS_FOR_BATCH_NORM = 10_000
BLOCK = 64  # batches that go to the device at a time if the rows are too large for it


@dataclass(frozen=True)
class Plan:
    """How to train: what the estimators' parameters of the same names say."""

    max_epochs: int
    batch_size: int = 128
    lr: float = 1e-3
    lr_name: str = "lr"  # of the parameter
    beta: float = 1.0
    kl_warmup_epochs: int = 0
    free_bits: float = 0.0
    consistency: float = 0.0
    n_draws: int = 1
    optimizer: str | type = "adam"
    weight_decay: float = 0.0
    lr_schedule: str | Callable | None = None
    max_grad_norm: float | None = None
    patience: int | None = None  # epochs without improvement before stopping, if there are validation rows
    tol: float = 1e-4
    view_of: Callable | None = None  # (u, generator) -> what the encoder sees instead
    see_rows: bool = True  # whether batch normalisation gets the statistics of rows, and not of views, at the end
    bf16: bool = False
    compile: bool | str = False
    own_modules: bool = False  # whether parts of the model are the user's, which may draw random numbers
    callbacks: tuple = ()
    progress: str | None = None


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


class Rows(Dataset):
    """Rows, a tensor or a source, in the form in which skorch passes data on."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


class RowBatches:
    """Shuffled batches of rows and the noise for their codes, sliced from one tensor.

    The rows are dealt to batches of nearly equal size, so that none is dropped and none has a single row (which
    batch normalisation could not use). They lie on the device of the generator, or are brought there a block of
    batches at a time.
    """

    def __init__(self, dataset, batch_size, noise_shape, generator, standardize, view_of=None, n_block=None):
        self.rows = dataset.rows
        self.n_batches = count_batches(len(self.rows), batch_size)
        self.noise_shape, self.generator = noise_shape, generator
        self.standardize, self.view_of = standardize, view_of
        held = isinstance(self.rows, torch.Tensor) and self.rows.device.type == generator.device.type
        self.n_block = n_block or (1 if held else BLOCK)

    def __len__(self):
        return self.n_batches

    def __iter__(self):
        source = {"generator": self.generator, "device": self.generator.device}
        n_together = self.n_block * math.ceil(len(self.rows) / self.n_batches)
        batches = shuffled(self.rows, self.generator, n_together).tensor_split(self.n_batches)
        for first in range(0, self.n_batches, self.n_block):
            indices = batches[first : first + self.n_block]
            block = self.rows[torch.cat(indices).to(self.rows.device)].to(self.generator.device, non_blocking=True)
            for stored in block.split([len(batch) for batch in indices]):
                u = self.standardize(stored)
                batch = {"u": u, "noise": torch.randn(len(u), *self.noise_shape, **source)}
                if self.view_of is not None:
                    batch["view"] = self.view_of(u, self.generator)
                yield batch, u[:0]


class FixedBatches:
    """Batches of validation rows in order, each with the same noise, so that epochs can be compared."""

    def __init__(self, dataset, batch_size, points, standardize):
        self.rows = dataset.rows
        self.batch_size, self.points, self.standardize = batch_size, points, standardize

    def __len__(self):
        return math.ceil(len(self.rows) / self.batch_size)

    def __iter__(self):
        for stored in self.rows.split(self.batch_size):
            u = self.standardize(stored.to(self.points.device))
            yield {"u": u, "noise": self.points.expand(len(u), *self.points.shape)}, u[:0]


class EpochNet(NeuralNet):
    """skorch's net, but without waiting for the device after each batch: on an accelerator, the losses stay there.

    The history of batches has tensors until the epoch is over, and numbers then.
    """

    def run_single_epoch(self, iterator, training, prefix, step_fn, **fit_params):
        """Train or validate for an epoch."""
        if iterator is None:
            return
        losses, later = [], self._reads_losses_later()
        for batch in iterator:
            self.notify("on_batch_begin", batch=batch, training=training)
            step = step_fn(batch, **fit_params)
            loss = step["loss"].detach()
            losses.append(loss)
            self.history.record_batch(f"{prefix}_loss", loss if later else loss.item())
            self.history.record_batch(f"{prefix}_batch_size", len(batch[0]["u"]))
            self.notify("on_batch_end", batch=batch, training=training, **step)
        if later:
            for row, loss in zip(
                self.history[-1]["batches"][-len(losses) :], torch.stack(losses).tolist(), strict=True
            ):
                row[f"{prefix}_loss"] = loss
        self.history.record(f"{prefix}_batch_count", len(losses))

    def _reads_losses_later(self):
        """Whether reading a loss would wait for the device."""
        return torch.device(self.device).type != "cpu"


def count_batches(n_rows, batch_size):
    """Number of batches of about this size, none of them with a single row unless there is only one."""
    return max(1, min(math.ceil(n_rows / batch_size), n_rows // 2))


def standardized(model, rows):
    """What the model works on: the rows themselves, or if they are whole numbers, their standardised form."""
    return rows if rows.is_floating_point() else model.standardize(rows)


def mean_elbo(model, rows, device, n_points=8, batch_size=1_024):
    """Mean evidence lower bound of rows, with the expectation over codes at fixed points."""
    model.eval()
    total = 0.0
    with torch.inference_mode():
        for stored in rows.split(batch_size):
            u = standardized(model, stored.to(device))
            q = model.posterior(u)
            points = normal_points(n_points, q.mean.shape[1]).to(u)
            total += model.elbo(u, q, points.expand(len(u), *points.shape)).value.double().sum().item()
    return total / len(rows)


def normal_points(n_points, n_components):
    """Quasi-random standard normal points in pairs z and -z: scrambled Sobol points with a fixed seed, float64."""
    sobol = torch.quasirandom.SobolEngine(n_components, scramble=True, seed=0)
    half = torch.special.ndtri(sobol.draw(n_points // 2, dtype=torch.float64).clamp(1e-12, 1 - 1e-12))
    return torch.cat([half, -half])


def fit_module(
    model,
    rows,
    plan,
    *,
    noise_size,
    generator,
    device,
    validation_rows=None,
    optimizer_state=None,
    checkpoint=None,
):
    """Train a latent model in place.

    Parameters
    ----------
    model : LatentModel
    rows : Tensor of shape (n, d)
        Standardised rows; or whole numbers as the data have them, which are standardised a batch at a time. They are
        on the device, or on the CPU if they are too large for it.
    plan : Plan
    noise_size : int
        Size of a code.
    generator : torch.Generator
        Source of the shuffles and of the codes, on the device.
    validation_rows : Tensor of shape (m, d), optional
        Rows of the same kind. Their loss is recorded, and decides when to stop if the plan has a patience.
    optimizer_state : dict, optional
        State of the optimizer of an earlier training that goes on here.
    checkpoint : Checkpoint, optional
        Where the state is written after each epoch, and where the training goes on if it was interrupted.

    Returns
    -------
    net : skorch.NeuralNet
        The trained net, with its history.
    """
    stops = plan.patience is not None and validation_rows is not None
    best = BestWeights(plan.patience, plan.tol, plan.kl_warmup_epochs) if stops else None
    n_steps = plan.max_epochs * count_batches(len(rows), plan.batch_size)
    net = _make_net(model, plan, n_steps, noise_size, generator, device, validation_rows, best)
    if optimizer_state is not None:
        remember(net.optimizer_, optimizer_state)
    snapshot, finished = (None, False) if checkpoint is None else checkpoint.begin()
    if finished:
        put_back(net, model, generator, snapshot)
        model.eval()
        return net
    dataset = Rows(rows)
    model.autocast = torch.bfloat16 if plan.bf16 else None
    set_generator(model, generator)
    with own_randomness(generator) if plan.own_modules else nullcontext():
        try:
            net.notify("on_train_begin", X=dataset, y=None)
            run = _Run(net, model, dataset, generator, plan, best, checkpoint)
            if snapshot is not None:
                run.go_back(snapshot)
            run.epochs()
            if plan.view_of is not None and plan.see_rows:
                see_rows(model, rows, noise_size, generator, net.batch_size)
        except BaseException:
            with suppress(Exception):  # of a callback that did not even begin; the reason to stop is what matters
                net.notify("on_train_end", X=dataset, y=None)
            raise
        else:
            net.notify("on_train_end", X=dataset, y=None)
        finally:
            set_generator(model, None)
            model.autocast = None
    model.eval()
    check_result(model, standardized(model, rows[: net.batch_size].to(device)), noise_size)
    if checkpoint is not None:
        checkpoint.keep({**take_snapshot(net, model, generator), "history": recorded(net)}, finished=True)
    return net


def see_rows(model, rows, noise_size, generator, batch_size):
    """Give batch normalisation the statistics of the rows themselves; in training it saw views of them.

    Parameters
    ----------
    model : LatentModel
        Changed in place.
    rows : Tensor of shape (n, d)
        As for `fit_module`.
    noise_size : int
        Size of a code.
    generator : torch.Generator
        Source of the codes, on the device.
    batch_size : int
        Rows that the networks see at once.
    """
    some = some_rows(rows, ROWS_FOR_BATCH_NORM)
    parts = some.tensor_split(count_batches(len(some), batch_size))

    def batches():
        return (standardized(model, part.to(generator.device)) for part in parts)

    def draw(u):
        noise = torch.randn(len(u), noise_size, generator=generator, device=generator.device)
        return model.prior.draw(model.posterior(u), noise)

    model.eval()
    # Neither looks at a row if its network has no batch normalisation.
    update_bn((model.likelihood.inputs(u) for u in batches()), model.encoder)
    update_bn((draw(u) for u in batches()), model.decoder)


def some_rows(rows, n_rows):
    """Every so many-th row, at most ``n_rows``, as a tensor."""
    return rows[:: math.ceil(len(rows) / n_rows)]


def remember(optimizer, state):
    """Give an optimizer the state of an earlier one, but not its settings, which may have changed."""
    settings = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, fresh in zip(optimizer.param_groups, settings, strict=True):
        for name in set(group) - set(fresh) - {"params"}:
            del group[name]
        group.update(fresh)


def _make_net(model, plan, n_steps, noise_size, generator, device, validation_rows, best):
    optimizer = OPTIMIZERS.get(plan.optimizer, plan.optimizer)
    settings = {"lr": plan.lr, "weight_decay": plan.weight_decay}
    if "fused" in inspect.signature(optimizer).parameters:
        settings["fused"] = True  # one kernel for all parameters: the largest single saving in an epoch
    validation = {}
    if validation_rows is not None:
        points = normal_points(8, noise_size).to(device, torch.float32)
        validation = {"iterator_valid": FixedBatches, "iterator_valid__points": points}
        validation["iterator_valid__standardize"] = partial(standardized, model)
    net = EpochNet(
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
        **validation,
        # Without this skorch would hold out a fifth of the rows.
        train_split=None if validation_rows is None else predefined_split(Rows(validation_rows)),
        callbacks=_callbacks(plan, n_steps, best),
        device=device,
        verbose=0,
    )
    return net.initialize()


def _callbacks(plan, n_steps, best):
    """The plan's callbacks, ours before the user's."""
    found = [ELBOTerms()]
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
    return [*found, *plan.callbacks]


def partial_schedule(factor, n_steps):
    """The factor of the learning rate in a step, counted from zero."""
    return lambda step: factor(min(step / n_steps, 1.0))


class _Run:
    """Epochs until the end, or until a callback has seen enough, each from a state to which it can go back."""

    def __init__(self, net, model, dataset, generator, plan, best, checkpoint):
        self.net, self.model, self.dataset, self.generator = net, model, dataset, generator
        self.plan, self.best, self.checkpoint = plan, best, checkpoint
        self.n_halved = 0

    def epochs(self):
        """Train."""
        good = take_snapshot(self.net, self.model, self.generator)
        while good["epochs_done"] < self.plan.max_epochs and not self._is_enough():
            try:
                self.net.fit_loop(self.dataset, epochs=1)  # unlike fit, it lets Ctrl-C through
            except KeyboardInterrupt:
                if _stopped_by_callback(self.net):
                    return
                raise
            except torch.cuda.OutOfMemoryError:
                self._halve_batches()
                self.go_back(good)
                continue
            last = self.net.history[-1]
            if not math.isfinite(last["train_loss"]):
                self._halve_rate(last, good)
                continue
            good = take_snapshot(self.net, self.model, self.generator)
            if self.checkpoint is not None:
                self.checkpoint.keep({**good, "history": recorded(self.net)})

    def _is_enough(self):
        """Whether a callback has seen enough."""
        asked = any(getattr(callback, "stops_", False) for _, callback in self.net.callbacks_)
        return asked or (self.best is not None and self.best.exhausted)

    def go_back(self, snapshot):
        """Continue from a snapshot."""
        put_back(self.net, self.model, self.generator, snapshot, own_modules=self.plan.own_modules)

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
        warnings.warn(
            f"{found}. The training goes on from epoch {good['epochs_done']} with half the learning rate.",
            RuntimeWarning,
            stacklevel=2,
        )
        self.go_back(good)
        for group in self.net.optimizer_.param_groups:
            group["lr"] *= 0.5
            group["initial_lr"] = group.get("initial_lr", 2 * group["lr"]) * 0.5
        for schedule in schedules(self.net):
            scheduler = schedule.lr_scheduler_
            scheduler.base_lrs = [0.5 * lr for lr in scheduler.base_lrs]

    def _halve_batches(self):
        """Use smaller batches, if they can be smaller."""
        if self.net.batch_size < 4:
            raise
        if self.net.batch_size == self.plan.batch_size:
            warnings.warn(
                f"The device ran out of memory with batches of {self.plan.batch_size} rows; the training goes on with "
                "smaller ones.",
                RuntimeWarning,
                stacklevel=2,
            )
        self.net.batch_size //= 2


def _stopped_by_callback(net):
    """Whether the interrupt came from skorch's early stopping, which has no other way to say that it is done."""
    stoppers = [callback for _, callback in net.callbacks_ if isinstance(callback, EarlyStopping)]
    return any(getattr(callback, "misses_", 0) == callback.patience for callback in stoppers)


@contextmanager
def own_randomness(generator):
    """Keep the global state of torch as it is where modules of the user's draw from it, and seed what they draw."""
    cuda = [generator.device] if generator.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator, device=generator.device)))
        yield


def check_result(model, rows, noise_size):
    """Raise if the trained model is broken: the loss of an epoch is known only before its last step."""
    with torch.inference_mode():
        elbo = model(rows, rows.new_zeros(len(rows), noise_size))
    if not all(torch.isfinite(term).all() for term in elbo[:2]):
        raise ValueError("The trained networks give results that are not finite. Decrease lr, or scale the input data.")
