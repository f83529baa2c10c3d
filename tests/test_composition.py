"""Estimators in pipelines and searches: routed weights, feature names, several processes."""

import os

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from helpers import QUICK, assert_same, outputs, over_estimators, some_classes, with_parameter
from numpy.testing import assert_array_equal
from sklearn import config_context
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score, cross_validate
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils import get_tags
from sklearn.utils.fixes import parse_version
from sklearn.utils.validation import has_fit_parameter

from skvae import ClusterLabelClassifier, TorchGMM, TorchMiniBatchKMeans, TorchPPCA
from skvae.selection import CRITERIA

WEIGHTED = [estimator for estimator in QUICK if has_fit_parameter(estimator, "sample_weight")]
over_weighted = pytest.mark.parametrize("estimator", WEIGHTED, ids=lambda estimator: type(estimator).__name__)
pytestmark = [
    pytest.mark.usefixtures("short_embedding"),
    pytest.mark.filterwarnings("ignore:EM did not converge:sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:Clusters overlap"),
    pytest.mark.filterwarnings("ignore:Clusters .* have almost no samples"),  # after three epochs
]


@pytest.fixture
def X(blobs):
    return blobs[0][::3]


def test_every_estimator_takes_weights():
    assert WEIGHTED == QUICK


def with_request(estimator, wanted):
    """Return a clone whose fit, and that of nested estimators, requests weights or not."""
    estimator = clone(estimator).set_fit_request(sample_weight=wanted)
    if isinstance(estimator, ClusterLabelClassifier):
        estimator.estimator.set_fit_request(sample_weight=wanted)
    return estimator


def with_score_request(pipeline):
    """Request weights of the score of a pipeline, too, which scikit-learn 1.6 takes for a consumer of them."""
    return pipeline.set_score_request(sample_weight=True) if hasattr(pipeline, "set_score_request") else pipeline


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
def test_integer_weights_are_repeated_samples(estimator, X):
    """Weight 0 removes a sample, whatever its values."""
    weight = np.random.default_rng(0).integers(0, 4, size=len(X))
    y, repeated = some_classes(X), np.random.default_rng(1).permutation(np.repeat(np.arange(len(X)), weight))
    far = np.where(weight[:, None] == 0, 1e3, X)
    weighted = clone(estimator).fit(far, y, sample_weight=weight)
    equal = clone(estimator).fit(X[repeated], y[repeated])
    assert_same(outputs(weighted, X), outputs(equal, X), rtol=1e-5, atol=1e-5)


@over_weighted
def test_equal_weights_are_no_weights(estimator, X):
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
def test_bad_weights_raise(estimator, weights_of, match, X):
    estimator = clone(estimator)
    with pytest.raises(ValueError, match=match):
        estimator.fit(X, some_classes(X), sample_weight=weights_of(len(X)))
    assert not [name for name in vars(estimator) if name.endswith("_")]


# Weights in scores and criteria


def scores_of(estimator, X, y, **weights):
    """Return all scores of a fit."""
    found = {name: getattr(estimator, name)(X, **weights) for name in CRITERIA if hasattr(estimator, name)}
    return found | {"score": estimator.score(X, y, **weights)}


@over_estimators
def test_integer_weights_score_as_repeated_samples(estimator, X):
    """Weight 0 removes a sample, whatever its values."""
    weight = np.random.default_rng(0).integers(0, 4, size=len(X))
    y, repeated = some_classes(X), np.random.default_rng(1).permutation(np.repeat(np.arange(len(X)), weight))
    fitted = clone(estimator).fit(X, y, sample_weight=weight)
    expected = scores_of(fitted, X[repeated], y[repeated])
    fillings = [X, np.where(weight[:, None] == 0, 1e3, X)]
    if get_tags(estimator).input_tags.allow_nan:
        fillings.append(np.where(weight[:, None] == 0, np.nan, X))
    for rows in fillings:
        found = scores_of(fitted, rows, y, sample_weight=weight)
        assert found == pytest.approx(expected, rel=1e-9)
        assert all(type(value) is float for value in found.values())
    assert scores_of(fitted, X, y) != pytest.approx(expected, rel=1e-3)
    # Numbers that are not whole: those of samples, in another unit.
    found = scores_of(fitted, X, y, sample_weight=weight / 8)["score"]
    kmeans = isinstance(estimator, TorchMiniBatchKMeans)  # whose score is a sum
    assert found * (8 if kmeans else 1) == pytest.approx(expected["score"], rel=1e-9)


