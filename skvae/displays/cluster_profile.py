"""Profiles of clusters: what the samples of each have in common, in the units of the data."""

import warnings
from numbers import Integral

import numpy as np
from sklearn.utils import check_array, check_consistent_length, check_scalar
from sklearn.utils.validation import check_is_fitted

from ..data.arrays import host_array
from ..data.frames import (
    are_flags,
    categories_of,
    check_names,
    codes_of,
    holds_categories,
    library_of,
    series_at,
    values_of,
)
from ..data.labels import is_missing, label_array, sorted_classes
from .drawing import axes_or_new

MAX_CATEGORIES = 10  # of a feature that are shown
CONSTANT = 1e-9  # standard deviation, by the largest size of a value, below which a number does not vary
SHADES = 3.0  # standard deviations from the mean of all samples at which colours end


class ClusterProfileDisplay:
    """A table of clusters: mean and spread of each number, and share of each category, coloured by what differs.

    Parameters
    ----------
    clusters : ndarray of shape (n_clusters,)
        Their names.
    sizes : ndarray of shape (n_clusters,)
        Numbers of samples.
    columns : list of (str, str or None)
        Name of the feature, and the category, or None for a number.
    values : ndarray of shape (n_clusters, n_columns)
        Means of numbers, and shares of categories; NaN where all values are missing.
    spreads : ndarray of shape (n_clusters, n_columns)
        Standard deviations of numbers; NaN for categories.
    effects : ndarray of shape (n_clusters, n_columns)
        Values less those of all samples, in standard deviations of all samples.

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
    >>> from sklearn.datasets import load_wine
    >>> from skvae import VaDEClusterer
    >>> from skvae.displays import ClusterProfileDisplay
    >>> X = load_wine(as_frame=True).data
    >>> vade = VaDEClusterer(3, latent_dim=3, max_epochs=5, random_state=0).fit(X)
    >>> display = ClusterProfileDisplay.from_estimator(vade, X, max_features=4)
    >>> display.values.shape
    (3, 4)
    >>> len(display.describe())
    3
    """

    def __init__(self, clusters, *, sizes, columns, values, spreads, effects):
        self.clusters = clusters
        self.sizes = sizes
        self.columns = columns
        self.values = values
        self.spreads = spreads
        self.effects = effects

    @classmethod
    def from_estimator(cls, estimator, X, *, max_features=20, ax=None):
        """Predict the cluster of samples and draw the profiles.

        Parameters
        ----------
        estimator : estimator
            Fitted, with ``predict``: VaDEClusterer, TorchGMM, a pipeline.
        X : data frame or array-like of shape (n_samples, n_features)
            Samples.
        max_features : int, default=20
            Number of features that are shown: those in which clusters differ most, with ten categories at most.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.

        Returns
        -------
        display : ClusterProfileDisplay
        """
        check_is_fitted(estimator)
        return cls.from_predictions(X, host_array(estimator.predict(X)), max_features=max_features, ax=ax)

    @classmethod
    def from_predictions(cls, X, labels, *, max_features=20, ax=None):
        """Draw the profiles of given clusters.

        Parameters
        ----------
        X : data frame or array-like of shape (n_samples, n_features)
            Samples.
        labels : array-like of shape (n_samples,)
            Their clusters.
        max_features : int, default=20
            Number of features that are shown: those in which clusters differ most, with ten categories at most.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.

        Returns
        -------
        display : ClusterProfileDisplay

        Raises
        ------
        ValueError
            If there are not as many labels as samples.
        """
        check_scalar(max_features, "max_features", Integral, min_val=1)
        labels = label_array(labels, "labels")
        if library_of(X) is None:
            X = check_array(host_array(X), dtype=float, ensure_all_finite="allow-nan", input_name="X")
        check_consistent_length(X, labels)
        if is_missing(labels).any():
            raise ValueError("labels should have a cluster for each sample, but some are missing; leave these out.")
        clusters, codes = sorted_classes(labels)
        features = list(features_of(X))
        profiles = [profile(values, codes, len(clusters)) for _, _, values in features]
        strength = np.array([np.nan_to_num(np.abs(effects)).max() for _, _, effects in profiles])
        shown = np.sort(np.argsort(-strength, kind="stable")[:max_features])
        columns, parts = [], []
        for index in shown:
            name, categories, _ = features[index]
            largest = np.argsort(-np.nan_to_num(np.abs(profiles[index][2])).max(0), kind="stable")[:MAX_CATEGORIES]
            columns += [(name, None if categories is None else categories[i]) for i in np.sort(largest)]
            parts.append([part[:, np.sort(largest)] for part in profiles[index]])
        values, spreads, effects = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
        sizes = np.bincount(codes, minlength=len(clusters))
        settings = {"sizes": sizes, "columns": columns, "values": values, "spreads": spreads, "effects": effects}
        return cls(clusters, **settings).plot(ax=ax)

    def to_frame(self):
        """Return the profiles as a data frame of pandas.

        Returns
        -------
        profiles : pandas.DataFrame
            A row for each cluster. Columns are pairs: ("size", ""), the feature and "mean" or "std", or the feature
            and a category, whose values are shares.
        """
        import pandas as pd

        table = {("size", ""): self.sizes}
        for (feature, category), value, spread in zip(self.columns, self.values.T, self.spreads.T, strict=True):
            if category is None:
                table |= {(feature, "mean"): value, (feature, "std"): spread}
            else:
                table[feature, category] = value
        return pd.DataFrame(table, index=pd.Index(self.clusters, name="cluster"))

    def describe(self, n_features=3):
        """Return a sentence for each cluster: its share, and the features that tell it from all samples.

        Parameters
        ----------
        n_features : int, default=3
            Number of features in a sentence.

        Returns
        -------
        sentences : list of str
        """
        sentences, total = [], self.sizes.sum()
        names = [feature for feature, _ in self.columns]
        for row, (cluster, size) in enumerate(zip(self.clusters, self.sizes, strict=True)):
            parts, named = [], set()
            for column in np.argsort(-np.abs(np.nan_to_num(self.effects[row])), kind="stable"):
                feature, category = self.columns[column]
                is_rare = names.count(feature) > 1 and self.effects[row, column] < 0
                is_empty = np.isnan(self.values[row, column])
                if feature not in named and not is_rare and not is_empty and len(parts) < n_features:
                    parts.append(f"{feature} {self._cell(row, column, category)}")
                    named.add(feature)
            sentences.append(f"Cluster {cluster} ({size / total:.0%}): {', '.join(parts) or 'no values'}.")
        return sentences

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
        n_rows, n_columns = self.values.shape
        ax = axes_or_new(ax, (1.5 + 0.75 * n_columns, 1.2 + 0.35 * n_rows))
        ax.imshow(self.effects, cmap="RdBu_r", vmin=-SHADES, vmax=SHADES, aspect="auto")
        for row in range(n_rows):
            for column in range(n_columns):
                dark = abs(np.nan_to_num(self.effects[row, column])) > 0.6 * SHADES
                text = self._cell(row, column).replace(" ± ", "\n± ")
                ax.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
        names = [feature if category is None else f"{feature}\n{category}" for feature, category in self.columns]
        ax.set_xticks(range(n_columns), names, rotation=45, ha="right", fontsize=8)
        shares = self.sizes / self.sizes.sum()
        ax.set_yticks(
            range(n_rows), [f"{name} ({share:.0%})" for name, share in zip(self.clusters, shares, strict=True)]
        )
        ax.set(
            ylabel="cluster (share)", title="mean ± standard deviation, or share; colour: difference from all samples"
        )
        ax.title.set_fontsize(8)
        ax.tick_params(length=0)
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _cell(self, row, column, category=None):
        """Return a value as text, with the category before a share if it is given."""
        value, spread = self.values[row, column], self.spreads[row, column]
        if self.columns[column][1] is not None:
            return f"{'' if category is None else f'{category} '}{value:.0%}"
        return f"{rounded(value, 3)} ± {rounded(spread, 2)}"


