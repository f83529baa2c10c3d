"""Moves from a mixture to others of the same size: one cluster is split, and two others are merged."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from scipy.special import xlogy
from sklearn.cluster import KMeans

from ..fitting.evaluation import posterior_of
from ..fitting.rows import select_rows
from ..fitting.training import TrainingData
from ..fitting.vade import partition_mixture
from ..models import LatentModel, Mixture
from ._vade_init import References

N_PRESENT = 2  # mixtures of the present clusters: as it is, and with the moments of its clusters
N_SPLITS = (4, 2)  # mixtures that try the best move, and the second best
MIN_SPLIT = 10  # samples of a cluster that can be split
REGULARIZATION = 0.1  # weight of edges between a row and all others, as a share of the mean degree


class Move(NamedTuple):
    """A cluster to split, and two others to merge."""

    gain: float  # of mutual information between neighbours, in nats
    split: int
    merged: tuple[int, int]


@dataclass
class SplitMerge:
    """Proposes mixtures in which a cluster is split and two others are merged, where neighbours suggest it.

    A mixture whose components cover two clusters with one, and one with two, is a local optimum that gradients do not
    leave (Ueda et al. 2000, "SMEM algorithm for mixture models"). The mutual information of clusters between neighbours
    says which component to split and which ones to merge; where a component is split is left to the training, from
    several random starts.

    Parameters
    ----------
    model : LatentModel
        Its prior has one mixture.
    data : TrainingData
    references : References
        The samples among which neighbours were searched.
    """

    model: LatentModel
    data: TrainingData
    references: References

    def __call__(self, n_round):
        """Return the mixture with the moments of the present clusters and those of the best moves, if a move gains.

        Parameters
        ----------
        n_round : int
            Number of the call, from which random starts are seeded.

        Returns
        -------
        mixtures : list of Mixture
        """
        data, prior, was_training = self.data, self.model.prior, self.model.training
        self.model.eval()
        with torch.inference_mode():
            rows = select_rows(data.rows, torch.from_numpy(self.references.indices))
            z = posterior_of(self.model, rows, data.device, data.inference_batch_size).mean
            z = data.group.all_gather(z)
            labels = data.group.broadcast(prior.log_responsibilities(z)[:, 0].argmax(1))
        self.model.train(was_training)
        n_clusters = prior.means.shape[1]
        graph = self.references.graph
        moves = best_moves(graph.weights, labels.cpu().numpy()[graph.first], n_clusters)
        moves = data.group.all_gather_object([tuple(move) for move in moves])[0]
        if not moves:
            return []
        z, labels, family = z.clone(), labels.clone(), prior.family
        generator = torch.Generator().manual_seed(data.seed + n_round)
        mixtures = [partition_mixture(z, labels, n_clusters, family)]
        for move, n_splits in zip(moves, N_SPLITS, strict=False):
            mixtures += [moved_mixture(z, labels, n_clusters, family, Move(*move), generator) for _ in range(n_splits)]
        return mixtures


def moved_mixture(z, labels, n_clusters, family, move, generator):
    """Return the mixture of a partition after a move: both halves of a component begin at random codes of it.

    Parameters
    ----------
    z : Tensor of shape (n, d)
        Codes.
    labels : Tensor of shape (n,)
        Their clusters.
    n_clusters : int
    family : Covariance
    move : Move
    generator : torch.Generator

    Returns
    -------
    mixture : Mixture
    """
    split, (one, other) = move.split, move.merged
    merged = partition_mixture(z, torch.where(labels == other, one, labels), n_clusters, family)
    log_weights, means, covariances, factor = (part.clone() for part in merged)
    members = z[labels == split]
    members = members[torch.randperm(len(members), generator=generator).to(z.device)]
    is_other = (members != members[0]).any(1)  # equal halves would never part
    halves = [split, other]
    means[halves] = members[[0, int(is_other.long().argmax())]]
    covariances[halves], factor[halves] = covariances[split].clone(), factor[split].clone()
    log_weights[halves] = log_weights[split] - math.log(2)
    return Mixture(log_weights.log_softmax(0), means, covariances, factor)


def best_moves(weights, labels, n_clusters):
    """Return the moves that gain most mutual information between neighbours, the best first.

    The gain of a move is that of a cut of the cluster in two, less the loss of the cheapest merge of two others. It is
    slightly too large, because the loss is that before the cut. Moves without a gain are left out.

    Parameters
    ----------
    weights : csr_array of shape (n, n)
        Symmetric weights of the graph of neighbours.
    labels : ndarray of shape (n,)
    n_clusters : int

    Returns
    -------
    moves : list of Move
        One for each cluster that is worth a split.
    """
    walk = random_walk(weights)
    joint = transitions(walk, labels, n_clusters)
    losses = merge_losses(joint)
    pairs = np.array(np.unravel_index(np.argsort(losses, axis=None, kind="stable"), losses.shape)).T
    pairs = pairs[pairs[:, 0] < pairs[:, 1]]
    information, moves = mutual_information(joint), []
    for split in range(n_clusters):
        members = np.flatnonzero(labels == split)
        others = pairs[(pairs != split).all(1)]
        if len(members) < MIN_SPLIT or not len(others):
            continue
        halved = labels.copy()
        halved[members[cut(weights[members][:, members])]] = n_clusters
        gain = mutual_information(transitions(walk, halved, n_clusters + 1)) - information
        one, other = others[0].tolist()
        moves.append(Move(float(gain - losses[one, other]), split, (one, other)))
    return sorted((move for move in moves if move.gain > 0), reverse=True)


def random_walk(weights):
    """Return the probabilities of the neighbours of each row (n, n)."""
    return csr_array(weights.multiply(1 / np.maximum(weights.sum(1), 1e-12)[:, None]))


def transitions(walk, labels, n_clusters):
    """Return the joint distribution of the clusters of rows and of their neighbours (k, k), made symmetric."""
    one_hot = csr_array((np.ones(len(labels)), (np.arange(len(labels)), labels)), shape=(len(labels), n_clusters))
    joint = (one_hot.T @ walk @ one_hot).toarray() / len(labels)
    return (joint + joint.T) / 2


def mutual_information(joint):
    """Return the mutual information of a symmetric joint distribution (k, k), in nats."""
    share = joint.sum(1)
    return xlogy(joint, joint).sum() - 2 * xlogy(share, share).sum()


def merge_losses(joint):
    """Return the losses of mutual information where two clusters are merged (k, k); infinite on the diagonal."""
    share, own, losses = joint.sum(1), joint.diagonal(), np.full(joint.shape, np.inf)
    for one, row in enumerate(joint):
        with_others = merged_losses(joint, row).sum(1)
        with_themselves = merged_losses(own[one], row) + merged_losses(row, own)
        inside = own[one], own, row, row
        inside = sum(xlogy(part, part) for part in inside) - xlogy(sum(inside), sum(inside))
        losses[one] = 2 * (with_others - with_themselves - merged_losses(share[one], share)) + inside
    np.fill_diagonal(losses, np.inf)
    return losses


def merged_losses(one, other):
    """Return how much ``p log p`` of probabilities loses, where they are added."""
    return xlogy(one, one) + xlogy(other, other) - xlogy(one + other, one + other)


def cut(weights):
    """Return which rows of a graph are on the one side of a normalized cut in two (n,), or none if there is no cut.

    The side is that of k-means of the second eigenvector of the random walk (Shi and Malik 2000), on a graph in which
    all rows are connected a little: otherwise the cut would take off a few rows that hardly hang together with the rest
    (Amini et al. 2013, "Pseudo-likelihood methods for community detection in large sparse networks").
    """
    degrees = weights.sum(1)
    added = max(REGULARIZATION * degrees.mean(), 1e-12)
    roots = np.sqrt(degrees + added)
    first = roots / np.linalg.norm(roots)  # the eigenvector of the largest eigenvalue, which says nothing

    def product(x):
        shares = x / roots
        return (weights @ shares + added * shares.mean()) / roots - 2 * first * (first @ x)

    start = np.random.default_rng(0).normal(size=len(roots))
    try:
        operator = LinearOperator(weights.shape, product, dtype=float)
        value, vector = eigsh(operator, k=1, which="LA", v0=start, tol=1e-4)
    except ArpackError:  # no convergence
        return np.zeros(len(roots), bool)
    if value[0] <= 1e-6:  # of a graph without parts
        return np.zeros(len(roots), bool)
    vector = vector[:, 0] / roots
    return KMeans(2, n_init=3, random_state=0).fit_predict(vector[:, None]) == 1
