"""Estimators, fits and comparisons that several test files share."""

import random
import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from skvae import (
    AutoencoderEmbedder,
    ClusterLabelClassifier,
    TorchGMM,
    TorchMiniBatchKMeans,
    TorchPPCA,
    VaDEClusterer,
    VAEEmbedder,
)

SMALL = {"hidden_layer_sizes": (16,), "max_epochs": 4, "random_state": 0}
TINY = {"latent_dim": 2, "hidden_layer_sizes": (8,), "n_init": 2, "pretrain_epochs": 3, "max_epochs": 3}
QUICK = [
    TorchGMM(2, random_state=0),
    TorchPPCA(2, random_state=0),
    VAEEmbedder(2, batch_size=32, **SMALL),
    AutoencoderEmbedder(2, batch_size=32, **SMALL),
    TorchMiniBatchKMeans(2, random_state=0),
    VaDEClusterer(2, **TINY | {"hidden_layer_sizes": (16,)}, batch_size=32, random_state=0),
    ClusterLabelClassifier(TorchGMM(2, random_state=0)),
]
GENERATIVE = [estimator for estimator in QUICK if hasattr(estimator, "sample")]
over_estimators = pytest.mark.parametrize("estimator", QUICK, ids=lambda estimator: type(estimator).__name__)
over_generative = pytest.mark.parametrize("estimator", GENERATIVE, ids=lambda estimator: type(estimator).__name__)

METHODS = ("predict", "predict_proba", "transform", "score_samples")
ALL_METHODS = (*METHODS, "log_likelihood", "reconstruct", "impute", "posterior_variance", "inverse_transform")


def outputs(estimator, X, methods=(*METHODS, "sample")):
    """Return the results of methods by name, of those that the estimator has."""
    results = {}
    for name in (name for name in methods if hasattr(estimator, name)):
        if name == "sample":
            drawn = estimator.sample(5, random_state=0)
            results[name] = drawn[0] if isinstance(drawn, tuple) else drawn
        elif name == "inverse_transform":
            results[name] = estimator.inverse_transform(results["transform"])
        elif name == "log_likelihood":
            results[name] = estimator.log_likelihood(X, 3, random_state=0)
        elif name != "posterior_variance" or not isinstance(estimator, TorchPPCA):  # whose is the same for all samples
            results[name] = getattr(estimator, name)(X)
    return results


def assert_same(one, two, **tolerance):
    """Compare two dicts of arrays, exactly unless there is a tolerance."""
    assert one.keys() == two.keys()
    for name in one:
        assert_allclose(one[name], two[name], err_msg=name, **({"rtol": 0, "atol": 0} | tolerance))


def quietly(method, *args, **kwargs):
    """Call a method without warnings about convergence, as fits to few samples or of few epochs emit them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return method(*args, **kwargs)


def fit_quietly(estimator, X, **kwargs):
    """Fit without warnings about convergence."""
    return quietly(estimator.fit, X, **kwargs)


def with_parameter(estimator, value, *names):
    """Return a clone with another value of the first parameter that has one of the names, nested ones included."""
    name = next(name for name in estimator.get_params() if name.split("__")[-1] in names)
    return clone(estimator).set_params(**{name: value})


def some_classes(X):
    """Return labels for the estimators that need them."""
    return np.arange(len(X)) % 2


def fitted_values(estimator):
    """Return the fitted attributes that are arrays, lists or numbers, without the history."""
    values = {name: value for name, value in vars(estimator).items() if name.endswith("_") and "history" not in name}
    return {name: value for name, value in values.items() if isinstance(value, np.ndarray | float | int | list)}


def weights_of(estimator):
    """Return a copy of the parameters and buffers of the networks."""
    return {name: value.clone() for name, value in estimator.module_.state_dict().items()}


def same_weights(one, two):
    """Return whether two embedders, or dicts of weights, have equal weights."""
    one, two = (weights if isinstance(weights, dict) else weights_of(weights) for weights in (one, two))
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def global_states():
    """Return the states of the global random generators of Python, NumPy and torch."""
    _, keys, *rest = np.random.get_state()  # noqa: NPY002 (the global state is what is tested)
    return random.getstate(), keys.tolist(), rest, torch.get_rng_state().tolist(), torch.initial_seed()


def generator(seed=0):
    """Return a generator of torch with a seed."""
    return torch.Generator().manual_seed(seed)


def read_only(X):
    """Return a copy that cannot be written."""
    X = X.copy()
    X.flags.writeable = False
    return X


class Slices:
    """An array of another library, with slices and nothing else; it records the ranges that were read."""

    def __init__(self, X):
        self.X, self.shape, self.dtype, self.slices = X, X.shape, X.dtype, []

    def __getitem__(self, rows):
        self.slices.append(range(*rows.indices(len(self.X))))
        return self.X[rows]


def full_covariances(covariances, covariance_type, n_components, n_features):
    """Return published covariances as one matrix for each component."""
    covariances = np.asarray(covariances)
    if covariance_type not in ("full", "tied"):
        variances = covariances[..., None] if "spherical" in covariance_type else covariances
        covariances = variances[..., None] * np.eye(n_features, dtype=covariances.dtype)
    return np.broadcast_to(covariances, (n_components, n_features, n_features))


def assert_same_mixture(one, two, **tolerance):
    """Compare the tensors of two mixtures."""
    for mine, theirs in zip(one, two, strict=True):
        torch.testing.assert_close(mine, theirs, **tolerance)


def mirrored(u, generator):
    """Flip samples, as a custom `augment`."""
    return u.flip(1)
