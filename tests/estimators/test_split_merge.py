"""Moves from a partition to others of the same size: one cluster is split, and two others are merged."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_array
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score, mutual_info_score

from skvae import VaDEClusterer
from skvae.estimators import vade as module
from skvae.estimators._neighbors import neighbor_graph
from skvae.estimators._split_merge import (
    Move,
    best_moves,
    cut,
    merge_losses,
    moved_mixture,
    mutual_information,
    random_walk,
    transitions,
)
from skvae.estimators._vade_init import INITS
from skvae.models import COVARIANCES

K = 4


@pytest.fixture(scope="module")
def blobs():
    X, y = make_blobs([100, 200, 100, 50], 5, random_state=0)
    X, first = np.unique(X.astype(np.float32), axis=0, return_index=True)  # the order of the graph
    return X, y[first]


@pytest.fixture(scope="module")
def weights(blobs):
    return neighbor_graph(blobs[0], 10).weights


def symmetric_joint(seed, k=6):
    joint = np.random.default_rng(seed).random((k, k)) ** 4
    joint[0] = joint[:, 0] = 0.0  # a cluster without rows
    return (joint + joint.T) / (2 * joint.sum())


def merged(joint, one, other):
    """Add a row and a column of a joint distribution to others, and leave them out."""
    joint = joint.copy()
    joint[other] += joint[one]
    joint[:, other] += joint[:, one]
    return np.delete(np.delete(joint, one, 0), one, 1)


@pytest.mark.parametrize("seed", range(3))
def test_losses_of_merges_are_differences_of_mutual_information(seed):
    joint = symmetric_joint(seed)
    losses = merge_losses(joint)
    for one in range(6):
        for other in range(6):
            expected = mutual_information(joint) - mutual_information(merged(joint, one, other))
            assert losses[one, other] == (np.inf if one == other else pytest.approx(expected, abs=1e-12))


def test_mutual_information_is_that_of_scikit_learn():
    counts = np.random.default_rng(0).integers(0, 9, (5, 5))
    counts += counts.T
    expected = mutual_info_score(None, None, contingency=counts)
    assert mutual_information(counts / counts.sum()) == pytest.approx(expected)


def test_transitions_are_a_walk_on_the_graph(weights, blobs):
    labels = blobs[1]
    dense = weights.toarray()
    walk = dense / dense.sum(1, keepdims=True)
    expected = np.array([[walk[labels == i][:, labels == j].sum() for j in range(K)] for i in range(K)]) / len(labels)
    joint = transitions(random_walk(weights), labels, K)
    assert_allclose(joint, (expected + expected.T) / 2)
    assert joint.sum() == pytest.approx(1)


def test_a_cut_finds_two_groups(weights, blobs):
    rows = np.flatnonzero(blobs[1] < 2)
    side = cut(weights[rows][:, rows])
    assert adjusted_rand_score(blobs[1][rows], side) == 1.0
    assert_array_equal(side, cut(weights[rows][:, rows]))


def test_a_cut_does_not_take_off_a_few_rows(weights, blobs):
    """Three rows have neighbours among each other alone."""
    rows = np.flatnonzero(blobs[1] < 2)
    graph = weights[rows][:, rows].toarray()
    alone = np.zeros((len(rows) + 3, len(rows) + 3))
    alone[:-3, :-3] = graph
    alone[:40, 110:150] += 0.02  # the groups hang together more than the three do with them
    alone = np.maximum(alone, alone.T)
    alone[-3:, -3:] = 1 - np.eye(3)
    side = cut(csr_array(alone))
    assert adjusted_rand_score(blobs[1][rows], side[:-3]) > 0.95


def test_the_best_move_mends_a_partition(weights, blobs):
    """Two groups in one cluster, and one group in two."""
    X, y = blobs
    wrong = np.where(y == 2, 0, y)
    wrong[(y == 1) & (X[:, 0] > np.median(X[y == 1, 0]))] = 2
    moves = best_moves(weights, wrong, K)
    assert moves[0].split == 0
    assert moves[0].merged == (1, 2)
    assert moves == sorted(moves, reverse=True)
    walk = random_walk(weights)
    gain = mutual_information(transitions(walk, y, K)) - mutual_information(transitions(walk, wrong, K))
    assert moves[0].gain == pytest.approx(gain, abs=0.01)
    assert all(move.gain > 0 for move in moves)


def test_a_good_partition_and_too_few_clusters_have_no_moves(weights, blobs):
    assert best_moves(weights, blobs[1], K) == []
    assert best_moves(weights, (blobs[1] > 1).astype(int), 2) == []


def test_clusters_that_are_empty_or_small_are_not_split(weights, blobs):
    labels = np.where(blobs[1] == 3, 0, blobs[1])  # none is 3
    labels[:3] = 3
    moves = best_moves(weights, labels, 5)  # none is 4
    assert moves[0].split == 0
    assert {move.split for move in moves} <= {0, 1, 2}


@pytest.mark.parametrize("kind", ["full", "diag"])
def test_a_move_changes_three_components(kind):
    rng = np.random.default_rng(0)
    z = torch.from_numpy(rng.normal(size=(90, 3)) + np.repeat([[0.0], [5], [10]], 30, 0)).float()
    labels = torch.arange(3).repeat_interleave(30)
    generator = torch.Generator().manual_seed(0)
    mixture = moved_mixture(z, labels, 3, COVARIANCES[kind], Move(0.1, 0, (1, 2)), generator)
    assert_allclose(mixture.log_weights.exp(), [1 / 6, 2 / 3, 1 / 6], rtol=1e-5)
    both = z[labels > 0]
    assert_allclose(mixture.means[1], both.mean(0), rtol=1e-5)
    assert_allclose(mixture.covariances[0], mixture.covariances[2])
    assert_allclose(mixture.factor[0], mixture.factor[2])
    for half in (0, 2):
        assert (z[labels == 0] == mixture.means[half]).all(1).any()
    assert (mixture.means[0] != mixture.means[2]).any()
    again = moved_mixture(z, labels, 3, COVARIANCES[kind], Move(0.1, 0, (1, 2)), generator)
    assert (again.means[0] != mixture.means[0]).any()


def test_halves_of_repeated_codes_differ():
    z = torch.zeros(100, 2)
    z[7], z[90:] = 1.0, 5.0
    labels = (torch.arange(100) >= 90).long() + (torch.arange(100) >= 95).long()
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        means = moved_mixture(z, labels, 3, COVARIANCES["full"], Move(0.1, 0, (1, 2)), generator).means
        assert sorted(means[[0, 2], 0].tolist()) == [0.0, 1.0]


@pytest.mark.parametrize("edges", [np.ones((30, 30)) - np.eye(30), np.zeros((30, 30))], ids=["complete", "empty"])
def test_graphs_without_parts_are_not_cut(edges):
    assert not cut(csr_array(edges)).any()


def test_a_fit_leaves_a_bad_partition(monkeypatch):
    """All initializations have two groups in one cluster, and one group in two; the training mends it."""
    X, y = make_blobs(1_000, 30, centers=6, cluster_std=2.5, random_state=3)
    X = X.astype(np.float32)
    bad = np.where(y == 1, 0, y)
    bad[(y == 2) & (X[:, 0] > np.median(X[y == 2, 0]))] = 1
    labels_of = {row.tobytes(): label for row, label in zip(X, bad, strict=True)}

    def partition(self):
        scale, mean = X.std(0), X.mean(0)
        rows = self.references.features * scale + mean
        nearest = ((rows[:, None] - X) ** 2).sum(2).argmin(1)
        return self._of_partition(np.array([labels_of[X[index].tobytes()] for index in nearest]))

    for name in module.AUTO_INITS:
        monkeypatch.setitem(INITS, name, partition)
    settings = {"latent_dim": 4, "hidden_layer_sizes": (32,), "pretrain_epochs": 20, "max_epochs": 60}
    monkeypatch.setattr(module, "N_ROUNDS", 0)
    bad_end = VaDEClusterer(6, random_state=0, **settings).fit_predict(X)
    monkeypatch.setattr(module, "N_ROUNDS", 2)
    vade = VaDEClusterer(6, random_state=0, **settings).fit(X)
    assert adjusted_rand_score(y, bad_end) < 0.85
    assert adjusted_rand_score(y, vade.labels_) > 0.95
    assert len(vade.init_losses_) > 2
