"""The latent space at different epochs of a training."""

from numbers import Integral, Real
from pathlib import Path

import numpy as np
from sklearn.base import clone
from sklearn.utils import check_consistent_length, check_scalar

from ..callbacks import LatentSnapshots, Snapshots
from ..data.labels import label_array
from ..metrics import match_clusters
from .codes import mixture_of
from .drawing import add_legend, classes_of, draw_codes, draw_mixture, panels_or_new
from .latent_space import Plane

PANEL_WIDTH, N_COLUMNS = 3.5, 3  # inches
MARGIN = 0.04  # around the latent codes, relative to their range
MIN_ASPECT = 0.6  # of the sides of a panel


class ClusterEvolutionDisplay:
    """Latent codes at different epochs of a training, one panel for each, with the ellipses of a mixture if any.

    Latent codes of more than two dimensions are projected to one plane, that of the last snapshot; axes are shared, so
    that panels can be compared.

    Parameters
    ----------
    epochs : ndarray of shape (n_snapshots,)
        Epochs, 0 before the first.
    codes : ndarray of shape (n_snapshots, n_samples, 2)
        Latent codes of the same samples in the plane.
    labels : ndarray of shape (n_snapshots, n_samples) or None
        Classes or clusters at each epoch, shown by colour.
    means : ndarray of shape (n_snapshots, n_components, 2) or None
        Means of the mixture in the plane.
    covariances : ndarray of shape (n_snapshots, n_components, 2, 2) or None
        Covariances in the plane.

    Attributes
    ----------
    axes_ : ndarray of shape (n_panels,) of matplotlib Axes
        Where it was drawn.
    figure_ : matplotlib Figure
        Its figure.

    See Also
    --------
    skvae.callbacks.LatentSnapshots : Records the latent codes during a training.

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("agg")
    >>> from sklearn.datasets import make_blobs
    >>> from skvae import VaDEClusterer
    >>> from skvae.callbacks import LatentSnapshots
    >>> from skvae.displays import ClusterEvolutionDisplay
    >>> X, y = make_blobs(300, 20, centers=4, random_state=0)
    >>> vade = VaDEClusterer(4, latent_dim=3, hidden_layer_sizes=(32,), max_epochs=20, random_state=0)
    >>> vade = vade.set_params(callbacks=[LatentSnapshots(X, every=5)]).fit(X)
    >>> display = ClusterEvolutionDisplay.from_estimator(vade, y)
    >>> [ax.get_title() for ax in display.axes_]
    ['epoch 1', 'epoch 5', 'epoch 10', 'epoch 15', 'epoch 20']
    """

    def __init__(self, epochs, codes, *, labels=None, means=None, covariances=None):
        self.epochs = epochs
        self.codes = codes
        self.labels = labels
        self.means = means
        self.covariances = covariances

    @classmethod
    def from_estimator(cls, estimator, y=None, *, mixture=None, projection="pca", n_panels=6, ax=None, n_std=2.0):
        """Draw the snapshots of a `LatentSnapshots` among the callbacks of a fitted estimator.

        Parameters
        ----------
        estimator : estimator
            Fitted with ``callbacks=[LatentSnapshots(X)]``, or a pipeline with such an embedder.
        y : array-like of shape (n_samples,), default=None
            Classes of the samples of the callback, for the colours. None shows the most probable component of the
            mixture at each epoch, if there is one.
        mixture : estimator, default=None
            Mixture, such as ``TorchGMM(10)``, of which a clone is fitted to the latent codes of each snapshot; for
            models whose prior is none. Components are numbered as in the next snapshot, matched by their samples.
        projection : {"pca", "discriminant"}, default="pca"
            Plane for latent codes of more than two dimensions; "discriminant" needs a mixture.
        n_panels : int, default=6
            Maximal number of snapshots, the first and the last among them. Their distances grow, because most changes
            are early. All are in the display and in the animation.
        ax : matplotlib Axes or array-like of them, default=None
            Axes that a grid of panels replaces, or one for each panel; None makes a new figure.
        n_std : float, default=2.0
            Half axes of the ellipses in standard deviations.

        Returns
        -------
        display : ClusterEvolutionDisplay

        Raises
        ------
        ValueError
            If the estimator has no snapshots, or the other arguments do not match them.
        """
        settings = {"mixture": mixture, "projection": projection, "n_panels": n_panels, "ax": ax, "n_std": n_std}
        return cls.from_snapshots(LatentSnapshots.of(estimator), y, **settings)

    @classmethod
    def from_snapshots(cls, snapshots, y=None, *, mixture=None, projection="pca", n_panels=6, ax=None, n_std=2.0):
        """Draw snapshots from ``LatentSnapshots.of``.

        Parameters
        ----------
        snapshots : skvae.callbacks.Snapshots
            Latent codes at different epochs.
        y, mixture, projection, n_panels, ax, n_std
            As for `from_estimator`.

        Returns
        -------
        display : ClusterEvolutionDisplay

        Raises
        ------
        TypeError
            If ``snapshots`` has another type.
        ValueError
            If there are two mixtures, not as many labels as samples, or latent codes of one dimension.
        """
        if not isinstance(snapshots, Snapshots):
            raise TypeError(f"snapshots should come from LatentSnapshots.of, but got a {type(snapshots).__name__}.")
        codes, means, covariances = snapshots.codes.astype(float), snapshots.means, snapshots.covariances
        if codes.shape[2] < 2:
            raise ValueError("The latent codes have one dimension, but a plot of them needs two or more.")
        labels = None
        if mixture is not None:
            if means is not None:
                raise ValueError("The snapshots have the mixture of the model; mixture is for models without one.")
            labels, means, covariances = fit_mixtures(mixture, codes)
        elif means is not None:
            parts = zip(codes, snapshots.weights, means, covariances, strict=True)
            labels = np.stack([nearest_component(*part) for part in parts])
        if y is not None:
            check_consistent_length(codes[0], y)
            labels = np.broadcast_to(label_array(y), (len(codes), len(codes[0])))
        last = (codes[-1], *(None if part is None else part[-1] for part in (means, covariances)))
        plane = Plane(*last, projection)
        projected = {"means": plane.points(means), "covariances": plane.shapes(covariances)}
        return cls(snapshots.epochs, plane.points(codes), labels=labels, **projected).plot(
            n_panels=n_panels, ax=ax, n_std=n_std
        )

    def plot(self, *, n_panels=6, ax=None, n_std=2.0):
        """Draw small multiples.

        Parameters
        ----------
        n_panels : int, default=6
            As for `from_estimator`.
        ax : matplotlib Axes or array-like of them, default=None
            As for `from_estimator`.
        n_std : float, default=2.0
            Half axes of the ellipses in standard deviations.

        Returns
        -------
        self : ClusterEvolutionDisplay
        """
        check_scalar(n_panels, "n_panels", Integral, min_val=1)
        shown = spread_out(len(self.epochs), n_panels)
        low, high = self._limits()
        self.axes_ = panels_or_new(ax, len(shown), N_COLUMNS, panel_size(PANEL_WIDTH, high - low))
        for panel, index in zip(self.axes_, shown, strict=True):
            self._draw(panel, index, n_std)
        self.figure_ = self.axes_[0].figure
        if self.labels is not None:
            add_legend(max(self.axes_, key=right_and_high), self.codes.shape[1])
        return self

    def animate(self, path=None, *, fps=4, n_std=2.0, dpi=100):
        """Show one snapshot after the other in a figure of its own.

        Parameters
        ----------
        path : str or path-like, default=None
            File to write it to, such as "evolution.gif"; None writes none.
        fps : float, default=4
            Snapshots in a second.
        n_std : float, default=2.0
            Half axes of the ellipses in standard deviations.
        dpi : float, default=100
            Pixels in an inch of the file.

        Returns
        -------
        animation : matplotlib.animation.FuncAnimation
            Keep it as long as it is shown; ``animation.to_jshtml()`` makes a player for notebooks.

        Raises
        ------
        ValueError
            If ``fps`` is not positive, or matplotlib cannot write files of this format.
        """
        import matplotlib.pyplot as plt
        from matplotlib.animation import FuncAnimation, PillowWriter

        check_scalar(fps, "fps", Real, min_val=0, include_boundaries="neither")
        low, high = self._limits()
        figure, ax = plt.subplots(figsize=panel_size(5, high - low), layout="compressed")

        def frame(index):
            ax.clear()
            self._draw(ax, index, n_std)
            if self.labels is not None:
                add_legend(ax, self.codes.shape[1])

        animation = FuncAnimation(figure, frame, frames=len(self.epochs), interval=1000 / fps)
        if path is not None:
            writer = PillowWriter(fps=fps) if Path(path).suffix == ".gif" else None
            animation.save(path, writer=writer, fps=None if writer else fps, dpi=dpi)
        return animation

    @property
    def _classes(self):
        return None if self.labels is None else classes_of(self.labels)

    def _limits(self):
        """Return corners of a rectangle around the latent codes of all snapshots, not too flat or tall (2,) (2,)."""
        codes = self.codes.reshape(-1, 2)
        middle, half = (codes.max(axis=0) + codes.min(axis=0)) / 2, np.ptp(codes, axis=0) / 2
        half = np.maximum(half, MIN_ASPECT * half.max()) * (1 + MARGIN) if half.any() else np.ones(2)
        return middle - half, middle + half

    def _draw(self, ax, index, n_std):
        """Draw one snapshot, with the same limits as all."""
        labels = None if self.labels is None else self.labels[index]
        draw_codes(ax, self.codes[index], labels, self._classes, size=7)
        if self.means is not None:
            draw_mixture(ax, self.means[index], self.covariances[index], n_std)
        low, high = self._limits()
        ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
        ax.set_title(f"epoch {self.epochs[index]}", fontsize="medium")
        ax.set_aspect("equal", adjustable="box")


