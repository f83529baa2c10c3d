"""Images decoded from a plane of the latent space."""

from numbers import Integral

import numpy as np
from sklearn.utils import check_array, check_scalar

from ..data.arrays import host_array
from .codes import last_step, latent_distribution
from .drawing import ImageGridDisplay, infer_image_shape, to_images

MAX_TICKS = 7


class ManifoldDisplay(ImageGridDisplay):
    """Images decoded from a grid over a plane of the latent space, with equal probability for each.

    The grid is regular in (0, 1)^2, at the middles of its cells, and goes through the quantile functions of the prior
    (Kingma and Welling 2014, figure 4). The first coordinate grows to the right, the second one upwards.

    Parameters
    ----------
    images : ndarray of shape (n_rows, n_columns, height, width) or (n_rows, n_columns, height, width, 3)
        Decoded images, the top row first.
    x, y : ndarray of shape (n_columns,) and (n_rows,), or None
        The first coordinate of each column and the second one of each row, the top row first.
    components : (int, int), default=(0, 1)
        The latent dimensions, for the names of the axes.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Where it was drawn.
    figure_ : matplotlib Figure
        Its figure.

    References
    ----------
    D. P. Kingma and M. Welling, Auto-encoding variational Bayes, 2014 (figure 4).

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("agg")
    >>> from sklearn.datasets import load_digits
    >>> from skvae import VAEEmbedder
    >>> from skvae.displays import ManifoldDisplay
    >>> X = load_digits().data / 16
    >>> vae = VAEEmbedder(2, max_epochs=5, random_state=0).fit(X)
    >>> display = ManifoldDisplay.from_estimator(vae, n_grid=4)
    >>> display.images.shape
    (4, 4, 8, 8)
    >>> display.x.round(2)
    array([-1.15, -0.32,  0.32,  1.15])
    """

    _label_size = (0.8, 0.6)

    def __init__(self, images, *, x=None, y=None, components=(0, 1)):
        self.images = images
        self.x = x
        self.y = y
        self.components = components

    @classmethod
    def from_estimator(
        cls, estimator, *, n_grid=20, components=(0, 1), fixed=None, cluster=None, image_shape=None, ax=None
    ):
        """Decode a grid over two latent dimensions.

        Parameters
        ----------
        estimator : estimator
            Fitted, with ``inverse_transform``: VAEEmbedder and TorchPPCA have the prior N(0, I); AutoencoderEmbedder
            has none, which the normal with the moments of its training codes replaces; of VaDEClusterer and of a
            pipeline of an embedder and a mixture over its latent codes, such as TorchGMM, quantiles are those of the
            marginal distributions of the mixture.
        n_grid : int, default=20
            Images in a row and in a column.
        components : (int, int), default=(0, 1)
            Latent dimensions of the horizontal and of the vertical axis.
        fixed : array-like of shape (n_components,), default=None
            Latent code with the values of the other dimensions; None is the mean of the prior.
        cluster : int, default=None
            Component of a mixture, used instead of the prior.
        image_shape : tuple of int, default=None
            (height, width) or (channels, height, width); None takes that of the estimator, or
            else a square of 5 x 5 or more.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.

        Returns
        -------
        display : ManifoldDisplay

        Raises
        ------
        TypeError
            If the estimator has no decoder, or no distribution of latent codes.
        ValueError
            If the latent space has fewer than two dimensions, or if parameters do not match the estimator.
        """
        prior = latent_distribution(estimator)
        if prior.decode is None:
            raise TypeError(
                f"{type(last_step(estimator)).__name__} has no decoder; give an embedder or a pipeline with one."
            )
        check_scalar(n_grid, "n_grid", Integral, min_val=1)
        if cluster is not None:
            check_scalar(cluster, "cluster", Integral, min_val=0, max_val=len(prior.weights) - 1)
            prior = prior.component(cluster)
        first, second = check_components(components, len(prior.mean))
        shares = (np.arange(n_grid) + 0.5) / n_grid
        x, y = prior.quantiles(first, shares), prior.quantiles(second, shares)[::-1]
        codes = np.tile(check_fixed(fixed, prior.mean), (n_grid, n_grid, 1))
        codes[:, :, first], codes[:, :, second] = x, y[:, None]
        decoded = host_array(prior.decode(codes.reshape(n_grid**2, -1)))
        shape = infer_image_shape(image_shape, estimator, decoded.shape[1])
        images = to_images(decoded.reshape(n_grid, n_grid, -1), shape, "The decoder's output")
        return cls(images, x=x, y=y, components=(first, second)).plot(ax=ax)

    @classmethod
    def from_predictions(cls, X, *, image_shape, x=None, y=None, components=(0, 1), ax=None):
        """Draw a grid of decoded images.

        Parameters
        ----------
        X : array-like of shape (n_rows, n_columns, n_features)
            Decoded samples, the top row of the grid first.
        image_shape : tuple of int
            (height, width) or (channels, height, width).
        x, y : array-like of shape (n_columns,) and (n_rows,), default=None
            Coordinates of the columns and rows, for the ticks.
        components : (int, int), default=(0, 1)
            The latent dimensions, for the names of the axes.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.

        Returns
        -------
        display : ManifoldDisplay

        Raises
        ------
        ValueError
            If X has not three dimensions, or contradicts the coordinates or the shape of images.
        """
        X = np.asarray(host_array(X), dtype=float)
        if X.ndim != 3:
            raise ValueError(f"X should be of shape (n_rows, n_columns, n_features), but is of {X.shape}.")
        x, y = host_array(x), host_array(y)
        for name, values, size in (("x", x, X.shape[1]), ("y", y, X.shape[0])):
            if values is not None and np.shape(values) != (size,):
                raise ValueError(f"{name} should have {size} values, but is of shape {np.shape(values)}.")
        x, y = (None if values is None else np.asarray(values, dtype=float) for values in (x, y))
        return cls(to_images(X, image_shape), x=x, y=y, components=components).plot(ax=ax)

    def _label(self, ax, x, y):
        axes = (ax.xaxis, ax.yaxis)
        for axis, places, values, component in zip(axes, (x, y), (self.x, self.y), self.components, strict=True):
            axis.set_label_text(f"latent dimension {component}")
            if values is not None:
                some = slice(None, None, -(-len(places) // MAX_TICKS))
                axis.set_ticks(places[some], [f"{value:.2f}".replace("-", "\N{MINUS SIGN}") for value in values[some]])


def check_components(components, size):
    """Return two different latent dimensions.

    Raises
    ------
    ValueError
        If they are not.
    """
    pair = tuple(components)
    are_valid = all(isinstance(i, Integral) and not isinstance(i, bool) and 0 <= i < size for i in pair)
    if len(pair) != 2 or not are_valid or pair[0] == pair[1]:
        raise ValueError(
            f"components={components!r} should be two different dimensions of the latent space, which has {size}, "
            "counted from 0."
        )
    return pair


def check_fixed(fixed, mean):
    """Return a latent code, which by default is the mean."""
    if fixed is None:
        return mean
    fixed = check_array(host_array(fixed), dtype=float, ensure_2d=False, input_name="fixed")
    if fixed.shape != mean.shape:
        raise ValueError(f"fixed should be one latent code, of shape {mean.shape}, but is of {fixed.shape}.")
    return fixed