def rounded(value, digits):
    """Format a number in significant digits, without an exponent up to a million."""
    return f"{float(f'{value:.{digits}g}'):.6g}"


def features_of(X):
    """Yield the name of each feature, its categories (None for numbers), and its values (n, 1) or (n, n_categories)."""
    if library_of(X) is None:
        for index, values in enumerate(X.T):
            yield f"feature {index}", None, values[:, None]
        return
    check_names(X)
    for index, name in enumerate(X.columns):
        series = series_at(X, index)
        values = values_of(series)
        if not holds_categories(series):
            yield name, None, np.where(is_missing(values), np.nan, values).astype(float)[:, None]
            continue
        categories = categories_of(name, series)
        codes = codes_of(values, categories)[0][:, None]
        one_hot = np.where(np.isnan(codes), np.nan, codes == np.arange(len(categories)))
        if are_flags(categories):  # the other share follows
            categories, one_hot = [True], one_hot[:, 1:]
        yield name, [str(category) for category in categories], one_hot


def profile(values, codes, n_clusters):
    """Return means, standard deviations and effects of columns (n, m) in each cluster (n_clusters, m).

    Of categories, whose columns are zeros and ones, there are no standard deviations.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of clusters whose values are all missing
        groups = [values[codes == code] for code in range(n_clusters)]
        means = np.stack([np.nanmean(group, axis=0) for group in groups])
        spreads = np.stack([np.nanstd(group, axis=0) for group in groups])
        scale = np.nanstd(values, axis=0)
        varies = scale > CONSTANT * np.nanmax(np.abs(values), axis=0)
        differences = np.where(varies, means - np.nanmean(values, axis=0), 0.0)
        effects, spreads = differences / np.where(varies, scale, 1.0), np.where(varies, spreads, 0.0)
    return means, spreads, effects
