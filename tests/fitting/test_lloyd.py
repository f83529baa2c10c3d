"""k-means, against scikit-learn and its definition."""

import numpy as np
import pytest
import torch
from helpers import generator
from sklearn.cluster import KMeans
from torch.testing import assert_close

from skvae.fitting import lloyd as lloyd_module
from skvae.fitting.lloyd import draw_distinct_rows, kmeans, kmeans_plusplus, lloyd
from skvae.fitting.nearest import assign, cluster_sums, distances, squared_residuals, sums_by_index, sums_by_product
from skvae.fitting.weighted_rows import WeightedRows, canonical_order


def weighted_and_repeated(seed=0, n=60, d=3):
    """Rows with integer weights, and the repeated rows in another order."""
    x = torch.randn(n, d, dtype=torch.float64, generator=generator(seed))
    weight = torch.randint(0, 4, (n,), generator=generator(seed))
    repeated = x.repeat_interleave(weight, 0)
    return WeightedRows(x, weight), WeightedRows(repeated[torch.randperm(len(repeated), generator=generator(seed))])


def exact_labels(x, centers):
    return torch.cdist(x, centers, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)


def test_lloyd_is_scikit_learns_from_equal_centres(correlated):
    x = torch.tensor(correlated - correlated.mean(0))
    start = x[kmeans_plusplus(WeightedRows(x), 5, generator())]
    centers, labels = lloyd(WeightedRows(x), start, max_iter=1000, tol=0.0)
    twin = KMeans(5, init=start.numpy(), n_init=1, tol=0.0, max_iter=1000, algorithm="lloyd").fit(x.numpy())
    assert_close(centers.numpy(), twin.cluster_centers_, rtol=1e-10, atol=1e-10)
    np.testing.assert_array_equal(labels.numpy(), twin.labels_)


def test_seeds_are_far_apart(blobs):
    x = torch.tensor(blobs[0])
    for seed in range(20):
        chosen = kmeans_plusplus(WeightedRows(x), 3, generator(seed))
        assert len(set(blobs[1][chosen])) == 3


def test_seeds_with_fewer_distinct_rows():
    rows = WeightedRows(torch.zeros(10, 2))
    assert len(kmeans_plusplus(rows, 4, generator())) == 4
    centers, labels = lloyd(rows, rows.x[:4])
    assert torch.isfinite(centers).all()
    assert set(labels.tolist()) <= {0, 1, 2, 3}


@pytest.mark.parametrize("choose", [kmeans_plusplus, draw_distinct_rows])
def test_every_distinct_row_is_chosen(choose):
    rows = WeightedRows(torch.tensor([[0.0, 0], [1, 0], [0, 1]]).repeat(20, 1))
    for seed in range(10):
        assert len(rows.x[choose(rows, 3, generator(seed))].unique(dim=0)) == 3
        assert len(choose(rows, 5, generator(seed))) == 5


@pytest.mark.parametrize("weighted", [False, True])
def test_sums_by_product_are_those_by_index(weighted):
    x, labels = torch.randn(70, 3, generator=generator()), torch.randint(0, 4, (70,), generator=generator())
    weight = torch.rand(70, dtype=torch.float64, generator=generator()) if weighted else None
    one, two = sums_by_index(x, labels, weight, 6), sums_by_product(x, labels, weight, 6)
    assert_close(one[0], two[0])
    assert_close(one[1].float(), two[1])


def test_empty_clusters_move_to_far_rows():
    x = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
    centers, labels = lloyd(WeightedRows(x), torch.tensor([[0.0], [100.0]]))
    assert sorted(centers.flatten().tolist()) == [0.5, 10.5]
    assert len(labels.unique()) == 2


def test_labels_are_the_nearest_centres(correlated):
    x = torch.tensor(correlated)
    centers, labels = lloyd(WeightedRows(x), x[kmeans_plusplus(WeightedRows(x), 4, generator())])
    assert_close(exact_labels(x, centers), labels)
    residuals = squared_residuals(x, centers, labels)
    assert_close(residuals, (x - centers[labels]).square().sum(1), rtol=1e-12, atol=1e-12)


