"""Gradient training of latent models: the plan, the data, and the training epoch by epoch."""

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from itertools import chain

import torch
from torch.nn.modules.batchnorm import _NormBase
from torch.optim.swa_utils import update_bn

from ..models.networks import set_generator
from .batches import RowDataset, count_batches, count_steps, standardized, subsample
from .checkpoint import Checkpoint, JointCheckpoint, epoch_records, restore, schedules, take_snapshot
from .data_parallel import JointOutOfMemory, average_batch_norm
from .devices import is_out_of_memory, seeded_rng_state
from .distributed import SINGLE_PROCESS, ProcessGroup
from .early_stopping import EarlyStopping, should_stop, was_stopped_by_skorch
from .neighbors import NeighborPairs
from .net import load_optimizer_state, make_net
from .rows import LazyRows
from .warnings import warn

MAX_BATCH_NORM_ROWS = 10_000  # rows from which batch normalization gets its statistics after views
AVERAGED_SHARE = 0.03  # of the models along a stream, the last ones that make up their mean


@dataclass(frozen=True)
class Plan:
    """Settings of a training; fields that are also parameters of estimators have their names and meanings."""

    max_epochs: int
    latent_dim: int
    batch_size: int = 128
    lr: float = 1e-3
    lr_name: str = "lr"  # of the estimator's parameter
    beta: float = 1.0
    kl_warmup_epochs: int = 0
    free_bits: float = 0.0
    consistency: float = 0.0
    n_draws: int = 1
    optimizer: str | type = "adam"
    weight_decay: float = 0.0
    lr_schedule: str | Callable | None = None
    max_grad_norm: float | None = None
    patience: int | None = None  # of early stopping on validation rows
    tol: float = 1e-4
    view_of: Callable | None = None  # (u, generator) -> augmented views for the encoder; (u, neighbour, generator)
    recompute_batch_norm: bool = True  # whether statistics are those of samples, and not of views, at the end
    bf16: bool = False
    compile: bool | str = False
    user_modules: bool = False  # whether parts of the model are the user's, which may draw random numbers
    callbacks: tuple = ()
    progress: str | None = None  # description of a progress bar
    validation_advice: str = ""  # how a fit gets validation rows, where it can


@dataclass(frozen=True)
class TrainingData:
    """Rows to train on, and the state from which the training starts.

    Rows are standardized, or whole numbers as in the dataset, which are standardized a batch at a time. They are on the
    device, or on the CPU if they are too large for it.
    """

    rows: torch.Tensor | LazyRows  # (n, d)
    generator: torch.Generator  # of the shuffles and of the codes, on the device
    device: torch.device
    validation_rows: torch.Tensor | LazyRows | None = None  # (m, d), whose loss is recorded
    seed: int = 0
    group: ProcessGroup = SINGLE_PROCESS  # the processes that have shards of the rows
    optimizer_state: dict | None = None  # of an earlier training
    checkpoint: Checkpoint | JointCheckpoint | None = None
    neighbors: NeighborPairs | None = None  # of the rows, from which ``view_of`` makes pairs
    resume: bool = False  # whether the model was trained before, and is to be trained further
    inference_batch_size: int = 1_024  # rows that the networks take at once, outside of training


class Interrupted(BaseException):
    """Signals an interrupted training whose net is as it was after the last whole epoch; its cause is the reason."""

    def __init__(self, net):
        super().__init__()
        self.net = net


