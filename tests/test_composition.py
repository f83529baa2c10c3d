"""Estimators among others: weights that are routed, names of columns, searches in several processes."""

import os

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn import config_context
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.validation import has_fit_parameter
from test_common import QUICK, assert_same, outputs, over_estimators, some_classes, with_parameter

from skvae import ClusterLabelClassifier, TorchGMM, TorchPPCA

WEIGHTED = [estimator for estimator in QUICK if has_fit_parameter(estimator, "sample_weight")]
over_weighted = pytest.mark.parametrize("estimator", WEIGHTED, ids=lambda estimator: type(estimator).__name__)
pytestmark = [
    pytest.mark.filterwarnings("ignore:EM did not converge:sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:Rows belong to all clusters alike"),
]


@pytest.fixture
def X(blobs):
    return blobs[0][::3]


def test_every_estimator_takes_weights():
    assert WEIGHTED == QUICK


def with_request(estimator, wanted):
    """A copy whose fit, and that of what it wraps, asks for weights or not."""
    estimator = clone(estimator).set_fit_request(sample_weight=wanted)
    if isinstance(estimator, ClusterLabelClassifier):
        estimator.estimator.set_fit_request(sample_weight=wanted)
    return estimator


@over_weighted
def test_weights_are_routed_through_a_pipeline(estimator, X):
    y, weight = some_classes(X), np.arange(len(X)) % 3
    expected = outputs(clone(estimator).fit(X, y, sample_weight=weight), X)
    with config_context(enable_metadata_routing=True):
        pipeline = make_pipeline(FunctionTransformer(), with_request(estimator, True))
        found = outputs(pipeline.fit(X, y, sample_weight=weight)[-1], X)
        with pytest.raises(TypeError, match=r"got unexpected argument\(s\) \{'sample_weight'\}"):
            make_pipeline(FunctionTransformer(), with_request(estimator, False)).fit(X, y, sample_weight=weight)
    assert_same(found, expected)


@over_weighted
def test_whole_weights_are_repeated_rows(estimator, X):
    """Also none, whatever is in such a row."""
    weight = np.random.default_rng(0).integers(0, 4, size=len(X))
    y, repeated = some_classes(X), np.random.default_rng(1).permutation(np.repeat(np.arange(len(X)), weight))
    far = np.where(weight[:, None] == 0, 1e3, X)
    weighted = clone(estimator).fit(far, y, sample_weight=weight)
    equal = clone(estimator).fit(X[repeated], y[repeated])
    assert_same(outputs(weighted, X), outputs(equal, X), rtol=1e-5, atol=1e-5)


@over_weighted
def test_equal_weights_are_none(estimator, X):
    y = some_classes(X)
    weighted = clone(estimator).fit(X, y, sample_weight=np.ones(len(X)))
    assert_same(outputs(weighted, X), outputs(clone(estimator).fit(X, y), X), rtol=1e-5, atol=1e-5)


BAD_WEIGHTS = {
    "negative": (lambda n: np.full(n, -1.0), "[Nn]egative values in (data passed to )?`sample_weight`"),
    "NaN": (lambda n: np.full(n, np.nan), "sample_weight contains NaN"),
    "too few": (lambda n: np.ones(n - 1), "inconsistent numbers of samples|sample_weight.shape == "),
    "a word": (lambda n: "balanced", "should be an array of numbers.*compute_sample_weight"),
    "two columns": (lambda n: np.ones((n, 2)), "Sample weights must be 1D array or scalar|1D array"),
    "zero": (np.zeros, "at least one (non-zero number|row .*should count)"),
}


@over_weighted
@pytest.mark.parametrize(("weights_of", "match"), BAD_WEIGHTS.values(), ids=BAD_WEIGHTS)
def test_weights_that_are_none(estimator, weights_of, match, X):
    estimator = clone(estimator)
    with pytest.raises(ValueError, match=match):
        estimator.fit(X, some_classes(X), sample_weight=weights_of(len(X)))
    assert not [name for name in vars(estimator) if name.endswith("_")]


# Names


@over_estimators
def test_names_of_columns(estimator, X):
    fitted = clone(estimator).fit(X, some_classes(X))
    assert fitted.n_features_in_ == 4
    if not hasattr(fitted, "transform"):
        return
    names = fitted.get_feature_names_out()
    Z = fitted.transform(X)
    assert names.tolist() == [f"{type(estimator).__name__.lower()}{i}" for i in range(Z.shape[1])]
    fitted.set_output(transform="pandas")
    for rows in (X, pd.DataFrame(X, index=np.arange(len(X)) + 7)):
        frame = fitted.transform(rows)
        assert isinstance(frame, pd.DataFrame)
        assert_array_equal(frame.columns, names)
        assert_array_equal(frame.index, getattr(rows, "index", np.arange(len(X))))
        assert_array_equal(frame, Z)
    pipeline = make_pipeline(FunctionTransformer(feature_names_out="one-to-one"), clone(estimator))
    pipeline.set_output(transform="pandas").fit(pd.DataFrame(X, columns=list("abcd")), some_classes(X))
    assert_array_equal(pipeline.get_feature_names_out(), names)


@over_estimators
def test_pages_show_the_estimator(estimator, X):
    estimator = clone(estimator)
    page = estimator._repr_html_()
    assert type(estimator).__name__ in page
    assert "Not fitted" in page
    assert "<span>Fitted</span>" in estimator.fit(X, some_classes(X))._repr_html_()
    assert eval(repr(estimator), {type(e).__name__: type(e) for e in QUICK}).get_params(deep=False).keys()


# Searches


def threads_of_worker():
    """Threads of torch in another process."""
    return os.getpid(), torch.get_num_threads()


@pytest.mark.parametrize(
    ("estimator", "grid"),
    [
        (TorchGMM(random_state=0), {"gmm__n_components": [1, 2], "gmm__reg_covar": [1e-3, 1e-2]}),
        (TorchPPCA(), {"gmm__n_components": [1, 2]}),
    ],
    ids=["TorchGMM", "TorchPPCA"],
)
def test_searches_in_processes(estimator, grid, X):
    pipeline = Pipeline([("same", FunctionTransformer()), ("gmm", estimator)])
    alone = GridSearchCV(pipeline, grid, cv=2).fit(X)
    with joblib.parallel_backend("loky", n_jobs=2):
        together = GridSearchCV(pipeline, grid, cv=2, n_jobs=2).fit(X)
        workers = joblib.Parallel(n_jobs=2)(joblib.delayed(threads_of_worker)() for _ in range(2))
    assert_array_equal(alone.cv_results_["mean_test_score"], together.cv_results_["mean_test_score"])
    assert together.best_params_ == alone.best_params_
    assert {pid for pid, _ in workers}.isdisjoint({os.getpid()})
    assert max(n_threads for _, n_threads in workers) <= max(1, joblib.cpu_count() // 2)


@over_estimators
def test_searches_over_every_estimator(estimator, X):
    name = next(name for name in estimator.get_params() if name.split("__")[-1] in ("n_components", "n_clusters"))
    search = GridSearchCV(with_parameter(estimator, 2, name.split("__")[-1]), {name: [2, 3]}, cv=2)
    search.fit(X, some_classes(X))
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
