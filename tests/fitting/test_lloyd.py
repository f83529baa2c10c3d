"""k-means, against scikit-learn and against its own definition."""

import numpy as np
import pytest
import torch
from helpers import generator
from sklearn.cluster import KMeans
from torch.testing import assert_close

from skvae.fitting import lloyd as lloyd_module
from skvae.fitting.lloyd import canonical_order, distinct_rows, draw_rows, kmeans, lloyd, seed_centers
from skvae.fitting.nearest import assign, cluster_sums, distances, squared_residuals, sums_by_index, sums_by_product


def weighted_and_repeated(seed=0, n=60, d=3):
    """Rows with integer weights in one order, and the repeated rows in another."""
    x = torch.randn(n, d, dtype=torch.float64, generator=generator(seed))
    weight = torch.randint(0, 4, (n,), generator=generator(seed))
    repeated = x.repeat_interleave(weight, 0)
    return x, weight, repeated[torch.randperm(len(repeated), generator=generator(seed))]


def exact_labels(x, centers):
    return torch.cdist(x, centers, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)


def test_lloyd_is_scikit_learns_from_equal_starts(correlated):
    x = torch.tensor(correlated - correlated.mean(0))
    start = x[seed_centers(x, 5, generator())]
    centers, labels = lloyd(x, start, max_iter=1000, tol=0.0)
    twin = KMeans(5, init=start.numpy(), n_init=1, tol=0.0, max_iter=1000, algorithm="lloyd").fit(x.numpy())
    assert_close(centers.numpy(), twin.cluster_centers_, rtol=1e-10, atol=1e-10)
    np.testing.assert_array_equal(labels.numpy(), twin.labels_)


def test_seeds_are_far_apart(blobs):
    x = torch.tensor(blobs[0])
    for seed in range(20):
        chosen = seed_centers(x, 3, generator(seed))
        assert len(set(blobs[1][chosen])) == 3


def test_seeds_with_fewer_distinct_rows():
    x = torch.zeros(10, 2)
    assert len(seed_centers(x, 4, generator())) == 4
    centers, labels = lloyd(x, x[:4])
    assert torch.isfinite(centers).all()
    assert set(labels.tolist()) <= {0, 1, 2, 3}


@pytest.mark.parametrize("choose", [seed_centers, distinct_rows])
def test_every_distinct_row_is_found(choose):
    x = torch.tensor([[0.0, 0], [1, 0], [0, 1]]).repeat(20, 1)
    for seed in range(10):
        assert len(x[choose(x, 3, generator(seed))].unique(dim=0)) == 3
        assert len(choose(x, 5, generator(seed))) == 5


@pytest.mark.parametrize("weighted", [False, True])
def test_sums_by_product_are_those_by_index(weighted):
    x, labels = torch.randn(70, 3, generator=generator()), torch.randint(0, 4, (70,), generator=generator())
    weight = torch.rand(70, dtype=torch.float64, generator=generator()) if weighted else None
    one, two = sums_by_index(x, labels, weight, 6), sums_by_product(x, labels, weight, 6)
    assert_close(one[0], two[0])
    assert_close(one[1].float(), two[1])


def test_empty_clusters_move_to_far_rows():
    x = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
    centers, labels = lloyd(x, torch.tensor([[0.0], [100.0]]))
    assert sorted(centers.flatten().tolist()) == [0.5, 10.5]
    assert len(labels.unique()) == 2


def test_labels_are_the_nearest_centres(correlated):
    x = torch.tensor(correlated)
    centers, labels = lloyd(x, x[seed_centers(x, 4, generator())])
    assert_close(exact_labels(x, centers), labels)
    residuals = squared_residuals(x, centers, labels)
    assert_close(residuals, (x - centers[labels]).square().sum(1), rtol=1e-12, atol=1e-12)


def test_equal_centres_share_no_rows():
    """The lowest score is there twice: the first centre gets the rows, and they are counted once."""
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
    start = torch.cat([x[:8], x.new_full((1, 4), 99.0), x[:1]])  # one is empty, one is there twice
    found = []
    for bounds_from in (0, 10**9):
        monkeypatch.setattr(lloyd_module, "BOUNDS_FROM", bounds_from)
        found.append(lloyd(x, start, weight=weight))
    (centers, labels), (plain_centers, plain_labels) = found
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
    found = distances(x, x)
    assert (found >= 0).all()
    assert (found.diagonal() == 0).all()
    if offset == 0:
        exact = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist")
        assert_close(found.double(), exact, rtol=1e-4 if dtype == torch.float32 else 1e-12, atol=0)


