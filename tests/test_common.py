"""Contract of every estimator: scikit-learn's checks, and our own."""

import ast
import copy
import pickle
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import (
    QUICK,
    TINY,
    assert_same,
    global_states,
    outputs,
    over_estimators,
    over_generative,
    some_classes,
    with_parameter,
)
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.exceptions import NotFittedError
from sklearn.utils import get_tags
from sklearn.utils._param_validation import InvalidParameterError
from sklearn.utils.estimator_checks import estimator_checks_generator

import skvae
from skvae.estimators import (
    ESTIMATORS,
    AutoencoderEmbedder,
    ClusterLabelClassifier,
    TorchGMM,
    TorchMiniBatchKMeans,
    TorchPPCA,
    VaDEClusterer,
    VAEEmbedder,
)

pytestmark = pytest.mark.usefixtures("short_embedding")
INSTANCES = [
    TorchGMM(),
    TorchGMM(2, covariance_type="diag", n_init=2),
    TorchGMM(2, covariance_type="tied", init_params="random"),
    TorchGMM(2, covariance_type="spherical", init_params="k-means++"),
    TorchPPCA(),
    TorchPPCA(1),
    VAEEmbedder(max_epochs=5),
    VAEEmbedder(2, hidden_layer_sizes=(8,), likelihood="gaussian", batch_norm=True, max_epochs=5),
    AutoencoderEmbedder(max_epochs=5),
    AutoencoderEmbedder(2, hidden_layer_sizes=(8,), dropout=0.1, corruption=0.2, early_stopping=True, max_epochs=5),
    TorchMiniBatchKMeans(),
    TorchMiniBatchKMeans(3, init="random", learning_rate=0.1, batch_size=16),
    VaDEClusterer(3, **TINY),
    VaDEClusterer(2, covariance_type="diag", init="gmm", n_neighbors=0, **TINY),
    ClusterLabelClassifier(TorchGMM(4, random_state=0)),
    ClusterLabelClassifier(TorchMiniBatchKMeans(5, random_state=0), assignment="proportional"),
    ClusterLabelClassifier(KMeans(4, random_state=0), assignment="hungarian"),
]


@pytest.fixture
def blobs(few_blobs):
    """Few samples, because fits of networks take the time."""
    return few_blobs


def score_or_predict(estimator, X):
    """Call a method that every estimator has."""
    return estimator.score_samples(X) if hasattr(estimator, "score_samples") else estimator.predict(X)


def test_lists_contain_every_estimator():
    assert {type(estimator) for estimator in INSTANCES} == set(ESTIMATORS.values())
    assert {type(estimator) for estimator in QUICK} == set(ESTIMATORS.values())


def all_checks():
    for instance in INSTANCES:
        label = str(instance).replace("\n", "")  # once, because it takes milliseconds
        for estimator, check in estimator_checks_generator(instance):
            name = getattr(check, "func", check).__name__
            kind = check.keywords if hasattr(check, "keywords") else {}
            yield pytest.param(estimator, check, id=f"{label}-{name}-{kind}")


def takes_for_classifier(estimator, check):
    """Return whether a check takes an estimator with predict_proba for a classifier, although it is none.

    The checks of sparse samples do, after they have verified that the samples are accepted.
    """
    sparse = getattr(check, "func", check).__name__ in ("check_estimator_sparse_array", "check_estimator_sparse_matrix")
    return sparse and hasattr(estimator, "predict_proba") and get_tags(estimator).classifier_tags is None


@pytest.mark.filterwarnings("ignore:Only . of n_clusters=.* clusters have samples")  # of few distinct samples
@pytest.mark.filterwarnings("ignore:Clusters .* have almost no samples")
@pytest.mark.filterwarnings("ignore:Clusters overlap")
@pytest.mark.filterwarnings("ignore:.* clusters have no labelled row")
@pytest.mark.parametrize(("estimator", "check"), list(all_checks()))
def test_scikit_learn_checks(estimator, check):
    if takes_for_classifier(estimator, check):
        with pytest.raises(AssertionError) as found:
            check(estimator)
        assert "'NoneType' object has no attribute 'multi_class'" in str(found.value.__cause__)
        return
    try:
        check(estimator)
    except BaseException as error:
        if type(error).__name__ in ("SkipTest", "Skipped"):
            pytest.fail(f"The check was skipped: {error}")
        raise


