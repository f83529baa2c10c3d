"""How embedders are trained, and what they say of their codes."""

import copy
import pickle

import numpy as np
import pytest
import torch
from helpers import SMALL, same_weights
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from skorch.callbacks import Callback, Checkpoint, EarlyStopping
from torch import nn

from skvae import AutoencoderEmbedder, TorchGMM, TorchPPCA, VAEEmbedder
from skvae.estimators import _embedder_training
from skvae.fitting import batches
from skvae.models import LatentModel
from skvae.models.networks import Affine

over_embedders = pytest.mark.parametrize("cls", [VAEEmbedder, AutoencoderEmbedder])


@pytest.fixture(scope="module")
def X():
    return load_digits().data[:400] / 16


@pytest.fixture(scope="module")
def fitted(X):
    return VAEEmbedder(4, random_state=0).fit(X)


def test_importance_samples_lift_the_bound(fitted, X):
    """ELBO <= bound of 5 <= bound of 500 samples, on average: the errors of the averages are known from the draws."""
    seeds = {1: 100, 5: 20, 500: 3}  # 100 codes or more for each row
    draws = [[fitted.log_likelihood(X, n, random_state=s).mean() for s in range(seeds[n])] for n in seeds]
    bounds, errors = [np.mean(part) for part in draws], [np.std(part) / np.sqrt(len(part)) for part in draws]
    assert fitted.score(X) == pytest.approx(bounds[0], abs=1.0)
    assert bounds[0] + 0.1 < bounds[2]
    for i in (0, 1):
        assert bounds[i] < bounds[i + 1] + 3 * np.hypot(errors[i], errors[i + 1])
    assert fitted.score(X) < bounds[2]
    found = fitted.log_likelihood(X, 5, random_state=0)
    assert_allclose(fitted.log_likelihood(X[:9], 5, random_state=0), found[:9], rtol=1e-12)
    assert_array_equal(fitted.log_likelihood(X, 5), fitted.log_likelihood(X, 5))


