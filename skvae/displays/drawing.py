"""Drawing for displays: colours, axes, grids of images, latent codes with ellipses."""

import math

import numpy as np

from ..data.arrays import host_array
from ..data.labels import is_missing, sorted_classes
from ..models.images import check_channels_first

# Ten colours that are distinct with every type of colour vision (Petroff 2021, "Accessible color sequences").
COLORS = (
    "#3f90da",
    "#ffa90e",
    "#bd1f01",
    "#94a4a2",
    "#832db6",
    "#a96b59",
    "#e76300",
    "#b9ac70",
    "#717581",
    "#92dadd",
)
MARKERS = "o^sDv"  # of points, when there are more classes than colours
MIN_SIDE = 5  # of images whose shape is inferred


class ImageGridDisplay:
    """Base class of displays that draw a grid of images.

    Subclasses have ``images`` (rows, columns, height, width, ...) and ``_label(ax, x, y)``, which labels the axes at
    the middles of the columns and rows.
    """

    _label_size = (0.0, 0.0)  # inches of the width and of the height that labels need
    limits = (None, None)

    def plot(self, *, ax=None):
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.

        Returns
        -------
        self : object
            The display.
        """
        images = self._grid()
        ax = axes_or_new(ax, size_for(images, self._width(images), self._label_size))
        x, y = draw_images(ax, images, margin=self._margin(images), limits=self.limits)
        self._label(ax, x, y)
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _grid(self):
        return self.images

    def _width(self, images):
        """Return the width of a new figure in inches."""
        return 6.4

    def _margin(self, images):
        """Return the pixels around each image."""
        return 1


def axes_or_new(ax, size=None):
    """Return the axes, or for None those of a new figure, of a size in inches or the default one."""
    import matplotlib.pyplot as plt

    if ax is not None:
        return ax
    # "compressed" is for axes of fixed proportions, whose labels "constrained" cuts off.
    return plt.subplots(layout="constrained" if size is None else "compressed", figsize=size)[1]


def size_for(images, width, label_size):
    """Return the size of a figure for a grid of images (rows, columns, height, width, ...), in inches.

    Parameters
    ----------
    images : ndarray of shape (rows, columns, height, width, ...)
    width : float
        Width of the figure; the height follows, up to one and a half of it.
    label_size : (float, float)
        Inches of the width and of the height that labels need.
    """
    rows, columns, n_down, n_across = images.shape[:4]
    height = (width - label_size[0]) * rows * n_down / (columns * n_across) + label_size[1]
    return width, min(height, 1.5 * width)


def panels_or_new(ax, n_panels, n_columns, panel_size):
    """Return axes for several panels: those passed, a grid in place of a single one, or a grid in a new figure.

    Parameters
    ----------
    ax : matplotlib Axes, array-like of them, or None
    n_panels, n_columns : int
        Number of panels, and of panels in a row at most.
    panel_size : (float, float)
        Width and height of a panel of a new figure, in inches.

    Returns
    -------
    panels : ndarray of shape (n_panels,) of matplotlib Axes

    Raises
    ------
    ValueError
        If there are not as many axes as panels, or a single one is in no grid.
    """
    import matplotlib.pyplot as plt
    from matplotlib.axes import Axes

    n_columns = min(n_columns, n_panels)
    n_rows = math.ceil(n_panels / n_columns)
    if ax is None:
        figure = plt.figure(figsize=(panel_size[0] * n_columns, panel_size[1] * n_rows), layout="compressed")
        grid = figure.add_gridspec(n_rows, n_columns)
    elif isinstance(ax, Axes):
        if ax.get_subplotspec() is None:
            raise ValueError("ax has no place in a grid of subplots for panels to take; make it with plt.subplots.")
        figure, grid = ax.figure, ax.get_subplotspec().subgridspec(n_rows, n_columns)
        ax.set_axis_off()
    else:
        panels = np.asarray(ax, dtype=object).ravel()
        if len(panels) != n_panels:
            raise ValueError(f"ax has {len(panels)} axes, but {n_panels} panels are to be drawn; give as many, or one.")
        return panels
    return np.array([figure.add_subplot(grid[divmod(i, n_columns)]) for i in range(n_panels)], dtype=object)


def infer_image_shape(image_shape, estimator, n_features):
    """Return the shape of images: the one passed, that of the estimator or of a step of it, or else a square.

    Raises
    ------
    ValueError
        If there is none, and the number of features is no square of 5 x 5 or more.
    """
    if image_shape is not None:
        return tuple(image_shape)
    for step in [estimator, *(step for _, step in getattr(estimator, "steps", ()))]:
        if getattr(step, "image_shape", None) is not None:
            return tuple(step.image_shape)
    side = math.isqrt(n_features)
    if side**2 != n_features or side < MIN_SIDE:
        raise ValueError(
            f"The shape of images of {n_features} features is unknown; give image_shape, such as (28, 28) or "
            "(3, 32, 32). Other samples cannot be drawn as images."
        )
    return side, side


def to_images(X, image_shape, name="X"):
    """Reshape samples (..., n_features) to images (..., height, width), or (..., height, width, 3) with channels last.

    Raises
    ------
    ValueError
        If the shape is not that of an image of one or three channels, has these last, or contradicts the features.
    """
    check_channels_first(image_shape)
    X, shape = np.asarray(host_array(X), dtype=float), tuple(image_shape)
    channels, *size = shape if len(shape) == 3 else (1, *shape)
    if len(size) != 2 or channels not in (1, 3):
        raise ValueError(
            f"image_shape={image_shape!r} should be (height, width), or (channels, height, width) with 1 or 3."
        )
    if X.shape[-1] != math.prod(shape):
        raise ValueError(f"{name} has {X.shape[-1]} features, but image_shape={image_shape!r} has {math.prod(shape)}.")
    X = X.reshape(*X.shape[:-1], channels, *size)
    return X[..., 0, :, :] if channels == 1 else np.moveaxis(X, -3, -1)


def draw_images(ax, images, margin=0, limits=(None, None)):
    """Draw a grid of images (rows, columns, height, width) or (rows, columns, height, width, 3), without ticks.

    Parameters
    ----------
    ax : matplotlib Axes
    images : ndarray
    margin : int, default=0
        Pixels around each image.
    limits : (float, float), default=(None, None)
        Values of white and black pixels, or of dark and bright ones in colours; None is the minimum and the maximum.

    Returns
    -------
    x, y : ndarray of shape (columns,) and (rows,)
        Middles of the images, in the units of the axes.
    """
    rows, columns, height, width, *colors = images.shape
    height, width = height + 2 * margin, width + 2 * margin
    border = ((0, 0), (0, 0), (margin, margin), (margin, margin))
    if colors:
        low, high = limits if limits[0] is not None else (min(0.0, np.nanmin(images)), max(1.0, np.nanmax(images)))
        scaled = np.nan_to_num((images - low) / (high - low), nan=1.0).clip(0, 1)
        images = np.pad(scaled, (*border, (0, 0)), constant_values=1.0)
    else:
        images = np.pad(images, border, constant_values=np.nan)
    pixels = np.swapaxes(images, 1, 2).reshape(rows * height, columns * width, *colors)
    ax.imshow(pixels, cmap="gray_r", vmin=limits[0], vmax=limits[1])
    ax.set(xticks=[], yticks=[])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return (np.arange(columns) + 0.5) * width - 0.5, (np.arange(rows) + 0.5) * height - 0.5


def classes_of(labels):
    """Return the distinct labels (n_classes,) in sorted order, without None and NaN.

    Raises
    ------
    ValueError
        If they are real numbers that are no classes.
    TypeError
        If they cannot be sorted.
    """
    return sorted_classes(labels[~is_missing(labels)])[0]


def draw_codes(ax, codes, labels, classes, size=9):
    """Draw latent codes (n_samples, 2), coloured by label, and return the means of the classes (n_classes, 2).

    The mean of a class without samples is NaN.

    Parameters
    ----------
    ax : matplotlib Axes
    codes : ndarray of shape (n_samples, 2)
    labels : ndarray of shape (n_samples,) or None
    classes : ndarray of shape (n_classes,)
        Classes in the order of the colours. Samples of no class are grey.
    size : float, default=9
        Size of the mark of a mean, in points.
    """
    from matplotlib.patheffects import withStroke

    style = {"s": point_size(len(codes)), "alpha": 0.75, "linewidths": 0, "rasterized": True}
    if labels is None:
        ax.scatter(*codes.T, color=COLORS[0], **style)
        return np.empty((0, 2))
    missing = is_missing(labels)
    if missing.any():
        ax.scatter(*codes[missing].T, color="0.8", **style)
    means = np.full((len(classes), 2), np.nan)
    for index, label in enumerate(classes):
        rows, color = codes[labels == label], COLORS[index % len(COLORS)]
        marker = MARKERS[index // len(COLORS) % len(MARKERS)]
        ax.scatter(*rows.T, color=color, marker=marker, label=str(label), **style)
        if len(rows):
            means[index] = rows.mean(axis=0)
            mark = {"marker": "X", "markersize": size, "markeredgecolor": "black", "markeredgewidth": 0.8, "zorder": 4}
            ax.plot(*means[index], linestyle="none", markerfacecolor=color, **mark)
            halo = {"path_effects": [withStroke(linewidth=2, foreground="white")], "zorder": 6}
            offset = {"xytext": (0.6 * size, 0.4 * size), "textcoords": "offset points"}
            ax.annotate(str(label), means[index], fontsize=max(size, 8), clip_on=True, **offset, **halo)
    return means


def point_size(n_points):
    """Return the area of a point, which is smaller for many points."""
    return np.clip(8_000 / n_points, 4, 20)


def draw_mixture(ax, means, covariances, n_std):
    """Draw the means of components in the plane as crosses, and their ellipses if there are covariances."""
    from matplotlib.patches import Ellipse

    if means is None:
        return
    if covariances is not None:
        style = {"fill": False, "edgecolor": "black", "linewidth": 1, "zorder": 3}
        for mean, covariance in zip(means, covariances, strict=True):
            width, height, angle = ellipse_of(covariance, n_std)
            ax.add_patch(Ellipse(mean, width, height, angle=angle, **style))
    ax.plot(*np.asarray(means).T, "+", color="black", markersize=7, markeredgewidth=1.2, zorder=5)


def ellipse_of(covariance, n_std):
    """Return width, height and angle in degrees of the ellipse ``n_std`` standard deviations around a mean."""
    variances, directions = np.linalg.eigh(covariance)
    height, width = 2 * n_std * np.sqrt(np.maximum(variances, 0))
    return width, height, np.degrees(np.arctan2(directions[1, 1], directions[0, 1]))


def add_legend(ax, n_points):
    """Add a legend of latent codes to the right of the axes, with points of one size.

    It is within the axes where it could cover other ones, because the figure has no layout engine.
    """
    scale, n_columns = 7 / point_size(n_points) ** 0.5, math.ceil(len(ax.get_legend_handles_labels()[0]) / 15)
    style = {"markerscale": scale, "ncols": n_columns, "handletextpad": 0.1, "columnspacing": 0.5}
    figure = ax.figure.figure  # of all subfigures
    if len(figure.axes) > 1 and figure.get_layout_engine() is None:
        ax.legend(loc="best", **style)
    else:
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, **style)
