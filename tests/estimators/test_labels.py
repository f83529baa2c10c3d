"""Labels of which some are missing, in all forms of input."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.cluster import KMeans
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skvae import ClusterLabelClassifier, TorchGMM
from skvae.data.labels import label_array, read_labels
from skvae.displays import LatentSpaceDisplay

X = np.array([[0.0], [0.1], [0.2], [5.0], [5.1], [5.2]])
TEXT, NUMBERS, TRUTH = (
    ["a", None, None, "b", None, "b"],
    [3, None, -1, 4, None, 4],
    [True, None, None, False, None, False],
)
DATES = ["2020-01-01", None, None, "2021-01-01", None, "2021-01-01"]
NAN = float("nan")


def with_polars(*args, **settings):
    return lambda: pytest.importorskip("polars").Series(*args, **settings)


FORMS = {  # of the labels a, none, none, b, none, b
    "list of text and nan": ["a", NAN, np.nan, "b", NAN, "b"],
    "tuple of text and nan": ("a", NAN, np.float32(NAN), "b", NAN, "b"),
    "list of text and None": TEXT,
    "list of text and NA": ["a", pd.NA, None, "b", pd.NA, "b"],
    "list of text and -1": ["a", -1, np.int64(-1), "b", -1, "b"],
    "list of all marks": ["a", -1, NAN, "b", pd.NaT, "b"],
    "objects": np.array(["a", None, NAN, "b", pd.NA, "b"], dtype=object),
    "objects and -1": np.array(["a", -1, -1, "b", -1, "b"], dtype=object),
    "objects and -1.0": pd.Series(["a", -1.0, pd.NA, "b", None, "b"], dtype=object),
    "Series": pd.Series(TEXT),
    "Series with another index": pd.Series(TEXT, index=range(9, 3, -1)),
    "Series of strings": pd.Series(TEXT, dtype=pd.StringDtype("python")),
    "category": pd.Series(TEXT, dtype="category"),
    "Categorical": pd.Categorical(TEXT),
    "Index": pd.Index(TEXT),
    "boolean": pd.Series(TRUTH, dtype="boolean"),
    "Int64": pd.Series(NUMBERS, dtype="Int64"),
    "Float64": pd.Series(NUMBERS, dtype="Float64").replace(-1, pd.NA),
    "category of numbers": pd.Series(NUMBERS, dtype="category"),
    "dates": pd.Series(pd.to_datetime(DATES)),
    "dates as objects": pd.Series(pd.to_datetime(DATES)).astype(object),
    "dates of NumPy": np.array([date or "NaT" for date in DATES], dtype="datetime64[D]"),
    "polars text": with_polars(TEXT),
    "polars numbers": with_polars(NUMBERS),
    "polars floats": with_polars([3.0, None, NAN, 4.0, None, 4.0]),
    "polars booleans": with_polars(TRUTH),
    "floats": np.array([3.0, NAN, NAN, 4.0, NAN, 4.0]),
    "list of integers and nan": [3, NAN, -1, 4, NAN, 4],
    "objects of floats": np.array([3.0, None, NAN, 4.0, None, 4.0], dtype=object),
    "integers": np.array([3, -1, -1, 4, -1, 4], dtype=np.int8),
    "tensor": torch.tensor([3, -1, -1, 4, -1, 4]),
    "tensor of floats": torch.tensor([3.0, NAN, NAN, 4.0, NAN, 4.0], requires_grad=True),
    "tensor of bfloat16": torch.tensor([3.0, NAN, NAN, 4.0, NAN, 4.0], dtype=torch.bfloat16),
    "list of tensors": [torch.tensor(3), torch.tensor(-1), None, torch.tensor(4), -1, torch.tensor(4)],
}


@pytest.fixture(params=FORMS)
def y(request):
    form = FORMS[request.param]
    return form() if callable(form) else form


def test_classifier_with_labels_in_every_form(y):
    classifier = ClusterLabelClassifier(KMeans(2, n_init=1, random_state=0)).fit(X, y)
    assert len(classifier.classes_) == 2
    assert sorted(classifier.counts_.sum(axis=0)) == [1, 2]
    assert classifier.score(X, y) == 1.0
    first, last = classifier.predict(X[[0, -1]])
    assert first != last


def test_mixture_with_labels_in_every_form(y):
    gmm = TorchGMM(2, init_params="labels", max_iter=0).fit(X, y)
    assert_allclose(np.sort(gmm.means_.ravel()), [0.0, 5.1], atol=1e-9)


def test_display_with_labels_in_every_form(y):
    if -1 in list(label_array(y)):
        pytest.skip("a display shows -1, which is noise for clusterers")
    display = LatentSpaceDisplay.from_predictions(np.column_stack([X, X]), y)
    plt.close(display.figure_)
    assert np.isfinite(display.class_means_).all()
    assert len(display.class_means_) == 2


def test_strings_with_a_mark_of_the_user():
    y = ["a", 0, "?", "b", "?", NAN]
    assert read_labels(y, unlabelled="?").values.tolist() == ["a", 0, "b"]
    assert_array_equal(read_labels(["a", -1, "b", NAN], unlabelled=-1).rows, [0, 2])
    assert_array_equal(read_labels(["a", 0, "b", NAN], unlabelled=0).rows, [0, 2])
    assert_array_equal(read_labels([1, -1, NAN, 1], unlabelled="auto").values, [1, -1, 1])
    assert_array_equal(read_labels([1, -1, NAN, 2], unlabelled=None).values, [1, -1, 2])


def test_strings_that_look_like_marks_are_classes():
    for y in (np.array(["nan", "a", "-1", "nan"]), ["nan", "a", "-1", "nan"], pd.Series(["nan", "a", "-1", "nan"])):
        assert_array_equal(read_labels(y, unlabelled="auto").values, ["nan", "a", "-1", "nan"])


def test_dtypes_of_lists():
    assert label_array(["a", "b"]).dtype.kind == "U"
    assert label_array([1, 2]).dtype.kind == "i"
    assert label_array([1.0, NAN]).dtype.kind == "f"


def test_score_uses_the_mark_of_the_fit():
    classifier = ClusterLabelClassifier(KMeans(2, n_init=1, random_state=0)).fit(X, ["a", "a", "a", "b", "b", "b"])
    assert classifier.score(X[2:], ["a", "b", -1, NAN]) == 1.0


def test_grid_search_with_lists_of_strings_and_nan():
    y = [["a", "b"][int(x > 3)] if i % 5 else NAN for i, x in enumerate(np.tile(X, (5, 1))[:, 0])]
    model = make_pipeline(StandardScaler(), ClusterLabelClassifier(KMeans(2, n_init=1, random_state=0)))
    search = GridSearchCV(model, {"clusterlabelclassifier__assignment": ["majority"]}, cv=KFold(3, shuffle=True))
    assert search.fit(np.tile(X, (5, 1)), y).best_score_ == 1.0


INVALID = {
    "continuous": (
        [0.5, 1, 2, NAN, 3, 4],
        ValueError,
        "Unknown label type: continuous. y holds 0.5, but classes should",
    ),
    "complex": (np.arange(6) * 1j, ValueError, "Complex data not supported: y has dtype complex128; give whole numb"),
    "mixed": (["a", 1, 2, "b", 1, "b"], TypeError, r"labels of the types \['int', 'str'\]; they should be all strings"),
    "bytes": ([b"a", b"b", None] * 2, TypeError, "y has labels of type bytes; they should be strings or numbers"),
    "lists": ([[1], [1, 2], [1], [1], [1], [1]], TypeError, "y has labels of type list; they should be strings or num"),
    "one-hot": (np.eye(6), ValueError, r"y should be a 1d array .* of shape \(6, 6\); of one-hot rows give y.argmax"),
    "a word": ("labels", ValueError, r"y should be a 1d array with one class for each row, but got .* of shape \(\)"),
    "infinite": ([0.0, 1.0, np.inf, NAN, 0, 0], ValueError, "Input y contains infinity"),
}


@pytest.mark.parametrize(("wrong", "error", "match"), INVALID.values(), ids=INVALID)
@pytest.mark.parametrize(
    "estimator", [ClusterLabelClassifier(KMeans(2)), TorchGMM(2, init_params="labels")], ids=["classifier", "mixture"]
)
def test_invalid_labels(estimator, wrong, error, match):
    with pytest.raises(error, match=match):
        estimator.fit(X, wrong)


def test_one_label_for_each_of_many_components():
    rows = np.arange(30.0)[:, None]
    assert_allclose(TorchGMM(30, init_params="labels", max_iter=0).fit(rows, np.arange(30)).means_, rows, atol=1e-9)
