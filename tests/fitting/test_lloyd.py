"""k-means, against scikit-learn and against its own definition."""

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch.testing import assert_close

from skvae.fitting.lloyd import assign, lloyd, seed_centers, squared_distances


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


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


def test_empty_clusters_move_to_far_rows():
    x = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
    centers, labels = lloyd(x, torch.tensor([[0.0], [100.0]]))
    assert sorted(centers.flatten().tolist()) == [0.5, 10.5]
    assert len(labels.unique()) == 2


def test_labels_are_the_nearest_centres(correlated):
    x = torch.tensor(correlated)
    centers, labels = lloyd(x, x[seed_centers(x, 4, generator())])
    distances = torch.cdist(x, centers, compute_mode="donot_use_mm_for_euclid_dist")
    assert_close(distances.argmin(1), labels)
    assert_close(assign(x, centers)[1], distances.min(1).values.square(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_distances_are_never_negative(offset):
    x = torch.randn(50, 3, generator=generator()) + offset
    assert (squared_distances(x, x) >= 0).all()