@over_estimators
def test_samples_of_weight_0_may_be_out_of_range(estimator, X):
    """As in a fit, the likelihood for values from 0 to 1 does not see them."""
    X = (X - X.min()) / np.ptp(X)
    weight, y = np.arange(len(X)) % 3, some_classes(X)
    rows = np.where(weight[:, None] == 0, -9.0, X)
    fitted = clone(estimator).fit(rows, y, sample_weight=weight)
    expected = scores_of(fitted, X, y, sample_weight=weight)
    assert scores_of(fitted, rows, y, sample_weight=weight) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("estimator", [e for e in QUICK if hasattr(e, "max_epochs")], ids=str)
def test_missing_values_unseen_in_fit_still_raise(estimator, X):
    fitted, weight = clone(estimator).fit(X), np.arange(len(X)) % 3
    X[1, 0] = np.nan
    with pytest.raises(ValueError, match="was fitted to rows without missing values"):
        fitted.score(X, sample_weight=weight)


@over_estimators
def test_no_weights_are_the_mean_over_samples(estimator, X):
    y, ones = some_classes(X), np.ones(len(X))
    fitted = clone(estimator).fit(X, y)
    plain = scores_of(fitted, X, y)
    assert scores_of(fitted, X, y, sample_weight=None) == plain
    assert scores_of(fitted, X, y, sample_weight=ones) == pytest.approx(plain, rel=1e-12)
    if hasattr(fitted, "score_samples"):
        assert plain["score"] == fitted.score_samples(X).mean(dtype=np.float64)


@over_estimators
@pytest.mark.parametrize(("weights_of", "match"), BAD_WEIGHTS.values(), ids=BAD_WEIGHTS)
def test_bad_weights_of_scores_raise(estimator, weights_of, match, X):
    y = some_classes(X)
    fitted, weight = clone(estimator).fit(X, y), weights_of(len(X))
    for name in ("score", *CRITERIA):
        if hasattr(fitted, name):
            with pytest.raises(ValueError, match=match):
                getattr(fitted, name)(X, *([y] if name == "score" else ()), sample_weight=weight)


# Names


@over_estimators
def test_feature_names_out(estimator, X):
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
def test_html_representation(estimator, X):
    estimator = clone(estimator)
    page = estimator._repr_html_()
    assert type(estimator).__name__ in page
    assert "Not fitted" in page
    assert "<span>Fitted</span>" in estimator.fit(X, some_classes(X))._repr_html_()
    assert eval(repr(estimator), {type(e).__name__: type(e) for e in QUICK}).get_params(deep=False).keys()


# Searches


@pytest.fixture
def two_peaks():
    """Histogram of two peaks, its bins in random order: their centres (60, 1), numbers of samples, nearest peaks."""
    rng = np.random.default_rng(0)
    samples = np.concatenate([rng.normal(-2, 1, size=3000), rng.normal(2, 1, size=3000)])
    counts, edges = np.histogram(samples, bins=60)
    order = rng.permutation(60)
    X = (edges[1:, None] + edges[:-1, None])[order] / 2
    return X, counts[order], (X[:, 0] > 0).astype(int)


def splits_of(X, counts, n_splits):
    """Return the same folds of bins, and of the samples in them."""
    place = np.repeat(np.arange(len(X)), counts)
    for train, test in KFold(n_splits).split(X):
        yield (train, test), (np.flatnonzero(np.isin(place, train)), np.flatnonzero(np.isin(place, test)))


def assert_same_search(found, expected):
    assert found.best_params_ == expected.best_params_
    for name in ("mean_test_score", "std_test_score"):
        np.testing.assert_allclose(found.cv_results_[name], expected.cv_results_[name], rtol=1e-4)


