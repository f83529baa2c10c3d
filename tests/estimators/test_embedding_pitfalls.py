"""Mistakes that autoencoders elsewhere, and wrappers of torch as estimators, have made."""

import copy
import functools
import io
import pickle
import random
import warnings

import cloudpickle
import joblib
import numpy as np
import pytest
import torch
from helpers import assert_same, global_states, read_only, same_weights, weights_of
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import multivariate_normal
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from skorch import NeuralNet
from skorch.callbacks import (
    Callback,
    Checkpoint,
    EarlyStopping,
    EpochTimer,
    GradientNormClipping,
    LRScheduler,
    PrintLog,
    ProgressBar,
)
from torch import nn

from skvae import AutoencoderEmbedder, VAEEmbedder
from skvae.data.chunks import map_samples
from skvae.estimators import _embedder_training
from skvae.fitting import early_stopping
from skvae.models import LIKELIHOODS, LatentModel

SMALL = {"hidden_layer_sizes": (16,), "max_epochs": 3, "random_state": 0}
RANDOM = {  # everything that draws while training
    "batch_norm": True,
    "dropout": 0.4,
    "image_shape": (8, 8),
    "channels": (4,),
    "augment": "affine",
    "early_stopping": True,
}
CLASSES = [VAEEmbedder, AutoencoderEmbedder]
over_embedders = pytest.mark.parametrize("cls", CLASSES)
over_passes = pytest.mark.parametrize("how", ["fit", "warm start", "partial_fit"])


@pytest.fixture(scope="module")
def X():
    return load_digits().data[:200] / 16


@pytest.fixture(scope="module", params=CLASSES, ids=lambda cls: cls.__name__)
def with_noise(request, X):
    """A fitted embedder whose training drew from everywhere."""
    more = {"corruption": 0.2} if request.param is AutoencoderEmbedder else {"n_draws": 2}
    return request.param(3, **SMALL | RANDOM | more).fit(X)


def maps_of(embedder):
    """Results for each sample, by the name of the method."""
    names = ["transform", "score_samples", "reconstruct", "posterior_variance"]
    found = {name: getattr(embedder, name) for name in names if hasattr(embedder, name)}
    found["inverse of transform"] = lambda X: embedder.inverse_transform(embedder.transform(X))
    if hasattr(embedder, "log_likelihood"):
        found["log_likelihood"] = lambda X: embedder.log_likelihood(X, 3, random_state=0)
    return found


def answers(embedder, X):
    return {name: function(X) for name, function in maps_of(embedder).items()}


def train(embedder, how, X):
    """Train an embedder; except for "fit", it has been trained before."""
    if how == "fit":
        return embedder.fit(X)
    return embedder.set_params(warm_start=True).fit(X) if how == "warm start" else embedder.partial_fit(X)


class Fixed(nn.Module):
    """A linear map that one step with a tiny learning rate leaves as it is."""

    def __init__(self, weight, bias):
        super().__init__()
        self.layer = nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            self.layer.weight.copy_(torch.as_tensor(weight))
            self.layer.bias.copy_(torch.as_tensor(bias))

    def forward(self, x):
        return self.layer(x)


def linear_gaussian(inflation):
    """A VAE with the model x = W z + noise, whose evidence is known, and a posterior that is wider than the exact one.

    Returns the embedder, rows and the log-density of each of them.
    """
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 4))
    weight = np.linalg.qr(rng.normal(size=(4, 2)))[0] * [2.0, 1.0]  # orthogonal: the posterior is diagonal
    precision = 1 + (weight**2).sum(0)
    log_scale = np.log(inflation) - 0.5 * np.log(precision)
    encoder = Fixed(
        np.concatenate([weight.T / precision[:, None], np.zeros((2, 4))]),
        np.concatenate([np.zeros(2), 10 * np.arctanh(log_scale / 10)]),
    )
    networks = {"encoder": encoder, "decoder": Fixed(weight, np.zeros(4))}
    settings = {"likelihood": "gaussian_fixed", "optimizer": "sgd", "lr": 1e-12, "max_epochs": 1, "random_state": 0}
    vae = VAEEmbedder(2, **networks, **settings).fit(X)
    mean, scale = X.mean(0), X.std(0)
    covariance = (weight @ weight.T + np.eye(4)) * np.outer(scale, scale)
    return vae, X, multivariate_normal(mean, covariance).logpdf(X)


@pytest.mark.parametrize("n_samples", [1, 2, 3, 127, 200])  # below, and above, the batch size
def test_importance_bound_of_the_exact_posterior_is_the_evidence(n_samples):
    """The sign was wrong, and sums were not means: with the exact posterior, every draw has the same weight."""
    vae, X, evidence = linear_gaussian(inflation=1.0)
    assert_allclose(vae.log_likelihood(X, n_samples, random_state=1), evidence, atol=1e-5)
    assert vae.score(X) == pytest.approx(evidence.mean(), abs=0.02)


def test_importance_bound_draws_as_many_codes_as_asked():
    """Fewer samples than a batch were taken as a batch: the variance falls as one over their number."""
    vae, X, evidence = linear_gaussian(inflation=1.5)
    spread = {}
    for n_samples in (1, 4, 16):
        draws = [vae.log_likelihood(X, n_samples, random_state=seed) for seed in range(150)]
        ratios = np.exp(np.array(draws) - evidence)
        assert_allclose(ratios.mean(), 1, atol=0.05)  # the likelihood, not its logarithm, is unbiased
        spread[n_samples] = ratios.var(0).mean()
    assert spread[1] / spread[4] == pytest.approx(4, rel=0.35)
    assert spread[4] / spread[16] == pytest.approx(4, rel=0.35)


