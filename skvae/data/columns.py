"""Ranges and moments of the columns of a dataset, from passes over chunks of samples."""

import functools
import math
from typing import NamedTuple

import numpy as np
import torch

from ..fitting.distributed import SINGLE_PROCESS
from ..fitting.rows import LINEAR_BYTES, row_chunks
from .arrays import float_dtype

MAX_NAMED = 10  # features in an error
LONG_TAIL, FEW = 3.0, 0.02  # of counts: largest value by the mean of those above zero, share of these near the largest
NEAR_ZERO, NEARLY_ALL = 0.25, 0.75  # share of the mean that is close to zero, share of the features with such values
CENTRED, NEARLY_ALL_CENTRED = 0.1, 0.9  # size of a mean in standard deviations, share of the features with such means
SCALES_DIFFER = 2.0  # ratio of the largest scale to the smallest
UNCORRELATED = 0.05  # root mean square of correlations, beyond what they are by chance
N_DIRECTIONS = 64  # of features, in which products are summed for the sum of squared correlations


class Ranges(NamedTuple):
    """Extremes of the observed values."""

    low: np.ndarray  # (d,)
    high: np.ndarray  # (d,)
    fraction: float | None  # a value that is no integer
    off: float  # largest distance of a value from an integer
    n_observed: np.ndarray  # (d,), numbers of observed values
    whole: np.ndarray  # (d,), whether all observed values are integers


