"""Images and their reconstructions."""

import numpy as np
from sklearn.utils import check_consistent_length

from ..data.arrays import host_array
from .codes import decoder_of
from .drawing import ImageGridDisplay, infer_image_shape, to_images


class ReconstructionDisplay(ImageGridDisplay):
    """Images above their reconstructions, and the mean squared error of each below it.

    Parameters
    ----------
    images : ndarray of shape (n_images, height, width) or (n_images, height, width, 3)
        Originals.
    reconstructions : ndarray of the same shape
        Images decoded from their latent codes.

    Attributes
    ----------
    errors : ndarray of shape (n_images,)
        Mean squared error of the pixels of each image, in squared units of X.
    ax_ : matplotlib Axes
        Where it was drawn.
    figure_ : matplotlib Figure
        Its figure.

    See Also
    --------
    skvae.metrics.reconstruction_error : The mean squared error over many samples.

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("agg")
    >>> from sklearn.datasets import load_digits
    >>> from skvae import VAEEmbedder
    >>> from skvae.displays import ReconstructionDisplay
    >>> X = load_digits().data / 16
    >>> vae = VAEEmbedder(max_epochs=2, random_state=0).fit(X)
    >>> display = ReconstructionDisplay.from_estimator(vae, X[:8], image_shape=(8, 8))
    >>> display.images.shape, display.errors.shape
    ((8, 8, 8), (8,))
    """

    _label_size = (0.6, 0.7)

    def __init__(self, images, reconstructions):
        self.images = images
        self.reconstructions = reconstructions
        squares = (np.asarray(images, dtype=float) - reconstructions) ** 2
        self.errors = squares.mean(axis=tuple(range(1, squares.ndim)))

    @classmethod
    def from_estimator(cls, embedder, X, *, image_shape=None, ax=None):
        """Draw images and their reconstructions by a fitted embedder.

        Parameters
        ----------
        embedder : transformer
            Fitted, with ``transform`` and ``inverse_transform``; it may be a pipeline that ends in an embedder.
        X : array-like of shape (n_images, n_features)
            Images, one flat row each.
        image_shape : tuple of int, default=None
            (height, width) or (channels, height, width); None takes that of the embedder, or
            else a square of 5 x 5 or more.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.

        Returns
        -------
        display : ReconstructionDisplay

        Raises
        ------
        TypeError
            If the estimator has no decoder: for a pipeline that ends in a mixture, give ``pipeline[:-1]``.
        """
        decode = decoder_of(embedder)
        decoded = host_array(decode(embedder.transform(X)))
        shape = infer_image_shape(image_shape, embedder, decoded.shape[1])
        return cls.from_predictions(np.asarray(host_array(X)).reshape(len(X), -1), decoded, image_shape=shape, ax=ax)

    @classmethod
    def from_predictions(cls, X, X_reconstructed, *, image_shape, ax=None):
        """Draw images and their reconstructions.

        Parameters
        ----------
        X, X_reconstructed : array-like of shape (n_images, n_features)
            Images, one flat row each.
        image_shape : tuple of int
            (height, width) or (channels, height, width).
        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.

        Returns
        -------
        display : ReconstructionDisplay

        Raises
        ------
        ValueError
            If there are not as many reconstructions as images, or samples are no images of this shape.
        """
        check_consistent_length(X, X_reconstructed)
        images = to_images(X, image_shape)
        return cls(images, to_images(X_reconstructed, image_shape, "X_reconstructed")).plot(ax=ax)

    def _grid(self):
        return np.stack([self.images, self.reconstructions])

    def _width(self, images):
        return np.clip(0.5 * images.shape[1], 6.4, 12)

    def _margin(self, images):
        return max(1, images.shape[3] // 12)

    def _label(self, ax, x, y):
        ax.set_yticks(y, ["input", "output"])
        width = ax.get_position().width * ax.figure.get_size_inches()[0] * 72 / len(x)  # of an image, in points
        size = np.clip(width / 3, 5, 9)  # of five characters, or of one line that is turned
        ax.set_xticks(x, [f"{error:.2g}" for error in self.errors], fontsize=size, rotation=90 if width < 16 else 0)
        ax.set_xlabel("mean squared error")
