"""Images of each cluster, in a row."""

from numbers import Integral

import numpy as np
from sklearn.utils import check_array, check_consistent_length, check_scalar

from ..data.arrays import host_array
from ..data.labels import label_array
from ..data.messages import meant
from .codes import generator_of, last_step, latent_distribution
from .drawing import ImageGridDisplay, infer_image_shape, to_images

ORDERS = ("index", "weight")


class ClusterSamplesDisplay(ImageGridDisplay):
    """Rows of images, one for each cluster, with its number and its share.

    Parameters
    ----------
    images : ndarray of shape (n_clusters, n_samples, height, width) or (n_clusters, n_samples, height, width, 3)
        Samples of each cluster; NaN where a cluster has fewer than others.
    clusters : ndarray of shape (n_clusters,)
        Names of the clusters, in the order of the images.
    weights : ndarray of shape (n_clusters,)
        Shares of the clusters, which sum to one.
    limits : (float, float), default=(None, None)
        Values of white and black pixels; None is the minimum and the maximum.

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
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.pipeline import Pipeline
    >>> from skvae import TorchGMM, VAEEmbedder
    >>> from skvae.displays import ClusterSamplesDisplay
    >>> X = load_digits().data / 16
    >>> vae, gmm = VAEEmbedder(4, max_epochs=5, random_state=0), TorchGMM(10, reg_covar=1e-2, random_state=0)
    >>> pipeline = Pipeline([("vae", vae), ("gmm", gmm)]).fit(X)
    >>> display = ClusterSamplesDisplay.from_estimator(pipeline, n_samples=6, random_state=0)
    >>> display.images.shape
    (10, 6, 8, 8)
    """

    _label_size = (1.1, 0.1)

    def __init__(self, images, *, clusters, weights, limits=(None, None)):
        self.images = images
        self.clusters = clusters
        self.weights = weights
        self.limits = limits

    @classmethod
    def from_estimator(cls, estimator, n_samples=10, *, order="index", image_shape=None, random_state=None, ax=None):
        """Draw latent codes from each component of a mixture, decode and plot them.

        Parameters
        ----------
        estimator : estimator
            Fitted: VaDEClusterer, a pipeline of an embedder and a mixture over its latent codes, such as TorchGMM, or
            a mixture over pixels.
        n_samples : int, default=10
            Samples of each cluster.
        order : {"index", "weight"}, default="index"
            Order of the rows: by the number of the cluster, or the largest first.
        image_shape : tuple of int, default=None
            (height, width) or (channels, height, width); None takes that of the estimator, or
            else a square of 5 x 5 or more.
        random_state : int, RandomState instance or None, default=None
            Seeds the draw; None uses the ``random_state`` of the estimator, or of the last step of the pipeline.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.

        Returns
        -------
        display : ClusterSamplesDisplay

        Raises
        ------
        TypeError
            If the estimator has no mixture.
        ValueError
            If the order is unknown, or samples are no images of the shape.

        Notes
        -----
        Images are the expected values of the pixels at the latent codes, without the noise of the likelihood, which
        ``VaDEClusterer.sample`` adds. A Gaussian mixture over pixels gives values beyond those that pixels can have;
        they are clipped to the minimum and the maximum of the means of its components.
        """
        check_scalar(n_samples, "n_samples", Integral, min_val=1)
        distribution = latent_distribution(estimator)
        if not hasattr(last_step(estimator), "covariances_"):
            raise TypeError(
                f"{type(last_step(estimator)).__name__} has no mixture; give a VaDEClusterer, a Gaussian mixture, or a "
                "pipeline that ends in one."
            )
        k, d = distribution.means.shape
        X = distribution.sample(n_samples, generator_of(estimator, random_state)).reshape(k * n_samples, d)
        limits = distribution.means.min(), distribution.means.max()
        if distribution.decode is not None:
            X, limits = host_array(distribution.decode(X)), (None, None)
        shape = infer_image_shape(image_shape, estimator, X.shape[1])
        images, clusters = to_images(X.reshape(k, n_samples, -1), shape, "The sample"), np.arange(k)
        return cls._ordered(images, clusters, distribution.weights, order, limits).plot(ax=ax)

    @classmethod
    def from_predictions(cls, X, labels, *, image_shape, n_samples=10, order="index", ax=None):
        """Draw the first images of each cluster.

        Parameters
        ----------
        X : array-like of shape (n_images, n_features)
            Images, such as those that were clustered, or drawn by ``sample``.
        labels : array-like of shape (n_images,)
            Their clusters. Shares are those among them.
        image_shape : tuple of int
            (height, width) or (channels, height, width).
        n_samples : int, default=10
            Images of each cluster at most.
        order : {"index", "weight"}, default="index"
            Order of the rows: by label, or the largest cluster first.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.

        Returns
        -------
        display : ClusterSamplesDisplay

        Raises
        ------
        ValueError
            If there are not as many labels as images, the order is unknown, or samples are no images of the shape.
        """
        check_scalar(n_samples, "n_samples", Integral, min_val=1)
        X, labels = check_array(host_array(X), dtype=float, input_name="X"), label_array(labels, "labels")
        check_consistent_length(X, labels)
        clusters, counts = np.unique(labels, return_counts=True)
        n_columns = min(n_samples, counts.max())
        shown = np.full((len(clusters), n_columns, X.shape[1]), np.nan)
        for row, cluster in zip(shown, clusters, strict=True):
            members = X[labels == cluster][:n_columns]
            row[: len(members)] = members
        return cls._ordered(to_images(shown, image_shape), clusters, counts / counts.sum(), order).plot(ax=ax)

    @classmethod
    def _ordered(cls, images, clusters, weights, order, limits=(None, None)):
        """Return the display with its rows in an order."""
        if order not in ORDERS:
            raise ValueError(f"order should be one of {list(ORDERS)}, but got {order!r}.{meant(order, ORDERS)}")
        if order == "weight":
            rows = np.argsort(-weights, kind="stable")
            images, clusters, weights = images[rows], clusters[rows], weights[rows]
        return cls(images, clusters=clusters, weights=weights, limits=limits)

    def _margin(self, images):
        return max(1, images.shape[3] // 14)

    def _label(self, ax, x, y):
        names = [f"{name} ({weight:.1%})" for name, weight in zip(self.clusters, self.weights, strict=True)]
        height = ax.get_position().height * ax.figure.get_size_inches()[1] * 72 / len(y)  # of a row, in points
        ax.set_yticks(y, names, fontsize=np.clip(0.8 * height, 4, 10))
        ax.set_ylabel("cluster (share)")
