import matplotlib.pyplot as plt
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.mixture import GaussianMixture

from skvae import TorchGMM
from skvae.displays import MixtureSelectionDisplay
from skvae.selection import MixtureSelection, select_mixture

NUMBERS, TYPES = [4, 1, 2], ["diag", "full"]  # not in order: lines are


@pytest.fixture
def selection():
    """Made-up results, in which bic and aic are lowest at different fits, and two fits did not converge."""
    results = {
        "n_components": np.array(NUMBERS * 2),
        "covariance_type": np.repeat(TYPES, 3),
        "bic": np.array([30.0, 40, 35, 25, 38, 20]),
        "aic": np.array([10.0, 40, 35, 15, 38, 20]),
        "converged": np.array([False, True, True, False, True, True]),
    }
    return MixtureSelection("bic", {"n_components": 2, "covariance_type": "full"}, None, results)


def legend_of(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_lines_labels_and_marks(selection):
    figure, ax = plt.subplots()
    display = MixtureSelectionDisplay(selection)
    assert display.plot(ax=ax) is display
    assert display.ax_ is ax
    assert display.figure_ is figure
    assert [line.get_label() for line in display.lines_] == TYPES
    for line, values in zip(display.lines_, ([40, 35, 30], [38, 20, 25]), strict=True):
        assert_array_equal(line.get_xydata(), np.transpose([[1, 2, 4], values]))
    assert len({line.get_color() for line in display.lines_}) == 2
    assert legend_of(ax) == [*TYPES, "not converged", "lowest: full, 2 components"]
    assert ax.get_xlabel() == "number of components"
    assert ax.get_ylabel() == "Bayesian information criterion (nats)"
    figure.canvas.draw()
    ticks = ax.get_xticks()
    assert_array_equal(ticks, ticks.round())


def test_lowest_is_ringed_and_open_markers_did_not_converge(selection):
    ax = MixtureSelectionDisplay(selection).plot().ax_
    marks = [line for line in ax.get_lines() if line.get_linestyle() == "None"]
    open_markers = [
        mark.get_xydata() for mark in marks if mark.get_markerfacecolor() == "white" and len(mark.get_xdata())
    ]
    assert_array_equal(np.concatenate(open_markers), [[4, 30], [4, 25]])
    (ring,) = [mark for mark in marks if mark.get_markerfacecolor() == "none"]
    assert_array_equal(ring.get_xydata(), [[2, 20]])


def test_another_criterion(selection):
    display = MixtureSelectionDisplay(selection).plot("aic")
    assert display.ax_.get_ylabel() == "Akaike information criterion (nats)"
    assert legend_of(display.ax_)[-1] == "lowest: diag, 4 components"
    assert display.best_params_ == {"n_components": 2, "covariance_type": "full"}
    with pytest.raises(ValueError, match=r"criterion should be one of \['aic', 'bic'\], but got 'icl'"):
        display.plot("icl")
    with pytest.raises(ValueError, match="criterion should be one of .* but got 'converged'"):
        display.plot("converged")


def test_no_mark_that_means_nothing(selection):
    selection.results["converged"][:] = True
    assert legend_of(MixtureSelectionDisplay(selection).plot().ax_) == [*TYPES, "lowest: full, 2 components"]


@pytest.mark.parametrize("mixture", [TorchGMM(random_state=0), GaussianMixture(random_state=0)])
def test_from_estimator(mixture, blobs):
    X, _ = blobs
    options = {"n_components": [2, 3], "covariance_type": ["tied", "spherical"], "criterion": "aic"}
    selection = select_mixture(mixture, X, **options)
    ax = plt.subplots()[1]
    display = MixtureSelectionDisplay.from_estimator(
        mixture, X, **options, ax=ax, line_kw={"linewidth": 3, "color": "black"}
    )
    assert display.ax_ is ax
    assert [(line.get_linewidth(), line.get_color()) for line in display.lines_] == [(3, "black")] * 2
    assert display.criterion == "aic"
    assert display.best_params_ == selection.best_params_
    assert_array_equal(display.best_estimator_.means_, selection.best_estimator_.means_)
    assert_array_equal(display.results["bic"], selection.results["bic"])
    assert_array_equal([line.get_ydata() for line in display.lines_], selection.results["aic"].reshape(2, 2))


def test_weights_are_given_to_fits_and_criteria(blobs):
    X, weight = blobs[0], np.arange(300) % 3
    options = {"n_components": [2, 3], "covariance_type": ["diag"], "sample_weight": weight}
    selection = select_mixture(TorchGMM(random_state=0), X, **options)
    display = MixtureSelectionDisplay.from_estimator(TorchGMM(random_state=0), X, **options)
    assert_array_equal(display.results["bic"], selection.results["bic"])
