"""Images above what a model makes of them."""

import numpy as np
from sklearn.utils import check_consistent_length

from .drawing import axes_or_new


class ReconstructionDisplay:
    """Images above their reconstructions.

    Parameters
    ----------
    images : ndarray of shape (n_images, height, width)
        Originals.
    reconstructions : ndarray of shape (n_images, height, width)
        What the model makes of them.

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
    >>> from skvae import VAEEmbedder
    >>> from skvae.displays import ReconstructionDisplay
    >>> X = load_digits().data / 16
    >>> vae = VAEEmbedder(max_epochs=2, random_state=0).fit(X)
    >>> display = ReconstructionDisplay.from_estimator(vae, X[:8], image_shape=(8, 8))
    >>> display.images.shape
    (8, 8, 8)
    """

    def __init__(self, images, reconstructions):
        self.images = images
        self.reconstructions = reconstructions

    @classmethod
    def from_estimator(cls, embedder, X, *, image_shape, ax=None):
        """Draw images and what a fitted embedder makes of them.

        Parameters
        ----------
        embedder : transformer
            Fitted, with ``transform`` and ``inverse_transform``.
        X : array-like of shape (n_images, n_features)
            Images, one flat row each.
        image_shape : tuple of int
            Height and width.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.

        Returns
        -------
        display : ReconstructionDisplay
        """
        return cls.from_predictions(
            X, embedder.inverse_transform(embedder.transform(X)), image_shape=image_shape, ax=ax
        )

    @classmethod
    def from_predictions(cls, X, X_reconstructed, *, image_shape, ax=None):
        """Draw images and their reconstructions.

        Parameters
        ----------
        X, X_reconstructed : array-like of shape (n_images, n_features)
            Images, one flat row each.
        image_shape : tuple of int
            Height and width.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.

        Returns
        -------
        display : ReconstructionDisplay
        """
        images, reconstructions = (np.asarray(rows).reshape(-1, *image_shape) for rows in (X, X_reconstructed))
        check_consistent_length(images, reconstructions)
        return cls(images, reconstructions).plot(ax=ax)

    def plot(self, *, ax=None):
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.

        Returns
        -------
        self : ReconstructionDisplay
        """
        ax = axes_or_new(ax)
        images = np.stack([self.images, self.reconstructions])
        margin = max(1, images.shape[2] // 12)
        border = ((0, 0), (0, 0), (margin, margin), (margin, margin))
        images = np.pad(images.astype(float), border, constant_values=np.nan)
        ax.imshow(np.concatenate([np.concatenate(list(row), axis=1) for row in images]), cmap="gray_r")
        height = images.shape[2]
        ax.set_yticks([height / 2, 1.5 * height], ["input", "output"])
        ax.set_xticks([])
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        self.ax_, self.figure_ = ax, ax.figure
        return self