def panel_size(width, ranges):
    """Return width and height of a panel for coordinates of these ranges, in inches."""
    return width, (width - 0.5) * ranges[1] / ranges[0] + 0.5


def right_and_high(ax):
    """Return the position of axes as a key: the right edge first, then the upper one."""
    place = ax.get_position()
    return round(place.x1, 6), place.y1


def spread_out(n, n_shown):
    """Return indices of some of n snapshots at growing distances, the first and the last among them."""
    if n <= n_shown:
        return np.arange(n)
    if n_shown == 1:
        return np.array([n - 1])
    indices = np.zeros(n_shown, dtype=int)
    for i, position in enumerate(np.geomspace(1, n, n_shown)[1:], start=1):
        indices[i] = max(indices[i - 1] + 1, round(position) - 1)
    return indices


def nearest_component(codes, weights, means, covariances):
    """Return the most probable component of a mixture at each latent code (n,)."""
    joint = []
    for weight, mean, covariance in zip(weights, means, covariances, strict=True):
        root = np.linalg.cholesky(covariance)
        white = np.linalg.solve(root, (codes - mean).T)
        joint.append(np.log(weight) - np.log(np.diag(root)).sum() - 0.5 * (white**2).sum(axis=0))
    return np.argmax(joint, axis=0)


def fit_mixtures(mixture, codes):
    """Fit a mixture to each snapshot, numbered as the next one, and return labels, means and covariances."""
    fits = []
    for Z in codes[::-1]:
        fitted = clone(mixture).fit(Z)
        labels, (means, covariances) = fitted.predict(Z), mixture_of(fitted)
        if means is None:
            raise TypeError(f"mixture should be a Gaussian mixture, such as TorchGMM, but is {mixture!r}.")
        if fits:
            order = order_like(labels, fits[-1][0], len(means))
            labels, means, covariances = np.argsort(order)[labels], means[order], covariances[order]
        fits.append((labels, means, covariances))
    return (np.stack(part) for part in zip(*fits[::-1], strict=True))


def order_like(labels, later, k):
    """Return the component for each number 0 ... k - 1, so that most samples have the number of their later label."""
    numbers = match_clusters(later, labels)
    free = [number for number in range(k) if number not in numbers.values()]
    order = np.empty(k, dtype=int)
    for component in range(k):
        order[numbers[component] if component in numbers else free.pop(0)] = component
    return order
