"""ONNX graphs return the same as the estimators."""

import functools
import importlib
import sys
from unittest import mock

import numpy as np
import onnxruntime
import pandas
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_digits
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.torch_version import TorchVersion

from skvae import (
    AutoencoderEmbedder,
    ClusterLabelClassifier,
    TorchGMM,
    TorchMiniBatchKMeans,
    TorchPPCA,
    VaDEClusterer,
    VAEEmbedder,
    to_onnx,
)

METHODS = {
    "labels": "predict",
    "probabilities": "predict_proba",
    "codes": "transform",
    "distances": "transform",
    "log_likelihood": "score_samples",
}
DIGITS, CLASSES = load_digits(return_X_y=True)
DIGITS, CLASSES = (DIGITS[:600] / 16).astype(np.float32), CLASSES[:600]
HOLES = np.where(np.random.default_rng(0).random(DIGITS.shape) < 0.1, np.nan, DIGITS)
SHORT = {"max_epochs": 3, "random_state": 0}
IMAGES = {"image_shape": (8, 8), "channels": (4, 8), "batch_norm": True}
GMM = {"reg_covar": 1e-2, "random_state": 0}
VADE = {"latent_dim": 4, "pretrain_epochs": 8, "max_epochs": 8, "hidden_layer_sizes": (64,), "random_state": 0}


@pytest.fixture(scope="module", autouse=True)
def _read_operators_once():
    """Keep the table of operators that torch makes for each export, which takes half of its time."""
    registry = getattr(importlib.import_module("torch.onnx._internal.exporter._registration"), "ONNXRegistry", None)
    if not hasattr(registry, "from_torchlib"):  # a torch with other internals
        yield
        return
    with mock.patch.object(registry, "from_torchlib", staticmethod(functools.cache(registry.from_torchlib))):
        yield


def run(session, X):
    """Outputs of a graph by name."""
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"X": X}), strict=True))


def assert_same(estimator, path, X, atol=1e-5):
    """Compare all outputs of a graph, of many samples and of one, with the methods of the estimator."""
    session = onnxruntime.InferenceSession(path)
    results, of_one = run(session, X), run(session, X[:1])
    for name, value in results.items():
        expected = getattr(estimator, METHODS[name])(X)
        assert value.shape == expected.shape, name
        if name == "labels":
            assert_array_equal(value, expected)
        else:
            assert value.dtype == X.dtype
            assert_allclose(value, expected, atol=atol, rtol=1e-5, err_msg=name)
        assert_allclose(of_one[name], value[:1], atol=atol, rtol=1e-5)
    return set(results)


CASES = {
    "perceptrons": (VAEEmbedder(4, **SHORT), DIGITS, {"codes"}),
    "convolutions": (AutoencoderEmbedder(4, architecture="conv", **IMAGES, **SHORT), DIGITS, {"codes"}),
    "counts": (VAEEmbedder(4, likelihood="poisson", **SHORT), (16 * DIGITS).astype(np.float32), {"codes"}),
    "missing values": (VAEEmbedder(4, **SHORT), HOLES.astype(np.float32), {"codes"}),
    "VaDE": (VaDEClusterer(5, **VADE), DIGITS, {"labels", "probabilities", "codes"}),
    "k-means": (TorchMiniBatchKMeans(5, random_state=0), DIGITS, {"labels", "distances"}),
    "PPCA": (TorchPPCA(3), DIGITS, {"codes"}),
    "pipeline": (
        make_pipeline(StandardScaler(), None, VAEEmbedder(4, **SHORT), FrozenEstimator(TorchGMM(4, **GMM))),
        DIGITS,
        {"labels", "probabilities", "log_likelihood"},
    ),
    "their mixture": (
        make_pipeline(TorchPPCA(3), GaussianMixture(4, random_state=0)),
        DIGITS,
        {"labels", "probabilities"},
    ),
}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", CASES)
def test_graphs_agree_with_estimators(name, tmp_path):
    estimator, X, outputs = CASES[name]
    if name == "pipeline":  # a frozen step has to be fitted
        codes = make_pipeline(*(step for _, step in estimator.steps[:-1])).fit_transform(X)
        estimator.steps[-1][1].estimator.fit(codes)
    to_onnx(estimator.fit(X), tmp_path / "it.onnx")
    assert assert_same(estimator, tmp_path / "it.onnx", X) == outputs