def fit_module(model, plan, data):
    """Train a latent model in place.

    An interruption leaves the model as it was after the last whole epoch, if the training continues an earlier one
    without a checkpoint, by one process; otherwise its state is undefined.

    Parameters
    ----------
    model : LatentModel
    plan : Plan
    data : TrainingData

    Returns
    -------
    net : skorch.NeuralNet
        The trained net, with its history.

    Raises
    ------
    Interrupted
        If the training was interrupted, and the epochs before are kept. Otherwise the reason itself is raised.
    """
    n_steps = plan.max_epochs * count_steps(data.group.all_gather_int(len(data.rows)), plan.batch_size)
    stops_early = plan.patience is not None and data.validation_rows is not None
    stopping = [EarlyStopping(plan.patience, plan.tol, plan.kl_warmup_epochs)] if stops_early else []
    net = make_net(model, plan, data, n_steps, stopping)
    if data.optimizer_state is not None:
        load_optimizer_state(net.optimizer_, data.optimizer_state)
    snapshot, finished = (None, False) if data.checkpoint is None else data.checkpoint.begin()
    if finished:
        restore(net, model, data.generator, snapshot)
        model.eval()
        return net
    dataset = RowDataset(data.rows)
    model.autocast = torch.bfloat16 if plan.bf16 else None
    set_generator(model, data.generator)
    with seeded_rng_state(data.generator) if plan.user_modules else nullcontext():
        try:
            net.notify("on_train_begin", X=dataset, y=None)
            interruption = _EpochLoop(net, model, dataset, plan, data).run(snapshot)
            if plan.view_of is not None and plan.recompute_batch_norm:
                _recompute_batch_norm(model, plan.latent_dim, net.batch_size, data)
        except BaseException:
            with suppress(Exception):  # errors of callbacks that had not begun must not hide the reason
                net.notify("on_train_end", X=dataset, y=None)
            raise
        else:
            with nullcontext() if interruption is None else suppress(Exception):
                net.notify("on_train_end", X=dataset, y=None)
        finally:
            set_generator(model, None)
            model.autocast, net.averaged = None, None
    model.eval()
    first = next(iter(data.rows.split(net.batch_size))).to(data.device)
    check_finite(model, standardized(model, first), plan.latent_dim)
    if interruption is not None:
        raise Interrupted(net) from interruption
    if data.checkpoint is not None:
        last = {**take_snapshot(net, model, data.generator), "history": epoch_records(net)}
        data.checkpoint.save(last, finished=True)
    return net


class _EpochLoop:
    """Epochs of a training, each from a snapshot that it can go back to."""

    def __init__(self, net, model, dataset, plan, data):
        self.net, self.model, self.dataset, self.plan, self.data = net, model, dataset, plan, data
        self.n_halved = 0

    def run(self, snapshot=None):
        """Train, from a snapshot if there is one; return the interruption if the epochs before are kept, else None."""
        net, checkpoint = self.net, self.data.checkpoint
        keeps_epochs = self.data.resume and checkpoint is None and self.data.group.size == 1
        if snapshot is not None:
            self._restore(snapshot)
        last_good = take_snapshot(net, self.model, self.data.generator)
        while last_good["epochs_done"] < self.plan.max_epochs and not should_stop(net, self.data.group):
            try:
                net.fit_loop(self.dataset, epochs=1)  # unlike fit, it does not swallow Ctrl-C
                snapshot = take_snapshot(net, self.model, self.data.generator)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt) and was_stopped_by_skorch(net):
                    return None
                is_out_of_memory_error = is_out_of_memory(error)
                if is_out_of_memory_error and self._can_halve_batches(error):
                    self._halve_batches()
                    self._restore(last_good)
                    continue
                self._leave_group()
                if is_out_of_memory_error or not keeps_epochs or last_good["epochs_done"] == 0:
                    raise
                self._restore(last_good)
                return error
            if not math.isfinite(net.history[-1]["train_loss"]):
                self._halve_learning_rate(net.history[-1], last_good)
                continue
            last_good = snapshot
            if checkpoint is not None:
                checkpoint.save({**last_good, "history": epoch_records(net)})
        return None

    def _restore(self, snapshot):
        restore(self.net, self.model, self.data.generator, snapshot, user_modules=self.plan.user_modules)

    def _leave_group(self):
        """Leave the process group, after dropping the reducer of gradients.

        The last reference to a group waits for its threads, and they may wait for Python's lock, which is free only if
        it is Python that drops the reference.
        """
        if getattr(self.net, "averaged", None) is not None:
            self.net.averaged.drop()
        self.data.group.leave()

    def _halve_learning_rate(self, record, last_good):
        """Go back to the last good epoch with half the learning rate, once; raise the second time."""
        terms = {"log-likelihood": record["train_log_likelihood"], "KL": record["train_kl"]}
        broken = [name for name, value in terms.items() if not math.isfinite(value)] or ["agreement of pairs"]
        problem = (
            f"The training loss became {record['train_loss']} in epoch {record['epoch']}, by its {' and '.join(broken)}"
            f" (log-likelihood {terms['log-likelihood']:.6g}, KL {terms['KL']:.6g})"
        )
        if self.n_halved:
            raise ValueError(
                f"{problem}, with half of {self.plan.lr_name}={self.plan.lr:g} too. Decrease {self.plan.lr_name}, clip "
                "gradients with max_grad_norm, or scale the input data."
            )
        self.n_halved += 1
        if self.data.group.rank == 0:
            warn(
                f"{problem}. The training continues from epoch {last_good['epochs_done']} with half the learning rate.",
                RuntimeWarning,
            )
        self._restore(last_good)
        for settings in self.net.optimizer_.param_groups:
            settings["lr"] *= 0.5
            settings["initial_lr"] = settings.get("initial_lr", 2 * settings["lr"]) * 0.5
        for schedule in schedules(self.net):
            scheduler = schedule.lr_scheduler_
            scheduler.base_lrs = [0.5 * lr for lr in scheduler.base_lrs]

    def _can_halve_batches(self, error):
        """Return whether smaller batches are possible, and all processes know of the error."""
        return self.net.batch_size >= 4 and (self.data.group.size == 1 or isinstance(error, JointOutOfMemory))

    def _halve_batches(self):
        if self.net.batch_size == self.plan.batch_size and self.data.group.rank == 0:
            warn(
                f"The device ran out of memory with batches of {self.plan.batch_size} rows; the training continues "
                "with smaller ones.",
                RuntimeWarning,
            )
        self.net.batch_size //= 2