def test_rows_of_equal_centres_are_counted_once():
    """Of two equal scores, the first centre gets the row."""
    x = torch.tensor([[0.0], [1.0], [5.0]])
    centers = torch.tensor([[0.5], [0.5], [5.0]])
    assert assign(x, centers).tolist() == [0, 0, 2]
    sums, counts = cluster_sums(x, centers)
    assert counts.tolist() == [2, 0, 1]
    assert sums.flatten().tolist() == [1, 0, 5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weighted", [False, True])
def test_bounds_change_nothing(weighted, dtype, monkeypatch):
    x = torch.randn(3000, 4, dtype=dtype, generator=generator())
    weight = torch.rand(3000, dtype=dtype, generator=generator()) if weighted else None
    start = torch.cat([x[:8], x.new_full((1, 4), 99.0), x[:1]])  # one is empty, one occurs twice
    results = []
    for n_scores in (0, 10**9):
        monkeypatch.setattr(lloyd_module, "MIN_BOUNDED_SCORES", n_scores)
        results.append(lloyd(WeightedRows(x, weight), start))
    (centers, labels), (plain_centers, plain_labels) = results
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    assert_close(centers, plain_centers, rtol=tolerance, atol=tolerance)
    assert float((labels == plain_labels).double().mean()) > 0.999


@pytest.mark.parametrize("weighted", [False, True])
def test_sums_over_chunks(weighted):
    x = torch.randn(9000, 3, dtype=torch.float64, generator=generator())
    weight = torch.rand(9000, dtype=torch.float64, generator=generator()) if weighted else None
    sums, counts = cluster_sums(x, x[:5], weight)
    mass = torch.nn.functional.one_hot(exact_labels(x, x[:5])).double() * (1 if weight is None else weight[:, None])
    assert_close(sums, mass.T @ x)
    assert_close(counts, mass.sum(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_distances_between_equal_rows_are_zero(offset, dtype):
    x = torch.randn(50, 3, generator=generator(), dtype=dtype) + offset
    result = distances(x, x)
    assert (result >= 0).all()
    assert (result.diagonal() == 0).all()
    if offset == 0:
        exact = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist")
        assert_close(result.double(), exact, rtol=1e-4 if dtype == torch.float32 else 1e-12, atol=0)


@pytest.mark.parametrize("seed", range(5))
def test_integer_weights_are_repeated_rows(seed):
    rows, repeated = weighted_and_repeated(seed)
    for choose in (kmeans_plusplus, draw_distinct_rows):
        chosen = [one.x[choose(one, 6, generator(seed))] for one in (rows, repeated)]
        assert_close(*chosen)
    start = torch.cat([repeated.x[:3], torch.full((3, 3), 50.0, dtype=torch.float64)])  # three of them are empty
    assert_close(lloyd(rows, start)[0], lloyd(repeated, start)[0])


def test_rows_of_zero_weight_are_ignored(correlated):
    x, far = torch.tensor(correlated), torch.full((30, 3), 1e3, dtype=torch.float64)
    padded = WeightedRows(torch.cat([far, x, far]), torch.cat([torch.zeros(30), torch.ones(len(x)), torch.zeros(30)]))
    order, x = canonical_order(padded.x, padded.weight), WeightedRows(x)
    assert sorted(order.tolist()) == list(range(30, 30 + len(correlated)))
    assert_close(kmeans(padded, 5, generator())[0], kmeans(x, 5, generator())[0])
    start = torch.tensor([[0.0, 0, 0], [500.0, 500, 500]], dtype=torch.float64)
    assert_close(lloyd(padded, start)[0], lloyd(x, start)[0])


@pytest.mark.parametrize("weighted", [False, True])
def test_kmeans_ends_in_a_fixed_point_of_all_rows(weighted):
    x = torch.randn(8000, 2, dtype=torch.float64, generator=generator())
    weight = torch.randint(1, 4, (8000,), generator=generator()) if weighted else None
    centers, labels = kmeans(WeightedRows(x, weight), 4, generator())
    again, same = lloyd(WeightedRows(x, weight), centers, max_iter=1)
    assert float((again - centers).square().sum()) <= 1e-4
    assert_close(labels, exact_labels(x, centers))
    assert float((labels != same).double().mean()) < 0.01


def test_kmeans_is_no_worse_than_scikit_learn():
    x = torch.randn(6000, 5, dtype=torch.float64, generator=generator())
    x += 3 * torch.randn(8, 5, dtype=torch.float64, generator=generator(1))[torch.arange(6000) % 8]
    inertias = []
    for seed in range(4):
        centers, labels = kmeans(WeightedRows(x), 8, generator(seed))
        inertias.append(float(squared_residuals(x, centers, labels).sum()))
    best = KMeans(8, n_init=5, random_state=0).fit(x.numpy()).inertia_
    assert min(inertias) < 1.001 * best
    assert np.mean(inertias) < 1.1 * best


def test_kmeans_of_integer_weights_is_that_of_repeated_rows():
    rows, repeated = weighted_and_repeated(n=1000)
    assert_close(kmeans(rows, 3, generator())[0], kmeans(repeated, 3, generator())[0])


@pytest.mark.parametrize("k", [2, 40])
def test_fewer_distinct_rows_than_clusters(k):
    x = torch.tensor([[0.1, 0.2], [0.3, 0.7]], dtype=torch.float64).repeat(50, 1)
    centers, labels = kmeans(WeightedRows(x), k, generator())
    assert_close(centers[labels], x)
    assert torch.isfinite(centers).all()
