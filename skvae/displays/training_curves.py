"""Curves of a training by epoch."""

from collections.abc import Callable, Mapping
from numbers import Real
from typing import NamedTuple

import numpy as np
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from .drawing import COLORS, panels_or_new


class Term(NamedTuple):
    """A curve, and its formula in terms of the recorded scores."""

    title: str
    scores: tuple
    formula: Callable


def itself(values):
    """Return the recorded values."""
    return values


TERMS = {
    "elbo": Term("evidence lower bound (nats)", ("log_likelihood", "kl"), np.subtract),
    "reconstruction": Term("negative log-likelihood (nats)", ("log_likelihood",), np.negative),
    "kl": Term("KL divergence (nats)", ("kl",), itself),
    "agreement": Term("mutual information of views (nats)", ("agreement",), itself),
    "loss": Term("loss (nats)", ("loss",), itself),
}
NO_SCORES = {"epoch", "dur"}
PARTS = {"train": "training", "valid": "validation"}
STYLES = ((COLORS[0], "-"), (COLORS[6], "--"), (COLORS[4], ":"), (COLORS[8], "-."))
PANEL_SIZE, N_COLUMNS, FEW_EPOCHS = (4.2, 3.2), 3, 25  # inches, panels in a row, points


class TrainingCurveDisplay:
    """Terms of the evidence lower bound and scores by epoch, each in a panel of its own.

    Parameters
    ----------
    curves : dict of str to dict of str to (ndarray, ndarray)
        For each term or score, and each part of the data, such as ``"train"``: epochs and values.

    Attributes
    ----------
    axes_ : ndarray of shape (n_panels,) of matplotlib Axes
        Where it was drawn.
    figure_ : matplotlib Figure
        Its figure.
    lines_ : dict of str to list of matplotlib Line2D
        Lines of each term or score.

    See Also
    --------
    skvae.callbacks.EpochScores : Records scores of any rows for it.

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("agg")
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.metrics import mean_squared_error
    >>> from skvae import VAEEmbedder
    >>> from skvae.callbacks import EpochScores
    >>> from skvae.displays import TrainingCurveDisplay
    >>> X = load_digits().data / 16
    >>> scores = EpochScores({"mse": mean_squared_error}, {"train": X[:1500], "test": X[1500:]})
    >>> vae = VAEEmbedder(2, max_epochs=4, callbacks=[scores], random_state=0)
    >>> display = TrainingCurveDisplay.from_estimator(vae.fit(X[:1500], X_val=X[1500:]))
    >>> list(display.curves)
    ['elbo', 'reconstruction', 'kl', 'mse']
    >>> list(display.curves["mse"])
    ['train', 'test']
    """

    def __init__(self, curves):
        self.curves = curves

    @classmethod
    def from_estimator(cls, estimator, *, terms=None, ax=None):
        """Draw the history of a fitted embedder.

        Parameters
        ----------
        estimator : estimator
            Fitted, with ``history_``: VAEEmbedder, AutoencoderEmbedder, VaDEClusterer, or a pipeline with one of them.
        terms : list of str, default=None
            Terms to draw, in this order: "elbo", "reconstruction", "kl", "agreement", "loss" and the names of scores.
            None is everything that was recorded, without the loss, which is minus the ELBO where ``beta`` is 1, and
            for autoencoders without the KL, which they do not have.
        ax : matplotlib Axes or array-like of them, default=None
            Axes that a grid of panels replaces, or one for each panel; None makes a new figure.

        Returns
        -------
        display : TrainingCurveDisplay

        Raises
        ------
        TypeError
            If the estimator has no history.
        ValueError
            If a term was not recorded, or there are not as many axes as panels.
        """
        check_is_fitted(estimator)
        steps = [step for _, step in estimator.steps] if isinstance(estimator, Pipeline) else [estimator]
        histories = [step.history_ for step in steps if hasattr(step, "history_")]
        if not histories:
            raise TypeError(f"{type(estimator).__name__} has no history_; give an embedder, or a pipeline with one.")
        return cls.from_history(histories[-1], terms=terms, ax=ax)

    @classmethod
    def from_history(cls, history, *, terms=None, ax=None):
        """Draw a history.

        Parameters
        ----------
        history : list of dict
            Scores of each epoch, such as ``history_``, or ``pretrain_history_`` of VaDEClusterer: its number as
            "epoch", and values with names of the part of the data and the term, such as "train_kl" or
            "test_mse". Values may be missing in some epochs.
        terms : list of str, default=None
            As for `from_estimator`.
        ax : matplotlib Axes or array-like of them, default=None
            As for `from_estimator`.

        Returns
        -------
        display : TrainingCurveDisplay

        Raises
        ------
        ValueError
            If the history is empty, a term was not recorded, or there are not as many axes as panels.
        """
        if not len(history) or not all(isinstance(row, Mapping) for row in history):
            raise ValueError("history should be a list of one dict for each epoch, with at least one.")
        curves = curves_of(history)
        if terms is None:
            terms = without_divergence([term for term in curves if term != "loss" or len(curves) == 1], curves)
        unknown = [term for term in terms if term not in curves]
        if unknown or not terms:
            raise ValueError(f"terms should be some of {list(curves)}, which were recorded, but got {unknown}.")
        return cls({term: curves[term] for term in terms}).plot(ax=ax)

    def plot(self, *, ax=None):
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes or array-like of them, default=None
            As for `from_estimator`.

        Returns
        -------
        self : TrainingCurveDisplay
        """
        from matplotlib.ticker import MaxNLocator

        self.axes_ = panels_or_new(ax, len(self.curves), 2 if len(self.curves) == 4 else N_COLUMNS, PANEL_SIZE)
        parts = list(dict.fromkeys(part for curves in self.curves.values() for part in curves))
        self.lines_ = {}
        for panel, (term, curves) in zip(self.axes_, self.curves.items(), strict=True):
            self.lines_[term] = [draw_curve(panel, *curve, part, parts.index(part)) for part, curve in curves.items()]
            panel.set(xlabel="epoch", title=TERMS[term][0] if term in TERMS else term)
            panel.title.set_fontsize("medium")
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
            panel.ticklabel_format(axis="y", useOffset=False)
            if any(curves):
                panel.legend(frameon=False)
        self.figure_ = self.axes_[0].figure
        return self


def draw_curve(ax, epochs, values, part, index):
    """Draw the curve of a part of the data, with points if there are few."""
    color, dashes = STYLES[index % len(STYLES)]
    points = {"marker": "o" if len(epochs) <= FEW_EPOCHS else None, "markersize": 3.5}
    (line,) = ax.plot(epochs, values, color=color, linestyle=dashes, label=PARTS.get(part, part), **points)
    return line


def curves_of(history):
    """Return epochs and values of every term and score, for each part of the data with records."""
    recorded = recorded_of(history)
    used = {name for term in TERMS.values() for name in term.scores}
    terms = TERMS | {name: Term(name, (name,), itself) for name in recorded if name not in used}
    curves = {}
    for term, (_, needed, formula) in terms.items():
        parts = set.intersection(*(set(recorded.get(name, ())) for name in needed))
        for part in (part for part in recorded.get(needed[0], ()) if part in parts):
            epochs = sorted(set.intersection(*(set(recorded[name][part]) for name in needed)))
            values = formula(*(np.array([recorded[name][part][epoch] for epoch in epochs]) for name in needed))
            curves.setdefault(term, {})[part] = np.array(epochs), values
    return curves


def recorded_of(history):
    """Return recorded numbers by term, part of the data and epoch."""
    recorded = {}
    for position, row in enumerate(history, start=1):
        for name, value in row.items():
            if name not in NO_SCORES and isinstance(value, Real) and not isinstance(value, bool | np.bool_):
                part, _, term = name.partition("_") if "_" in name else ("", "", name)
                recorded.setdefault(term, {}).setdefault(part, {})[row.get("epoch", position)] = float(value)
    return recorded


def without_divergence(terms, curves):
    """Return terms without the divergence and the ELBO where it is always zero, as for an autoencoder."""
    no_kl = "kl" in curves and not any(values.any() for _, values in curves["kl"].values())
    return [term for term in terms if not (no_kl and term in ("elbo", "kl"))]
