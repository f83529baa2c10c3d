"""Training of VaDE: codes of unit scale, initial mixtures, and the elimination of the worst of them."""

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn

from ..models import Mixture
from ..models.networks import Affine, LogScaleHead
from ..models.priors import pointwise_information
from .batches import standardized
from .checkpoint import Resumable
from .distributed import SINGLE_PROCESS
from .evaluation import mean_elbo, posterior_of
from .lloyd import draw_distinct_rows
from .weighted_rows import WeightedRows

# Names in pickles of version 0.1.0 that hold modules of users; that of `Affine` is the same.
WithLogScales = LogScaleHead

POSTERIOR_SHARE = 0.1  # initial variance of posteriors, of that of the codes
WINDOW = 100  # iterations over which mixtures are compared
LAST_SHARE = 0.25  # of the training, at the end, with a smaller weight of the consistency of views
LAST_WEIGHT = 0.1  # factor of this weight
HELD_OUT_SHARE, MAX_HELD_OUT = 0.1, 5_000  # rows that choose among initial mixtures
N_STANDARD_ERRORS = 2  # by which a proposed mixture is better than the present one
OWN_SHARE = 0.5  # of pairs of augmented views that are of one row, and not of neighbours
PARTITION_REG_COVAR = 1e-2  # of the covariances of a partition of codes with unit variance


def standardize_codes(model, mean, log_scale, group=SINGLE_PROCESS):
    """Scale the codes to mean zero and standard deviation one, and the posteriors; decoded rows do not change.

    Parameters
    ----------
    model : LatentModel
        Changed in place.
    mean : Tensor of shape (n, d)
        Posterior means of training rows.
    log_scale : Tensor of shape (n, d)
        Raw log-scales of the same rows, of an untrained head.
    group : ProcessGroup
        The processes that have shards of the rows.

    Returns
    -------
    z : Tensor of shape (n, d)
        The means in their new units.
    """
    (center, spread), middle = mean_and_scale(mean, group), mean_and_scale(log_scale, group)[0]
    # A code that hardly varies is rounding, and stays small.
    spread = torch.where(spread > 1e-4 * spread.max(), spread, 1.0)
    start = 0.5 * math.log(POSTERIOR_SHARE)
    scale = torch.cat([1 / spread, torch.ones_like(spread)])
    model.encoder = nn.Sequential(model.encoder, Affine(scale, torch.cat([-center / spread, start - middle])))
    model.decoder = nn.Sequential(Affine(spread, center), model.decoder)
    return (mean - center) / spread


def mean_and_scale(z, group):
    """Return means and standard deviations of the columns (d,) over the rows of all processes."""
    if group.size == 1:
        return z.mean(0), z.std(0, correction=0)
    sums, n_rows = group.all_reduce_sum(z.sum(0, dtype=torch.float64), len(z))
    mean = sums / n_rows
    (squares,) = group.all_reduce_sum((z - mean).square().sum(0))
    return mean.to(z), (squares / n_rows).sqrt().to(z)


def soft_mixtures(z, n_mixtures, n_components, family, generator, reg_covar=1e-3, group=SINGLE_PROCESS):
    """Return mixtures with means at random rows and the covariance of all rows, so that responsibilities are soft.

    Parameters
    ----------
    z : Tensor of shape (n, d)
        Codes.
    n_mixtures, n_components : int
    family : Covariance
    generator : torch.Generator
    reg_covar : float, default=1e-3
        Added to the variances.
    group : ProcessGroup
        The processes that have shards of the rows.

    Returns
    -------
    mixtures : list of Mixture
    """
    scatter, n_rows = group.all_reduce_sum(family.scatter(z - mean_and_scale(z, group)[0]), len(z))
    covariance = scatter / n_rows + reg_covar * family.identity(z, z.shape[1])
    factor, _ = family.factor(covariance)
    shape = (n_components, *factor.shape[1:])
    weights = z.new_full((n_components,), -math.log(n_components))
    rows = WeightedRows(z, None, group)
    means = (rows.take_global(draw_distinct_rows(rows, n_components, generator)) for _ in range(n_mixtures))
    return [Mixture(weights, mean, covariance.expand(shape), factor.expand(shape)) for mean in means]


def hold_out_indices(n_rows, seed):
    """Return the indices of rows to train on, and of a random share of the rows to hold out; a single row is both."""
    if n_rows == 1:
        return torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    n_held_out = min(MAX_HELD_OUT, max(1, round(HELD_OUT_SHARE * n_rows)))
    order = torch.randperm(n_rows, generator=torch.Generator().manual_seed(seed))
    return order[n_held_out:], order[:n_held_out]