def test_importance_bound_rises_with_the_number_of_codes():
    vae, X, evidence = linear_gaussian(inflation=2.5)
    bounds = [np.mean([vae.log_likelihood(X, n, random_state=seed) for seed in range(600 // n)]) for n in (3, 20, 300)]
    assert vae.score(X) < bounds[0] < bounds[1] < bounds[2]
    assert bounds[2] == pytest.approx(evidence.mean(), abs=0.1)
    assert vae.log_likelihood(3 * X, random_state=0).mean() < bounds[2], "higher is not better"


def test_embeddings_are_not_random_and_rows_do_not_see_each_other(with_noise, X):
    """Embeddings were drawn anew in every call, and batch statistics let rows depend on their neighbours."""
    order = np.random.default_rng(0).permutation(len(X))
    for name, function in maps_of(with_noise).items():
        found = function(X)
        assert_array_equal(function(X), found, err_msg=name)
        for rows in (slice(20, 90), slice(5, 6), slice(None, None, -1), order):
            assert_allclose(function(X[rows]), found[rows], rtol=1e-9, atol=1e-9, err_msg=name)


@over_embedders
def test_embeddings_are_not_random_without_a_seed(cls, X):
    embedder = cls(3, **SMALL | {"random_state": None}).fit(X)
    for name in ("transform", "score_samples", "reconstruct"):
        assert_array_equal(getattr(embedder, name)(X), getattr(embedder, name)(X), err_msg=name)
    assert_array_equal(clone(embedder).set_params(random_state=3).fit_transform(X).shape, (200, 3))


def test_embedding_is_the_mean_of_the_posterior(with_noise, X):
    assert_allclose(
        with_noise.transform(X),
        with_noise.module_.posterior(with_noise.module_.standardize(torch.tensor(X))).mean.detach(),
        atol=1e-5,
    )


def test_weight_of_the_kl_is_used():
    """It was accepted and forgotten: without it codes are precise, with much of it they are the prior."""
    X = load_iris().data
    settings = {"hidden_layer_sizes": (16,), "max_epochs": 250, "lr": 3e-3, "random_state": 0}
    free, usual = (VAEEmbedder(2, beta=beta, **settings).fit(X) for beta in (0.0, 1.0))
    with pytest.warns(ConvergenceWarning, match="carry no information"):
        tight = VAEEmbedder(2, beta=10.0, **settings).fit(X)
    variances = [vae.posterior_variance(X).mean() for vae in (free, usual, tight)]
    assert variances[0] < 0.5 * variances[1] < 0.5 * variances[2]
    for vae, beta in ((free, 0.0), (usual, 1.0), (tight, 10.0)):
        last = vae.history_[-1]
        assert last["train_loss"] == pytest.approx(beta * last["train_kl"] - last["train_log_likelihood"], rel=1e-4)


@over_embedders
@pytest.mark.parametrize("likelihood", ["bernoulli", "continuous_bernoulli"])
@pytest.mark.parametrize("value", [-0.01, 1.01, 255.0])
def test_values_out_of_range_are_a_value_error_wherever_they_enter(cls, likelihood, value, X):
    """Pixels that were not scaled gave NaN, or an assertion. Everything stays as it was."""
    wrong = X.copy()
    wrong[7, 3] = value
    embedder = cls(2, likelihood=likelihood, **SMALL).fit(X)
    before = dict(vars(embedder))
    match = rf"likelihood='{likelihood}' needs values in \[0, 1\], but X{{}} has values from .* scale X{{}}"
    with pytest.raises(ValueError, match=match.replace("{}", "_val")):
        embedder.fit(X, X_val=wrong)
    match = match.replace("{}", "")
    for attempt in (
        lambda: embedder.fit(wrong),
        lambda: embedder.partial_fit(wrong),
        lambda: embedder.score_samples(wrong),
        lambda: embedder.score(wrong),
        lambda: clone(embedder).set_params(early_stopping=True).fit(wrong),
        lambda: train(embedder, "warm start", wrong),
        *([lambda: embedder.log_likelihood(wrong)] if cls is VAEEmbedder else []),
    ):
        with pytest.raises(ValueError, match=match):
            attempt()
    embedder.set_params(warm_start=False)
    assert all(vars(embedder)[name] is before[name] for name in before if name != "warm_start")


@over_embedders
@pytest.mark.parametrize("network", [{}, {"image_shape": (8, 8), "channels": (4,)}], ids=["mlp", "conv"])
def test_outputs_reach_the_whole_range_of_the_data(cls, network):
    """A sigmoid or ReLU at the end could not give what was below zero or above one."""
    X = load_digits().data[:200] * 40 - 300
    embedder = cls(2, **SMALL | network | {"max_epochs": 30, "lr": 3e-3}).fit(X)
    restored = embedder.reconstruct(X)
    assert restored.min() < -250
    assert restored.max() > 100


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_constant_columns_and_constant_tables(likelihood):
    """Units of constant features are not zero."""
    varied = np.random.default_rng(0).integers(2, size=(60, 3)).astype(float)
    for X in (np.column_stack([varied, np.ones(60), np.zeros(60)]), np.ones((30, 4)), np.zeros((30, 4))):
        embedder = AutoencoderEmbedder(2, likelihood=likelihood, **SMALL).fit(X)
        for found in (*answers(embedder, X).values(), embedder.sample(5, random_state=0)):
            assert np.isfinite(found).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("scale", "offset"), [(1e-20, 0.0), (1e20, 0.0), (1e-2, 1e3), (255.0, 0.0), (1.0, 1e6)])
def test_any_units_train(dtype, scale, offset):
    X = (np.random.default_rng(0).normal(size=(80, 4)) * scale + offset).astype(dtype)
    embedder = VAEEmbedder(2, likelihood="gaussian", **SMALL | {"max_epochs": 40, "lr": 1e-2}).fit(X)
    assert all(np.isfinite(found).all() for found in answers(embedder, X).values())
    assert embedder.loss_curve_[-1] < embedder.loss_curve_[0]
    error = np.square(embedder.reconstruct(X) - X.astype(np.float64)).mean(0)
    assert (error < X.var(0, dtype=np.float64)).mean() > 0.7


@over_embedders
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_missing_values_are_refused_wherever_they_enter(cls, value, X):
    """They became NaN in every weight."""
    wrong = X.copy()
    wrong[7, 3] = value
    embedder = cls(2, **SMALL).fit(X)
    expected = answers(embedder, X)
    attempts = [functools.partial(function, wrong) for function in maps_of(embedder).values()]
    attempts += [lambda: embedder.fit(X, X_val=wrong), lambda: embedder.partial_fit(wrong)]
    attempts += [lambda: embedder.fit(wrong)] * bool(np.isinf(value))  # what is missing in training can be learned
    attempts += [lambda: embedder.inverse_transform(wrong[:, 3:5]), lambda: embedder.interpolate(X, wrong)]
    for attempt in attempts:
        with pytest.raises(ValueError, match="contains (NaN|infinity)|has missing values"):
            attempt()
    assert_same(answers(embedder, X), expected)


class Mad(nn.Linear):
    """A network that gives NaN."""

    def forward(self, x):
        return super().forward(x) * torch.nan


@pytest.mark.filterwarnings("ignore:The training loss became .* continues from epoch")
@over_embedders
@over_passes
def test_divergence_says_so_and_leaves_usable_weights(cls, how, X):
    """The weights were NaN, and were returned."""
    embedder = cls(2, **SMALL | {"batch_size": 32})
    if how == "fit":
        with pytest.raises(ValueError, match="(not finite|became nan).*Decrease lr"):
            clone(embedder).set_params(lr=1e30).fit(X)
    embedder.fit(X)
    before, weights, expected = dict(vars(embedder)), weights_of(embedder), answers(embedder, X)
    if how == "fit":
        embedder.set_params(lr=1e30)
        message = r"The training loss became nan in epoch \d+.*Decrease lr, clip gradients"
    else:  # the optimizer goes on with its own learning rate, so let the rows' views be at fault
        embedder.set_params(augment=lambda u, generator: u * torch.nan)
        message = r"The training loss became nan in epoch \d+"
    with pytest.raises(ValueError, match=message):
        train(embedder, how, X)
    for name in ("module_", "net_", "history_", "loss_curve_", "n_iter_"):
        assert vars(embedder)[name] is before[name]
    assert same_weights(weights, embedder)
    assert_same(answers(embedder, X), expected)
    embedder.set_params(lr=1e-3, augment=None)
    assert np.isfinite(train(embedder, how, X).score(X))


@pytest.mark.filterwarnings("ignore:The training loss became .* continues from epoch")
@over_embedders
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "gaussian_samples", "poisson"])
def test_a_learning_rate_of_a_million_gives_finite_results_or_an_error(cls, likelihood, X):
    rows = X if likelihood == "bernoulli" else np.rint(16 * X)
    embedder = cls(2, likelihood=likelihood, lr=1e6, **SMALL | {"batch_size": 32})
    if likelihood.startswith("gaussian"):
        with pytest.raises(ValueError, match="Decrease lr"):
            embedder.fit(rows)
        assert not hasattr(embedder, "module_")
    else:
        assert all(np.isfinite(found).all() for found in answers(embedder.fit(rows), rows).values())


@pytest.mark.filterwarnings("ignore:The training loss became .* continues from epoch")
@over_embedders
def test_networks_that_give_nan_are_an_error(cls, X):
    size = 2 * (1 + (cls is VAEEmbedder))
    for networks in ({"encoder": Mad(64, size)}, {"decoder": Mad(2, 64)}):
        with pytest.raises(ValueError, match="became nan in epoch 1"):
            cls(2, **SMALL | networks).fit(X)


@over_embedders
@pytest.mark.parametrize("batch_size", [2, 3, 8])
def test_any_number_of_rows_trains_with_batch_normalisation(cls, batch_size, X):
    """A last batch of one row stopped the training, or was dropped in silence."""
    settings = {"batch_norm": True, "batch_size": batch_size, "hidden_layer_sizes": (4,), "random_state": 0}
    for n_rows in range(2, 2 * batch_size + 2):
        embedder = cls(1, max_epochs=2, **settings).fit(X[:n_rows], X_val=X[:1])
        embedder.partial_fit(X[: n_rows + 1])
        assert [sum(batch["train_batch_size"] for batch in row["batches"]) for row in embedder.net_.history] == [
            n_rows + 1
        ]
        assert np.isfinite(embedder.loss_curve_).all()
        assert len(embedder.loss_curve_) == 3
        assert all(torch.isfinite(value).all() for value in embedder.module_.state_dict().values())
        assert np.isfinite(embedder.transform(X[:1])).all(), "one row can be embedded"


@pytest.mark.parametrize("n_rows", [2, 3, 7, 8, 9, 15, 16, 17])
def test_any_number_of_images_trains_with_batch_normalisation(n_rows, X):
    settings = {"image_shape": (8, 8), "channels": (2, 2, 2, 2), "hidden_layer_sizes": (4,)}  # down to one pixel
    embedder = VAEEmbedder(1, batch_norm=True, batch_size=8, max_epochs=1, random_state=0, **settings).fit(X[:n_rows])
    assert np.isfinite(embedder.reconstruct(X)).all()


@over_embedders
def test_one_row_is_a_clear_error(cls, X):
    message = "Found array with 1 sample.* while a minimum of 2 is required"
    for batch_norm in (False, True):
        embedder = cls(1, batch_norm=batch_norm, **SMALL)
        for method in (embedder.fit, embedder.partial_fit):
            with pytest.raises(ValueError, match=message):
                method(X[:1])
            assert not hasattr(embedder, "module_")
    embedder.fit(X)
    expected = embedder.transform(X)
    with pytest.raises(ValueError, match=message):
        embedder.partial_fit(X[:1])
    assert_array_equal(embedder.transform(X), expected)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_low_precision_is_for_the_networks_alone(likelihood, monkeypatch):
    """Cross-entropies and densities in half precision were unsafe; their terms are float32 here, and close."""
    monkeypatch.setattr(_embedder_training, "_has_bf16", lambda device: True)
    seen, original = [], LatentModel.forward

    def spy(self, *args, **kwargs):
        elbo = original(self, *args, **kwargs)
        if self.training:
            seen.append((self.autocast, elbo.log_likelihood.dtype, elbo.kl_parts.dtype))
        return elbo

    monkeypatch.setattr(LatentModel, "forward", spy)
    X = np.random.default_rng(0).integers(2, size=(100, 5)).astype(float)
    X[:, 0] = 1.0  # its logit grows
    settings = SMALL | {"likelihood": likelihood, "max_epochs": 20, "lr": 1e-2}
    full, low = (VAEEmbedder(2, precision=precision, **settings).fit(X) for precision in ("float32", "bf16"))
    assert {dtype for _, *dtypes in seen for dtype in dtypes} <= {torch.float32, torch.float64}
    assert {kind for kind, *_ in seen} == {None, torch.bfloat16}
    assert low.module_.autocast is None
    assert {value.dtype for value in low.module_.parameters()} == {torch.float32}
    assert low.loss_curve_ != full.loss_curve_
    assert low.loss_curve_[0] == pytest.approx(full.loss_curve_[0], abs=0.05)
    assert low.score(X) == pytest.approx(full.score(X), abs=0.3)


@over_embedders
def test_extreme_logits_have_a_finite_cross_entropy(cls):
    """The log of a sigmoid that is 0 or 1 is not finite."""
    X = np.random.default_rng(0).integers(2, size=(50, 4)).astype(float)
    size = 1 + (cls is VAEEmbedder)
    networks = {
        "encoder": Fixed(np.zeros((size, 4)), np.zeros(size)),
        "decoder": Fixed(np.zeros((4, 1)), np.full(4, 150)),
    }
    settings = {"optimizer": "sgd", "lr": 1e-12, "max_epochs": 1, "random_state": 0}
    embedder = cls(1, **networks, **settings).fit(X)
    assert embedder.loss_curve_[0] == pytest.approx(150 * (X == 0).sum(1).mean(), rel=1e-4)
    for rows in (X, X.astype(np.float32)):
        assert_allclose(embedder.score_samples(rows), -150.0 * (X == 0).sum(1), rtol=1e-4, atol=1e-4)


FORMS = {
    "float64": lambda X: X.astype(np.float64),
    "float32": lambda X: X.astype(np.float32),
    "float16": lambda X: X.astype(np.float16),
    "uint8": lambda X: X.astype(np.uint8),
    "int8": lambda X: X.astype(np.int8),
    "uint16": lambda X: X.astype(np.uint16),
    "int32": lambda X: X.astype(np.int32),
    "int64": lambda X: X.astype(np.int64),
    "object": lambda X: X.astype(object),
    "big-endian float64": lambda X: X.astype(">f8"),
    "big-endian float32": lambda X: X.astype(">f4"),
    "big-endian int": lambda X: X.astype(">i4"),
    "Fortran": np.asfortranarray,
    "Fortran float32": lambda X: np.asfortranarray(X, dtype=np.float32),
    "read-only": read_only,
    "read-only float32": lambda X: read_only(X.astype(np.float32)),
    "reversed rows": lambda X: X[::-1].copy()[::-1],
    "reversed columns": lambda X: X[:, ::-1].copy()[:, ::-1],
    "every other": lambda X: np.repeat(np.repeat(X, 2, 0), 2, 1)[::2, ::2],
    "transposed": lambda X: X.T.copy().T,
    "broadcast rows": lambda X: np.lib.stride_tricks.as_strided(X, X.shape, X.strides, writeable=False),
    "tensor": lambda X: torch.tensor(X),
    "float32 tensor": lambda X: torch.tensor(X, dtype=torch.float32),
    "list": lambda X: X.tolist(),
}


@pytest.mark.parametrize("form", FORMS)
def test_equal_values_give_equal_results_in_any_form(form):
    """torch expects one dtype, and arrays that it may write to, with positive strides."""
    X = load_digits().data[:60]
    base = VAEEmbedder(2, **SMALL | {"max_epochs": 2, "batch_norm": True})
    expected = clone(base).fit(X, X_val=X[:9])
    loose = {"rtol": 1e-3, "atol": 1e-3}
    rows = FORMS[form](X)
    before = copy.deepcopy(rows)
    found = clone(base).fit(rows, X_val=FORMS[form](X[:9]))
    assert_same(weights_of(found), weights_of(expected), atol=1e-6)  # sums run in another order in Fortran's
    assert_allclose(found.loss_curve_, expected.loss_curve_, rtol=1e-6)
    single = form == "float16" or "float32" in form
    assert_same(answers(found, rows), answers(expected, X), **loose if single else {"rtol": 1e-5, "atol": 1e-5})
    codes = expected.transform(X).astype(np.float32)
    codes = np.asfortranarray(codes) if "Fortran" in form else codes[::-1].copy()[::-1]
    assert_allclose(found.inverse_transform(codes), expected.inverse_transform(codes.astype(np.float64)), **loose)
    assert_same(weights_of(found.partial_fit(rows)), weights_of(expected.partial_fit(X)), atol=1e-5)
    assert_array_equal(np.asarray(rows, dtype=float), np.asarray(before, dtype=float), "the rows were written to")


@over_embedders
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float32])
def test_binary_rows_in_any_dtype(cls, dtype, X):
    rows = np.rint(X)
    expected, found = cls(2, **SMALL).fit(rows), cls(2, **SMALL).fit(rows.astype(dtype))
    assert found.likelihood_ == expected.likelihood_ == "bernoulli"
    assert same_weights(found, expected)
    tolerance = 1e-3 if dtype == np.float32 else 1e-9
    assert_same(answers(found, rows.astype(dtype)), answers(expected, rows), rtol=tolerance, atol=tolerance)