def test_bounds_stay_below_the_exact_value():
    """On data from PPCA's model, whose log-likelihood is known."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(2, 6))
    weights /= np.linalg.norm(weights, axis=0)
    X = rng.normal(size=(2_000, 2)) @ weights + 0.3 * rng.normal(size=(2_000, 6))
    vae = VAEEmbedder(2, hidden_layer_sizes=(), lr=1e-2, max_epochs=60, random_state=0).fit(X)
    exact = TorchPPCA(2).fit(X).score(X)
    few = np.mean([vae.log_likelihood(X, 5, random_state=seed).mean() for seed in range(20)])
    bounds = [vae.score(X), few, vae.log_likelihood(X, 500).mean()]
    assert bounds == sorted(bounds)
    assert exact - 0.15 < bounds[2] < TorchGMM(1).fit(X).score(X) + 0.02


def test_variances_and_reconstructions(fitted, X):
    variance = fitted.posterior_variance(X)
    assert variance.shape == (400, 4)
    assert (variance > 0).all()
    assert variance.mean() < 1
    assert_allclose(fitted.reconstruct(X), fitted.inverse_transform(fitted.transform(X)), rtol=1e-10)


@over_embedders
def test_interpolation_begins_and_ends_at_reconstructions(cls, X):
    embedder = cls(3, **SMALL).fit(X)
    way = embedder.interpolate(X[:5], X[5:10], n_steps=7)
    assert way.shape == (5, 7, 64)
    assert_allclose(way[:, 0], embedder.reconstruct(X[:5]), rtol=1e-8)
    assert_allclose(way[:, -1], embedder.reconstruct(X[5:10]), rtol=1e-8)
    with pytest.raises(ValueError, match="X_from has 5 rows and X_to 4"):
        embedder.interpolate(X[:5], X[:4])
    with pytest.raises(ValueError, match="n_steps=1 leaves no way to go"):
        embedder.interpolate(X[:5], X[:5], n_steps=1)


def test_kl_of_dimensions_is_the_kl(fitted):
    assert fitted.kl_per_dimension_.shape == (4,)
    assert fitted.kl_per_dimension_.sum() == pytest.approx(fitted.history_[-1]["train_kl"], rel=0.05)
    assert fitted.active_units_ == (fitted.kl_per_dimension_ > 0.05).sum() == 4


def test_collapse_is_said_and_free_bits_help(X):
    settings = {"hidden_layer_sizes": (16,), "max_epochs": 300, "beta": 50.0, "random_state": 0}
    with pytest.warns(
        ConvergenceWarning,
        match=r"carry no information about X, since all 2 latent dimensions .*kl_warmup_epochs or free",
    ) as caught:
        vae = VAEEmbedder(2, **settings).fit(X)
    assert caught[0].filename == __file__
    assert vae.active_units_ == 0
    free = VAEEmbedder(2, free_bits=1.0, **settings).fit(X)
    assert free.active_units_ == 2
    assert (free.kl_per_dimension_ > 0.3).all()
    assert free.kl_per_dimension_.max() < 1.5


def test_warm_up_begins_without_the_kl(X):
    """In the first epochs the codes are nearly free, so their KL is larger than at the end."""
    settings = {"hidden_layer_sizes": (32,), "max_epochs": 60, "random_state": 0, "lr": 3e-3}
    slow = VAEEmbedder(2, kl_warmup_epochs=50, **settings).fit(X)
    kls = [row["train_kl"] for row in slow.history_]
    assert max(kls) > 1.3 * kls[-1]
    for row, share in zip(slow.history_, [*(np.arange(1, 51) / 51), *[1.0] * 10], strict=True):
        assert row["train_loss"] == pytest.approx(share * row["train_kl"] - row["train_log_likelihood"], rel=1e-4)


def test_latent_norm_gives_every_dimension_a_variance_at_first(X):
    """Where little is in ten dimensions, some are unused without it; afterwards the encoder ends in a fixed map."""
    settings = {"hidden_layer_sizes": (32,), "max_epochs": 20, "kl_warmup_epochs": 0, "random_state": 0}
    variances = []

    class Variances(Callback):
        def on_epoch_end(self, net, **kwargs):
            model = copy.deepcopy(net.module_).eval()
            with torch.inference_mode():
                variances.append(model.posterior(torch.tensor(X, dtype=torch.float32)).mean.var(0, correction=0))

    vae = VAEEmbedder(10, latent_norm_epochs=20, callbacks=[Variances()], **settings).fit(X)
    assert all(0.1 < variance < 2.5 for epoch in variances[5:] for variance in epoch.tolist())
    assert vae.active_units_ == 10
    assert np.allclose(vae.transform(X).var(0), variances[-1], rtol=1e-4)
    assert isinstance(vae.module_.encoder[-1], Affine)
    assert VAEEmbedder(10, latent_norm_epochs=0, **settings).fit(X).active_units_ < 10
    freed = VAEEmbedder(10, latent_norm_epochs=5, **settings | {"max_epochs": 40, "beta": 20.0}).fit(X)
    assert freed.active_units_ < 10


def test_the_beginning_is_a_tenth_of_the_epochs_from_1000_samples(X):
    settings = {"hidden_layer_sizes": (8,), "random_state": 0}
    many = np.concatenate([X, X, X])
    for X, max_epochs, n_epochs in ((many[:1000], 9, 0), (many[:1000], 25, 2), (many[:999], 25, 0)):
        auto = VAEEmbedder(2, max_epochs=max_epochs, **settings).fit(X)
        explicit = {"kl_warmup_epochs": n_epochs, "latent_norm_epochs": n_epochs}
        same = VAEEmbedder(2, max_epochs=max_epochs, **explicit, **settings).fit(X)
        assert auto.loss_curve_ == same.loss_curve_
        assert np.array_equal(auto.transform(X), same.transform(X))


def test_networks_that_are_trained_further_are_not_normalized_again(X):
    settings = {"hidden_layer_sizes": (8,), "max_epochs": 20, "warm_start": True, "random_state": 0}
    vae = VAEEmbedder(2, latent_norm_epochs=5, **settings).fit(X)
    encoder = vae.module_.encoder
    auto = copy.deepcopy(vae).fit(X)
    none = copy.deepcopy(vae).set_params(kl_warmup_epochs=0, latent_norm_epochs=0).fit(X)
    assert np.array_equal(auto.transform(X), none.transform(X))
    assert len(auto.module_.encoder) == len(encoder) == 2


def test_encoders_of_the_user_are_not_normalized(X):
    def linear(n_inputs, n_outputs):
        return torch.nn.Linear(n_inputs, n_outputs)

    vae = VAEEmbedder(2, encoder=linear, latent_norm_epochs=1, max_epochs=2, random_state=0).fit(X)
    assert isinstance(vae.module_.encoder, torch.nn.Linear)


@over_embedders
def test_early_stopping_takes_the_best_weights(cls, X):
    noise = np.random.default_rng(0).random((60, 20))
    settings = {"hidden_layer_sizes": (64,), "max_epochs": 500, "lr": 1e-2, "random_state": 0}
    embedder = cls(5, early_stopping=True, n_iter_no_change=5, **settings).fit(noise[:40], X_val=noise[40:])
    losses = [row["valid_loss"] for row in embedder.history_]
    assert embedder.n_iter_ < 500
    best = int(np.argmin(losses))
    assert best < len(losses) - 1
    assert -embedder.score(noise[40:]) == pytest.approx(losses[best], abs=0.15)
    assert -embedder.score(noise[40:]) < losses[-1]


def test_held_out_rows_are_a_share_of_the_data(X):
    seen = []

    class Spy(Callback):
        def on_batch_end(self, net, batch, training, **kwargs):
            seen.append((training, len(batch[0]["u"])))

    _embedding_callbacks = [Spy()]
    vae = VAEEmbedder(2, early_stopping=True, validation_fraction=0.25, **SMALL | {"max_epochs": 1})
    vae.set_params(callbacks=_embedding_callbacks).fit(X)
    assert sum(row["valid_loss"] is not None for row in vae.history_) == 1
    with pytest.raises(ValueError, match="leaves fewer than two for training"):
        VAEEmbedder(1, early_stopping=True, validation_fraction=0.9, **SMALL).fit(X[:5])


def test_validation_rows_are_recorded_without_stopping(X):
    vae = VAEEmbedder(2, **SMALL).fit(X[:300], X_val=X[300:])
    assert len([row["valid_loss"] for row in vae.history_]) == 4
    assert same_weights(vae, VAEEmbedder(2, **SMALL).fit(X[:300])), "the validation rows have changed the training"
    with pytest.raises(ValueError, match="X_val has 3 features"):
        VAEEmbedder(2, **SMALL).fit(X, X_val=X[:, :3])


@over_embedders
def test_warm_start_goes_on(cls, X):
    once = cls(2, warm_start=True, **SMALL).fit(X)
    first = once.module_
    again = once.fit(X)
    assert again.n_iter_ == len(again.history_) == len(again.loss_curve_) == 8
    assert [row["epoch"] for row in again.history_] == list(range(1, 9))
    assert again.loss_curve_[4] < again.loss_curve_[0]
    assert first is not again.module_
    cold = cls(2, **SMALL).fit(X).fit(X)
    assert cold.n_iter_ == 4
    with pytest.raises(
        ValueError, match=r"embed 64 features in 2 dimensions, but X has 64 features and n_components is 3"
    ):
        again.set_params(n_components=3).fit(X)
    with pytest.raises(ValueError, match="but X has 5 features"):
        again.set_params(n_components=2).fit(X[:, :5])


def test_failed_warm_start_keeps_the_networks(X, monkeypatch):
    vae = VAEEmbedder(2, warm_start=True, **SMALL).fit(X)
    before = vae.transform(X)

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("skvae.fitting.training.check_finite", interrupt)
    with pytest.raises(KeyboardInterrupt):
        vae.fit(X)
    assert_array_equal(vae.transform(X), before)


@over_embedders
def test_partial_fit_trains_a_pass_a_call(cls, X):
    stream = cls(2, **SMALL)
    with pytest.raises(NotFittedError):
        stream.transform(X)
    for _ in range(12):
        for start in range(0, 400, 100):
            stream.partial_fit(X[start : start + 100])
    assert stream.n_iter_ == 48
    assert stream.loss_curve_[-1] < stream.loss_curve_[0]
    again = cls(2, **SMALL)
    for _ in range(12):
        for start in range(0, 400, 100):
            again.partial_fit(X[start : start + 100])
    assert same_weights(stream, again)
    restored = pickle.loads(pickle.dumps(stream)).partial_fit(X)
    assert restored.n_iter_ == 49


def test_one_pass_is_one_partial_fit(X):
    whole = VAEEmbedder(2, **SMALL | {"max_epochs": 1}).fit(X)
    part = VAEEmbedder(2, **SMALL).partial_fit(X)
    assert same_weights(whole, part)


def test_a_stream_ends_in_the_mean_of_its_last_networks(X):
    """Each call lets the mean move a share towards the networks that it trained, and the next goes on from these."""
    stream = VAEEmbedder(2, batch_norm=True, **SMALL).partial_fit(X[:100])
    assert stream.module_ is stream.net_.module_
    mean = {name: value.clone() for name, value in stream.module_.state_dict().items()}
    trained = {}
    for call, start in enumerate([100, 200, 300, 0, 100], start=2):
        stream.partial_fit(X[start : start + 100])
        trained = stream.net_.module_.state_dict()
        for name, value in trained.items():
            mean[name] = mean[name] + (value - mean[name]) * (33 + 1 / 3) / (call + 32 + 1 / 3)
    floats = [name for name, value in trained.items() if value.is_floating_point()]
    assert {name for name in trained if name not in floats} == {name for name in trained if "num_batches" in name}
    for name, value in stream.module_.state_dict().items():
        assert_allclose(value, mean[name] if name in floats else trained[name], rtol=2e-5, atol=1e-7)
    assert not same_weights(stream, stream.net_)

    last = VAEEmbedder(2, batch_norm=True, warm_start=True, **SMALL | {"max_epochs": 1})
    for start in (0, 100, 200, 300, 0, 100):
        last.partial_fit(X[start : start + 100])
    assert same_weights(last, stream)
    last.fit(X[:50])  # goes on from the mean, and is no stream
    assert last.module_ is last.net_.module_
    assert last.partial_fit(X[:50]).module_ is last.net_.module_


def test_a_stream_that_is_copied_goes_on_learning(X):
    """Where the last networks are lost, what is trained is what answers, however long the stream was."""
    stream = VAEEmbedder(2, **SMALL)
    for _ in range(40):
        stream.partial_fit(X[:100])
    copied = pickle.loads(pickle.dumps(stream))
    for _ in range(2):
        copied = pickle.loads(pickle.dumps(copied.partial_fit(X[:100])))
    copied.partial_fit(X[:100])
    assert copied.module_ is copied.net_.module_
    assert copied.partial_fit(X[:100]).module_ is not copied.net_.module_


class Masked(nn.Linear):
    """Has buffers that no mean can be taken of: infinite, of shared memory, whole numbers."""

    def __init__(self, n_inputs, n_outputs):
        super().__init__(n_inputs, n_outputs)
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
        self.register_buffer("expanded", torch.ones(1).expand(4))
        self.register_buffer("count", torch.tensor(0))
        self.offset = nn.Parameter(torch.tensor([0.0, -torch.inf]))

    def forward(self, x):
        self.count += 1
        return super().forward(x) + self.mask.exp().sum() - 1 + self.offset.exp().sum() - 1


def test_means_of_networks_of_the_users(X):
    stream = VAEEmbedder(2, encoder=Masked, **SMALL)
    for start in (0, 100, 200):
        stream.partial_fit(X[start : start + 100])
    assert not same_weights(stream, stream.net_)
    assert torch.equal(stream.module_.encoder.offset[1], torch.tensor(-torch.inf))
    assert np.isfinite(stream.transform(X)).all()


def test_the_mean_forgets_the_order_of_a_stream():
    """Rows that come sorted by one direction: the last networks know its end, their mean the whole."""
    gains = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        codes = rng.normal(size=(4_000, 2))
        X = np.tanh(codes @ rng.normal(size=(2, 8))) + 0.1 * rng.normal(size=(4_000, 8))
        rows = np.argsort(np.sin(np.arange(4_000) / 60) + 0.3 * codes[:, 0])  # neighbours are alike, and come back
        X = X[rows[np.argsort(np.arange(4_000) % 40, kind="stable")]]
        stream = VAEEmbedder(2, likelihood="gaussian", hidden_layer_sizes=(32,), lr=5e-3, random_state=seed)
        stream.partial_fit(X[start : start + 50] for start in range(0, 4_000, 50))
        mean, stream.module_ = stream.score(X), stream.net_.module_
        gains.append(mean - stream.score(X))
    assert min(gains) > 0, gains


def test_skorch_callbacks_see_the_training(X, tmp_path):
    class Count(Callback):
        def on_train_begin(self, net, **kwargs):
            self.epochs_ = 0

        def on_epoch_end(self, net, **kwargs):
            self.epochs_ += 1

    callback = Count()
    checkpoint = Checkpoint(monitor=None, dirname=tmp_path, f_pickle=None)
    vae = VAEEmbedder(2, callbacks=[callback, checkpoint], **SMALL).fit(X)
    assert not hasattr(callback, "epochs_"), "the callback that was given has been used"
    assert any(getattr(found, "epochs_", 0) == 4 for _, found in vae.net_.callbacks_)
    assert (tmp_path / "params.pt").exists()
    assert clone(vae).fit(X).n_iter_ == 4


def test_skorch_early_stopping_stops(X):
    stop = EarlyStopping(monitor="train_loss", patience=3, threshold=1e9, threshold_mode="abs")
    vae = VAEEmbedder(2, callbacks=[stop], **SMALL | {"max_epochs": 50}).fit(X)
    assert vae.n_iter_ == 4


def test_interrupts_and_errors_of_callbacks_come_through(X):
    class Break(Callback):
        def __init__(self, error):
            self.error = error

        def on_epoch_end(self, net, **kwargs):
            raise self.error

    for error in (KeyboardInterrupt, RuntimeError("mine")):
        vae = VAEEmbedder(2, callbacks=[Break(error)], **SMALL)
        with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else RuntimeError):
            vae.fit(X)
        assert not hasattr(vae, "module_")


@pytest.mark.parametrize("callback", [1, VAEEmbedder, "stop", ("stop",), ("stop", 1), (1, EarlyStopping()), {}])
def test_wrong_callbacks(callback, X):
    with pytest.raises(TypeError, match="callbacks should be instances of skorch.callbacks.Callback, but one is"):
        VAEEmbedder(2, callbacks=[callback], **SMALL).fit(X)


def test_schedules_change_the_learning_rate(X):
    rates = {}
    for schedule in ("cosine", "exponential", "linear", lambda share: 1 - share):
        vae = VAEEmbedder(2, lr_schedule=schedule, **SMALL | {"max_epochs": 10}).fit(X)
        rates[schedule] = vae.net_.optimizer_.param_groups[0]["lr"]
    assert rates["cosine"] == pytest.approx(0, abs=1e-10)
    assert rates["exponential"] == pytest.approx(1e-5)
    assert rates["linear"] == pytest.approx(1e-5)


def test_optimizer_classes_are_used(X):
    vae = VAEEmbedder(2, optimizer=torch.optim.RMSprop, weight_decay=0.1, **SMALL).fit(X)
    assert isinstance(vae.net_.optimizer_, torch.optim.RMSprop)
    assert vae.net_.optimizer_.param_groups[0]["weight_decay"] == 0.1


class Halves(nn.Module):
    """An encoder of the user's, with dropout that draws from torch's global state."""

    def __init__(self, n_inputs, n_outputs):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(n_inputs, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, n_outputs))

    def forward(self, x):
        return self.layers(x)


def test_own_networks_are_copied_and_trained(X):
    torch.manual_seed(0)
    encoder = Halves(64, 4)
    before = [parameter.clone() for parameter in encoder.parameters()]
    state = torch.get_rng_state()
    one, two = (VAEEmbedder(2, encoder=encoder, **SMALL).fit(X) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert same_weights(one, two)
    assert all(torch.equal(mine, old) for mine, old in zip(encoder.parameters(), before, strict=True))
    assert isinstance(one.module_.encoder, Halves)
    assert_array_equal(one.transform(X), one.transform(X))
    from_class = VAEEmbedder(2, encoder=Halves, decoder=lambda k, d: nn.Linear(k, d), **SMALL).fit(X)
    assert isinstance(from_class.module_.encoder, Halves)
    assert isinstance(from_class.module_.decoder, nn.Linear)
    assert clone(one).fit(X).transform(X).shape == (400, 2)


def test_a_network_without_layers_is_a_network():
    """An empty Sequential is false in a condition."""
    X = np.random.default_rng(0).normal(size=(40, 4))
    autoencoder = AutoencoderEmbedder(4, encoder=nn.Sequential(), **SMALL).fit(X)
    assert len(autoencoder.module_.encoder) == 0
    assert_allclose(autoencoder.transform(X), (X - X.mean(0)) / X.std(0), atol=1e-5)


@pytest.mark.parametrize(
    ("networks", "error", "match"),
    [
        ({"encoder": nn.Linear(64, 3)}, ValueError, r"encoder should turn 2 rows of 64 numbers into shape \(2, 4\)"),
        ({"decoder": nn.Linear(3, 64)}, ValueError, "decoder cannot be applied to rows of 2 numbers"),
        ({"encoder": lambda n, m: "no"}, TypeError, "encoder should be or make a torch.nn.Module"),
        ({"architecture": "conv"}, ValueError, "architecture='conv' needs image_shape"),
        ({"image_shape": (8, 9)}, ValueError, r"Images of shape \(8, 9\) have 72 values, but rows have 64"),
        ({"image_shape": (64,)}, ValueError, "image_shape=.* should be"),
        ({"augment": "affine"}, ValueError, "needs image_shape"),
        ({"channels": (0,), "image_shape": (8, 8)}, ValueError, "channels should be positive integers"),
    ],
)
def test_wrong_networks(networks, error, match, X):
    with pytest.raises(error, match=match):
        VAEEmbedder(2, **SMALL | networks).fit(X)


@over_embedders
@pytest.mark.parametrize("shape", [(8, 8), (1, 8, 8), (4, 4, 4)])
def test_images_go_through_convolutions(cls, shape, X):
    embedder = cls(3, image_shape=shape, channels=(8, 16), augment="affine", max_epochs=3, random_state=0).fit(X)
    assert any(isinstance(layer, nn.Conv2d) for layer in embedder.module_.encoder)
    assert embedder.reconstruct(X).shape == X.shape
    assert embedder.loss_curve_[-1] < embedder.loss_curve_[0]
    assert_allclose(embedder.transform(X)[7:9], embedder.transform(X[7:9]), rtol=1e-8, atol=1e-10)


def test_views_are_for_the_encoder_alone(X, monkeypatch):
    """The decoder has to give the rows themselves."""
    seen = []
    original = LatentModel.forward

    def spy(self, u, noise, view=None):
        seen.append((u, view))
        return original(self, u, noise, view)

    monkeypatch.setattr(LatentModel, "forward", spy)
    AutoencoderEmbedder(2, corruption=0.5, **SMALL | {"max_epochs": 1}).fit(X)
    u, view = seen[0]
    kept = view != 0
    assert torch.equal(view[kept], u[kept])
    assert 0.4 < (kept & (u != 0)).sum() / (u != 0).sum() < 0.6
    assert set(torch.cat([u for u, view in seen if view is not None]).unique().tolist()) == set(np.unique(X))


def test_autoencoder_reconstructs_better_than_principal_components():
    X = load_digits().data / 16
    autoencoder = AutoencoderEmbedder(2, hidden_layer_sizes=(64, 32), max_epochs=60, lr=3e-3, random_state=0).fit(X)
    pca = PCA(2).fit(X)
    linear = ((pca.inverse_transform(pca.transform(X)) - X) ** 2).mean()
    assert ((autoencoder.reconstruct(X) - X) ** 2).mean() < 0.8 * linear
    codes = autoencoder.transform(X)
    assert_allclose(autoencoder.code_mean_, codes.mean(0), atol=1e-4)
    assert_allclose(autoencoder.code_covariance_, np.cov(codes.T, bias=True), rtol=1e-3)
    drawn = autoencoder.sample(500, random_state=0)
    assert np.abs(drawn.mean(0) - X.mean(0)).max() < 0.3
    assert autoencoder.history_[-1]["train_kl"] == 0


LIKELIHOOD_DATA = {
    "bernoulli": lambda rng: (rng.random((80, 5)) > 0.5).astype(float),
    "continuous_bernoulli": lambda rng: rng.random((80, 5)),
    "gaussian": lambda rng: rng.normal(size=(80, 5)),
    "gaussian_fixed": lambda rng: rng.normal(size=(80, 5)),
    "gaussian_features": lambda rng: rng.normal(size=(80, 5)) * np.arange(1, 6),
    "gaussian_samples": lambda rng: rng.normal(size=(80, 5)) * rng.exponential(size=(80, 1)),
    "poisson": lambda rng: rng.poisson(3.0, size=(80, 5)).astype(float),
    "negative_binomial": lambda rng: rng.negative_binomial(2, 0.3, size=(80, 5)).astype(float),
    "categorical": lambda rng: rng.integers(4, size=(80, 5)).astype(float),
}


@over_embedders
@pytest.mark.parametrize("likelihood", LIKELIHOOD_DATA)
def test_every_likelihood_trains(cls, likelihood):
    X = LIKELIHOOD_DATA[likelihood](np.random.default_rng(0))
    embedder = cls(2, likelihood=likelihood, hidden_layer_sizes=(16,), max_epochs=60, lr=5e-3, random_state=0).fit(X)
    assert embedder.likelihood_ == likelihood
    assert embedder.loss_curve_[-1] < embedder.loss_curve_[0]
    for found in (embedder.score_samples(X), embedder.reconstruct(X), embedder.sample(20), embedder.transform(X)):
        assert np.isfinite(found).all()
    assert embedder.sample(20, random_state=0).shape == (20, 5)


def test_counts_are_refused_where_they_are_none(X):
    with pytest.raises(ValueError, match="needs whole numbers"):
        VAEEmbedder(2, likelihood="poisson", **SMALL).fit(X + 0.5)


def test_pixels_between_counts_are_refused(X):
    with pytest.raises(ValueError, match="augment='affine' interpolates pixels, but likelihood='poisson'"):
        VAEEmbedder(2, likelihood="poisson", image_shape=(8, 8), augment="affine").fit(np.rint(16 * X))


def test_low_precision_is_refused_where_it_is_slow(X, monkeypatch):
    monkeypatch.setattr(_embedder_training, "_has_bf16", lambda device: False)
    with pytest.raises(ValueError, match="precision='bf16' is far slower than float32 on this cpu"):
        VAEEmbedder(2, precision="bf16", device="cpu", **SMALL).fit(X)


def test_low_precision_is_close(X, monkeypatch):
    monkeypatch.setattr(_embedder_training, "_has_bf16", lambda device: True)
    settings = SMALL | {"max_epochs": 30, "hidden_layer_sizes": (32,)}
    full, low = (VAEEmbedder(2, precision=precision, **settings).fit(X) for precision in ("float32", "bf16"))
    assert not same_weights(full, low)
    assert low.score(X) == pytest.approx(full.score(X), abs=0.5)
    assert next(low.module_.parameters()).dtype == torch.float32
    assert low.transform(X).dtype == np.float64


def test_compiled_training_is_training(X, monkeypatch):
    """The compiler is torch's; what is ours is that it is asked, and that nothing compiled is kept."""
    compiled, modes = [], []

    def compiler(model, mode=None):
        compiled.append(model)
        modes.append(mode)
        return model

    monkeypatch.setattr(torch, "compile", compiler)
    vae = VAEEmbedder(2, compile=True, **SMALL).fit(X)
    assert compiled == [vae.module_]
    assert same_weights(vae, VAEEmbedder(2, **SMALL).fit(X))
    assert len(compiled) == 1
    VAEEmbedder(2, compile="reduce-overhead", **SMALL).fit(X)
    assert modes == [None, "reduce-overhead"]
    with pytest.raises(ValueError, match="compile"):
        VAEEmbedder(2, compile="quickly", **SMALL).fit(X)