@pytest.mark.parametrize("seed", range(5))
def test_integer_weights_are_repeated_rows(seed):
    x, weight, repeated = weighted_and_repeated(seed)
    for choose in (seed_centers, distinct_rows):
        assert_close(x[choose(x, 6, generator(seed), weight)], repeated[choose(repeated, 6, generator(seed))])
    start = torch.cat([repeated[:3], torch.full((3, 3), 50.0, dtype=torch.float64)])  # three of them are empty
    assert_close(lloyd(x, start, weight=weight)[0], lloyd(repeated, start)[0])


def test_rows_of_zero_weight_are_not_there(correlated):
    x, far = torch.tensor(correlated), torch.full((30, 3), 1e3, dtype=torch.float64)
    padded, weight = torch.cat([far, x, far]), torch.cat([torch.zeros(30), torch.ones(len(x)), torch.zeros(30)])
    order = canonical_order(padded, weight)
    assert sorted(order.tolist()) == list(range(30, 30 + len(x)))
    assert_close(kmeans(padded, 5, generator(), weight)[0], kmeans(x, 5, generator())[0])
    start = torch.tensor([[0.0, 0, 0], [500.0, 500, 500]], dtype=torch.float64)
    assert_close(lloyd(padded, start, weight=weight)[0], lloyd(x, start)[0])


def test_draws_follow_the_mass():
    mass = torch.tensor([0.0, 1.0, 0.0, 3.0, 0.0], dtype=torch.float64)
    drawn = draw_rows(torch.arange(5), mass, 4000, generator())
    counts = drawn.bincount(minlength=5)
    assert counts[[0, 2, 4]].sum() == 0
    assert abs(int(counts[1]) - 1000) < 120  # four standard deviations
    stratified = draw_rows(torch.arange(5), mass, 4000, generator(), stratified=True)
    assert stratified.bincount(minlength=5).tolist() == [0, 1000, 0, 3000, 0]


def test_draws_at_the_very_end(monkeypatch):
    """A draw that rounds up to the total is still a row with mass."""
    monkeypatch.setattr(torch, "rand", lambda *size, **kwargs: torch.ones(*size, dtype=torch.float64))
    mass = torch.tensor([1.0, 0.1, 0.0, 0.0], dtype=torch.float64)
    assert draw_rows(torch.arange(4), mass, 3, None).tolist() == [1, 1, 1]


@pytest.mark.parametrize("weighted", [False, True])
def test_kmeans_ends_in_a_fixed_point_of_all_rows(weighted):
    x = torch.randn(8000, 2, dtype=torch.float64, generator=generator())
    weight = torch.randint(1, 4, (8000,), generator=generator()) if weighted else None
    centers, labels = kmeans(x, 4, generator(), weight)
    again, same = lloyd(x, centers, max_iter=1, weight=weight)
    assert float((again - centers).square().sum()) <= 1e-4
    assert_close(labels, exact_labels(x, centers))
    assert float((labels != same).double().mean()) < 0.01


def test_kmeans_is_no_worse_than_scikit_learn():
    x = torch.randn(6000, 5, dtype=torch.float64, generator=generator())
    x += 3 * torch.randn(8, 5, dtype=torch.float64, generator=generator(1))[torch.arange(6000) % 8]
    inertias = []
    for seed in range(4):
        centers, labels = kmeans(x, 8, generator(seed))
        inertias.append(float(squared_residuals(x, centers, labels).sum()))
    best = KMeans(8, n_init=5, random_state=0).fit(x.numpy()).inertia_
    assert min(inertias) < 1.001 * best
    assert np.mean(inertias) < 1.1 * best


def test_kmeans_of_integer_weights_is_that_of_repeated_rows():
    x, weight, repeated = weighted_and_repeated(n=1000)
    assert_close(kmeans(x, 3, generator(), weight)[0], kmeans(repeated, 3, generator())[0])


@pytest.mark.parametrize("k", [2, 40])
def test_fewer_distinct_rows_than_clusters(k):
    x = torch.tensor([[0.1, 0.2], [0.3, 0.7]], dtype=torch.float64).repeat(50, 1)
    centers, labels = kmeans(x, k, generator())
    assert_close(centers[labels], x)
    assert torch.isfinite(centers).all()