@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag", "tied_spherical"])
def test_mixtures_in_double_precision(covariance_type, tmp_path):
    X = DIGITS[:, 10:20].astype(np.float64)
    gmm = TorchGMM(3, covariance_type=covariance_type, **GMM).fit(X)
    to_onnx(gmm, tmp_path / "gmm.onnx", dtype="float64")
    assert_same(gmm, tmp_path / "gmm.onnx", X, atol=1e-11)


@pytest.mark.parametrize("clusterer", [TorchGMM(12, **GMM), KMeans(12, random_state=0)], ids=["soft", "hard"])
def test_classes_of_clusters(clusterer, tmp_path):
    classifier = ClusterLabelClassifier(clusterer, assignment="proportional").fit(DIGITS, 10 * CLASSES)
    to_onnx(classifier, tmp_path / "it.onnx")
    assert assert_same(classifier, tmp_path / "it.onnx", DIGITS) == {"labels", "probabilities"}


def test_classes_that_are_words(tmp_path):
    classifier = ClusterLabelClassifier(KMeans(2, n_init=1)).fit(DIGITS, np.where(CLASSES < 5, "low", "high"))
    with pytest.raises(ValueError, match=r"classes that are integers, but those of ClusterLabelClassifier are \['high"):
        to_onnx(classifier, tmp_path / "it.onnx")


def test_unsupported_estimators(tmp_path):
    path = tmp_path / "it.onnx"
    with pytest.raises(NotFittedError):
        to_onnx(VAEEmbedder(), path)
    with pytest.raises(TypeError, match="skl2onnx has no converter for Unknown"):
        to_onnx(Unknown().fit(DIGITS), path)
    with pytest.raises(TypeError, match="not an estimator instance"):
        to_onnx("VAE", path)
    with pytest.raises(ValueError, match="dtype='int8' should be one of"):
        to_onnx(TorchPPCA(2).fit(DIGITS), path, dtype="int8")
    with pytest.raises(ValueError, match="no step but 'passthrough'"):
        to_onnx(make_pipeline("passthrough").fit(DIGITS), path)
    assert not list(tmp_path.iterdir())


class Unknown(IsolationForest):
    """An estimator without a converter."""


@pytest.mark.parametrize("step", ["columns by name", "search"])
def test_estimators_that_skl2onnx_cannot_convert(step, tmp_path):
    frame = pandas.DataFrame(DIGITS[:50, 20:24], columns=list("abcd"))
    chosen = ColumnTransformer([("some", StandardScaler(), ["a", "b"])])
    steps = {
        "columns by name": make_pipeline(chosen, TorchPPCA(1)),
        "search": GridSearchCV(TorchGMM(2, **GMM), {"tol": [1e-3]}, cv=2),
    }
    with pytest.raises(TypeError, match="cannot convert this .*: select columns by position, and of a search"):
        to_onnx(steps[step].fit(frame), tmp_path / "it.onnx")


def test_with_a_torch_that_is_too_old(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.6.1"))
    with pytest.raises(ImportError, match=r"to_onnx needs torch 2\.7 or newer, but got torch 2\.6\.1; `pip install"):
        to_onnx(TorchPPCA(2).fit(DIGITS), tmp_path / "it.onnx")


def test_without_the_libraries(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"needs onnxscript, which is not installed; `pip install skvae\[onnx"):
        to_onnx(TorchPPCA(2).fit(DIGITS), tmp_path / "it.onnx")