@over_embedders
def test_no_gradients_and_evaluation_mode(cls, X):
    embedder = cls(2, dropout=0.5, batch_norm=True, **SMALL).fit(X)
    before = {name: value.clone() for name, value in embedder.module_.state_dict().items()}
    assert_array_equal(embedder.transform(X), embedder.transform(X))
    embedder.score(X)
    assert not any(module.training for module in embedder.module_.modules())
    assert all(torch.equal(value, before[name]) for name, value in embedder.module_.state_dict().items())
    assert all(parameter.grad is None for parameter in pickle.loads(pickle.dumps(embedder)).module_.parameters())


@pytest.mark.parametrize("n_rows", range(2, 35))
def test_any_number_of_rows_trains_with_batch_norm(n_rows, X):
    vae = VAEEmbedder(1, batch_norm=True, batch_size=16, hidden_layer_sizes=(4,), max_epochs=1, random_state=0)
    assert vae.fit(X[:n_rows]).transform(X).shape == (400, 1)


def test_bytes_stay_bytes_until_the_batch(monkeypatch):
    """Images of one byte a pixel are never stored as floats, and the result is that of floats."""
    X = (16 * load_digits().data[:300]).clip(0, 255).astype(np.uint8)
    stored = []
    original = batches.TrainingBatches.__init__

    def spy(self, dataset, *args, **kwargs):
        stored.append(dataset.rows.dtype)
        original(self, dataset, *args, **kwargs)

    monkeypatch.setattr(batches.TrainingBatches, "__init__", spy)
    settings = {"max_epochs": 2, "hidden_layer_sizes": (8,), "random_state": 0}
    of_bytes, of_floats = (VAEEmbedder(2, **settings).fit(rows) for rows in (X, X.astype(np.float64)))
    assert stored == [torch.uint8, torch.uint8, torch.float32, torch.float32]  # one for each epoch
    assert of_bytes.transform(X).dtype == of_bytes.sample(2).dtype == np.float64
    assert_allclose(of_bytes.transform(X), of_floats.transform(X), rtol=1e-4, atol=1e-5)
    assert_allclose(of_bytes.score(X), of_floats.score(X), rtol=1e-5)
    counts = VAEEmbedder(2, likelihood="poisson", **settings).fit(X, X_val=X[:50])
    assert np.isfinite([row["valid_loss"] for row in counts.history_]).all()