@over_estimators
def test_same_seed_same_result(estimator, blobs):
    one, two = (clone(estimator).fit(*blobs) for _ in range(2))
    assert_same(outputs(one, blobs[0]), outputs(two, blobs[0]))


@pytest.mark.parametrize(
    "estimator", [e for e in QUICK if hasattr(e, "random_state") and not isinstance(e, TorchPPCA)], ids=str
)  # fits that draw, from a state that is not cloned
def test_random_state_instance_advances(estimator, blobs):
    state = np.random.RandomState(0)
    estimator = clone(estimator).set_params(random_state=state)
    before = state.get_state()[2]
    estimator.fit(*blobs)
    assert state.get_state()[2] != before


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # of an unlucky seed
@over_estimators
@pytest.mark.parametrize("random_state", [None, 0])
def test_global_random_states_are_untouched(estimator, random_state, blobs):
    before = global_states()
    outputs(with_parameter(estimator, random_state, "random_state").fit(*blobs), blobs[0])
    assert global_states() == before


@over_estimators
def test_copies_are_equal(estimator, blobs, tmp_path):
    estimator = clone(estimator).fit(*blobs)
    expected = outputs(estimator, blobs[0])
    joblib.dump(estimator, tmp_path / "estimator.joblib")
    copies = [
        pickle.loads(pickle.dumps(estimator)),
        copy.deepcopy(estimator),
        joblib.load(tmp_path / "estimator.joblib"),
    ]
    for other in copies:
        assert_same(outputs(other, blobs[0]), expected)
        other.fit(*blobs)
        assert_same(outputs(other, blobs[0]), expected)
    mapped = joblib.load(tmp_path / "estimator.joblib", mmap_mode="r")
    assert_same(outputs(mapped, blobs[0]), expected)


@over_estimators
def test_pickle_is_small(estimator, blobs):
    estimator = clone(estimator).fit(*blobs)
    arrays = [value for value in vars(estimator).values() if isinstance(value, np.ndarray)]
    if hasattr(estimator, "module_"):
        arrays += list(estimator.module_.state_dict().values())
    size = sum(array.nbytes for array in arrays)
    assert len(pickle.dumps(estimator)) < size + 12_000  # parameters, and a fixed cost for names


@over_estimators
def test_float_precision_is_preserved(estimator, blobs):
    for dtype in (np.float32, np.float64):
        X = blobs[0].astype(dtype)
        estimator = clone(estimator).fit(X, some_classes(X))
        found = outputs(estimator, X)
        kinds = {name: value.dtype for name, value in found.items() if name != "predict"}
        assert set(kinds.values()) == {np.dtype(dtype)}, kinds


@over_generative
def test_large_offsets_keep_their_digits(estimator):
    """A column of time stamps."""
    X = np.random.default_rng(0).normal(size=(200, 2)) * [100.0, 1.0] + [1.7e9, 0.0]
    drawn = clone(estimator).fit(X, some_classes(X)).sample(100, random_state=0)
    drawn = drawn[0] if isinstance(drawn, tuple) else drawn
    assert len(np.unique(drawn[:, 0])) == 100
    assert abs(drawn[:, 0].mean() - 1.7e9) < 100


@over_estimators
def test_feature_names(estimator, blobs):
    frame = pd.DataFrame(blobs[0], columns=list("abcd"))
    estimator = clone(estimator).fit(frame, blobs[1])
    assert_array_equal(estimator.feature_names_in_, list("abcd"))
    with pytest.raises(ValueError, match="feature names"):
        score_or_predict(estimator, frame[list("dcba")])


