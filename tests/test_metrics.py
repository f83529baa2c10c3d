import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from skvae.metrics import clustering_accuracy_score, match_clusters, matched_confusion_matrix


def test_renamed_clusters_are_perfect():
    rng = np.random.default_rng(0)
    y = rng.integers(5, size=200)
    renamed = rng.permutation(5)[y]
    assert clustering_accuracy_score(y, renamed) == 1.0
    matrix, clusters = matched_confusion_matrix(y, renamed)
    assert_array_equal(matrix, np.diag(np.bincount(y)))
    assert [match_clusters(y, renamed)[cluster] for cluster in clusters] == list(range(5))


labelings = st.integers(1, 60).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(0, 6), min_size=n, max_size=n) for _ in range(2)])
)


@given(labelings, st.permutations(range(7)))
def test_names_do_not_matter(labels, names):
    y, clusters = labels
    accuracy = clustering_accuracy_score(y, clusters)
    assert clustering_accuracy_score(y, [names[cluster] for cluster in clusters]) == accuracy
    assert clustering_accuracy_score([f"class {names[label]}" for label in y], clusters) == accuracy
    assert clustering_accuracy_score(clusters, y) == accuracy
    majority = max(y.count(label) for label in y) / len(y) if len(set(clusters)) == 1 else 0
    assert max(majority, 1 / len(y)) <= accuracy <= 1


def test_matching_is_one_to_one_and_best():
    y = [0, 0, 0, 1, 1, 1]
    assert clustering_accuracy_score(y, [0, 0, 0, 0, 0, 1]) == pytest.approx(4 / 6)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [([0, 0, 0, 0], 0.5), ([0, 1, 2, 3], 0.5), ([7, 7, 9, 3], 0.75)],
    ids=["fewer", "more", "gaps"],
)
def test_rectangular(labels, expected):
    y = ["cat", "cat", "dog", "dog"]
    assert clustering_accuracy_score(y, labels) == expected
    matrix, clusters = matched_confusion_matrix(y, labels)
    assert matrix.shape == (2, len(set(labels)))
    assert matrix.sum() == 4
    assert sorted(clusters) == sorted(set(labels))
    n_matched = min(matrix.shape)
    assert np.diag(matrix[:, :n_matched]).sum() == pytest.approx(4 * expected) or matrix.shape[1] < 2
    assert len(match_clusters(y, labels)) == n_matched


def test_wrong_labels():
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        clustering_accuracy_score([0, 1], [0, 1, 2])
    with pytest.raises(ValueError, match="0 sample"):
        clustering_accuracy_score([], [])
    with pytest.raises(ValueError, match="1d array"):
        clustering_accuracy_score([[0, 1], [1, 0]], [0, 1])
