"""The graph of nearest neighbours: its weights, the pairs that training draws, and its embedding."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.distance import cdist
from sklearn.datasets import make_blobs
from sklearn.metrics import silhouette_score

from skvae.estimators._neighbors import (
    embed_graph,
    fuzzy_weights,
    input_weights,
    nearest_neighbors,
    neighbor_graph,
    neighbor_pairs,
    pairs_with_references,
)
from skvae.estimators._vade_init import nearest_of_others
from skvae.fitting.neighbors import CURVE, embedding_gradient


@pytest.fixture(scope="module")
def blobs():
    X, y = make_blobs(200, 5, centers=4, random_state=0)
    return X.astype(np.float32), y


def test_nearest_neighbors_are_those_of_all_distances(blobs):
    distances, indices = nearest_neighbors(blobs[0], 7)
    full = cdist(blobs[0], blobs[0])
    np.fill_diagonal(full, np.inf)
    assert_allclose(distances, np.sort(full, 1)[:, :7], rtol=1e-4)
    assert not (indices == np.arange(200)[:, None]).any()


def test_weights_sum_to_a_logarithm(blobs):
    distances, _ = nearest_neighbors(blobs[0], 15)
    weights = fuzzy_weights(distances)
    assert_array_equal(weights[:, 0], 1)
    assert (np.diff(weights, axis=1) <= 0).all()
    assert_allclose(weights.sum(1), np.log2(16), rtol=1e-3)


@pytest.mark.parametrize("distances", [np.zeros((3, 4)), np.ones((3, 4)), np.full((3, 1), 2.0)])
def test_equal_distances_have_equal_weights(distances):
    assert_array_equal(fuzzy_weights(distances), np.ones_like(distances))


def test_graph_is_the_union_of_both_directions(blobs):
    graph = neighbor_graph(blobs[0], 5)
    distances, indices = nearest_neighbors(blobs[0][graph.first], 5)
    directed = np.zeros((200, 200))
    np.put_along_axis(directed, indices, fuzzy_weights(distances), 1)
    assert_allclose(graph.weights.toarray(), directed + directed.T - directed * directed.T, atol=1e-12)


def test_equal_rows_count_once(blobs):
    X = np.concatenate([blobs[0], blobs[0][:50], blobs[0][:50]])
    graph, alone = neighbor_graph(X, 5), neighbor_graph(blobs[0], 5)
    assert (graph.weights != alone.weights).nnz == 0
    drawn = neighbor_pairs(graph).draw(torch.arange(300), torch.Generator().manual_seed(0)).numpy()
    assert (X[drawn] != X).any(1).all()
    assert_array_equal(embed_graph(graph, 0)[200:250], embed_graph(alone, 0)[:50])


@pytest.mark.parametrize("n_distinct", [1, 2])
def test_a_row_without_neighbours_is_paired_with_itself(n_distinct):
    X = np.repeat(np.arange(n_distinct, dtype=np.float32)[:, None], 3, axis=0)
    graph = neighbor_graph(X, 5)
    drawn = neighbor_pairs(graph).draw(torch.arange(len(X)), torch.Generator().manual_seed(0))
    assert_array_equal(X[drawn.numpy(), 0], 0 if n_distinct == 1 else 1 - X[:, 0])


def test_pairs_are_drawn_by_their_weights(blobs):
    graph = neighbor_graph(blobs[0], 5)
    pairs, generator = neighbor_pairs(graph), torch.Generator().manual_seed(0)
    drawn = pairs.draw(torch.full((20_000,), 3), generator).numpy()
    place = graph.inverse[3]
    weights = graph.weights.toarray()[place]
    shares = np.bincount(graph.inverse[drawn], minlength=200) / len(drawn)
    assert_allclose(shares, weights / weights.sum(), atol=0.02)


def test_pairs_keep_the_strongest_edges(blobs):
    graph = neighbor_graph(blobs[0], 15)
    pairs = neighbor_pairs(graph, max_edges=3)
    assert pairs.indices.shape == (200, 3)
    weights = graph.weights.toarray()[graph.inverse]
    strongest = np.sort(weights, 1)[:, -3:].sum(1)
    chosen = np.take_along_axis(weights, graph.inverse[pairs.indices.numpy()], 1).sum(1)
    assert_allclose(chosen, strongest)
    assert_allclose(pairs.cumulative[:, -1].numpy(), 1, rtol=1e-6)


def test_embedding_separates_groups(blobs):
    X, y = blobs
    z = embed_graph(neighbor_graph(X, 15), seed=0)
    assert z.shape == (200, 10)
    assert silhouette_score(z, y) > silhouette_score(X, y)
    assert_array_equal(z, embed_graph(neighbor_graph(X, 15), seed=0))
    assert (z != embed_graph(neighbor_graph(X, 15), seed=1)).any()


@pytest.mark.parametrize("n", [1, 2, 50])
def test_gradient_of_the_embedding_is_that_of_the_cross_entropy(n):
    generator = torch.Generator().manual_seed(0)
    z, weights = (torch.rand(shape, generator=generator, dtype=torch.float64) for shape in ((3, n), (n,)))
    others = torch.randint(n, (4, n), generator=generator)
    z.requires_grad_()
    a, b = CURVE
    similarity = 1 / (1 + a * ((z[:, None] - z[:, others]).square().sum(0) + 1e-6) ** b)
    loss = -(weights * similarity[0].log()).sum() - (weights * (1 - similarity[1:]).log()).sum()
    (expected,) = torch.autograd.grad(loss, z)
    assert_allclose(embedding_gradient(z.detach(), weights, others), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("n_rows", [1, 2, 4, 5, 12, 13])
def test_few_rows_have_an_embedding(n_rows):
    X = np.random.default_rng(0).normal(size=(n_rows, 3)).astype(np.float32)
    assert np.isfinite(embed_graph(neighbor_graph(X, 15), seed=0)).all()


def test_graphs_of_several_parts_have_an_embedding():
    X = np.concatenate([np.random.default_rng(i).normal(100 * i, 1, (40, 2)) for i in range(12)]).astype(np.float32)
    assert np.isfinite(embed_graph(neighbor_graph(X, 5), seed=0)).all()


def test_pairs_of_many_rows_are_with_references(blobs):
    X = blobs[0]
    references = np.arange(0, 200, 2)
    pairs = pairs_with_references(X, references, neighbor_graph(X[references], 5))
    drawn = pairs.draw(torch.arange(200), torch.Generator().manual_seed(0)).numpy()
    assert (drawn % 2 == 0).all()
    assert (drawn != np.arange(200)).all()
    nearest = references[np.sort(cdist(X, X[references]).argsort(1)[:, :5], 1)]
    odd = np.arange(1, 200, 2)
    assert_array_equal(np.sort(pairs.indices.numpy()[odd, :5], 1), nearest[odd])
    assert_allclose(pairs.cumulative[:, -1].numpy(), 1, rtol=1e-6)
    alone = pairs_with_references(X, np.arange(200), neighbor_graph(X, 5))
    assert torch.equal(alone.indices, neighbor_pairs(neighbor_graph(X, 5)).indices)


def test_copies_of_references_are_not_their_pairs(blobs):
    X = np.concatenate([blobs[0], blobs[0][:20]])
    references = np.arange(200)
    pairs = pairs_with_references(X, references, neighbor_graph(X[references], 5))
    drawn = pairs.draw(torch.arange(220), torch.Generator().manual_seed(0)).numpy()
    assert (X[drawn] != X).any(1).all()
    equal = np.zeros((30, 2), np.float32)
    pairs = pairs_with_references(equal, np.arange(10), neighbor_graph(equal[:10], 5))
    assert torch.isfinite(pairs.cumulative).all()


def test_neighbors_of_held_out_samples_are_other_samples(blobs):
    X = np.concatenate([blobs[0][:100], blobs[0][:10], blobs[0][:10]])
    others = np.concatenate([blobs[0][:10], blobs[0][150:160]])
    nearest = nearest_of_others(X, others, 3)
    distances = cdist(others, blobs[0][:100])
    distances[distances < 1e-6] = np.inf
    assert_array_equal(np.sort(nearest, 1), np.sort(distances.argsort(1)[:, :3], 1))
    assert nearest_of_others(X[:2], others, 3).shape == (20, 2)
    assert nearest_of_others(X[:1], X[:1], 3).shape == (1, 1)


def mixed_inputs(n_categorical, n_levels=2, n=300):
    """Return standardized numbers of three columns and one-hot codes, and a mask of the latter."""
    rng = np.random.default_rng(0)
    codes = np.eye(n_levels)[rng.integers(n_levels, size=(n, n_categorical))].reshape(n, -1)
    rows = np.hstack([rng.normal(size=(n, 3)), codes]).astype(np.float32)
    return rows, np.arange(rows.shape[1]) >= 3


def share_of_same_codes(rows, is_categorical, weight):
    """Return how often the codes of neighbours are equal."""
    _, nearest = nearest_neighbors(weight * rows, 15)
    return (rows[nearest][:, :, is_categorical] == rows[:, None, is_categorical]).all(2).mean()


def test_neighbours_are_of_several_categories():
    rows, is_categorical = mixed_inputs(1)
    weight = input_weights(rows, is_categorical)
    assert (weight[:3] == 1).all()
    assert 0 < weight[3] == weight[4] < 0.8
    assert share_of_same_codes(rows, is_categorical, np.ones(5)) > 0.95
    assert 0.7 < share_of_same_codes(rows, is_categorical, weight) < 0.95


def test_many_categories_keep_their_weight():
    rows, is_categorical = mixed_inputs(12, n_levels=4)
    assert (input_weights(rows, is_categorical) == 1).all()


@pytest.mark.parametrize("is_categorical", [np.zeros(5, dtype=bool), np.ones(5, dtype=bool)])
def test_inputs_of_one_kind_have_no_weight(is_categorical):
    assert (input_weights(mixed_inputs(1)[0], is_categorical) == 1).all()
    assert (input_weights(np.zeros((4, 5), np.float32), np.arange(5) > 2) == 1).all()
