"""Fits that go on with earlier networks, and are interrupted: what was learnt until the last whole epoch is kept."""

import numpy as np
import pytest
import torch
from helpers import fit_quietly
from sklearn.base import clone
from skorch.callbacks import Callback

from skvae import AutoencoderEmbedder, VaDEClusterer, VAEEmbedder

pytestmark = pytest.mark.usefixtures("short_embedding")
SMALL = {"hidden_layer_sizes": (8,), "batch_size": 32, "max_epochs": 5, "dropout": 0.1, "random_state": 0}
VADE = {"n_clusters": 3, "latent_dim": 2, "n_init": 4, "pretrain_epochs": 2}
EMBEDDERS = {
    "VAE": VAEEmbedder(2, warm_start=True, lr_schedule="cosine", kl_warmup_epochs=2, **SMALL),
    "VAE with early stopping": VAEEmbedder(2, warm_start=True, early_stopping=True, n_iter_no_change=3, **SMALL),
    "AE": AutoencoderEmbedder(2, warm_start=True, corruption=0.2, batch_norm=True, **SMALL),
    "VaDE": VaDEClusterer(warm_start=True, **VADE, **SMALL),
    "VaDE with views": VaDEClusterer(warm_start=True, image_shape=(3, 3), channels=(2,), **VADE, **SMALL),
}
over_embedders = pytest.mark.parametrize("embedder", EMBEDDERS.values(), ids=EMBEDDERS)
over_reasons = pytest.mark.parametrize("reason", [KeyboardInterrupt(), RuntimeError("mine")], ids=repr)


class Break(Callback):
    """Raise in an epoch, when it begins or ends, or in its second batch."""

    def __init__(self, reason, epoch, at="on_epoch_end"):
        self.reason, self.epoch, self.at = reason, epoch, at

    def _reached(self, net, at):
        if at == self.at and len(net.history) == self.epoch:
            raise self.reason

    def on_epoch_begin(self, net, **kwargs):
        self._reached(net, "on_epoch_begin")

    def on_batch_end(self, net, training, **kwargs):
        if training and len(net.history[-1]["batches"]) == 2:
            self._reached(net, "on_batch_end")

    def on_epoch_end(self, net, **kwargs):
        self._reached(net, "on_epoch_end")


class StopAfter(Callback):
    """Ask to stop after so many epochs."""

    def __init__(self, n_epochs):
        self.n_epochs, self.stops_ = n_epochs, False

    def on_epoch_end(self, net, **kwargs):
        self.stops_ = len(net.history) >= self.n_epochs


@pytest.fixture
def X():
    return np.random.default_rng(0).random((150, 9))


def fit(embedder, X, *callbacks):
    return fit_quietly(embedder.set_params(callbacks=list(callbacks)), X)


def learnt(embedder):
    """Everything that was published, but for durations."""
    history = [{key: value for key, value in row.items() if key != "dur"} for row in embedder.history_]
    numbers = {name: value for name, value in vars(embedder).items() if isinstance(value, np.ndarray | float | int)}
    return numbers | {"loss_curve_": embedder.loss_curve_}, history


def assert_equal(one, other):
    for (name, mine), theirs in zip(one.module_.state_dict().items(), other.module_.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name
    (mine, my_history), (theirs, their_history) = learnt(one), learnt(other)
    assert my_history == their_history
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


@over_embedders
@over_reasons
def test_an_interrupted_fit_is_one_that_was_stopped_after_the_epoch_before(embedder, reason, X):
    broken, stopped = (fit(clone(embedder), X) for _ in range(2))
    with pytest.raises(type(reason)) as caught:
        fit(broken, X, Break(reason, epoch=3))
    assert caught.value.__cause__ is caught.value.__context__ is None
    assert_equal(broken, fit(stopped, X, StopAfter(2)))
    assert broken.n_iter_ == len(broken.history_) < 10
    np.testing.assert_array_equal(broken.transform(X), stopped.transform(X))
    np.testing.assert_array_equal(broken.score_samples(X), stopped.score_samples(X))
    if hasattr(broken, "labels_"):
        np.testing.assert_array_equal(broken.labels_, broken.predict(X))
    assert not any(module.training for module in broken.module_.modules())
    assert_equal(fit(broken, X), fit(stopped, X))  # with the optimizers' states
    assert_equal(broken.partial_fit(X), stopped.partial_fit(X))


@pytest.mark.parametrize("at", ["on_epoch_begin", "on_batch_end"])
def test_what_an_epoch_had_begun_is_not_kept(at, X):
    broken, stopped = (fit(clone(EMBEDDERS["AE"]), X) for _ in range(2))
    with pytest.raises(KeyboardInterrupt):
        fit(broken, X, Break(KeyboardInterrupt(), epoch=4, at=at))
    assert_equal(broken, fit(stopped, X, StopAfter(3)))


def assert_untouched(embedder, X, error, method, *callbacks):
    before = dict(vars(embedder.set_params(callbacks=list(callbacks))))
    with pytest.raises(type(error)):
        getattr(embedder, method)(X)
    assert vars(embedder).keys() == before.keys()
    assert all(vars(embedder)[name] is before[name] for name in before)


@over_embedders
def test_without_a_whole_epoch_everything_is_as_before(embedder, X):
    embedder, reason = fit(clone(embedder), X), KeyboardInterrupt()
    assert_untouched(embedder, X, reason, "fit", Break(reason, epoch=1))
    assert_untouched(embedder, X, reason, "partial_fit", Break(reason, epoch=1))


@over_embedders
def test_a_fit_from_the_beginning_leaves_everything_as_before(embedder, X):
    reason = KeyboardInterrupt()
    first = clone(embedder)
    assert_untouched(first, X, reason, "fit", Break(reason, epoch=3))
    cold = fit(clone(embedder).set_params(warm_start=False), X)
    assert_untouched(cold, X, reason, "fit", Break(reason, epoch=3))


class Poison(Callback):
    """Spoil the weights after the second epoch."""

    def on_epoch_begin(self, net, **kwargs):
        if len(net.history) > 2:
            with torch.no_grad():
                next(net.module_.encoder.parameters()).fill_(torch.nan)


@over_embedders
@pytest.mark.filterwarnings("ignore:The training loss became nan")
def test_a_training_that_diverges_leaves_everything_as_before(embedder, X):
    """The epochs before a divergence may have led to it."""
    assert_untouched(fit(clone(embedder), X), X, ValueError(), "fit", Poison())


@over_embedders
def test_with_a_file_the_training_goes_on_from_there(embedder, X, tmp_path):
    path = tmp_path / "training.pt"
    broken, whole = (fit(clone(embedder), X) for _ in range(2))
    reason = KeyboardInterrupt()
    assert_untouched(broken.set_params(checkpoint=path), X, reason, "fit", Break(reason, epoch=3))
    assert path.exists()
    assert_equal(fit(broken, X, Break(reason, epoch=99)), fit(whole, X))
    assert not path.exists()


def test_a_callback_that_fails_at_the_end_as_well(X):
    class Twice(Break):
        def on_train_end(self, net, **kwargs):
            raise ValueError("again")

    broken, stopped = (fit(clone(EMBEDDERS["VAE with early stopping"]), X) for _ in range(2))
    with pytest.raises(RuntimeError, match="mine"):
        fit(broken, X, Twice(RuntimeError("mine"), epoch=4))
    assert_equal(broken, fit(stopped, X, StopAfter(3)))
