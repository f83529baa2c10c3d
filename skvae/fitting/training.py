"""Gradient training of models: the plan, the training as a whole, and what is asked of rows afterwards."""

import copy
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from itertools import chain

import torch
from torch.nn.modules.batchnorm import _NormBase
from torch.optim.swa_utils import update_bn

from ..models.networks import set_generator
from ..models.priors import Posterior
from .batches import Rows, some_rows, standardized
from .callbacks import BestWeights
from .devices import seeded_rng_state
from .distributed import SINGLE_PROCESS
from .epochs import Epochs, Interrupted
from .nets import make_net, remember
from .parallel import (
    count_batches,
    count_steps,
    share_statistics,
)
from .quadrature import normal_points
from .snapshots import put_back, recorded, take_snapshot

ROWS_FOR_BATCH_NORM = 10_000
LAST_SHARE = 0.03  # of the models along a stream, those that make up their mean


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
    validation_advice: str = ""  # how a fit gets validation rows, where it can


def posterior_of(model, rows, device, batch_size):
    """q(z | x) of rows, a tensor or a source, found a batch at a time."""
    with torch.inference_mode():
        parts = [model.posterior(standardized(model, part.to(device))) for part in rows.split(batch_size)]
        return Posterior(*(torch.cat(part) for part in zip(*parts, strict=True)))


def mean_elbo(model, rows, device, n_points=8, batch_size=1_024, group=SINGLE_PROCESS):
    """Mean evidence lower bound of the rows of all processes, with the expectation over codes at fixed points."""
    model.eval()
    total = 0.0
    with torch.inference_mode():
        for stored in rows.split(batch_size):
            u = standardized(model, stored.to(device))
            q = model.posterior(u)
            points = normal_points(n_points, q.mean.shape[1]).to(u)
            total += model.elbo(u, q, points.expand(len(u), *points.shape)).value.cpu().double().sum().item()
    total, n_rows = group.all_reduce_sum(total, len(rows))
    return total / n_rows


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
    keeps=False,
    group=SINGLE_PROCESS,
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
    keeps : bool, default=False
        Whether an interruption leaves the model as it would be after the last whole epoch, if there is one. Not where
        several processes train.
    group : SingleProcess or Group
        The processes that have shards of the rows.

    Returns
    -------
    net : skorch.NeuralNet
        The trained net, with its history.

    Raises
    ------
    Interrupted
        If the training was interrupted, and what was learnt before is kept. Otherwise the reason itself is raised.
    """
    stops = plan.patience is not None and validation_rows is not None
    best = BestWeights(plan.patience, plan.tol, plan.kl_warmup_epochs) if stops else None
    n_steps = plan.max_epochs * count_steps(group.all_gather_int(len(rows)), plan.batch_size)
    net = make_net(model, plan, n_steps, noise_size, generator, device, validation_rows, best, group)
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
    with seeded_rng_state(generator) if plan.own_modules else nullcontext():
        try:
            net.notify("on_train_begin", X=dataset, y=None)
            epochs = Epochs(net, model, dataset, generator, plan, best, checkpoint, keeps and group.size == 1, group)
            if snapshot is not None:
                epochs.go_back(snapshot)
            interruption = epochs.train()
            if plan.view_of is not None and plan.see_rows:
                see_rows(model, rows, noise_size, generator, net.batch_size, group)
        except BaseException:
            with suppress(Exception):  # of a callback that did not even begin; the reason to stop is what matters
                net.notify("on_train_end", X=dataset, y=None)
            raise
        else:
            with nullcontext() if interruption is None else suppress(Exception):
                net.notify("on_train_end", X=dataset, y=None)
        finally:
            set_generator(model, None)
            model.autocast, net.averaged = None, None
    model.eval()
    check_result(model, standardized(model, rows[: net.batch_size].to(device)), noise_size)
    if interruption is not None:
        raise Interrupted(net) from interruption
    if checkpoint is not None:
        checkpoint.keep({**take_snapshot(net, model, generator), "history": recorded(net)}, finished=True)
    return net


def see_rows(model, rows, noise_size, generator, batch_size, group=SINGLE_PROCESS):
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
    group : SingleProcess or Group
        The processes that have shards of the rows.
    """
    some = some_rows(rows, ROWS_FOR_BATCH_NORM)
    parts = torch.arange(len(some)).tensor_split(count_batches(len(some), batch_size))

    def batches():
        return (standardized(model, some[part].to(generator.device)) for part in parts)

    def draw(u):
        noise = torch.randn(len(u), noise_size, generator=generator, device=generator.device)
        return model.prior.draw(model.posterior(u), noise)

    model.eval()
    # Neither looks at a row if its network has no batch normalisation.
    update_bn((model.likelihood.inputs(u) for u in batches()), model.encoder)
    update_bn((draw(u) for u in batches()), model.decoder)
    share_statistics(model, len(rows), group)


def averaged(mean, model, n_models):
    """The mean of the models along a stream, when this is number ``n_models``; the last ones count most.

    A model knows the last batches best, which may not be like the others. The mean is that of polynomial decay (Shamir
    and Zhang 2013, section 4): in a long stream about the last `LAST_SHARE` of the models are in it, in a short one
    hardly more than the last. Of buffers, statistics of batch normalisation are averaged.

    Parameters
    ----------
    mean, model : LatentModel
        The mean until now, and the model.

    Returns
    -------
    mean : LatentModel
        In new memory.
    """
    share = 1 / (1 + LAST_SHARE * (n_models - 1))
    found = copy.deepcopy(model)
    with torch.no_grad():
        for value, before in zip(learned(found), learned(mean), strict=True):
            if value.is_floating_point():
                before = before.to(value)
                # What is equal stays what it is, infinite numbers too.
                value.data = torch.where(value == before, value, before.lerp(value, share))
    return found


def learned(model):
    """Tensors of a model that a training changes: its parameters, and the statistics of batch normalisation."""
    norms = [module for module in model.modules() if isinstance(module, _NormBase) and module.track_running_stats]
    return chain(model.parameters(), *((norm.running_mean, norm.running_var) for norm in norms))


def check_result(model, rows, noise_size):
    """Raise if the trained model is broken: the loss of an epoch is known only before its last step."""
    with torch.inference_mode():
        elbo = model(rows, rows.new_zeros(len(rows), noise_size))
    if not all(torch.isfinite(term).all() for term in elbo[:2]):
        raise ValueError("The trained networks give results that are not finite. Decrease lr, or scale the input data.")