def limit_inference_batches(data, net, batch_size):
    """Return the data, with smaller batches of inference if memory was too small for those of a training."""
    if net.batch_size == batch_size:
        return data
    return replace(data, inference_batch_size=min(data.inference_batch_size, net.batch_size))


def partition_mixture(z, labels, n_components, family):
    """Return the mixture whose components have the means and the covariances of the codes of each label.

    A label without codes gets the mean and the covariance of all.

    Parameters
    ----------
    z : Tensor of shape (n, d)
        Codes of unit variance.
    labels : Tensor of shape (n,)
    n_components : int
    family : Covariance

    Returns
    -------
    mixture : Mixture
    """
    parts = [z[labels == label] for label in range(n_components)]
    parts = [part if len(part) else z for part in parts]
    ridge = PARTITION_REG_COVAR * family.identity(z, z.shape[1])
    means = torch.stack([part.mean(0) for part in parts])
    covariances = torch.cat(
        [family.scatter(part - mean) / len(part) + ridge for part, mean in zip(parts, means, strict=True)]
    )
    counts = torch.bincount(labels, minlength=n_components).clamp(min=1)
    return Mixture((counts / counts.sum()).to(z).log(), means, covariances, family.factor(covariances)[0])


class HeldOut(NamedTuple):
    """Rows that choose among initial mixtures, and training rows that are their neighbours."""

    rows: torch.Tensor  # (m, d)
    neighbors: torch.Tensor  # (m * q, d), q of each row in turn


def held_out_terms(model, held_out, data, view_of=None):
    """Return terms of the objective of each mixture for each held-out row, in nats.

    Parameters
    ----------
    model : LatentModel
    held_out : HeldOut
    data : TrainingData
    view_of : callable, (u, generator) -> views, optional
        Augmentation of both sides of a pair, as in training.

    Returns
    -------
    kl : Tensor of shape (m, h)
        Divergence from the prior, of the rows of all processes.
    agreement : Tensor of shape (m, h)
        The part of each row of the mutual information of clusters between rows and their neighbours, which is the mean.
    """
    n_neighbors, was_training = len(held_out.neighbors) // len(held_out.rows), model.training
    generator = torch.Generator(data.device).manual_seed(data.seed)

    def responsibilities(rows):
        parts = []
        for stored in rows.split(data.inference_batch_size):
            u = standardized(model, stored.to(data.device))
            u = u if view_of is None else view_of(u, generator)
            parts.append(model.prior.log_responsibilities(model.posterior(u).mean).exp())
        return torch.cat(parts)

    model.eval()
    with torch.inference_mode():
        q = posterior_of(model, held_out.rows, data.device, data.inference_batch_size)
        resp, other = responsibilities(held_out.rows), responsibilities(held_out.neighbors)
        other = other.unflatten(0, (-1, n_neighbors)).mean(1)
        joint, n_rows = data.group.all_reduce_sum(torch.einsum("nhi,nhj->hij", resp, other), len(resp))
        pointwise = pointwise_information(joint / n_rows)
        agreement = torch.einsum("nhi,nhj,hij->nh", resp, other, pointwise)
        kl = model.prior.kl_parts(q, q.mean) * resp.shape[1]
        terms = tuple(data.group.all_gather(part).clone() for part in (kl, agreement))
    model.train(was_training)
    return terms


def held_out_objective(model, rows, data, weight, view_of):
    """Return the objective of a trained model on held-out rows: the ELBO, and the agreement of augmented views.

    Views are of the same row, and not of neighbours: where both disagree about clusters, the augmentation, which the
    user chose, is right.

    Parameters
    ----------
    model : LatentModel
    rows : Tensor of shape (m, d)
    data : TrainingData
    weight : float
        Of the mutual information of the clusters of two views.
    view_of : callable, (u, generator) -> views
        Augmentation.

    Returns
    -------
    objective : float
        In nats, of the rows of all processes.
    """
    elbo = mean_elbo(model, rows, data.device, batch_size=data.inference_batch_size, group=data.group)
    _, agreement = held_out_terms(model, HeldOut(rows, rows), data, view_of)
    return elbo + weight * agreement.mean().item()