@over_embedders
def test_dtypes_may_change_between_calls(cls, X):
    """ "Expected Float but found Double"."""
    embedder = cls(2, **SMALL).fit(X.astype(np.float32))
    expected = answers(embedder, X)
    for dtype in (np.float64, np.float32):
        found = answers(embedder, X.astype(dtype))
        assert {values.dtype for values in found.values()} == {np.dtype(dtype)}
        assert_same(found, expected, rtol=1e-3, atol=1e-3)
        embedder.interpolate(X.astype(dtype), X[::-1], n_steps=2)
        assert np.isfinite(clone(embedder).fit(X, X_val=X.astype(dtype)).partial_fit(X.astype(dtype)).loss_curve_).all()


CALLS = []  # (is it training, does it record gradients, rows) of each call of a Watched network


class Watched(nn.Linear):
    """A layer that writes down how it is used."""

    def forward(self, x):
        CALLS.append((self.training, torch.is_grad_enabled() and not torch.is_inference_mode_enabled(), len(x)))
        return super().forward(x)


def watched(cls, width, **settings):
    size = 2 * (1 + (cls is VAEEmbedder))
    encoder = nn.Sequential(Watched(3, width), nn.ReLU(), Watched(width, size))
    decoder = nn.Sequential(Watched(2, width), nn.ReLU(), Watched(width, 3))
    return cls(2, encoder=encoder, decoder=decoder, random_state=0, **settings)