@over_estimators
def test_fit_does_not_change_parameters(estimator, blobs):
    estimator = clone(estimator)
    before = estimator.get_params()
    after = estimator.fit(*blobs).get_params()
    assert [name for name in before if after[name] is not before[name]] == []


BAD_INPUT = {
    "strings": (np.array([["a", "b"], ["c", "d"]]), ValueError, "could not convert string to float"),
    "infinity": (np.array([[1.0, np.inf], [2.0, 3.0], [1.0, 4.0]]), ValueError, "contains infinity"),
    "one dimension": (np.arange(5.0), ValueError, "Expected 2D array, got 1D array"),
    "three dimensions": (np.zeros((5, 2, 2)), ValueError, "Found array with dim 3"),
    "empty": (np.empty((0, 2)), ValueError, "0 sample"),
    "no features": (np.empty((5, 0)), ValueError, r"0 feature\(s\)"),
    "complex": (np.ones((5, 2), dtype=complex), ValueError, "Complex data not supported"),
    "one sample": (np.ones((1, 2)), ValueError, "1 sample|n_samples=1"),
    "fewer samples than components": (np.eye(3), ValueError, "n_(components|clusters) ?= ?9"),
}


@over_estimators
@pytest.mark.parametrize(("X", "error", "match"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_raises_a_clear_error(estimator, X, error, match):
    estimator = clone(estimator)
    if match.startswith("n_(components"):
        estimator = with_parameter(estimator, 9, "n_components", "n_clusters")
    with pytest.raises(error, match=match):
        estimator.fit(X, some_classes(X))
    assert not [name for name in vars(estimator) if name.endswith("_")], "A failed fit left something behind."


@over_estimators
def test_missing_values_are_fitted_or_raise_a_clear_error(estimator, blobs):
    X = np.where(np.random.default_rng(0).uniform(size=blobs[0].shape) < 0.1, np.nan, blobs[0])
    estimator = clone(estimator)
    if not get_tags(estimator).input_tags.allow_nan:
        with pytest.raises(ValueError, match="contains NaN"):
            estimator.fit(X, blobs[1])
        return
    found = outputs(estimator.fit(X, blobs[1]), X)
    assert all(np.isfinite(value).all() for value in found.values())


@over_estimators
def test_one_feature_works(estimator):
    X = np.concatenate([np.linspace(-1, 1, 30), np.linspace(9, 11, 30)])[:, None]
    size = 1 if isinstance(estimator, TorchPPCA) else 2
    estimator = with_parameter(estimator, size, "n_components", "n_clusters")
    found = outputs(estimator.fit(X, some_classes(X)), X)
    assert all(np.isfinite(value).all() for value in found.values())


@over_estimators
def test_use_before_fit(estimator, blobs):
    for method in ("predict", "transform", "inverse_transform", "score_samples", "score"):
        if hasattr(estimator, method):
            with pytest.raises(NotFittedError):
                getattr(clone(estimator), method)(*blobs[: 1 + (method == "score")])
    if hasattr(estimator, "sample"):
        with pytest.raises(NotFittedError):
            clone(estimator).sample()


@over_estimators
def test_wrong_number_of_features(estimator, blobs):
    estimator = clone(estimator).fit(*blobs)
    with pytest.raises(ValueError, match="X has 3 features, but .* is expecting 4 features"):
        score_or_predict(estimator, blobs[0][:, :3])


@over_generative
def test_sample_size(estimator, blobs):
    estimator = clone(estimator).fit(*blobs)
    with pytest.raises(ValueError, match="n_samples == 0, must be >= 1"):
        estimator.sample(0)
    for size in (2.5, "3", None):
        with pytest.raises(TypeError, match="n_samples must be an instance of int"):
            estimator.sample(size)


@over_estimators
@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_unknown_device(estimator, device, blobs):
    with pytest.raises(ValueError, match=f"device='{device}' cannot be used here; use 'auto' or one of"):
        with_parameter(estimator, device, "device").fit(*blobs)


def test_devices_that_this_machine_lacks(blobs):
    for name in ("gpu", "GPU:0", "cdua", "nvidia"):
        with pytest.raises(ValueError, match=f"device='{name}' .* no device of this name. Did you mean 'cuda'"):
            TorchGMM(device=name).fit(blobs[0])
    if not torch.cuda.is_available():
        for device in ("cuda", "cuda:0", torch.device("cuda")):
            with pytest.raises(ValueError, match="torch finds no CUDA device on this machine; install .*'auto'"):
                TorchGMM(device=device).fit(blobs[0])


TYPOS = [
    (TorchGMM(covariance_type="ful"), "among {'diag', 'full', 'spherical', .*Got 'ful' instead. Did you mean 'full'?"),
    (TorchGMM(init_params="kmean"), "Did you mean 'kmeans'?"),
    (TorchGMM(acceleration="squaerm"), "Did you mean 'squarem'?"),
    (TorchPPCA("mel"), "Did you mean 'mle'?"),
    (TorchMiniBatchKMeans(init="k-mean++"), "among {'k-means\\+\\+', 'random'}.*Did you mean 'k-means\\+\\+'?"),
    (VAEEmbedder(likelihood="poison"), "among {'auto', 'bernoulli', 'categorical', .*Did you mean 'poisson'?"),
    (VAEEmbedder(activation="ReLU"), "Did you mean 'relu'?"),
    (VAEEmbedder(lr_schedule="cosin"), "Did you mean 'cosine'?"),
    (AutoencoderEmbedder(max_epochs="Auto"), "Did you mean 'auto'?"),
    (VaDEClusterer(covariance_type="diagonal"), "Did you mean 'diag'?"),
    (ClusterLabelClassifier(TorchGMM(), assignment="hungary"), "Did you mean 'hungarian'?"),
]


@pytest.mark.parametrize(("estimator", "match"), TYPOS, ids=lambda part: type(part).__name__)
def test_typos_get_a_suggestion(estimator, match, blobs):
    with pytest.raises(InvalidParameterError, match=match.replace("'?", r"'\?$")):
        estimator.fit(*blobs)
    with pytest.raises(InvalidParameterError) as told:
        TorchGMM(covariance_type="nothing like it").fit(*blobs)
    assert str(told.value).endswith("Got 'nothing like it' instead.")


def parameter_cases():
    for estimator in QUICK:
        for name in estimator.get_params(deep=False):
            yield pytest.param(estimator, name, id=f"{type(estimator).__name__}-{name}")


@pytest.mark.parametrize(("estimator", "name"), list(parameter_cases()))
def test_unknown_parameter_values(estimator, name, blobs):
    with pytest.raises(InvalidParameterError, match=f"The '{name}' parameter of {type(estimator).__name__} must be"):
        clone(estimator).set_params(**{name: object()}).fit(*blobs)


@over_estimators
def test_failed_fit_changes_nothing(estimator, blobs, monkeypatch):
    estimator = clone(estimator).fit(*blobs)
    before, expected = dict(vars(estimator)), outputs(estimator, blobs[0])
    with pytest.raises(ValueError, match="NaN"):
        estimator.fit(np.full((5, 7), np.nan), np.arange(5) % 2)

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    for module in ("gmm", "ppca", "embedders", "vade", "kmeans"):
        for function in ("fit_best_mixture", "fit_ppca", "fit_module", "fit_mini_batches"):
            monkeypatch.setattr(f"skvae.estimators.{module}.{function}", interrupt, raising=False)
    with pytest.raises(KeyboardInterrupt):
        estimator.fit(blobs[0][:, :2], blobs[1])
    assert vars(estimator).keys() == before.keys()
    assert all(vars(estimator)[name] is before[name] for name in before)
    assert_same(outputs(estimator, blobs[0]), expected)


def test_no_error_depends_on_an_assert():
    """``python -O`` removes them."""
    for path in Path(skvae.__file__).parent.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        assert not [node.lineno for node in nodes if isinstance(node, ast.Assert)], path
        assert not [node.lineno for node in nodes if isinstance(node, ast.Name) and node.id == "__debug__"], path
