"""Codes in the plane with the components of a mixture."""

import numpy as np
from scipy.linalg import eigh
from sklearn.decomposition import PCA
from sklearn.utils import check_array, check_consistent_length
from sklearn.utils.validation import check_is_fitted

from .drawing import COLORS, axes_or_new


class LatentSpaceDisplay:
    """Scatter of codes with the ellipses of a mixture.

    Codes of more than two dimensions are projected to a plane, and the ellipses are those of the projected covariances.
    The plane is that of the first two principal components of the codes, or the discriminant plane of the mixture, in
    which its means lie farthest apart for the width of its components (no labels are used for either).

    Parameters
    ----------
    codes : ndarray of shape (n_samples, 2)
        Codes in the plane.
    labels : ndarray of shape (n_samples,) or None
        Classes or clusters, shown by colour.
    means : ndarray of shape (n_components, 2) or None
        Means of the mixture in the plane.
    covariances : ndarray of shape (n_components, 2, 2) or None
        Covariances in the plane.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Where it was drawn.
    figure_ : matplotlib Figure
        Its figure.

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("agg")
    >>> from sklearn.datasets import load_iris
    >>> from skvae import TorchGMM
    >>> from skvae.displays import LatentSpaceDisplay
    >>> X, y = load_iris(return_X_y=True)
    >>> display = LatentSpaceDisplay.from_estimator(TorchGMM(3, random_state=0).fit(X), X, y)
    >>> display.ax_.get_aspect()
    1.0
    """

    def __init__(self, codes, *, labels=None, means=None, covariances=None):
        self.codes = codes
        self.labels = labels
        self.means = means
        self.covariances = covariances

    @classmethod
    def from_estimator(cls, mixture, Z, y=None, *, projection="pca", ax=None, n_std=2.0):
        """Draw codes with the components of a fitted mixture.

        Parameters
        ----------
        mixture : estimator
            Fitted, with ``means_``, ``covariances_`` and ``covariance_type`` (TorchGMM, GaussianMixture).
        Z : array-like of shape (n_samples, n_features)
            Codes.
        y : array-like of shape (n_samples,), default=None
            Classes for the colours; None shows the predicted components.
        projection : {"pca", "discriminant"}, default="pca"
            Plane for codes of more than two dimensions.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.
        n_std : float, default=2.0
            Half axes of the ellipses in standard deviations.

        Returns
        -------
        display : LatentSpaceDisplay
        """
        check_is_fitted(mixture)
        labels = mixture.predict(Z) if y is None else y
        covariances = full_covariances(mixture.covariances_, mixture.covariance_type, mixture.means_)
        return cls.from_predictions(
            Z, labels, means=mixture.means_, covariances=covariances, projection=projection, ax=ax, n_std=n_std
        )

    @classmethod
    def from_predictions(cls, Z, labels=None, *, means=None, covariances=None, projection="pca", ax=None, n_std=2.0):
        """Draw codes, and ellipses if there are means and covariances.

        Parameters
        ----------
        Z : array-like of shape (n_samples, n_features)
            Codes, at least two features.
        labels : array-like of shape (n_samples,), default=None
            Shown by colour.
        means : array-like of shape (n_components, n_features), default=None
            Means of components.
        covariances : array-like of shape (n_components, n_features, n_features), default=None
            Their covariances.
        projection : {"pca", "discriminant"}, default="pca"
            Plane for codes of more than two dimensions; "discriminant" needs means and covariances.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.
        n_std : float, default=2.0
            Half axes of the ellipses in standard deviations.

        Returns
        -------
        display : LatentSpaceDisplay

        Raises
        ------
        ValueError
            If Z has fewer than two features, if there are not as many labels as rows, or if the projection is unknown
            or lacks the mixture that it needs.
        """
        Z = check_array(Z, ensure_min_features=2, input_name="Z")
        if labels is not None:
            labels = np.asarray(labels)
            check_consistent_length(Z, labels)
        if projection not in PROJECTIONS:
            raise ValueError(f"projection should be one of {sorted(PROJECTIONS)}, but got {projection!r}.")
        if Z.shape[1] > 2:
            center, axes = Z.mean(axis=0), PROJECTIONS[projection](Z, means, covariances)
            Z, means = (Z - center) @ axes.T, None if means is None else (means - center) @ axes.T
            covariances = None if covariances is None else axes @ np.asarray(covariances) @ axes.T
        return cls(Z, labels=labels, means=means, covariances=covariances).plot(ax=ax, n_std=n_std)

    def plot(self, *, ax=None, n_std=2.0):
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.
        n_std : float, default=2.0
            Half axes of the ellipses in standard deviations.

        Returns
        -------
        self : LatentSpaceDisplay
        """
        from matplotlib.patches import Ellipse

        ax = axes_or_new(ax)
        labels = np.zeros(len(self.codes), dtype=int) if self.labels is None else self.labels
        size = np.clip(8_000 / len(self.codes), 4, 20)  # square points: many rows stay apart, few stay visible
        for index, label in enumerate(np.unique(labels)):
            rows = labels == label
            color = COLORS[index % len(COLORS)]
            name = None if self.labels is None else str(label)
            ax.scatter(*self.codes[rows].T, s=size, alpha=0.75, color=color, linewidths=0, label=name, rasterized=True)
        if self.means is not None and self.covariances is not None:
            for mean, covariance in zip(self.means, self.covariances, strict=True):
                width, height, angle = ellipse_of(covariance, n_std)
                ax.add_patch(Ellipse(mean, width, height, angle=angle, fill=False, edgecolor="black", linewidth=1))
        if self.means is not None:
            ax.plot(*np.asarray(self.means).T, "x", color="black", markersize=7, markeredgewidth=2)
        if self.labels is not None:
            ax.legend(
                loc="center left",
                bbox_to_anchor=(1, 0.5),
                markerscale=7 / size**0.5,
                frameon=False,
                handletextpad=0.1,
            )
        ax.set(xlabel="first coordinate", ylabel="second coordinate")
        ax.set_aspect("equal", adjustable="datalim")
        self.ax_, self.figure_ = ax, ax.figure
        return self


def principal_plane(Z, means, covariances):
    """The first two principal axes of the codes (2, n_features)."""
    return PCA(2).fit(Z).components_


def discriminant_plane(Z, means, covariances):
    """Fisher's two best directions for telling the components apart, scaled to unit width inside them."""
    if means is None or covariances is None or len(means) < 2:
        raise ValueError("projection='discriminant' needs the means and covariances of at least two components.")
    _, directions = eigh(np.cov(means, rowvar=False), np.mean(covariances, axis=0))
    return directions[:, :-3:-1].T


PROJECTIONS = {"pca": principal_plane, "discriminant": discriminant_plane}


def full_covariances(covariances, covariance_type, means):
    """Covariance matrices (n_components, n_features, n_features) from the compact shape of any covariance type."""
    k, d = np.shape(means)
    covariances = np.asarray(covariances)
    if covariance_type in ("full", "tied"):
        return np.broadcast_to(covariances, (k, d, d))
    if covariance_type == "spherical":
        covariances = covariances[:, None]
    return np.broadcast_to(covariances, (k, d))[:, :, None] * np.eye(d)


def ellipse_of(covariance, n_std):
    """Width, height and angle in degrees of the ellipse ``n_std`` standard deviations around a mean."""
    variances, directions = np.linalg.eigh(covariance)
    height, width = 2 * n_std * np.sqrt(np.maximum(variances, 0))
    return width, height, np.degrees(np.arctan2(directions[1, 1], directions[0, 1]))