def test_searches_score_with_weights(two_peaks):
    X, counts, _ = two_peaks
    bins, samples = zip(*splits_of(X, counts, 3), strict=True)
    grid = {"gmm__n_components": [1, 2]}
    gmm = TorchGMM(max_iter=500, random_state=0)
    pipeline = Pipeline([("scale", StandardScaler()), ("gmm", gmm)])
    expected = GridSearchCV(pipeline, grid, cv=samples).fit(np.repeat(X, counts, axis=0))
    assert expected.best_params_ == {"gmm__n_components": 2}
    unweighted = GridSearchCV(pipeline, grid, cv=bins).fit(X, scale__sample_weight=counts, gmm__sample_weight=counts)
    assert unweighted.best_params_ == {"gmm__n_components": 1}, "the weights make no difference here"
    with config_context(enable_metadata_routing=True):
        scaler = StandardScaler().set_fit_request(sample_weight=True)
        gmm = clone(gmm).set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        pipeline = with_score_request(Pipeline([("scale", scaler), ("gmm", gmm)]))
        routed = GridSearchCV(pipeline, grid, cv=bins).fit(X, sample_weight=counts)
        assert_same_search(routed, expected)
        weights = {"sample_weight": counts}
        scores = cross_val_score(routed.best_estimator_, X, cv=bins, params=weights)
        np.testing.assert_allclose(scores.mean(), routed.best_score_)


@pytest.mark.skipif(parse_version(sklearn.__version__) < parse_version("1.7"), reason="weights go to fits alone")
def test_searches_without_routing_score_with_weights(two_peaks):
    X, counts, _ = two_peaks
    bins, samples = zip(*splits_of(X, counts, 3), strict=True)
    gmm, grid = TorchGMM(max_iter=500, random_state=0), {"n_components": [1, 2]}
    expected = GridSearchCV(gmm, grid, cv=samples).fit(np.repeat(X, counts, axis=0))
    assert_same_search(GridSearchCV(gmm, grid, cv=bins).fit(X, sample_weight=counts), expected)


def test_searches_of_a_classifier_score_with_weights(two_peaks):
    X, counts, y = two_peaks
    bins, samples = zip(*splits_of(X, counts, 3), strict=True)
    gmm, grid = TorchGMM(max_iter=500, random_state=0), {"estimator__n_components": [1, 2]}
    everything = np.repeat(np.arange(len(X)), counts)
    expected = GridSearchCV(ClusterLabelClassifier(gmm), grid, cv=samples).fit(X[everything], y[everything])
    with config_context(enable_metadata_routing=True):
        classifier = ClusterLabelClassifier(clone(gmm).set_fit_request(sample_weight=True))
        classifier.set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        assert_same_search(GridSearchCV(classifier, grid, cv=bins).fit(X, y, sample_weight=counts), expected)


@over_estimators
def test_pipelines_score_with_weights(estimator, X):
    """With routing and without, for every last step."""
    y, weight = some_classes(X), np.arange(len(X)) % 3
    pipeline = make_pipeline(FunctionTransformer(), clone(estimator))
    name = pipeline.steps[-1][0]
    pipeline.fit(X, y, **{f"{name}__sample_weight": weight})
    expected = pipeline[-1].score(X, y, sample_weight=weight)
    assert pipeline.score(X, y, sample_weight=weight) == expected
    with config_context(enable_metadata_routing=True):
        last = with_request(estimator, True).set_score_request(sample_weight=True)
        pipeline = with_score_request(make_pipeline(FunctionTransformer(), last)).fit(X, y, sample_weight=weight)
        assert pipeline.score(X, y, sample_weight=weight) == pytest.approx(expected, rel=1e-9)
        params = {"sample_weight": weight}
        scores = cross_validate(pipeline, X, y, cv=2, params=params, error_score="raise")["test_score"]
        assert np.isfinite(scores).all()


def threads_of_worker():
    """Threads of torch in another process."""
    return os.getpid(), torch.get_num_threads()


@pytest.mark.first
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