@over_embedders
def test_outputs_have_no_graph_and_rows_pass_in_chunks(cls):
    """All rows went through the networks at once, and gradients were recorded only to be thrown away."""
    X = np.random.default_rng(0).normal(size=(12_000, 3))
    width = 600
    embedder = watched(cls, width, max_epochs=1).fit(X[:50])
    codes = embedder.transform(X)
    functions = maps_of(embedder) | {"inverse_transform": lambda X: embedder.inverse_transform(codes)}
    for name, function in functions.items():
        CALLS.clear()
        found = function(X)
        assert type(found) is np.ndarray
        assert not any(training or records for training, records, _ in CALLS), name
        assert max(rows for *_, rows in CALLS) * width * 8 < 2**23, name
        assert sum(rows for *_, rows in CALLS) >= len(X), name
    assert torch.is_grad_enabled()


@over_embedders
def test_training_sees_batches_and_diagnoses_a_sample(cls):
    X = np.random.default_rng(0).normal(size=(23_000, 3))
    CALLS.clear()
    watched(cls, 8, max_epochs=1, batch_size=500).fit(X[:20_000], X_val=X[20_000:])
    assert {records for training, records, _ in CALLS if training} == {True}
    assert max(rows for training, _, rows in CALLS if training) <= 500
    others = [(records, rows) for training, records, rows in CALLS if not training]
    assert not any(records for records, _ in others)
    assert max(rows for _, rows in others) <= 5_000


class Noisy(nn.Module):
    """A network of the user's with dropout and batch statistics."""

    def __init__(self, n_inputs, n_outputs):
        super().__init__()
        parts = [nn.Linear(n_inputs, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, n_outputs)]
        self.layers = nn.Sequential(*parts)

    def forward(self, x):
        return self.layers(x)


class Rude(Callback):
    """It leaves the networks in training mode."""

    def on_epoch_end(self, net, **kwargs):
        net.module_.train()

    def on_train_end(self, net, **kwargs):
        net.module_.train()


@over_embedders
@over_passes
@pytest.mark.parametrize("own", [False, True], ids=["built in", "own networks"])
def test_fitted_networks_are_in_evaluation_mode_and_stay_so(cls, how, own, X):
    """Dropout stayed on after training, or the batch statistics went on learning."""
    size = 2 * (1 + (cls is VAEEmbedder))
    networks = {"encoder": Noisy(64, size), "decoder": Noisy(2, 64)} if own else {"dropout": 0.5, "batch_norm": True}
    embedder = cls(2, callbacks=[Rude()], early_stopping=True, **SMALL | networks)
    if how != "fit":
        embedder.fit(X)
    train(embedder, how, X)
    before, gradients = weights_of(embedder), [p.requires_grad for p in embedder.module_.parameters()]
    expected = answers(embedder, X)
    assert_same(answers(embedder, X), expected)
    embedder.sample(5), embedder.interpolate(X[:3], X[3:6]), embedder.score(X)
    assert not any(part.training for part in embedder.module_.modules())
    assert same_weights(before, embedder)
    assert [p.requires_grad for p in embedder.module_.parameters()] == gradients
    assert {value.dtype for value in embedder.module_.parameters()} == {torch.float32}


