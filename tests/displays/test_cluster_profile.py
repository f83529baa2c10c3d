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


@pytest.mark.parametrize("dtype", ["string", "boolean"])
def test_nullable_values(dtype):
    values = ["a", None, "b"] if dtype == "string" else [True, None, False]
    display = ClusterProfileDisplay.from_predictions(pd.DataFrame({"b": pd.array(values, dtype=dtype)}), [0, 0, 1])
    assert display.values[0, 0] == 1


def test_constant_features_do_not_differ():
    labels = np.repeat([0, 1], [700, 300])
    X = np.column_stack([np.full(1_000, 0.1), 1e-12 * labels + 5, np.random.default_rng(0).normal(size=1_000)])
    display = ClusterProfileDisplay.from_predictions(X, labels)
    assert_array_equal(display.effects[:, :2], 0)
    assert ClusterProfileDisplay.from_predictions(X, labels, max_features=1).columns == [("feature 2", None)]


def test_both_halves_of_flags_are_told():
    display = ClusterProfileDisplay.from_predictions(pd.DataFrame({"member": LABELS == "a"}), LABELS)
    assert display.describe() == ["Cluster a (50%): member True 100%.", "Cluster b (50%): member True 0%."]
    numbers = pd.DataFrame({"k": pd.Categorical([0, 1] * 3)})
    assert ClusterProfileDisplay.from_predictions(numbers, LABELS).columns == [("k", "0"), ("k", "1")]


def test_few_of_many_categories_are_shown():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"zip": rng.integers(200, size=500).astype(str), "x": rng.normal(size=500)})
    labels = (table["zip"] == "7").to_numpy().astype(int)
    columns = ClusterProfileDisplay.from_predictions(table, labels).columns
    assert len(columns) == 11
    assert ("zip", "7") in columns


def test_clusters_without_values():
    display = ClusterProfileDisplay.from_predictions(np.array([[1.0], [np.nan]]), [0, 1])
    assert np.isnan(display.values[1, 0])
    assert display.describe()[1] == "Cluster 1 (50%): no values."
    ClusterProfileDisplay.from_predictions(np.full((4, 2), np.nan), [0, 0, 1, 1])
    with pytest.raises(ValueError, match="labels should have a cluster for each sample"):
        ClusterProfileDisplay.from_predictions(np.ones((3, 1)), [0, None, 1])
    with pytest.raises(ValueError, match="same name"):
        ClusterProfileDisplay.from_predictions(pd.concat([TABLE, TABLE[["age"]]], axis=1), LABELS)
    with pytest.raises(ValueError, match="inconsistent numbers"):
        ClusterProfileDisplay.from_predictions(TABLE, LABELS[:3])
    with pytest.raises(ValueError, match="max_features"):
        ClusterProfileDisplay.from_predictions(TABLE, LABELS, max_features=0)
