"""Latent codes in the plane with the components of a mixture."""

import numpy as np
from scipy.linalg import eigh
from sklearn.decomposition import PCA
from sklearn.utils import check_array, check_consistent_length
from sklearn.utils.validation import check_is_fitted

from ..data.arrays import host_array
from ..data.labels import label_array
from ..data.messages import meant
from .codes import codes_of, last_step, mixture_of
from .drawing import add_legend, axes_or_new, classes_of, draw_codes, draw_mixture


class LatentSpaceDisplay:
    """Scatter plot of latent codes with the ellipses of a mixture.

    Latent codes of more than two dimensions are projected to a plane, and the ellipses are those of the projected
    covariances. The plane is that of the first two principal components of the latent codes, or the discriminant plane
    of the mixture, in which its means lie farthest apart for the width of its components (no labels are used for
    either). The mean of the latent codes of each label is marked by an X, the mean of each component by a plus sign.

    Parameters
    ----------
    codes : ndarray of shape (n_samples, 2)
        Latent codes in the plane.
    labels : ndarray of shape (n_samples,) or None
        Classes or clusters, shown by colour.
    means : ndarray of shape (n_components, 2) or None
        Means of the mixture in the plane.
    covariances : ndarray of shape (n_components, 2, 2) or None
        Covariances in the plane.

    Attributes
    ----------
    class_means_ : ndarray of shape (n_classes, 2)
        Means of the latent codes of each label, in sorted order, in the plane.
    ax_ : matplotlib Axes
        Where it was drawn.
    figure_ : matplotlib Figure
        Its figure.

    See Also
    --------
    ClusterEvolutionDisplay : The same at different epochs of a training.

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
    def from_estimator(cls, estimator, X, y=None, *, projection="pca", ax=None, n_std=2.0):
        """Draw the latent codes of samples, with the components of the mixture if there is one.

        Parameters
        ----------
        estimator : estimator
            Fitted. For a mixture (TorchGMM, GaussianMixture), X are the latent codes; an embedder (VAEEmbedder,
            VaDEClusterer, which has a mixture) encodes X; a pipeline may end in either, such as that of a VAEEmbedder
            and a TorchGMM.
        X : array-like of shape (n_samples, n_features)
            Samples, as for ``estimator.predict`` or ``estimator.transform``.
        y : array-like of shape (n_samples,), default=None
            Classes for the colours; None shows the predicted components or clusters, if the estimator predicts any.
        projection : {"pca", "discriminant"}, default="pca"
            Plane for latent codes of more than two dimensions.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.
        n_std : float, default=2.0
            Half axes of the ellipses in standard deviations.

        Returns
        -------
        display : LatentSpaceDisplay
        """
        check_is_fitted(estimator)
        if y is None and hasattr(estimator, "predict"):
            y = estimator.predict(X)
        means, covariances = mixture_of(last_step(estimator))
        mixture = {"means": means, "covariances": covariances}
        return cls.from_predictions(codes_of(estimator, X), y, **mixture, projection=projection, ax=ax, n_std=n_std)

    @classmethod
    def from_predictions(cls, Z, labels=None, *, means=None, covariances=None, projection="pca", ax=None, n_std=2.0):
        """Draw latent codes, and ellipses if there are means and covariances.

        Parameters
        ----------
        Z : array-like of shape (n_samples, n_features)
            Latent codes, at least two features.
        labels : array-like of shape (n_samples,), default=None
            Classes, shown by colour; samples with None or NaN are grey.
        means : array-like of shape (n_components, n_features), default=None
            Means of components.
        covariances : array-like of shape (n_components, n_features, n_features), default=None
            Their covariances.
        projection : {"pca", "discriminant"}, default="pca"
            Plane for latent codes of more than two dimensions; "discriminant" needs means and covariances.
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
            If Z has fewer than two features or NaN, if there are not as many labels as samples, or they are no classes,
            if means and covariances contradict each other, or if the projection is unknown or needs a mixture.
        """
        Z = check_array(host_array(Z), input_name="Z", ensure_all_finite="allow-nan")
        if Z.shape[1] < 2:
            raise ValueError(
                "The latent codes have one dimension, and a plane two; draw a histogram (matplotlib's hist), or "
                "embed in two dimensions or more."
            )
        if np.isnan(Z).any():
            raise ValueError(
                f"{int(np.isnan(Z).any(axis=1).sum())} of {len(Z)} samples have NaN, and no position in the plane; "
                "impute them first (the impute method of a mixture does), or leave them out."
            )
        if labels is not None:
            labels = label_array(labels, "labels")
            check_consistent_length(Z, labels)
        means, covariances = check_mixture(means, covariances, Z.shape[1])
        plane = Plane(Z, means, covariances, projection)
        return cls(
            plane.points(Z), labels=labels, means=plane.points(means), covariances=plane.shapes(covariances)
        ).plot(ax=ax, n_std=n_std)

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
        ax = axes_or_new(ax)
        classes = None if self.labels is None else classes_of(self.labels)
        self.class_means_ = draw_codes(ax, self.codes, self.labels, classes)
        draw_mixture(ax, self.means, self.covariances, n_std)
        if self.labels is not None:
            add_legend(ax, len(self.codes))
        ax.set(xlabel="first coordinate", ylabel="second coordinate")
        ax.set_aspect("equal", adjustable="datalim")
        self.ax_, self.figure_ = ax, ax.figure
        return self


def check_mixture(means, covariances, n_features):
    """Return means (k, d) and covariances (k, d, d) as arrays, or None.

    Raises
    ------
    ValueError
        If they have other shapes.
    """
    if means is None and covariances is not None:
        raise ValueError("There are covariances but no means to draw their ellipses around; give both.")
    means, covariances = (
        None if part is None else np.asarray(host_array(part), dtype=float) for part in (means, covariances)
    )
    if means is not None and (means.ndim != 2 or means.shape[1] != n_features):
        raise ValueError(f"means should be of shape (n_components, {n_features}), but are of {means.shape}.")
    if covariances is not None and covariances.shape != (*means.shape, n_features):
        raise ValueError(
            f"covariances should be of shape {(*means.shape, n_features)}, one matrix for each mean, but are of "
            f"{covariances.shape}."
        )
    return means, covariances


class Plane:
    """A plane, onto which latent codes and covariances are projected; two dimensions are left as they are.

    Parameters
    ----------
    Z : ndarray of shape (n_samples, n_features)
        Latent codes that define it.
    means, covariances : ndarray or None
        Mixture over these latent codes.
    projection : {"pca", "discriminant"}

    Raises
    ------
    ValueError
        If the projection is unknown, or needs a mixture.
    """

    def __init__(self, Z, means, covariances, projection):
        if projection not in PROJECTIONS:
            hint = meant(projection, PROJECTIONS)
            raise ValueError(f"projection should be one of {sorted(PROJECTIONS)}, but got {projection!r}.{hint}")
        self.center, self.axes = np.zeros(2), np.eye(2)
        if Z.shape[1] > 2:
            self.center, self.axes = Z.mean(axis=0), PROJECTIONS[projection](Z, means, covariances)

    def points(self, Z):
        """Return latent codes or means (..., n_features) in the plane (..., 2), or None."""
        return None if Z is None else (Z - self.center) @ self.axes.T

    def shapes(self, covariances):
        """Return covariances (..., n_features, n_features) in the plane (..., 2, 2), or None."""
        return None if covariances is None else self.axes @ covariances @ self.axes.T


def principal_plane(Z, means, covariances):
    """Return the first two principal axes of the latent codes (2, n_features)."""
    return PCA(2).fit(Z).components_


def discriminant_plane(Z, means, covariances):
    """Return Fisher's two most discriminant directions of the components, scaled to unit width inside them."""
    if means is None or covariances is None or len(means) < 2:
        raise ValueError("projection='discriminant' needs the means and covariances of at least two components.")
    _, directions = eigh(np.cov(means, rowvar=False), np.mean(covariances, axis=0))
    return directions[:, :-3:-1].T


PROJECTIONS = {"pca": principal_plane, "discriminant": discriminant_plane}
