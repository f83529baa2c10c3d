"""Profiles of clusters: means, spreads and shares, of arrays and data frames."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.cluster import KMeans

from skvae.displays import ClusterProfileDisplay

LABELS = np.array(["b", "a", "a", "b", "a", "b"])
TABLE = pd.DataFrame(
    {
        "age": [50.0, 20, 30, 60, np.nan, 70],
        "city": ["Oslo", "Rome", "Rome", "Oslo", None, "Rome"],
        "member": [True, False, False, True, False, True],
        "size": [1, 1, 1, 1, 1, 1],
    }
)


@pytest.fixture(params=["pandas", "polars"])
def table(request):
    if request.param == "pandas":
        return TABLE
    return pl.DataFrame({name: TABLE[name].astype(object).where(TABLE[name].notna(), None).tolist() for name in TABLE})


def test_values_are_means_and_shares(table):
    display = ClusterProfileDisplay.from_predictions(table, LABELS)
    assert display.clusters.tolist() == ["a", "b"]
    assert_array_equal(display.sizes, [3, 3])
    expected = [("age", None), ("city", "Oslo"), ("city", "Rome"), ("member", "True"), ("size", None)]
    assert display.columns == expected
    assert_allclose(display.values, [[25, 0, 1, 0, 1], [60, 2 / 3, 1 / 3, 1, 1]])
    assert_allclose(display.spreads[:, 0], [5, np.std([50, 60, 70])])
    ages = [50, 20, 30, 60, 70]
    assert_allclose(display.effects[:, 0], (np.array([25, 60]) - np.mean(ages)) / np.std(ages))
    assert_array_equal(display.effects[:, 4], 0)


def test_frames():
    frame = ClusterProfileDisplay.from_predictions(TABLE, LABELS).to_frame()
    assert frame.index.tolist() == ["a", "b"]
    assert frame["age", "mean"].tolist() == [25, 60]
    assert frame["city", "Rome"]["b"] == pytest.approx(1 / 3)
    assert frame["size", ""].tolist() == [3, 3]


def test_sentences():
    sentences = ClusterProfileDisplay.from_predictions(TABLE, LABELS).describe(n_features=2)
    assert sentences[0].startswith("Cluster a (50%): ")
    assert "member True 100%" in sentences[1]
    assert "size" not in " ".join(sentences)
    assert sentences[0].count(",") == 1


def test_features_that_differ_most_are_shown():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 50)
    X = rng.normal(size=(150, 30))
    X[:, 17] += 5 * labels
    X[:, 4] -= 3 * labels
    display = ClusterProfileDisplay.from_predictions(X, labels, max_features=2)
    assert display.columns == [("feature 4", None), ("feature 17", None)]


def test_figure():
    X = np.random.default_rng(0).normal(size=(60, 3))
    display = ClusterProfileDisplay.from_estimator(KMeans(2, n_init=1, random_state=0).fit(X), X)
    texts = [text.get_text() for text in display.ax_.texts]
    assert len(texts) == 6
    assert texts[0].startswith(f"{display.values[0, 0]:.3g}\n± ")
    labels = [label.get_text() for label in display.ax_.get_yticklabels()]
    assert labels[0] == f"0 ({display.sizes[0] / 60:.0%})"
    other = display.figure_.subplots()
    assert display.plot(ax=other).ax_ is other


def test_large_numbers_have_no_exponent():
    X = np.array([[5471.0], [5489.0], [0.001234], [0.001234]])
    display = ClusterProfileDisplay.from_predictions(X, [0, 0, 1, 1])
    assert display.describe() == ["Cluster 0 (50%): feature 0 5480 ± 9.", "Cluster 1 (50%): feature 0 0.00123 ± 0."]


def test_clusters_without_values():
    display = ClusterProfileDisplay.from_predictions(np.array([[1.0], [np.nan]]), [0, 1])
    assert np.isnan(display.values[1, 0])
    with pytest.raises(ValueError, match="inconsistent numbers"):
        ClusterProfileDisplay.from_predictions(TABLE, LABELS[:3])
    with pytest.raises(ValueError, match="max_features"):
        ClusterProfileDisplay.from_predictions(TABLE, LABELS, max_features=0)