def _recompute_batch_norm(model, latent_dim, batch_size, data):
    """Give batch normalization the statistics of the samples; in training it saw augmented views of them."""
    rows, generator = subsample(data.rows, MAX_BATCH_NORM_ROWS), data.generator
    parts = torch.arange(len(rows)).tensor_split(count_batches(len(rows), batch_size))

    def batches():
        return (standardized(model, rows[part].to(generator.device)) for part in parts)

    def draw(u):
        noise = torch.randn(len(u), latent_dim, generator=generator, device=generator.device)
        return model.decoder_inputs(model.prior.draw(model.posterior(u), noise), model.covariates_of(u))

    model.eval()
    # Neither looks at a row if its network has no batch normalization.
    update_bn((model.encoder_inputs(u) for u in batches()), model.encoder)
    update_bn((draw(u) for u in batches()), model.decoder)
    average_batch_norm(model, len(data.rows), data.group)


def average_models(mean, model, n_models):
    """Return the mean of the models along a stream, of which this is number ``n_models``; the last ones count most.

    A model fits the last batches best, which may differ from the others. The mean is that of polynomial decay (Shamir
    and Zhang 2013, section 4): in a long stream about the last `AVERAGED_SHARE` of the models are in it, in a short one
    hardly more than the last. Of buffers, statistics of batch normalization are averaged.

    Parameters
    ----------
    mean, model : LatentModel
        The mean of the models before, and the model.
    n_models : int

    Returns
    -------
    mean : LatentModel
        In new memory.
    """
    share = 1 / (1 + AVERAGED_SHARE * (n_models - 1))
    averaged = copy.deepcopy(model)
    with torch.no_grad():
        for value, before in zip(_trained_tensors(averaged), _trained_tensors(mean), strict=True):
            if value.is_floating_point():
                before = before.to(value)
                # Equal values, infinite ones too, are copied.
                value.data = torch.where(value == before, value, before.lerp(value, share))
    return averaged


def _trained_tensors(model):
    """Return the tensors of a model that a training changes: parameters, and statistics of batch normalization."""
    norms = [module for module in model.modules() if isinstance(module, _NormBase) and module.track_running_stats]
    return chain(model.parameters(), *((norm.running_mean, norm.running_var) for norm in norms))


def check_finite(model, rows, latent_dim):
    """Raise if the trained model gives results that are not finite: a loss is computed before the step."""
    with torch.inference_mode():
        elbo = model(rows, rows.new_zeros(len(rows), latent_dim))
    if not all(torch.isfinite(term).all() for term in elbo[:2]):
        raise ValueError("The trained networks give results that are not finite. Decrease lr, or scale the input data.")