def scale_codes(model, data):
    """Scale the latent codes of a model to unit variance; return those of all rows (n, k)."""
    model.eval()
    q = posterior_of(model, data.rows, data.device, data.inference_batch_size)
    return standardize_codes(model, q.mean.clone(), q.log_scale.clone(), data.group)


def two_views(view_of, u, generator):
    """Return two augmented views of each row (n, 2, d)."""
    return view_of(u.repeat(2, 1), generator).unflatten(0, (2, len(u))).transpose(0, 1)


def neighbor_views(view_of, u, neighbors, generator):
    """Return each row and a neighbour (n, 2, d), or augmented views, of which every other pair is of the row alone."""
    if view_of is None:
        return torch.stack([u, neighbors], 1)
    is_own = torch.rand(len(u), 1, generator=generator, device=u.device) < OWN_SHARE
    pairs = torch.cat([u, torch.where(is_own, u, neighbors)])
    return view_of(pairs, generator).unflatten(0, (2, len(u))).transpose(0, 1)


class Proposals(NamedTuple):
    """Mixtures that compete with the only one that stayed, in rounds, as long as they win.

    Some of them are of the present clusters, in other parameters; the better one of those represents what there was.
    """

    propose: Callable[[int], list]  # from the round to mixtures, first those of the present clusters
    n_present: int  # mixtures of the present clusters, together with the one that stayed
    n_steps: tuple[int, int]  # of training, until the best of either kind stay, and then until one of these
    n_rounds: int


class PruneMixtures(Resumable):
    """Drop the mixtures with the largest loss after some iterations.

    Their losses share the reconstruction, so that the other terms are compared: the divergence from the prior, less the
    mutual information of clusters between pairs; or scores of held-out rows. No labels are used.

    Parameters
    ----------
    prior : GaussianMixturePrior
    stages : list of (int, int)
        Iterations after which mixtures are dropped, and numbers of mixtures that stay.
    group : ProcessGroup
        The processes that train.
    score : callable, () -> Tensor (m, h), optional
        Scores of the mixtures for each of some rows, equal in all processes; without it, losses of the last iterations
        are compared.
    proposals : Proposals, optional
        Mixtures that compete with the one that stayed. After some iterations the best of them remains, besides the best
        of those that were there. After some more it stays, if its score is better by two standard errors.

    Attributes
    ----------
    scores_ : list of list of float
        Losses of all mixtures, each time that some were dropped.
    parents_ : list of list of int
        Indices of the mixtures that stayed, or that others were made of, at each change.
    """

    def __init__(self, prior, stages, group=SINGLE_PROCESS, score=None, proposals=None):
        self.prior, self.stages, self.group, self.score, self.proposals = prior, stages, group, score, proposals

    @property
    def survivor_(self):
        """Index of the first mixture, or of that which it was made of, among the initial ones."""
        return functools.reduce(lambda index, parents: parents[index], reversed(self.parents_), 0)

    def on_train_begin(self, net, **kwargs):
        """Reset the state."""
        self.step_, self.begun_, self.round_, self.losses_, self.scores_, self.parents_ = 0, 0, 0, [], [], []
        self.stages_ = list(self.stages)

    def on_batch_end(self, net, training, y_pred, **kwargs):
        """Record the losses of a batch, and drop mixtures at the end of a stage."""
        if not training or len(self.prior.means) == 1:
            return
        criterion, parts = net.criterion_, y_pred.kl_parts.detach()
        loss = criterion.beta * parts.shape[1] * parts.mean(0)
        if y_pred.agreement is not None:
            loss = loss - criterion.consistency * y_pred.agreement.detach()
        self.losses_.append(loss)
        self.step_ += 1
        due = [n_remaining for step, n_remaining in self.stages_ if self.begun_ < step <= self.step_]
        if due:
            self._drop(net, min(due))
            if min(due) == 1 and self.proposals is not None:
                self._propose(net)

    def on_epoch_end(self, net, **kwargs):
        """Average the losses over processes."""
        if self.losses_ and self.group.size > 1:
            self.losses_ = list(self._shared(torch.stack(self.losses_)))

    def state(self, net):
        """Return the state that `resume` needs."""
        state = {name: getattr(self, name) for name in ("step_", "begun_", "round_")}
        lists = {name: list(getattr(self, name)) for name in ("losses_", "scores_", "parents_", "stages_")}
        return state | lists | {"n_mixtures": len(self.prior.means)}

    def resume(self, net, state):
        """Continue from a state, with as many mixtures as it has; their parameters are to be set afterwards."""
        device = self.prior.means.device
        n_mixtures = state["n_mixtures"]
        if n_mixtures != len(self.prior.means):
            replace_parameters(
                net.optimizer_, self.prior.keep(torch.zeros(n_mixtures, dtype=torch.long, device=device))
            )
        self.step_, self.begun_, self.round_ = (state[name] for name in ("step_", "begun_", "round_"))
        self.scores_, self.parents_, self.stages_ = (list(state[name]) for name in ("scores_", "parents_", "stages_"))
        self.losses_ = [loss.to(device) for loss in state["losses_"]]

    def on_train_end(self, net, **kwargs):
        """Reduce the mixtures to one, if the training was stopped before."""
        if len(self.prior.means) > 1 and self.stages_ and (self.losses_ or self.score is not None):
            if self.round_ and len(self.prior.means) > 2:  # no proposal was trained for long enough
                self._keep(net, list(range(self.proposals.n_present)))
            self._drop(net, 1)

    def _drop(self, net, n_remaining):
        if self.score is None:
            window = min(WINDOW, math.ceil(len(self.losses_) / 2))
            by_row = self._shared(torch.stack(self.losses_[-window:]).mean(0))[None]
        else:
            by_row = -self.score()
        losses = by_row.mean(0)
        best = losses.argsort()[:n_remaining]
        if self.round_ and n_remaining > 1:
            n_present = self.proposals.n_present
            best = torch.stack([losses[:n_present].argmin(), n_present + losses[n_present:].argmin()])
        elif self.round_ and len(losses) == 2:
            gains, n_rows = by_row[:, 0] - by_row[:, 1], len(by_row)
            has_won = n_rows > 1 and gains.mean() > N_STANDARD_ERRORS * gains.std() / math.sqrt(n_rows)
            best = torch.tensor([int(has_won)])
        self.scores_.append(losses.tolist())
        self._keep(net, best.tolist())
        self.begun_, self.losses_ = self.step_, []

    def _keep(self, net, indices):
        """Drop all mixtures but these."""
        replace_parameters(net.optimizer_, self.prior.keep(torch.tensor(indices, device=self.prior.means.device)))
        self.parents_.append(indices)

    def _propose(self, net):
        """Let mixtures compete with the one that stayed, unless it won the last round."""
        is_unchanged = self.round_ and self.parents_[-1] == [0]
        if is_unchanged or self.round_ == self.proposals.n_rounds:
            return
        mixtures = self.proposals.propose(self.round_)
        self.round_ += 1
        if mixtures:
            replace_parameters(net.optimizer_, self.prior.extend(mixtures))
            self.parents_.append([0] * (1 + len(mixtures)))
            first, second = self.proposals.n_steps
            self.stages_ += [(self.step_ + first, 2), (self.step_ + first + second, 1)]

    def _shared(self, losses):
        """Return the means of the losses over processes."""
        losses, n_processes = self.group.all_reduce_sum(losses, 1)
        return losses / n_processes