@over_embedders
def test_training_is_in_training_mode(cls, X):
    """Also after an epoch's validation, and with networks that come in evaluation mode, which they keep."""
    modes = []

    class Look(Callback):
        def on_grad_computed(self, net, **kwargs):
            modes.append({part.training for part in net.module_.modules()})

    size = 2 * (1 + (cls is VAEEmbedder))
    encoder = Noisy(64, size).eval()
    embedder = cls(2, encoder=encoder, callbacks=[Look()], early_stopping=True, **SMALL).fit(X)
    embedder.partial_fit(X)
    assert len(modes) == 3 * 2 + 2
    assert all(found == {True} for found in modes)
    assert not any(part.training for part in encoder.modules())
    assert encoder.layers[1].num_batches_tracked == 0
    assert embedder.module_.encoder.layers[1].num_batches_tracked == 8


@over_embedders
def test_defaults_are_ours_not_those_of_the_library_underneath(cls, X, capfd):
    """A fifth of the rows was held out in silence, plain gradient descent was slow, and a table was printed."""
    seen = []

    class Rows(Callback):
        def on_batch_end(self, net, batch, training, **kwargs):
            seen.append((training, batch[0]["u"]))

    embedder = cls(2, max_epochs=2, callbacks=[Rows()], random_state=0).fit(X)
    assert {training for training, _ in seen} == {True}
    for epoch in range(2):
        rows = torch.cat([u for _, u in seen[2 * epoch : 2 * epoch + 2]])
        assert_array_equal(np.unique(rows, axis=0), np.unique(X.astype(np.float32), axis=0))
        assert len(rows) == len(X)
    assert not torch.equal(seen[0][1], seen[2][1]), "the rows are not shuffled"
    net = embedder.net_
    assert type(net.optimizer_) is torch.optim.Adam
    assert net.optimizer_.param_groups[0]["lr"] == 1e-3
    assert net.max_epochs == 2
    assert net.train_split is None
    assert "valid_loss" not in embedder.history_[0]
    assert capfd.readouterr() == ("", "")


def test_device_is_handed_on(X, monkeypatch):
    asked = []
    original = NeuralNet.__init__

    def spy(self, *args, **kwargs):
        asked.append(kwargs["device"])
        original(self, *args, **kwargs)

    monkeypatch.setattr(NeuralNet, "__init__", spy)
    VAEEmbedder(2, device="cpu", **SMALL).fit(X)
    assert asked == [torch.device("cpu")]


@pytest.mark.parametrize("sign", [-1, 1])
def test_improvements_are_absolute_and_may_be_of_negative_losses(sign):
    """A threshold relative to a negative loss takes what is worse for an improvement."""
    stopping = early_stopping.EarlyStopping(patience=2, tol=1e-3)

    class Net:
        module_ = nn.Linear(1, 1)
        history = ()

    stopping.on_train_begin(Net)
    without = []
    for loss in (0.0, 0.005, -0.0005, -0.002, -0.0025):
        Net.history = [{"valid_loss": sign * 100 + loss}]
        stopping.on_epoch_end(Net)
        without.append(stopping.n_without_)
    assert without == [0, 1, 2, 0, 1]
    assert stopping.lowest_ == sign * 100 - 0.0025


@over_embedders
def test_early_stopping_does_not_depend_on_the_sign_of_the_loss(cls):
    """Other units move the loss by a constant and change nothing else."""
    X = np.random.default_rng(0).normal(size=(120, 6))
    settings = {"early_stopping": True, "n_iter_no_change": 3, "tol": 0.01, "max_epochs": 200, "lr": 1e-2}
    fits = [cls(2, hidden_layer_sizes=(16,), random_state=0, **settings).fit(X * unit) for unit in (2.0**40, 2.0**-40)]
    losses = [np.array([row["valid_loss"] for row in embedder.history_]) for embedder in fits]
    assert losses[0].min() > 100
    assert losses[1].max() < -100
    assert fits[0].n_iter_ == fits[1].n_iter_ < 200
    assert_allclose(fits[0].transform(X * 2.0**40), fits[1].transform(X * 2.0**-40), atol=1e-4)
    best = [int(found.argmin()) for found in losses]
    assert best[0] == best[1]
    reference, improved = np.inf, []
    for epoch, loss in enumerate(losses[1], start=1):
        if loss < reference - 0.01:
            reference, improved = loss, [*improved, epoch]
    assert improved[-1] == fits[0].n_iter_ - 3
    assert np.diff(improved).max() <= 3


HOOKS = ["on_train_begin", "on_epoch_begin", "on_batch_begin", "on_grad_computed", "on_batch_end", "on_epoch_end"]
HOOKS += ["on_train_end"]


class Breaks(Callback):
    """An error, or Ctrl-C, at some moment of the training."""

    def __init__(self, hook, error):
        self.hook, self.error = hook, error

    def __getattribute__(self, name):
        if name.startswith("on_") and name == object.__getattribute__(self, "hook"):
            return self._break
        return super().__getattribute__(name)

    def _break(self, *args, **kwargs):
        raise self.error


@over_passes
@pytest.mark.parametrize("hook", HOOKS)
def test_interrupts_come_through_and_leave_everything_as_it_was(how, hook, X):
    """Ctrl-C was swallowed, and what was half trained looked fitted."""
    for error in (KeyboardInterrupt, SystemExit, MemoryError):
        settings = {"dropout": 0.3, "batch_norm": True, "early_stopping": True, "max_epochs": 2}
        fresh = VAEEmbedder(2, callbacks=[Breaks(hook, error)], **SMALL | settings)
        state = torch.get_rng_state()
        with pytest.raises(error):
            fresh.partial_fit(X) if how == "partial_fit" else fresh.fit(X)
        assert [name for name in vars(fresh) if name.endswith("_") or name.startswith("_first")] == []
        assert torch.equal(torch.get_rng_state(), state)
    embedder = clone(fresh).set_params(callbacks=None).fit(X)
    before, weights, expected = dict(vars(embedder)), weights_of(embedder), answers(embedder, X)
    history = copy.deepcopy(embedder.history_)
    embedder.set_params(callbacks=[Breaks(hook, KeyboardInterrupt)])
    with pytest.raises(KeyboardInterrupt):
        train(embedder, how, X)
    embedder.set_params(callbacks=None, warm_start=False)
    assert vars(embedder).keys() == before.keys()
    assert all(vars(embedder)[name] is before[name] for name in before)
    assert embedder.history_ == history
    assert same_weights(weights, embedder)
    assert not any(part.training for part in embedder.module_.modules())
    assert_same(answers(embedder, X), expected)
    again = train(copy.deepcopy(embedder), how, X)
    assert again.n_iter_ > 0


