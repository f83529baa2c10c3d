"""Callbacks that monitor training."""

import functools
import pickle

import joblib
import numpy as np
import pytest
import torch
from helpers import SMALL
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import mean_squared_error
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MinMaxScaler
from skorch.callbacks import Callback
from torch import nn

import skvae
from skvae import AutoencoderEmbedder, TorchGMM, VaDEClusterer, VAEEmbedder
from skvae.callbacks import EpochScores, LatentSnapshots
from skvae.metrics import reconstruction_error, structural_similarity_score

pytestmark = [
    pytest.mark.usefixtures("short_embedding"),
    pytest.mark.filterwarnings("ignore:Clusters .* have almost no samples", "ignore:Clusters overlap"),
]
VIEWS = {"image_shape": (4, 4), "architecture": "mlp", "consistency": 1.0, "n_init": 5, "pretrain_epochs": 2}
MSE = {"mse": mean_squared_error}


@pytest.fixture
def X():
    return np.random.default_rng(0).random((90, 16))


class NoisyEncoder(nn.Linear):
    """Draws from the global random state of torch, in evaluation mode too."""

    def forward(self, x):
        return super().forward(x) + 0.01 * torch.randn(len(x), self.out_features)


ESTIMATORS = {
    "dropout and batch normalisation": VAEEmbedder(2, dropout=0.3, batch_norm=True, **SMALL),
    "early stopping": VAEEmbedder(2, early_stopping=True, n_iter_no_change=1, **SMALL | {"max_epochs": 30, "lr": 0.1}),
    "several draws": VAEEmbedder(2, n_draws=3, kl_warmup_epochs=2, **SMALL),
    "views": VAEEmbedder(2, image_shape=(4, 4), channels=(2,), batch_norm=True, augment="affine", **SMALL),
    "autoencoder": AutoencoderEmbedder(2, corruption=0.2, lr_schedule="cosine", **SMALL),
    "own modules": VAEEmbedder(2, encoder=NoisyEncoder, **SMALL),
    "mixtures": VaDEClusterer(3, latent_dim=2, **VIEWS, **SMALL),
}


@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
def test_callbacks_do_not_change_training(estimator, X):
    monitors = [EpochScores(MSE, {"train": X, "test": X[:20]}), LatentSnapshots(X[:30], epochs=[0, 1, 2, 3])]
    fits = []
    for callbacks in (None, monitors):
        with torch.random.fork_rng():
            before = torch.manual_seed(0).get_state()
            fits.append(clone(estimator).set_params(callbacks=callbacks).fit(X))
            assert torch.equal(torch.get_rng_state(), before)
    alone, monitored = fits
    for one, two in zip(alone.module_.state_dict().values(), monitored.module_.state_dict().values(), strict=True):
        assert torch.equal(one, two)
    assert monitored.loss_curve_ == alone.loss_curve_
    assert monitored.history_[-1]["test_mse"] > 0
    assert not monitored.module_.training