def replace_parameters(optimizer, replaced):
    """Replace parameters of an optimizer by new ones, and drop the state of the old ones.

    Gradients of a mixture grow when there are fewer, so that moments of the old gradients would be wrong.
    """
    for group in optimizer.param_groups:
        group["params"] = [replaced.get(parameter, parameter) for parameter in group["params"]]
    for old in replaced:
        optimizer.state.pop(old, None)


class ConsistencyDecay(Resumable):
    """Lower the weight of the consistency of pairs for the last iterations, so that the ELBO decides at the end."""

    def __init__(self, n_steps):
        self.n_steps = n_steps

    def on_train_begin(self, net, **kwargs):
        """Reset the state."""
        self.step_, self.weight_ = 0, net.criterion_.consistency

    def state(self, net):
        """Return the state that `resume` needs."""
        return {"step_": self.step_, "weight_": self.weight_}

    def resume(self, net, state):
        """Continue from a state."""
        vars(self).update(state)

    def on_batch_begin(self, net, training, **kwargs):
        """Set the weight of this iteration."""
        if training:
            last = self.step_ >= (1 - LAST_SHARE) * self.n_steps
            net.criterion_.consistency = self.weight_ * (LAST_WEIGHT if last else 1.0)
            self.step_ += 1


def one_cycle(share):
    """Return the factor of the learning rate: linear warm-up for the first tenth, then a cosine to a fiftieth."""
    if share < 0.1:
        return 0.1 + 9 * share
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (share - 0.1) / 0.9))
