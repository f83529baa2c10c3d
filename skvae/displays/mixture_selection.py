"""Information criteria of mixtures over their number of components."""

import numpy as np

from ..selection import CRITERIA, check_criterion, select_mixture
from .drawing import COLORS, axes_or_new

MARKERS = "osD^vP<>X*"  # distinguish lines that cover each other


class MixtureSelectionDisplay:
    """Lines of an information criterion over the number of components, one for each covariance type.

    A ring marks the lowest value. Open markers are fits that did not converge.

    Parameters
    ----------
    selection : MixtureSelection
        Result of :func:`skvae.selection.select_mixture`.

    Attributes
    ----------
    results : dict of ndarray of shape (n_fits,)
        One entry for each fit; ``pandas.DataFrame(display.results)`` makes a table of it.
    criterion : {"bic", "aic", "icl"}
        The compared criterion.
    best_params_ : dict
        ``n_components`` and ``covariance_type`` of the fit with the lowest criterion.
    best_estimator_ : estimator
        This fit itself.
    ax_ : matplotlib Axes
        Where it was drawn.
    figure_ : matplotlib Figure
        Its figure.
    lines_ : list of matplotlib Line2D
        One line for each covariance type.

    See Also
    --------
    skvae.selection.select_mixture : The same results without a plot.

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("agg")
    >>> from sklearn.datasets import make_blobs
    >>> from skvae import TorchGMM
    >>> from skvae.displays import MixtureSelectionDisplay
    >>> X, _ = make_blobs(n_samples=300, centers=3, random_state=1)
    >>> mixture = TorchGMM(n_init=2, random_state=0)
    >>> display = MixtureSelectionDisplay.from_estimator(
    ...     mixture, X, n_components=range(1, 5), covariance_type=["full", "spherical"]
    ... )
    >>> display.best_params_
    {'n_components': 3, 'covariance_type': 'spherical'}
    >>> labels = display.best_estimator_.predict(X)
    """

    def __init__(self, selection):
        self.results, self.criterion = selection.results, selection.criterion
        self.best_params_, self.best_estimator_ = selection.best_params_, selection.best_estimator_

    @classmethod
    def from_estimator(
        cls,
        estimator,
        X,
        *,
        n_components=range(1, 11),
        covariance_type=("full", "tied", "diag", "spherical"),
        criterion="bic",
        sample_weight=None,
        n_jobs=None,
        ax=None,
        line_kw=None,
    ):
        """Fit clones of an estimator for each number of components and covariance type, and draw their criterion.

        Parameters
        ----------
        estimator : TorchGMM, GaussianMixture or alike
            Clones of it are fitted; it is not changed. For requirements, errors and the warning see
            :func:`skvae.selection.select_mixture`.
        X : array-like of shape (n_samples, n_features)
            Data.
        n_components : sequence of int, default=range(1, 11)
            Numbers of components.
        covariance_type : sequence of str, default=("full", "tied", "diag", "spherical")
            Covariance types.
        criterion : {"bic", "aic", "icl"}, default="bic"
            Criterion that the best fit minimizes.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples, by which mixtures are fitted and compared.
        n_jobs : int, default=None
            Number of fits at the same time, by joblib.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.
        line_kw : dict, default=None
            Keywords for matplotlib's ``plot``, which draws the lines.

        Returns
        -------
        display : MixtureSelectionDisplay
        """
        selection = select_mixture(
            estimator,
            X,
            n_components=n_components,
            covariance_type=covariance_type,
            criterion=criterion,
            sample_weight=sample_weight,
            n_jobs=n_jobs,
        )
        return cls(selection).plot(ax=ax, line_kw=line_kw)

    def plot(self, criterion=None, *, ax=None, line_kw=None):
        """Draw.

        Parameters
        ----------
        criterion : {"bic", "aic", "icl"}, default=None
            Criterion to draw; None draws that of the selection.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.
        line_kw : dict, default=None
            Keywords for matplotlib's ``plot``, which draws the lines.

        Returns
        -------
        self : MixtureSelectionDisplay

        Raises
        ------
        ValueError
            If the criterion is unknown, or the estimator does not have it.
        """
        from matplotlib.ticker import MaxNLocator

        criterion = self.criterion if criterion is None else criterion
        check_criterion(criterion, self.results.keys() & CRITERIA)
        ax, covariance_types = axes_or_new(ax), dict.fromkeys(self.results["covariance_type"].tolist())
        self.lines_ = []
        for index, covariance_type in enumerate(covariance_types):
            style = {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)], "markersize": 5}
            self.lines_.append(self._draw_line(ax, criterion, covariance_type, style | (line_kw or {})))
        if not self.results["converged"].all():
            hollow = {"marker": "o", "markersize": 5, "markerfacecolor": "white"}
            ax.plot([], [], linestyle="none", color="gray", label="not converged", **hollow)
        self._mark_lowest(ax, criterion)
        ax.set(xlabel="number of components", ylabel=f"{CRITERIA[criterion]} (nats)")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.ticklabel_format(axis="y", useOffset=False)
        ax.legend(frameon=False)
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _draw_line(self, ax, criterion, covariance_type, style):
        """Draw the line of a covariance type, with open markers where a fit did not converge."""
        rows = np.flatnonzero(self.results["covariance_type"] == covariance_type)
        rows = rows[np.argsort(self.results["n_components"][rows])]
        numbers, values = self.results["n_components"][rows], self.results[criterion][rows]
        (line,) = ax.plot(numbers, values, **{"label": covariance_type} | style)
        late = ~self.results["converged"][rows]
        ax.plot(numbers[late], values[late], **style | {"linestyle": "none", "markerfacecolor": "white", "label": None})
        return line

    def _mark_lowest(self, ax, criterion):
        """Draw a ring around the lowest value, with a legend."""
        best = np.argmin(self.results[criterion])
        number, covariance_type = self.results["n_components"][best], self.results["covariance_type"][best]
        ring = {"marker": "o", "markersize": 13, "markerfacecolor": "none", "markeredgecolor": "black"}
        label = f"lowest: {covariance_type}, {number} {'component' if number == 1 else 'components'}"
        ax.plot(number, self.results[criterion][best], linestyle="none", label=label, **ring)