def test_callbacks_of_compiled_networks(X, monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    monitors = [EpochScores(MSE, {"train": X}), LatentSnapshots(X)]
    alone, monitored = (
        VAEEmbedder(2, compile=True, callbacks=callbacks, **SMALL | {"max_epochs": 2}).fit(X)
        for callbacks in (None, monitors)
    )
    assert monitored.loss_curve_ == alone.loss_curve_
    assert_allclose(LatentSnapshots.of(monitored).codes[-1], monitored.transform(X), atol=1e-5)


def test_scores_are_those_of_the_fitted_estimator(X):
    ssim = functools.partial(structural_similarity_score, image_shape=(4, 4), data_range=1, win_size=3)
    scores = EpochScores(MSE | {"ssim": ssim}, {"train": X[:50], "test": X[50:].tolist()})
    vae = VAEEmbedder(2, batch_norm=True, callbacks=[scores], **SMALL).fit(X[:50])
    assert vae.history_[-1]["train_mse"] == pytest.approx(reconstruction_error(vae, X[:50]), rel=1e-5)
    assert vae.history_[-1]["test_ssim"] == pytest.approx(ssim(X[50:], vae.reconstruct(X[50:])), rel=1e-4)
    assert vae.net_.history[:, "test_mse"] == [row["test_mse"] for row in vae.history_]
    assert [row["epoch"] for row in vae.history_ if "test_mse" in row] == [1, 2, 3, 4]


def test_scores_in_the_units_of_the_data(X):
    """The Gaussian likelihood standardizes the samples; scores are in the original units."""
    vae = VAEEmbedder(2, callbacks=[EpochScores(MSE, {"train": 1000 * X + 5000})], **SMALL).fit(1000 * X + 5000)
    assert vae.likelihood_ == "gaussian"
    assert vae.history_[-1]["train_mse"] == pytest.approx(reconstruction_error(vae, 1000 * X + 5000), rel=1e-5)


def test_scores_of_some_epochs(X):
    vae = VAEEmbedder(2, callbacks=[EpochScores(MSE, {"train": X}, every=3)], **SMALL | {"max_epochs": 8}).fit(X)
    assert [row["epoch"] for row in vae.history_ if "train_mse" in row] == [1, 3, 6, 8]


def test_copies_files_and_warm_starts_keep_scores(X, tmp_path):
    vae = VAEEmbedder(2, warm_start=True, callbacks=[EpochScores(MSE, {"train": X})], **SMALL).fit(X)
    first = vae.history_
    assert pickle.loads(pickle.dumps(vae)).history_ == first
    vae.fit(X)
    assert vae.history_[:4] == first
    assert "train_mse" in vae.history_[7]
    vae.set_params(callbacks=None)
    skvae.save(vae, tmp_path / "vae.skvae")
    assert skvae.load(tmp_path / "vae.skvae").history_ == vae.history_


def test_history_has_records_of_other_callbacks(X):
    class Counts(Callback):
        def on_epoch_end(self, net, **kwargs):
            net.history.record("seen", 2 * len(net.history))

    vae = VAEEmbedder(2, callbacks=[Counts()], **SMALL).fit(X, X_val=X[:10])
    assert [row["seen"] for row in vae.history_] == [2, 4, 6, 8]
    losses = {"train_loss", "train_log_likelihood", "train_kl", "valid_loss", "valid_log_likelihood", "valid_kl"}
    assert set(vae.history_[0]) == {"epoch", "dur", "seen"} | losses
    for row in vae.history_:
        assert row["valid_loss"] == pytest.approx(row["valid_kl"] - row["valid_log_likelihood"], rel=1e-5)


def test_an_epoch_with_nan_is_not_scored(X):
    """The training repeats the epoch with half the learning rate, and so do the callbacks."""

    class Break(Callback):
        def on_epoch_begin(self, net, **kwargs):
            if len(net.history) == 3 and not hasattr(self, "broken_"):
                self.broken_ = True
                with torch.no_grad():
                    next(net.module_.parameters()).fill_(torch.nan)

    monitors = [Break(), EpochScores(MSE, {"train": X}), LatentSnapshots(X)]
    with pytest.warns(RuntimeWarning, match="continues from epoch 2"):
        vae = VAEEmbedder(2, callbacks=monitors, **SMALL).fit(X)
    assert np.isfinite([row["train_mse"] for row in vae.history_]).all()
    assert_array_equal(LatentSnapshots.of(vae).epochs, [1, 2, 3, 4])
    assert np.isfinite(LatentSnapshots.of(vae).codes).all()


INVALID_SCORES = [
    ((mean_squared_error, {}), TypeError, "scores of EpochScores should be a dict by name"),
    ((MSE, [[0.0]]), TypeError, "rows of EpochScores should be a dict by name"),
    (({"mse": 3}, {}), TypeError, "score 'mse' should be a function"),
    (({"kl": mean_squared_error}, {}), ValueError, "Invalid score name 'kl'"),
    ((MSE, {"my_test": np.zeros((2, 16))}), ValueError, "Invalid name in rows: 'my_test'"),
    ((MSE, {"test": np.zeros((2, 3))}), ValueError, r"rows\['test'\] has 3 features, but the training data have 16"),
]


@pytest.mark.parametrize(("params", "error", "message"), INVALID_SCORES, ids=[case[2][:30] for case in INVALID_SCORES])
def test_invalid_scores(params, error, message, X):
    vae = VAEEmbedder(2, callbacks=[EpochScores(*params)], **SMALL)
    with pytest.raises(error, match=message):
        vae.fit(X)
    assert not hasattr(vae, "module_")


def test_every_is_positive(X):
    for callback in (EpochScores(MSE, {"train": X}, every=0), LatentSnapshots(X, every=0)):
        with pytest.raises(ValueError, match="every == 0, must be >= 1"):
            VAEEmbedder(2, callbacks=[callback], **SMALL).fit(X)
    with pytest.raises(ValueError, match="Each of epochs == -1"):
        VAEEmbedder(2, callbacks=[LatentSnapshots(X, epochs=[-1])], **SMALL).fit(X)
    with pytest.raises(ValueError, match="X of LatentSnapshots has 3 features"):
        VAEEmbedder(2, callbacks=[LatentSnapshots(X[:, :3])], **SMALL).fit(X)


@pytest.mark.parametrize(
    ("settings", "epochs"),
    [({}, range(1, 8)), ({"every": 3}, [1, 3, 6, 7]), ({"epochs": [4]}, [1, 4, 7]), ({"epochs": [0, 9]}, [0, 1, 7])],
)
def test_epochs_of_snapshots(settings, epochs, X):
    vae = VAEEmbedder(2, callbacks=[LatentSnapshots(X, **settings)], **SMALL | {"max_epochs": 7}).fit(X)
    snapshots = LatentSnapshots.of(vae)
    assert_array_equal(snapshots.epochs, list(epochs))
    assert snapshots.codes.shape == (len(epochs), 90, 2)
    assert snapshots.means is None


def test_last_snapshot_is_the_fitted_model(X):
    """Also with early stopping, which restores the best weights, and batch normalization of augmented views."""
    views = {"image_shape": (4, 4), "channels": (2,), "batch_norm": True, "augment": "affine"}
    stopping = {"early_stopping": True, "n_iter_no_change": 2, "lr": 0.1}
    vae = VAEEmbedder(2, callbacks=[LatentSnapshots(X)], **views, **stopping, **SMALL | {"max_epochs": 40}).fit(X)
    snapshots = LatentSnapshots.of(vae)
    assert vae.n_iter_ < 40
    assert snapshots.epochs[-1] == vae.n_iter_
    assert_allclose(snapshots.codes[-1], vae.transform(X), atol=1e-4)
    assert np.abs(snapshots.codes[-2] - snapshots.codes[-1]).max() > 0.01


@pytest.mark.parametrize("covariance_type", ["full", "diag"])
def test_snapshots_track_the_selected_mixture(covariance_type, X):
    """Of five initial mixtures, the selected one need not be the first."""
    remaining = []

    class Mark(Callback):
        """Marks mixtures by the means of a component, and records the marks of those that remain."""

        def on_train_begin(self, net, **kwargs):
            with torch.no_grad():
                net.module_.prior.means[:, 0, 0] = torch.arange(100.0, 105.0)

        def on_epoch_end(self, net, **kwargs):
            remaining.append(net.module_.prior.means[:, 0, 0].detach().round().tolist())

    settings = {**VIEWS, **SMALL, "max_epochs": 12, "batch_size": 30, "lr": 1e-4}
    monitors = [Mark(), LatentSnapshots(X[:20], epochs=range(13))]
    settings |= {"covariance_type": covariance_type, "init": "random"}
    vade = VaDEClusterer(3, latent_dim=2, callbacks=monitors, **settings).fit(X)
    snapshots = LatentSnapshots.of(vade)
    (selected,) = remaining[-1]
    assert [len(marks) for marks in remaining] == sorted((len(marks) for marks in remaining), reverse=True)
    assert len(remaining[0]) == 5
    assert selected != 100  # the first of the initial ones
    assert_allclose(snapshots.means[:, 0, 0], selected, atol=0.4)
    assert_allclose(snapshots.means[-1], vade.means_, rtol=1e-5)
    assert_allclose(snapshots.weights[-1], vade.weights_, rtol=1e-5)
    expected = vade.covariances_ if covariance_type == "full" else vade.covariances_[:, :, None] * np.eye(2)
    assert_allclose(snapshots.covariances[-1], expected, rtol=1e-4, atol=1e-6)


def test_snapshots_of_an_interrupted_fit(X, tmp_path):
    """A resumed training has the earlier snapshots, too."""

    class Stop(Callback):
        def __init__(self, epoch):
            self.epoch = epoch

        def on_epoch_begin(self, net, **kwargs):
            if len(net.history) == self.epoch:
                raise KeyboardInterrupt

    settings = {"latent_dim": 2, "n_init": 5, "checkpoint": tmp_path / "fit.pt", **VIEWS, **SMALL | {"max_epochs": 6}}
    monitors = [LatentSnapshots(X, epochs=range(7)), EpochScores(MSE, {"train": X})]
    whole = VaDEClusterer(3, callbacks=[Stop(99), *monitors], **settings).fit(X)
    broken = VaDEClusterer(3, callbacks=[Stop(4), *monitors], **settings)
    with pytest.raises(KeyboardInterrupt):
        broken.fit(X)
    broken.set_params(callbacks=[Stop(99), *monitors]).fit(X)
    one, two = LatentSnapshots.of(whole), LatentSnapshots.of(broken)
    for name in ("epochs", "codes", "weights", "means", "covariances"):
        assert_array_equal(getattr(one, name), getattr(two, name))
    assert [row["train_mse"] for row in whole.history_] == [row["train_mse"] for row in broken.history_]


def test_snapshots_of_a_pipeline_and_in_a_pickle(X, tmp_path):
    vae = VAEEmbedder(2, callbacks=[LatentSnapshots(MinMaxScaler().fit_transform(X))], **SMALL)
    pipeline = Pipeline([("scale", MinMaxScaler()), ("vae", vae), ("gmm", TorchGMM(2, reg_covar=1e-2))]).fit(X)
    snapshots = LatentSnapshots.of(pipeline)
    assert_allclose(snapshots.codes[-1], pipeline[:-1].transform(X), atol=1e-5)
    joblib.dump(snapshots, tmp_path / "snapshots")
    assert_array_equal(joblib.load(tmp_path / "snapshots").codes, snapshots.codes)


def test_error_without_snapshots(X):
    vae = VAEEmbedder(2, **SMALL)
    with pytest.raises(NotFittedError):
        LatentSnapshots.of(vae)
    with pytest.raises(ValueError, match="was fitted with 0 LatentSnapshots, but there should be one"):
        LatentSnapshots.of(vae.fit(X))
    vae.set_params(callbacks=[LatentSnapshots(X), LatentSnapshots(X[:3])]).fit(X)
    with pytest.raises(ValueError, match="was fitted with 2 LatentSnapshots"):
        LatentSnapshots.of(vae)
    with pytest.raises(ValueError, match="has no net_: it trains no networks, or it was copied or loaded"):
        LatentSnapshots.of(pickle.loads(pickle.dumps(vae)))
