"""VAEEmbedder's own promises."""

import numpy as np
import pytest
import torch
from helpers import SMALL, mirrored
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.metrics import v_measure_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from skorch.callbacks import GradientNormClipping
from torch import nn

from skvae import AutoencoderEmbedder, TorchGMM, VAEEmbedder
from skvae.fitting.evaluation import normal_points
from skvae.models import LatentModel


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:400] / 16, y[:400]


@pytest.fixture(scope="module")
def fitted(digits):
    return VAEEmbedder(4, random_state=0).fit(digits[0])


def test_learns_the_data(fitted, digits):
    X, _ = digits
    codes = fitted.transform(X)
    assert codes.shape == (400, 4)
    restored = fitted.inverse_transform(codes)
    assert ((restored - X) ** 2).mean() < 0.6 * X.var(0).mean()
    assert restored.min() >= 0
    assert restored.max() <= 1
    assert fitted.score(X) > VAEEmbedder(4, max_epochs=1, random_state=0).fit(X).score(X)
    assert fitted.loss_curve_[-1] < fitted.loss_curve_[0]
    assert len(fitted.history_) == fitted.n_iter_ == 100


def test_score_is_the_elbo(fitted, digits):
    """The fixed points agree with a large Monte Carlo estimate, and with the training loss."""
    X, _ = digits
    torch_X = torch.tensor(X, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        terms = [fitted.module_(torch_X, torch.randn(400, 4, generator=generator)) for _ in range(300)]
    draws = torch.stack([term.log_likelihood - term.kl for term in terms])
    assert fitted.score(X) == pytest.approx(draws.mean().item(), abs=0.1)
    spread = (draws.mean(0).numpy() - fitted.score_samples(X)) / draws.std(0).numpy()
    assert np.abs(spread).mean() < 0.5
    assert -fitted.loss_curve_[-1] == pytest.approx(fitted.score(X), abs=1.0)


@pytest.mark.parametrize("n_components", [2, 10, 20])
def test_scores_hardly_depend_on_the_points(n_components, digits):
    X, _ = digits
    vae = VAEEmbedder(n_components, hidden_layer_sizes=(64,), lr=5e-3, max_epochs=40, random_state=0).fit(X)
    u = torch.tensor(X[:100], dtype=torch.float32)
    with torch.inference_mode():
        q = vae.module_.posterior(u)
        points = normal_points(2_048, n_components).float()
        bounds = sum(vae.module_.elbo(u, q, noise.expand_as(q.mean)).value.double() for noise in points) / len(points)
    errors = vae.score_samples(X[:100]) - bounds.numpy()
    assert abs(errors.mean()) < 0.03
    assert np.sqrt((errors**2).mean()) < 0.15


def test_results_do_not_depend_on_the_other_rows(fitted, digits):
    X, _ = digits
    for method in (fitted.transform, fitted.score_samples):
        assert_allclose(method(X)[30:60], method(X[30:60]), rtol=1e-10)
        assert_array_equal(method(X), method(X))


def test_likelihood_follows_the_data(digits):
    X, _ = digits
    assert VAEEmbedder(2, **SMALL).fit(X).likelihood_ == "bernoulli"
    assert VAEEmbedder(2, **SMALL).fit(16 * X).likelihood_ == "gaussian"
    assert VAEEmbedder(2, **SMALL).fit(X - 1).likelihood_ == "gaussian"


def test_bernoulli_refuses_other_data(digits):
    X, _ = digits
    with pytest.raises(
        ValueError, match=r"needs values in \[0, 1\], but X has values from -0.5 to 0.5; scale X \(MinMax"
    ):
        VAEEmbedder(2, likelihood="bernoulli", **SMALL).fit(X - 0.5)
    vae = VAEEmbedder(2, **SMALL).fit(X)
    with pytest.raises(ValueError, match=r"X has values from 0 to 2"):
        vae.score(2 * X)
    with pytest.warns(UserWarning, match="samples of X have values outside the support of likelihood='bernoulli'"):
        assert np.isfinite(vae.transform(2 * X)).all()


def test_unscaled_table_trains_and_scores_in_its_units():
    """Standardised inside: other units give the same codes, and the score moves by the Jacobian."""
    X = load_breast_cancer().data
    units = np.logspace(-6, 6, X.shape[1])
    one, two = (VAEEmbedder(3, **SMALL).fit(table) for table in (X, X * units + 1e3 * units))
    assert_allclose(two.transform(X * units + 1e3 * units), one.transform(X), atol=1e-3)
    assert two.score(X * units + 1e3 * units) == pytest.approx(one.score(X) - np.log(units).sum(), abs=0.05)
    assert_allclose(one.inverse_transform(one.transform(X)).mean(0), X.mean(0), rtol=0.5)


def test_linear_gaussian_data_reach_the_evidence():
    """On data from a Gaussian, the bound comes near the exact log-likelihood and stays below it."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(2, 6))
    weights /= np.linalg.norm(weights, axis=0)  # equal variances: standardised, the noise is still isotropic
    X = rng.normal(size=(2_000, 2)) @ weights + 0.3 * rng.normal(size=(2_000, 6))
    exact = TorchGMM(1).fit(X).score(X)
    vae = VAEEmbedder(2, hidden_layer_sizes=(32,), lr=3e-3, max_epochs=100, random_state=0).fit(X)
    assert exact - 0.5 < vae.score(X) < exact + 0.05


@pytest.mark.parametrize("kind", ["constant column", "duplicated column", "huge", "tiny", "one-hot"])
def test_odd_tables_stay_finite(kind):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 4))
    X = {
        "constant column": np.column_stack([X, np.full(60, 7.0)]),
        "duplicated column": np.column_stack([X, X[:, 0]]),
        "huge": X * 1e30,
        "tiny": X * 1e-30,
        "one-hot": np.eye(4)[rng.integers(4, size=60)],
    }[kind]
    vae = VAEEmbedder(2, **SMALL).fit(X)
    for found in (vae.transform(X), vae.score_samples(X), vae.inverse_transform(vae.transform(X)), vae.sample(5)):
        assert np.isfinite(found).all()


def test_sample_looks_like_the_data(fitted, digits):
    X, _ = digits
    drawn = fitted.sample(2_000, random_state=0)
    assert drawn.shape == (2_000, 64)
    assert set(np.unique(drawn)) <= {0.0, 1.0}
    assert np.abs(drawn.mean(0) - X.mean(0)).max() < 0.25
    assert_array_equal(drawn, fitted.sample(2_000, random_state=0))
    assert not np.array_equal(drawn, fitted.sample(2_000, random_state=1))


def ramp(share):
    return 1.0 - 0.5 * share


def plain_encoder(n_inputs, n_outputs):
    return nn.Linear(n_inputs, n_outputs)


# Other values of every parameter, and what else has to be set for them to matter.
STOPPING = {"early_stopping": True, "max_epochs": 40, "lr": 1e-2}
SHARED = {
    "n_components": (3, {}),
    "architecture": ("mlp", {"image_shape": (8, 8), "hidden_layer_sizes": (16,)}),
    "hidden_layer_sizes": ((8, 8), {}),
    "head_layer_sizes": ((8,), {}),
    "activation": ("tanh", {}),
    "batch_norm": (True, {}),
    "layer_norm": (True, {}),
    "dropout": (0.5, {}),
    "image_shape": ((8, 8), {}),
    "channels": ((4,), {"image_shape": (8, 8)}),
    "encoder": (plain_encoder, {}),
    "decoder": (plain_encoder, {}),
    "likelihood": ("gaussian", {}),
    "max_epochs": (2, {}),
    "batch_size": (32, {}),
    "lr": (1e-2, {}),
    "optimizer": ("sgd", {}),
    "weight_decay": (1.0, {}),
    "lr_schedule": (ramp, {}),
    "max_grad_norm": (1e-3, {"optimizer": "sgd"}),
    "early_stopping": (True, {}),
    "validation_fraction": (0.5, {"early_stopping": True}),
    "n_iter_no_change": (1, STOPPING | {"tol": 1e3}),
    "tol": (1e3, STOPPING),
    "callbacks": ([GradientNormClipping(1e-3)], {"optimizer": "sgd"}),
    "augment": (mirrored, {}),
    "random_state": (1, {}),
}
CHANGES = {
    VAEEmbedder: SHARED
    | {"beta": (5.0, {}), "kl_warmup_epochs": (3, {}), "latent_norm_epochs": (2, {}), "free_bits": (0.5, {})}
    | {"n_draws": (3, {})},
    AutoencoderEmbedder: SHARED | {"corruption": (0.3, {})},
}
CASES = [(cls, name) for cls, changes in CHANGES.items() for name in changes]


SCORES = {}  # of fits that several parameters are compared with


@pytest.mark.parametrize(("cls", "name"), CASES, ids=lambda case: getattr(case, "__name__", case))
def test_every_parameter_changes_the_fit(cls, name, digits):
    X, _ = digits
    value, others = CHANGES[cls][name]
    base, key = cls(2, **SMALL | others), (cls, str(others))
    if key not in SCORES:
        SCORES[key] = base.fit(X).score(X)
    assert SCORES[key] != clone(base).set_params(**{name: value}).fit(X).score(X)


@pytest.mark.parametrize("cls", CHANGES)
def test_the_other_parameters_are_tested_elsewhere(cls):
    rest = set(cls().get_params()) - set(CHANGES[cls]) - {"dispersion"}
    assert rest == {"device", "verbose", "precision", "compile", "warm_start", "checkpoint", "size_factor"}


def test_beta_weighs_the_kl(digits):
    X, _ = digits
    settings = SMALL | {"max_epochs": 70}
    kls = [VAEEmbedder(2, beta=beta, **settings).fit(X).history_[-1]["train_kl"] for beta in (0.0, 1.0, 10.0)]
    assert kls[0] > kls[1] > kls[2]


@pytest.mark.parametrize("sizes", [(0,), (-3,), (2.5,), ("a",), (16, None), (True,)])
def test_wrong_layer_sizes(sizes, digits):
    with pytest.raises(ValueError, match="hidden_layer_sizes should be positive integers"):
        VAEEmbedder(2, hidden_layer_sizes=sizes).fit(digits[0])


def test_wrong_number_of_latent_features(fitted):
    with pytest.raises(ValueError, match="Z has 3 features, but VAEEmbedder is expecting 4 latent features"):
        fitted.inverse_transform(np.zeros((2, 3)))


def test_dropped_parts_of_a_pickle(fitted):
    import pickle

    assert fitted.net_.module_ is fitted.module_
    copy = pickle.loads(pickle.dumps(fitted))
    assert not hasattr(copy, "net_")


def test_one_width_is_one_layer(digits):
    one, two = (VAEEmbedder(2, **SMALL | {"hidden_layer_sizes": sizes}).fit(digits[0]) for sizes in (16, (16,)))
    assert_array_equal(one.transform(digits[0]), two.transform(digits[0]))


def test_rounding_of_a_scaler_is_within_bounds():
    """MinMaxScaler gives 1.0000000000000002 on some columns."""
    X = np.random.default_rng(0).random((60, 3))
    X[0], X[1, 0] = 1 + 2 * np.finfo(float).eps, -np.finfo(float).eps
    vae = VAEEmbedder(2, **SMALL).fit(X)
    assert vae.likelihood_ == "bernoulli"
    assert np.isfinite(vae.score(X))


def test_broken_networks_are_an_error():
    """With one batch in one epoch, the loss is known before the only step."""
    X = np.random.default_rng(0).random((50, 3))
    with pytest.raises(ValueError, match="not finite. Decrease lr"):
        VAEEmbedder(2, lr=1e30, max_epochs=1).fit(X)


def test_units_too_small_for_float32():
    X = np.random.default_rng(0).normal(size=(60, 3)) * [1e-42, 1.0, 1.0]
    vae = VAEEmbedder(2, **SMALL).fit(X)
    assert np.isfinite(vae.transform(X.astype(np.float32))).all()


def test_rows_are_visited_in_chunks_that_fit_the_networks(fitted, monkeypatch):
    sizes = []
    original = LatentModel.posterior

    def spy(self, u):
        sizes.append(len(u))
        return original(self, u)

    monkeypatch.setattr(LatentModel, "posterior", spy)
    fitted.transform(np.zeros((20_000, 64)))
    assert max(sizes) * 256 * 8 < 2**23
    assert sum(sizes) == 20_000


def test_output_frames_and_names(fitted, digits):
    names = ["vaeembedder0", "vaeembedder1", "vaeembedder2", "vaeembedder3"]
    assert_array_equal(fitted.get_feature_names_out(), names)
    frame = clone(fitted).set_params(max_epochs=1).set_output(transform="pandas").fit_transform(digits[0])
    assert list(frame.columns) == names


def test_the_main_job(digits):
    X, y = digits
    pipeline = Pipeline([("vae", VAEEmbedder(5, random_state=0)), ("gmm", TorchGMM(10, n_init=3, random_state=0))])
    labels = pipeline.fit_predict(X)
    assert_array_equal(labels, pipeline.predict(X))
    assert v_measure_score(y, labels) > 0.5
    assert pipeline.score(X) == pytest.approx(pipeline["gmm"].score(pipeline["vae"].transform(X)))


def test_grid_search_over_the_pipeline(digits):
    X, y = digits
    pipeline = make_pipeline(VAEEmbedder(**SMALL), TorchGMM(10, random_state=0))
    grid = {"vaeembedder__n_components": [2, 5], "torchgmm__covariance_type": ["full", "diag"]}
    search = GridSearchCV(pipeline, grid, scoring="v_measure_score", cv=2).fit(X, y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_estimator_.predict(X).shape == y.shape


def test_subclasses_may_have_a_parameter_that_another_estimator_has():
    class Described(VAEEmbedder):
        def __init__(self, n_components=2, *, max_epochs=1, pretrained=None):
            super().__init__(n_components, max_epochs=max_epochs)
            self.pretrained = pretrained

    X = np.random.default_rng(0).normal(size=(40, 3))
    assert Described(pretrained="anything").fit(X).transform(X).shape == (40, 2)
