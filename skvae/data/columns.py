"""What the columns of a table hold: their ranges and moments, from passes over chunks of rows."""

import functools
from typing import NamedTuple

import numpy as np
import torch

from ..fitting.chunks import LINEAR_BYTES, row_chunks
from ..fitting.distributed import SINGLE_PROCESS
from .arrays import float_dtype

MAX_NAMED = 10  # features in an error
LONG_TAIL, FEW = 3.0, 0.02  # of counts: largest value by the mean of those above zero, share of these near the largest
NEAR_ZERO, NEARLY_ALL = 0.25, 0.75  # share of the mean that is close to zero, share of the features that come there


class Ranges(NamedTuple):
    """Extremes of the values that are there."""

    low: np.ndarray  # (d,)
    high: np.ndarray  # (d,)
    fraction: float | None  # a value that is not a whole number
    off: float  # largest distance of a value from a whole number
    n_seen: np.ndarray  # (d,), values that are not missing


class Columns:
    """A `FeatureSummary` of an array or a table, of which only that is computed which is asked for.

    Missing values (NaN) are left out.

    Parameters
    ----------
    X : ndarray, LazySamples or TensorSamples of shape (n, d)
        Of rows of a tensor, the ranges alone are known.
    group : SingleProcess or Group
        The processes that have shards of the rows.
    names : array-like of shape (d,), optional
        What errors call the features; otherwise their indices.
    """

    def __init__(self, X, group=SINGLE_PROCESS, names=None):
        self._X, self._group, self._names = X, group, names
        self.dtype = X.dtype

    def named(self, features):
        """What errors call features with these indices: a list, of ten at most."""
        features = np.asarray(features[:MAX_NAMED])
        return (features if self._names is None else np.asarray(self._names)[features]).tolist()

    @functools.cached_property
    def ranges(self):
        """Extremes of the features; NaN for those that have no value."""
        parts = [self._ranges_of(part) for part in self._chunks()]
        return merged_ranges(self._group.all_gather_object(merged_ranges(parts)))

    def check_seen(self):
        """Raise if nothing can be learnt about a feature.

        Raises
        ------
        ValueError
            If all values of a feature are missing.
        """
        empty = np.flatnonzero(self.ranges.n_seen == 0)
        if len(empty):
            raise ValueError(f"All values of feature(s) {self.named(empty)} of X are missing (NaN); leave them out.")

    @property
    def n_missing(self):
        """Number of missing values."""
        return int((sum(self._group.all_gather_int(len(self._X))) - self.ranges.n_seen).sum())

    @property
    def mean(self):
        """Means of the features."""
        return torch.from_numpy(self._moments[0])

    @property
    def scale(self):
        """Standard deviations; constant features keep their unit."""
        mean, scale = self._moments
        scale = np.where(scale <= 10 * np.finfo(float_dtype(self.dtype)).eps * np.abs(mean), 1.0, scale)
        return torch.from_numpy(scale)

    @property
    def maximum(self):
        """Largest values."""
        return torch.from_numpy(self.ranges.high.astype(np.float64))

    def look_like_counts(self):
        """Whether the values look like counts: whole numbers from 0 on with a long tail.

        Codes, ratings and pixels have a scale with an end, which many values are near, and ages or prices stay away
        from zero. Counts come close to zero in nearly all features, one and two are among them, and their largest value
        stands alone: it is more than three times the mean of the values that are not zero, and few of these are near
        it. Truth values, and pixels of one byte, are none.
        """
        low, high, fraction, _, n_seen = self.ranges
        largest = float(np.nanmax(high)) if n_seen.any() else 0.0
        if fraction is not None or not np.nanmin(low) >= 0 or largest <= 1 or self.dtype == np.uint8:
            return False
        n_positive, n_above_one, n_above_two, n_near = self._group.all_reduce_sum(
            *self._numbers_above(0, 1, 2, 0.9 * largest)
        )
        if not n_positive > n_above_one > n_above_two:  # amounts and durations have no units of one
            return False
        varies = high > low
        mean = self._moments[0]
        near_zero = low[varies] <= NEAR_ZERO * mean[varies]
        long_tail = largest * n_positive > LONG_TAIL * float((mean * n_seen).sum()) and n_near <= FEW * n_positive
        return bool(varies.any() and near_zero.mean() >= NEARLY_ALL and long_tail)

    def _numbers_above(self, *bounds):
        """How many values of this process are larger than each of the bounds."""
        counts = np.zeros(len(bounds))
        for part in self._chunks():
            counts += [np.count_nonzero(part > bound) for bound in bounds]
        return map(float, counts)

    @functools.cached_property
    def _moments(self):
        """Means and standard deviations (d,), chunks being merged (Chan, Golub and LeVeque 1979).

        Raises
        ------
        ValueError
            If squares of the values overflow.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # there is one error for all
            found = merged(moments_of(part) for part in self._chunks())
            n_seen, mean, squares = found if self._group.size == 1 else merged(self._group.all_gather_object(found))
        if not np.isfinite(squares).all():
            raise ValueError(
                f"The squares of the values of X overflow in float64 in feature(s) "
                f"{self.named(np.flatnonzero(~np.isfinite(squares)))}; divide X by a constant."
            )
        return mean, np.sqrt(squares / n_seen)

    def _chunks(self):
        return (self._X[rows] for rows in row_chunks(*self._X.shape, n_bytes=LINEAR_BYTES))

    def _ranges_of(self, part):
        if isinstance(part, torch.Tensor):
            return tensor_ranges(part)
        if part.dtype.kind != "f":
            return Ranges(part.min(axis=0), part.max(axis=0), None, 0.0, np.full(part.shape[1], len(part)))
        broken = part[(np.rint(part) != part) & ~np.isnan(part)]
        fraction, off = (broken[0], float(np.abs(np.rint(broken) - broken).max())) if len(broken) else (None, 0.0)
        n_seen = len(part) - np.isnan(part).sum(axis=0)
        return Ranges(np.fmin.reduce(part), np.fmax.reduce(part), fraction, off, n_seen)


def merged_ranges(parts):
    """The ranges of all rows, from those of parts."""
    low, high, fractions, offs, n_seen = zip(*parts, strict=True)
    fraction = next((found for found in fractions if found is not None), None)
    return Ranges(np.fmin.reduce(low), np.fmax.reduce(high), fraction, max(offs), np.sum(n_seen, axis=0))


def merged(parts):
    """`moments_of` of parts put together."""
    n_seen, mean, squares = 0.0, 0.0, 0.0
    for n_new, new, new_squares in parts:
        shift, n_seen = new - mean, n_seen + n_new
        share = n_new / np.maximum(n_seen, 1)
        squares = squares + new_squares + np.square(shift) * (n_seen - n_new) * share
        mean = mean + shift * share
    return n_seen, mean, squares


def tensor_ranges(part):
    """The ranges of a tensor (n, d)."""
    missing = part.isnan()
    low = part.masked_fill(missing, torch.inf).amin(0) if part.is_floating_point() else part.amin(0)
    high = part.masked_fill(missing, -torch.inf).amax(0) if part.is_floating_point() else part.amax(0)
    broken = part[(part.round() != part) & ~missing] if part.is_floating_point() else part[:0, 0]
    n_seen = len(part) - missing.sum(0)
    fraction, off = None, 0.0
    if len(broken):
        fraction, off = broken[0].cpu().numpy()[()], float((broken.round() - broken).abs().max())
    low, high, n_seen = (found.cpu().numpy() for found in (low, high, n_seen))
    if not n_seen.all():
        low[n_seen == 0] = high[n_seen == 0] = np.nan
    return Ranges(low, high, fraction, off, n_seen)


def moments_of(part):
    """Numbers of values that are there, their means and their sums of squares about them (d,), float64."""
    missing = np.isnan(part) if part.dtype.kind == "f" else np.zeros(1, bool)
    if not missing.any():
        mean = part.mean(axis=0, dtype=np.float64)
        return float(len(part)), mean, np.square(part - mean).sum(axis=0)
    n_seen = len(part) - missing.sum(axis=0).astype(np.float64)
    mean = np.where(missing, 0, part).sum(axis=0, dtype=np.float64) / np.maximum(n_seen, 1)
    return n_seen, mean, np.square(np.where(missing, 0, part - mean)).sum(axis=0)