class Columns:
    """A `FeatureSummary` of a dataset, whose statistics are computed when they are asked for.

    Missing values do not count.

    Parameters
    ----------
    X : ndarray, LazySamples or TensorSamples of shape (n, d)
        Tensors have ranges only.
    group : ProcessGroup
        Processes that have shards of the samples.
    names : array-like of shape (d,), optional
        Names of the features in errors; their indices if None.
    """

    def __init__(self, X, group=SINGLE_PROCESS, names=None):
        self._X, self._group, self._names = X, group, names
        self.dtype = X.dtype

    def select(self, features):
        """Return the columns of some features, a list of indices; what is known of all is not computed again."""
        return SelectedColumns(self, features)

    @property
    def is_whole(self):
        """Whether all values are integers."""
        return bool(self.ranges.whole.all())

    def named(self, features):
        """Return names of features with these indices for an error, a list of ten at most."""
        features = np.asarray(features[:MAX_NAMED])
        return (features if self._names is None else np.asarray(self._names)[features]).tolist()

    @functools.cached_property
    def ranges(self):
        """Extremes of the features; NaN for those without an observed value."""
        parts = [
            tensor_ranges(part) if isinstance(part, torch.Tensor) else array_ranges(part) for part in self._chunks()
        ]
        return merge_ranges(self._group.all_gather_object(merge_ranges(parts)))

    def check_observed(self):
        """Raise if a feature has no observed value.

        Raises
        ------
        ValueError
            If all values of a feature are missing.
        """
        empty = np.flatnonzero(self.ranges.n_observed == 0)
        if len(empty):
            raise ValueError(f"All values of feature(s) {self.named(empty)} of X are missing (NaN); leave them out.")

    @property
    def n_missing(self):
        """Number of missing values."""
        return int((sum(self._group.all_gather_int(len(self._X))) - self.ranges.n_observed).sum())

    @property
    def mean(self):
        """Means of the features."""
        return torch.from_numpy(self._moments[0])

    @property
    def scale(self):
        """Standard deviations, or one unit for all principal components; constant features keep their unit."""
        mean, scale = self._moments
        varies = scale > 10 * np.finfo(float_dtype(self.dtype)).eps * np.abs(mean)
        scale = np.where(varies, scale, 1.0)
        if self._are_principal_components(varies):
            scale[varies] = np.sqrt(np.square(scale[varies]).mean())
        return torch.from_numpy(scale)

    @property
    def maximum(self):
        """Largest values."""
        return torch.from_numpy(self.ranges.high.astype(np.float64))

    def look_like_counts(self):
        """Return whether the values look like counts: integers from 0 on with a long tail.

        Codes, ratings and pixels have a scale with an end, which many values are near, and ages or prices stay away
        from zero. Counts come close to zero in nearly all features, one and two are among them, and their largest value
        stands alone: it is more than three times the mean of the values that are not zero, and few of these are near
        it. Booleans, and pixels of one byte, are none.
        """
        if not self.is_whole:
            return False
        low, high, _, _, n_observed, _ = self.ranges
        largest = float(np.nanmax(high)) if n_observed.any() else 0.0
        if not np.nanmin(low) >= 0 or largest <= 1 or self.dtype == np.uint8:
            return False
        n_positive, n_above_one, n_above_two, n_near = self._group.all_reduce_sum(
            *self._numbers_above(0, 1, 2, 0.9 * largest)
        )
        if not n_positive > n_above_one > n_above_two:  # amounts and durations have no units of one
            return False
        varies = high > low
        mean = self._moments[0]
        near_zero = low[varies] <= NEAR_ZERO * mean[varies]
        long_tail = largest * n_positive > LONG_TAIL * float((mean * n_observed).sum()) and n_near <= FEW * n_positive
        return bool(varies.any() and near_zero.mean() >= NEARLY_ALL and long_tail)

    def _are_principal_components(self, features):
        """Return whether some features (a mask) are centred, uncorrelated and of scales of their own.

        One feature in ten may have another mean (the first direction of word counts has), if its scale is not the
        largest. Means and correlations may be larger by two standard errors.
        """
        mean, scale = (part[features] for part in self._moments)
        n_features, n_rows = len(scale), sum(self._group.all_gather_int(len(self._X)))
        is_centred = np.abs(mean) <= (CENTRED + 2 / math.sqrt(n_rows)) * scale
        if n_features < 2 or is_centred.mean() < NEARLY_ALL_CENTRED:
            return False
        largest = scale[is_centred].max()
        if largest <= SCALES_DIFFER * scale.min() or largest < scale.max():
            return False
        by_chance = (1 + 4 / math.sqrt(n_features * (n_features - 1))) / n_rows
        return self._squared_correlation(features) <= UNCORRELATED**2 + by_chance

    def _squared_correlation(self, features):
        """Return the mean of squared correlations between pairs of features (a mask); missing values count as means.

        The sum of the squares of a matrix is the expected square of its products with random signs.
        """
        mean, scale = (part[features] for part in self._moments)
        n_features = len(scale)
        directions = np.eye(n_features)
        if n_features > N_DIRECTIONS:
            directions = np.random.default_rng(0).choice([-1.0, 1.0], (n_features, N_DIRECTIONS))
        n_rows = sum(self._group.all_gather_int(len(self._X)))
        share = np.broadcast_to(self.ranges.n_observed, features.shape)[features] / n_rows
        products, diagonal = np.zeros(directions.shape), np.zeros(n_features)
        for part in self._chunks():
            # Of a pair, both values are there in a share of share**2.
            u = np.nan_to_num((part[:, features] - mean) / scale) / share
            products += u.T @ (u @ directions)
            diagonal += np.square(u).sum(0)
        products, diagonal = self._group.all_reduce_sum(torch.from_numpy(products), torch.from_numpy(diagonal))
        squares = float(products.square().sum()) / (N_DIRECTIONS if n_features > N_DIRECTIONS else 1)
        squares -= float(diagonal.square().sum())
        return squares / n_rows**2 / (n_features * (n_features - 1))

    def _numbers_above(self, *bounds):
        """Count the values of this process above each of the bounds."""
        counts = np.zeros(len(bounds))
        for part in self._chunks():
            counts += [np.count_nonzero(part > bound) for bound in bounds]
        return map(float, counts)

    @functools.cached_property
    def _moments(self):
        """Means and standard deviations (d,), merged over chunks (Chan, Golub and LeVeque 1979).

        Raises
        ------
        ValueError
            If squares of the values overflow.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # there is one error for all
            moments = merge_moments(moments_of(part) for part in self._chunks())
            if self._group.size > 1:
                moments = merge_moments(self._group.all_gather_object(moments))
        n_observed, mean, squares = moments
        if not np.isfinite(squares).all():
            raise ValueError(
                f"The squares of the values of X overflow in float64 in feature(s) "
                f"{self.named(np.flatnonzero(~np.isfinite(squares)))}; divide X by a constant."
            )
        return mean, np.sqrt(squares / n_observed)

    def _chunks(self):
        return (self._X[rows] for rows in row_chunks(*self._X.shape, n_bytes=LINEAR_BYTES))


class SelectedColumns(Columns):
    """Some columns of a dataset.

    Parameters
    ----------
    columns : Columns
        Of all features.
    features : list of int
        Indices of the features.
    """

    def __init__(self, columns, features):
        super().__init__(columns._X, columns._group, columns._names)
        self._columns, self._features = columns, np.asarray(features)

    def named(self, features):
        """Return names of features with these indices for an error, a list of ten at most."""
        return self._columns.named(self._features[np.asarray(features)])

    @property
    def is_whole(self):
        """Whether all values are integers."""
        return bool(self._columns.ranges.whole[self._features].all())

    @functools.cached_property
    def ranges(self):
        """Extremes of the features; NaN for those without an observed value."""
        low, high, _, _, n_observed, whole = self._columns.ranges
        chosen = self._features
        if whole[chosen].all():
            return Ranges(low[chosen], high[chosen], None, 0.0, n_observed[chosen], whole[chosen])
        return super().ranges

    @functools.cached_property
    def _moments(self):
        """Means and standard deviations (d,)."""
        mean, scale = self._columns._moments
        return mean[self._features], scale[self._features]

    def _chunks(self):
        return (part[:, self._features] for part in self._columns._chunks())


def array_ranges(part):
    """Compute the ranges of an array (n, d)."""
    if part.dtype.kind != "f":
        n_observed = np.full(part.shape[1], len(part))
        return Ranges(part.min(axis=0), part.max(axis=0), None, 0.0, n_observed, np.ones(part.shape[1], bool))
    is_broken = (np.rint(part) != part) & ~np.isnan(part)
    broken = part[is_broken]
    fraction, off = (broken[0], float(np.abs(np.rint(broken) - broken).max())) if len(broken) else (None, 0.0)
    n_observed = len(part) - np.isnan(part).sum(axis=0)
    return Ranges(np.fmin.reduce(part), np.fmax.reduce(part), fraction, off, n_observed, ~is_broken.any(axis=0))


def merge_ranges(parts):
    """Merge the ranges of parts of a dataset."""
    low, high, fractions, offs, n_observed, whole = zip(*parts, strict=True)
    fraction = next((fraction for fraction in fractions if fraction is not None), None)
    n_observed, whole = np.sum(n_observed, axis=0), np.all(whole, axis=0)
    return Ranges(np.fmin.reduce(low), np.fmax.reduce(high), fraction, max(offs), n_observed, whole)


def merge_moments(parts):
    """Merge `moments_of` parts of a dataset."""
    n_observed, mean, squares = 0.0, 0.0, 0.0
    for n_new, new, new_squares in parts:
        shift, n_observed = new - mean, n_observed + n_new
        share = n_new / np.maximum(n_observed, 1)
        squares = squares + new_squares + np.square(shift) * (n_observed - n_new) * share
        mean = mean + shift * share
    return n_observed, mean, squares


def tensor_ranges(part):
    """Compute the ranges of a tensor (n, d)."""
    missing = part.isnan()
    low = part.masked_fill(missing, torch.inf).amin(0) if part.is_floating_point() else part.amin(0)
    high = part.masked_fill(missing, -torch.inf).amax(0) if part.is_floating_point() else part.amax(0)
    is_broken = (part.round() != part) & ~missing if part.is_floating_point() else torch.zeros_like(part, dtype=bool)
    broken = part[is_broken]
    n_observed = len(part) - missing.sum(0)
    fraction, off = None, 0.0
    if len(broken):
        fraction, off = broken[0].cpu().numpy()[()], float((broken.round() - broken).abs().max())
    whole = ~is_broken.any(0)
    low, high, n_observed, whole = (values.cpu().numpy() for values in (low, high, n_observed, whole))
    if not n_observed.all():
        low[n_observed == 0] = high[n_observed == 0] = np.nan
    return Ranges(low, high, fraction, off, n_observed, whole)


def moments_of(part):
    """Compute numbers, means and sums of squared deviations of observed values (d,), float64."""
    missing = np.isnan(part) if part.dtype.kind == "f" else np.zeros(1, bool)
    if not missing.any():
        mean = part.mean(axis=0, dtype=np.float64)
        return float(len(part)), mean, np.square(part - mean).sum(axis=0)
    n_observed = len(part) - missing.sum(axis=0).astype(np.float64)
    mean = np.where(missing, 0, part).sum(axis=0, dtype=np.float64) / np.maximum(n_observed, 1)
    return n_observed, mean, np.square(np.where(missing, 0, part - mean)).sum(axis=0)
