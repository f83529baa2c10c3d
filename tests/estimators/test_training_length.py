"""The number of epochs of small tables, held-out samples, and the warning of overfitting."""

import warnings

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from skorch.callbacks import Callback

from skvae import AutoencoderEmbedder, VAEEmbedder
from skvae.estimators import _training_length
from skvae.estimators._embedder_training import TrainingSamples
from skvae.estimators._training_length import choose_epochs, hold_out_distinct

over_embedders = pytest.mark.parametrize("cls", [VAEEmbedder, AutoencoderEmbedder])


def wide_table(n_samples):
    """Return noisy samples of three factors in many more features than there are samples."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(n_samples, 3)) @ rng.normal(size=(3, 250)) + rng.normal(size=(n_samples, 250))


@pytest.fixture(scope="module")
def wide():
    return wide_table(180)


@pytest.fixture
def n_trainings(monkeypatch):
    """List with an entry for each training that chooses the number of epochs."""
    trained, train = [], _training_length.train
    monkeypatch.setattr(_training_length, "train", lambda *args: trained.append(args) or train(*args))
    return trained


@pytest.fixture
def short(monkeypatch):
    """Trainings have 60 epochs, unless held-out samples choose fewer."""
    monkeypatch.setattr(_training_length, "choose_epochs", lambda *sizes: 60)


def test_automatic_epochs_grow_slowly():
    epochs = [choose_epochs("auto", n, 128) for n in (100, 1_000, 10_000, 1_000_000)]
    assert epochs[:2] == [300, 100]  # one batch an epoch, then as many as small tables bear
    steps = [number * n // 128 for number, n in zip(epochs[1:], (1_000, 10_000, 1_000_000), strict=True)]
    assert steps[0] < steps[1] < steps[2] < 100 * steps[0]
    assert choose_epochs(7, 1000, 128) == 7


@over_embedders
def test_wide_tables_are_trained_for_fewer_epochs(cls, wide):
    X, X_test = wide[:120], wide[120:]
    settings = {"n_components": 5, "hidden_layer_sizes": (64,), "lr": 3e-3, "random_state": 0}
    chosen, formula = cls(**settings).fit(X), choose_epochs("auto", len(X), 128)
    assert len(chosen.history_) == chosen.n_iter_ < 0.8 * formula
    assert chosen.score(X_test) > cls(**settings, max_epochs=formula).fit(X).score(X_test) + 1


def test_other_small_tables_are_trained_for_as_long_as_before(n_trainings, short):
    X = np.random.default_rng(0).normal(size=(120, 3)) @ [[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    vae = VAEEmbedder(2, hidden_layer_sizes=(8,), random_state=0).fit(X)
    assert (vae.n_iter_, len(n_trainings)) == (60, 1)


@pytest.mark.parametrize(
    ("n_samples", "settings", "arguments"),
    [
        (120, {"max_epochs": 2}, {}),
        (120, {"lr_schedule": "cosine"}, {}),
        (120, {"early_stopping": True, "n_iter_no_change": 1}, {}),
        (120, {}, {"X_val": np.zeros((4, 4))}),
        (99, {}, {}),
        (1_000, {}, {}),
    ],
)
def test_the_number_of_epochs_is_chosen_only_where_nothing_else_says_it(n_samples, settings, arguments, n_trainings):
    X = np.random.default_rng(0).normal(size=(n_samples, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        VAEEmbedder(2, hidden_layer_sizes=(4,), batch_size=500, random_state=0, **settings).fit(X, **arguments)
    assert not n_trainings


def test_further_training_has_the_number_of_epochs_of_its_samples(n_trainings, short):
    X = np.random.default_rng(0).normal(size=(100, 4))
    vae = VAEEmbedder(2, hidden_layer_sizes=(4,), warm_start=True, random_state=0).fit(X).fit(X)
    assert (vae.n_iter_, len(n_trainings)) == (120, 1)


def test_callbacks_see_one_training(wide, short):
    epochs = []

    class Count(Callback):
        def on_epoch_end(self, net, **kwargs):
            epochs.append(len(net.history))

    settings = {"hidden_layer_sizes": (16,), "lr": 1e-2, "random_state": 0}
    counted = VAEEmbedder(2, callbacks=[Count], **settings).fit(wide[:100])
    assert epochs == [*range(1, counted.n_iter_ + 1)]
    plain = VAEEmbedder(2, **settings).fit(wide[:100])
    assert plain.n_iter_ == counted.n_iter_
    np.testing.assert_array_equal(plain.transform(wide), counted.transform(wide))


def test_neither_order_nor_repetition_changes_the_number_of_epochs(short):
    X = np.random.default_rng(0).normal(size=(100, 100))  # nothing to learn
    settings = {"hidden_layer_sizes": (64,), "lr": 1e-2, "random_state": 0}
    vae = VAEEmbedder(2, **settings).fit(X)
    assert vae.n_iter_ < 60
    shuffled = VAEEmbedder(2, **settings).fit(X[np.random.default_rng(0).permutation(100)])
    np.testing.assert_array_equal(vae.transform(X), shuffled.transform(X))
    weighted = VAEEmbedder(2, **settings).fit(X, sample_weight=np.full(100, 2))
    repeated = VAEEmbedder(2, **settings).fit(np.repeat(X, 2, axis=0))
    assert weighted.n_iter_ == repeated.n_iter_ < 60
    np.testing.assert_array_equal(weighted.transform(X), repeated.transform(X))


def test_repeated_samples_are_held_out_together():
    X = np.repeat(np.arange(50.0)[:, None], 4, axis=0)
    held = hold_out_distinct(TrainingSamples(X, X, seed=0, resume=False), 0.2)
    assert (len(held.X), len(held.X_val)) == (160, 40)
    assert not set(held.X[:, 0]) & set(held.X_val[:, 0])
    few = TrainingSamples(X[:20], X[:20], seed=0, resume=False)
    assert hold_out_distinct(few, 0.2) is few


@over_embedders
@pytest.mark.parametrize("unusual", [np.nan, 1.7])
def test_an_unusual_value_may_be_held_out(cls, unusual):
    """The likelihood and the units are those of all samples, on whichever side these are."""
    X = np.random.default_rng(0).random((30, 4))
    X[3, 2] = unusual
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        settings = {"early_stopping": True, "validation_fraction": 0.5, "hidden_layer_sizes": (4,), "max_epochs": 1}
        fits = [cls(2, **settings, random_state=seed).fit(X) for seed in range(5)]
    assert {fit.likelihood_ for fit in fits} == {"bernoulli" if np.isnan(unusual) else "gaussian"}


def test_overfitting_is_a_warning(wide):
    settings = {"hidden_layer_sizes": (64,), "lr": 1e-2, "max_epochs": 60, "random_state": 0}
    with pytest.warns(ConvergenceWarning, match=r"overfit: the validation loss was lowest after \d+ of 60 epochs"):
        VAEEmbedder(5, **settings).fit(wide[:60], X_val=wide[60:])
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        VAEEmbedder(5, **settings, early_stopping=True).fit(wide[:60], X_val=wide[60:])
        VAEEmbedder(5, **settings | {"max_epochs": 2}).fit(wide[:60], X_val=wide[60:])
