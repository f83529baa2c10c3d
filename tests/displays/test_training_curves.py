import matplotlib.pyplot as plt
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.exceptions import NotFittedError
from sklearn.metrics import mean_squared_error

from skvae import AutoencoderEmbedder, TorchGMM, VAEEmbedder
from skvae.callbacks import EpochScores
from skvae.displays import TrainingCurveDisplay

SMALL = {"hidden_layer_sizes": (8,), "max_epochs": 3, "random_state": 0}
HISTORY = [
    {"epoch": 1, "train_loss": 4.0, "train_log_likelihood": -3.0, "train_kl": 1.0, "test_my_score": 0.5, "dur": 0.1},
    {"epoch": 2, "train_loss": 3.0, "train_log_likelihood": -1.5, "train_kl": 1.5, "best": True, "dur": 0.1},
    {"epoch": 3, "train_loss": 2.0, "train_log_likelihood": -1.0, "train_kl": 1.0, "test_my_score": 0.7, "dur": 0.1},
]


def test_terms_follow_from_what_was_recorded():
    display = TrainingCurveDisplay.from_history(HISTORY)
    assert list(display.curves) == ["elbo", "reconstruction", "kl", "my_score"]
    for term, values in {"elbo": [-4, -3, -2], "reconstruction": [3, 1.5, 1], "kl": [1, 1.5, 1]}.items():
        (line,) = display.lines_[term]
        assert_allclose(line.get_xydata(), np.transpose([[1, 2, 3], values]))
        assert line.get_label() == "training"
    (line,) = display.lines_["my_score"]
    assert_allclose(line.get_xydata(), [[1, 0.5], [3, 0.7]])
    assert [ax.get_title() for ax in display.axes_][1:] == [
        "negative log-likelihood (nats)",
        "KL divergence (nats)",
        "my_score",
    ]
    assert display.plot() is display


def test_training_and_validation(images):
    scores = EpochScores({"mse": mean_squared_error}, {"train": images[:80], "test": images[80:]})
    vae = VAEEmbedder(2, callbacks=[scores], **SMALL).fit(images[:80], X_val=images[80:])
    display = TrainingCurveDisplay.from_estimator(vae)
    assert {term: list(curves) for term, curves in display.curves.items()} == {
        **{term: ["train", "valid"] for term in ("elbo", "reconstruction", "kl")},
        "mse": ["train", "test"],
    }
    epochs, bound = display.curves["elbo"]["valid"]
    assert_array_equal(epochs, [1, 2, 3])
    assert_allclose(bound, [-row["valid_loss"] for row in vae.history_], rtol=1e-5)
    assert_allclose(display.curves["mse"]["test"][1], [row["test_mse"] for row in vae.history_])
    train, valid = display.lines_["kl"]
    assert train.get_color() != valid.get_color()
    assert train.get_linestyle() != valid.get_linestyle()
    assert [text.get_text() for text in display.axes_[3].get_legend().get_texts()] == ["training", "test"]
    assert display.lines_["mse"][0].get_color() == train.get_color()  # the same part in every panel


def test_an_autoencoder_has_no_divergence(images):
    autoencoder = AutoencoderEmbedder(2, **SMALL).fit(images)
    assert list(TrainingCurveDisplay.from_estimator(autoencoder).curves) == ["reconstruction"]


def test_pipelines_and_pretraining(pipeline, vade):
    display = TrainingCurveDisplay.from_estimator(pipeline, terms=["loss", "kl"])
    assert list(display.curves) == ["loss", "kl"]
    assert_allclose(display.curves["loss"]["train"][1], pipeline[0].loss_curve_)
    display = TrainingCurveDisplay.from_history(vade.pretrain_history_)
    assert list(display.curves) == ["reconstruction"]
    assert len(display.curves["reconstruction"]["train"][0]) == 40


def test_axes_that_are_given():
    axes = plt.subplots(1, 2)[1]
    display = TrainingCurveDisplay.from_history(HISTORY, terms=["kl", "elbo"], ax=axes)
    assert list(display.axes_) == list(axes)
    with pytest.raises(ValueError, match="ax has 2 axes, but 4 panels are to be drawn; give as many, or one"):
        TrainingCurveDisplay.from_history(HISTORY, ax=axes)
    one = plt.subplots()[1]
    display = TrainingCurveDisplay.from_history(HISTORY, ax=one)
    assert display.figure_ is one.figure
    assert len(display.axes_) == 4
    assert not one.axison
    place = one.get_position()
    for panel in display.axes_:
        inner = panel.get_position()
        assert place.x0 <= inner.x0 + 1e-9 < inner.x1 <= place.x1 + 1e-9
    with pytest.raises(ValueError, match="ax has no place in a grid"):
        TrainingCurveDisplay.from_history(HISTORY, ax=plt.figure().add_axes((0, 0, 1, 1)))


def test_a_single_epoch_is_visible():
    (line,) = TrainingCurveDisplay.from_history(HISTORY[:1]).lines_["kl"]
    assert line.get_marker() == "o"


def test_wrong_inputs(images):
    with pytest.raises(NotFittedError):
        TrainingCurveDisplay.from_estimator(VAEEmbedder(2))
    with pytest.raises(TypeError, match="TorchGMM has no history_; give an embedder"):
        TrainingCurveDisplay.from_estimator(TorchGMM(2).fit(images))
    with pytest.raises(ValueError, match=r"terms should be some of \['elbo', .*but got \['ssim'\]"):
        TrainingCurveDisplay.from_history(HISTORY, terms=["kl", "ssim"])
    for wrong in ([], ["kl"]):
        with pytest.raises(ValueError, match="history should be a list of one dict for each epoch"):
            TrainingCurveDisplay.from_history(wrong)