def test_interrupted_training_goes_on_as_if_nothing_had_happened(X):
    """The optimizer of the net that is kept was not used by the training that was interrupted."""
    one, two = (VAEEmbedder(2, warm_start=True, **SMALL).fit(X) for _ in range(2))
    with pytest.raises(KeyboardInterrupt):
        one.set_params(callbacks=[Breaks("on_epoch_end", KeyboardInterrupt)]).fit(X)
    assert same_weights(one.set_params(callbacks=None).fit(X), two.fit(X))


def test_interrupts_are_not_taken_for_early_stopping(X):
    """Both are the same exception."""
    stop = EarlyStopping(monitor="train_loss", patience=2)
    vae = VAEEmbedder(2, callbacks=[stop, Breaks("on_batch_end", KeyboardInterrupt)], **SMALL)
    with pytest.raises(KeyboardInterrupt):
        vae.fit(X)
    assert not hasattr(vae, "module_")


@over_embedders
def test_a_net_is_a_part_and_appears_in_fit(cls, X):
    """Estimators that inherited from a net had state from the beginning and could not be cloned."""
    assert not issubclass(cls, NeuralNet | nn.Module)
    encoder = Noisy(64, 2 * (1 + (cls is VAEEmbedder)))
    embedder = cls(2, encoder=encoder, callbacks=[EpochTimer()], **SMALL)
    given = embedder.get_params(deep=False)
    assert vars(embedder) == given
    embedder.fit(X)
    assert all(embedder.get_params()[name] is value for name, value in given.items())
    assert isinstance(embedder.net_, NeuralNet)
    assert vars(clone(embedder)).keys() == given.keys()
    first = embedder.net_, embedder.module_
    embedder.fit(X)
    assert embedder.net_ is not first[0]
    assert embedder.module_ is not first[1]
    assert len(embedder.net_.history) == embedder.n_iter_ == 3, "the history goes on from the last fit"


def all_copies(embedder, folder):
    """Copies by every means."""
    joblib.dump(embedder, folder / "embedder.joblib", compress=3)
    torch.save(embedder, folder / "embedder.pt")
    buffer = io.BytesIO()
    pickle.dump(embedder, buffer, protocol=2)
    buffer.seek(0)
    return {
        "pickle": pickle.loads(pickle.dumps(embedder)),
        "old pickle": pickle.load(buffer),
        "cloudpickle": pickle.loads(cloudpickle.dumps(embedder)),
        "joblib": joblib.load(folder / "embedder.joblib"),
        "torch": torch.load(folder / "embedder.pt", weights_only=False),
        "copy": copy.copy(embedder),
        "deepcopy": copy.deepcopy(embedder),
        "twice": pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(embedder)))),
    }


def test_copies_of_all_kinds_say_the_same_and_train(with_noise, X, tmp_path):
    embedder = clone(with_noise).set_params(
        callbacks=[LRScheduler("StepLR", step_size=1), EarlyStopping(monitor="train_loss")], max_grad_norm=1.0
    )
    embedder.fit(X)
    expected = answers(embedder, X) | {"sample": embedder.sample(5, random_state=0)}
    refitted = clone(embedder).fit(X)
    for name, other in all_copies(embedder, tmp_path).items():
        assert_same(answers(other, X) | {"sample": other.sample(5, random_state=0)}, expected)
        assert not hasattr(other, "net_"), name
        assert same_weights(other.fit(X), refitted), name
        other.partial_fit(X).set_params(warm_start=True).fit(X)
    assert_same(answers(embedder, X), {name: expected[name] for name in answers(embedder, X)})
    assert hasattr(embedder, "net_")


@over_embedders
def test_cloudpickle_takes_what_pickle_can_not(cls, X):
    class Local(nn.Linear):
        pass

    def view(u, generator):
        return u.flip(0)

    settings = SMALL | {"augment": view, "lr_schedule": lambda share: 1 - share, "optimizer": torch.optim.SGD}
    embedder = cls(2, decoder=lambda n, m: Local(n, m), **settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        embedder.fit(X)
    other = pickle.loads(cloudpickle.dumps(embedder))
    assert_same(answers(other, X), answers(embedder, X))
    assert np.isfinite(other.partial_fit(X).score(X))


def test_pickles_do_not_hold_the_rows_or_the_optimizer():
    """They held a reference to the optimizer, and with it tensors of the device."""
    X = np.random.default_rng(0).random((3_000, 12))
    settings = {"hidden_layer_sizes": (64,), "max_epochs": 2, "early_stopping": True, "random_state": 0, "dropout": 0.1}
    callbacks = [LRScheduler("CosineAnnealingLR", T_max=2)]
    embedder = VAEEmbedder(2, callbacks=callbacks, lr_schedule="cosine", **settings)
    few, many = clone(embedder).fit(X[:200]), clone(embedder).fit(X)
    n_bytes = sum(value.nbytes for value in many.module_.state_dict().values())
    for dump in (pickle.dumps, cloudpickle.dumps):
        sizes = [len(dump(found)) for found in (few, many)]
        assert abs(sizes[0] - sizes[1]) < 200, "the size depends on the number of rows"
        assert sizes[1] < n_bytes + 10_000
        assert sizes[1] < 2 * n_bytes, "the state of Adam is twice the size of the weights"
    text = pickle.dumps(many)
    assert not [
        word
        for word in (b"torch.optim", b"exp_avg", b"DataLoader", b"TensorDataset", b"torch._C.Generator")
        if word in text
    ]
    many.module_.zero_grad()
    for parameter in many.module_.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert len(pickle.dumps(many)) < n_bytes + 10_000, "gradients are in the pickle"


def test_weights_load_with_torchs_safe_loader(with_noise, X, tmp_path):
    """That of weights only, the default since 2.6."""
    torch.save(with_noise.module_.state_dict(), tmp_path / "weights.pt")
    other = clone(with_noise).set_params(random_state=5).fit(X)
    assert not same_weights(other, with_noise)
    other.module_.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert_same(answers(other, X), answers(with_noise, X))


def test_compiled_networks_are_not_kept(X, tmp_path, monkeypatch):
    """Compiled modules can not be pickled. Here torch traces and wraps them, and leaves out its slow code generator."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    settings = SMALL | {"max_epochs": 2, "batch_norm": True, "early_stopping": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, while it traces
        embedder = VAEEmbedder(2, compile=True, **settings).fit(X)
    assert type(embedder.net_.module_) is not LatentModel, "nothing was compiled"
    assert type(embedder.module_) is LatentModel
    assert not [name for name in embedder.module_.state_dict() if "orig_mod" in name]
    assert not any(part.training for part in embedder.module_.modules())
    plain = VAEEmbedder(2, **settings).fit(X)
    expected = answers(embedder, X)
    assert_same(expected, answers(plain, X), rtol=1e-5, atol=1e-5)
    copies = all_copies(embedder, tmp_path)
    for other in copies.values():
        assert type(other.module_) is LatentModel
        assert_same(answers(other, X), expected)
    assert clone(embedder).compile
    plain = copy.deepcopy(plain).partial_fit(X)  # like a pickle, without the state of the optimizer
    assert same_weights(copies["pickle"].set_params(compile=False).partial_fit(X), plain)


class Counts(Callback):
    """State that appears while training."""

    def __init__(self, every=1):
        self.every = every

    def on_train_begin(self, net, **kwargs):
        self.epochs_ = 0

    def on_epoch_end(self, net, **kwargs):
        self.epochs_ += self.every


def silent(*args, **kwargs):
    """Nowhere to print to."""


CALLBACKS = {
    "early stopping": lambda folder: EarlyStopping(monitor="train_loss", threshold_mode="abs"),
    "best weights of early stopping": lambda folder: EarlyStopping(monitor="train_loss", load_best=True),
    "schedule": lambda folder: LRScheduler("StepLR", step_size=1),
    "checkpoint": lambda folder: Checkpoint(monitor=None, dirname=folder, f_pickle=None),
    "progress": lambda folder: ProgressBar(),
    "clipping": lambda folder: GradientNormClipping(0.1),
    "timer": lambda folder: EpochTimer(),
    "log": lambda folder: PrintLog(sink=silent),
    "own": lambda folder: Counts(),
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # some callbacks of skorch leave files open
@pytest.mark.parametrize("name", CALLBACKS)
def test_callbacks_with_state_can_be_cloned_and_searched(name, X, tmp_path, capsys):
    """State of a fit was left in the callback that was given, and broke clones."""
    callback = CALLBACKS[name](tmp_path)
    before = dict(vars(callback))
    embedder = VAEEmbedder(callbacks=[callback], **SMALL)
    search = GridSearchCV(embedder, {"n_components": [1, 2]}, cv=2, error_score="raise")
    with joblib.parallel_config("threading", n_jobs=2):
        search.fit(X)
    clone(embedder).set_params(callbacks=[callback]).fit(X)
    assert vars(callback) == before, "the callback that was given was used"
    best = search.best_estimator_
    assert any(type(found) is type(callback) and found is not callback for _, found in best.net_.callbacks_)
    twin = clone(clone(best).fit(X))
    assert twin.callbacks[0] is not callback
    assert twin.callbacks[0].get_params() == callback.get_params()
    assert same_weights(twin.set_params(n_components=best.n_components).fit(X), best)
    assert_array_equal(pickle.loads(pickle.dumps(search)).transform(X), search.transform(X))
    if name == "own":
        assert [found.epochs_ for _, found in best.net_.callbacks_ if isinstance(found, Counts)] == [3]


@pytest.mark.first
def test_searches_and_fitted_embedders_in_other_processes(X, tmp_path):
    """Everything that is given travels to workers and comes back."""
    callbacks = [
        EarlyStopping(monitor="train_loss", threshold_mode="abs"),
        LRScheduler("StepLR", step_size=1),
        Checkpoint(monitor=None, dirname=tmp_path, f_pickle=None),
        GradientNormClipping(0.1),
        EpochTimer(),
    ]
    embedder = VAEEmbedder(callbacks=callbacks, **SMALL)
    here, there = (
        GridSearchCV(embedder, {"n_components": [1, 2]}, cv=2, n_jobs=n_jobs, error_score="raise").fit(X)
        for n_jobs in (1, 2)
    )
    for key in ("mean_test_score", "std_test_score"):
        assert_allclose(there.cv_results_[key], here.cv_results_[key], rtol=1e-3)
    fitted = [cls(3, **SMALL | RANDOM).fit(X) for cls in CLASSES]
    found = joblib.Parallel(n_jobs=2)(joblib.delayed(embedder.transform)(X) for embedder in fitted)
    for codes, embedder in zip(found, fitted, strict=True):
        assert_allclose(codes, embedder.transform(X), rtol=1e-9, atol=1e-9)


@over_embedders
def test_progress_bars_are_closed(cls, X, capsys):
    """They were left open after an interrupt, and shown again by the next."""
    from tqdm import tqdm

    embedder = cls(2, verbose=1, **SMALL)
    embedder.fit(X)
    assert capsys.readouterr().err.count("3/3") >= 1
    with pytest.raises(KeyboardInterrupt):
        embedder.set_params(callbacks=[Breaks("on_epoch_end", KeyboardInterrupt)]).fit(X)
    assert not list(getattr(tqdm, "_instances", ()))
    assert b"tqdm" not in pickle.dumps(clone(embedder).set_params(callbacks=None).fit(X))


def seed_everything(seed):
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


@pytest.mark.parametrize("random_state", [None, 0, "instance"])
def test_global_random_states_are_neither_used_nor_changed(with_noise, random_state, X):
    """Libraries seeded the whole process, or drew from its state."""

    def run():
        state = np.random.RandomState(3) if random_state == "instance" else random_state
        embedder = clone(with_noise).set_params(random_state=state).fit(X)
        embedder.partial_fit(X).set_params(warm_start=True).fit(X)
        answers(embedder, X)
        return embedder.sample(20)

    kept = global_states()
    try:
        drawn = []
        for seed in (1, 1, 2):
            seed_everything(seed)
            before = global_states()
            drawn.append(run())
            assert global_states() == before
    finally:
        random.setstate(kept[0])
        np.random.set_state(("MT19937", np.array(kept[1], dtype=np.uint32), *kept[2]))  # noqa: NPY002
        torch.manual_seed(kept[4])
        torch.set_rng_state(torch.tensor(kept[3], dtype=torch.uint8))
    equal = [np.array_equal(drawn[0], other) for other in drawn[1:]]
    assert equal == ([False, False] if random_state is None else [True, True])


def test_own_dropout_does_not_use_the_global_state(X):
    """Layers of the user's draw from it; they are seeded, and it is put back."""
    encoder = Noisy(64, 4)
    fits = []
    for seed in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            fits.append(VAEEmbedder(2, encoder=encoder, **SMALL).fit(X).partial_fit(X))
            assert torch.equal(torch.get_rng_state(), before)
    assert same_weights(*fits)
    assert not same_weights(fits[0], VAEEmbedder(2, encoder=encoder, **SMALL | {"random_state": 1}).fit(X))


@over_embedders
def test_seeds_of_every_kind(cls, X):
    """The same seed was used whatever was given, and NumPy's integers were no seeds."""
    fits = {seed: cls(2, **SMALL | {"random_state": seed}).fit(X) for seed in (0, 1, 2, 2**32 - 1)}
    for seed, embedder in fits.items():
        for kind in (np.int64, np.uint32, int):
            assert same_weights(embedder, cls(2, **SMALL | {"random_state": kind(seed)}).fit(X))
        others = [other for key, other in fits.items() if key != seed]
        assert not any(same_weights(embedder, other) for other in others)
    assert len({fit.sample(3).tobytes() for fit in fits.values()}) == 4


@over_embedders
def test_a_random_state_instance_advances(cls, X):
    state, twin = np.random.RandomState(0), np.random.RandomState(0)
    embedder = cls(2, **SMALL | {"random_state": state})
    first, second = copy.deepcopy(embedder.fit(X)), copy.deepcopy(embedder.fit(X))
    assert not same_weights(first, second)
    again = cls(2, **SMALL | {"random_state": twin})
    assert same_weights(again.fit(X), first)
    assert same_weights(again.fit(X), second)
    assert not np.array_equal(embedder.sample(9), embedder.sample(9))
    assert_array_equal(embedder.sample(9, random_state=4), embedder.sample(9, random_state=4))


def test_passes_over_batches_do_not_repeat_their_draws(X):
    """With an integer seed every call would shuffle, and drop, alike."""
    seen = []

    class Rows(Callback):
        def on_batch_end(self, net, batch, **kwargs):
            seen.append(batch[0]["noise"])

    vae = VAEEmbedder(2, callbacks=[Rows()], **SMALL | {"batch_size": 200})
    for _ in range(3):
        vae.partial_fit(X)
    assert len({noise.numpy().tobytes() for noise in seen}) == len(seen) == 3


@pytest.mark.parametrize("fitted_on", ["cpu", "auto", torch.device("cpu"), "cpu:0"])
@pytest.mark.parametrize("used_on", ["cpu", "auto", torch.device("cpu")])
def test_devices_may_change_between_calls(fitted_on, used_on, X):
    if torch.cuda.is_available() and "auto" in (fitted_on, used_on):
        tolerance = {"rtol": 1e-2, "atol": 1e-2}
    else:
        tolerance = {"rtol": 1e-9, "atol": 1e-9}
    expected = VAEEmbedder(2, device="cpu", **SMALL).fit(X)
    embedder = VAEEmbedder(2, device=fitted_on, **SMALL).fit(torch.tensor(X), torch.zeros(len(X)), X_val=X[:9])
    embedder.set_params(device=used_on)
    assert_same(answers(embedder, X), answers(expected, X), **tolerance)
    for rows in (X, torch.tensor(X), X.astype(np.float32)):
        assert isinstance(embedder.transform(rows), np.ndarray)
        assert np.isfinite(embedder.partial_fit(rows, torch.zeros(len(X))).loss_curve_).all()
    embedder.set_params(warm_start=True).fit(X)
    embedder.set_params(device="cuda:99")
    with pytest.raises(ValueError, match="device='cuda:99' cannot be used here; use 'auto' or one of"):
        embedder.transform(X)


@over_embedders
@pytest.mark.parametrize(
    ("fitted_on", "used_on", "y_on"),
    [("cpu", "device", None), ("device", "cpu", "device"), ("device", "device", "cpu")],
)
def test_combinations_of_devices(cls, fitted_on, used_on, y_on, X, device):
    """Rows, labels, networks and what the user asks next may each be somewhere else."""
    fitted_on, used_on, y_on = (device if name == "device" else name for name in (fitted_on, used_on, y_on))
    y = None if y_on is None else torch.zeros(len(X), device=y_on)
    more = {"corruption": 0.2} if cls is AutoencoderEmbedder else {}
    embedder = cls(2, device=fitted_on, **SMALL | RANDOM | more).fit(X, y, X_val=X[:9])
    expected = answers(embedder, X)
    embedder.set_params(device=used_on)
    assert_same(answers(embedder, X), expected, rtol=1e-6, atol=1e-6)
    assert embedder.sample(3).shape == (3, 64)
    for how in ("partial_fit", "warm start"):
        assert np.isfinite(train(embedder, how, X).score(X))
    home = "cpu" if used_on == "mps" else used_on  # without float64, what is fitted is on the CPU
    assert next(embedder.module_.parameters()).device.type == home
    restored = pickle.loads(pickle.dumps(embedder))
    assert next(restored.module_.parameters()).device.type == "cpu"
    assert_same(answers(restored.set_params(device="cpu"), X), answers(embedder, X), rtol=1e-6, atol=1e-6)


class DrawsForItself(nn.Module):
    """A network of a user's that draws from torch's global state, when it is made and when it is trained."""

    def __init__(self, n_inputs, n_outputs):
        super().__init__()
        self.layer = nn.Linear(n_inputs, n_outputs)

    def forward(self, x):
        return self.layer(nn.functional.dropout(x, 0.5, self.training))


def test_own_networks_that_draw_are_reproducible(X):
    """Starting values and functional dropout came from the global state, and two fits differed."""
    before = torch.get_rng_state()
    fits = [VAEEmbedder(2, encoder=DrawsForItself, **SMALL).fit(X) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert_array_equal(fits[0].transform(X), fits[1].transform(X))


class NeverBegun(Callback):
    """A callback that needs its beginning for its end."""

    def on_train_begin(self, net, **kwargs):
        self.begun_ = True

    def on_train_end(self, net, **kwargs):
        assert self.begun_


class FailsAtOnce(Callback):
    """A callback that fails before others have begun."""

    def on_train_begin(self, net, **kwargs):
        raise RuntimeError("the reason")


def test_the_end_of_training_does_not_hide_why_it_ended(X):
    """An exception of another callback at the end of training would replace the error."""
    with pytest.raises(RuntimeError, match="the reason"):
        VAEEmbedder(2, callbacks=[FailsAtOnce(), NeverBegun()], **SMALL).fit(X)


def test_passes_after_a_fit_know_its_seed(X):
    """After `fit`, the noise of `partial_fit` was the same for every seed."""
    vae = VAEEmbedder(2, **SMALL).fit(X)
    weights = vae.module_.state_dict()
    codes = []
    for seed in (0, 1):
        other = VAEEmbedder(2, **SMALL | {"random_state": seed}).fit(X)
        other.module_.load_state_dict(weights)
        codes.append(other.partial_fit(X).transform(X))
    assert not np.array_equal(*codes)


def test_tiny_signed_data_are_no_probabilities():
    """Rounding of a scaler was allowed for on data that are smaller than it."""
    X = np.random.default_rng(0).normal(size=(80, 4)) * 1e-20
    vae = VAEEmbedder(2, **SMALL | {"max_epochs": 60}).fit(X)
    assert vae.likelihood_ == "gaussian"
    assert np.square(vae.reconstruct(X) - X).mean() < 2 * X.var()


def test_memory_of_results_does_not_grow_with_hidden_layers():
    """Each chunk has its place in the result: no list of small pieces keeps the memory of hidden layers."""
    X = np.zeros((4_000, 8), np.float32)
    X[::2] = 1
    vae = VAEEmbedder(2, hidden_layer_sizes=(16,), max_epochs=1, random_state=0).fit(X[:200])
    model, calls = vae.module_, []
    map_samples(lambda x: calls.append(len(x)) or x, X, dtype=torch.float32, device="cpu", width=8, chunk_size=300)
    assert sum(calls) == 4_000
    assert max(calls) == 300
    assert vae.transform(X).base is None
    assert not model.training
