"""What is known of samples beside their features: covariates of decoders, and size factors of counts."""

from typing import Any, NamedTuple

import numpy as np
from sklearn.utils import check_consistent_length
from sklearn.utils.validation import column_or_1d

from ..fitting.distributed import current_group
from .arrays import host_array
from .frames import categories_of, codes_of, holds_categories, library_of, series_at, values_of
from .labels import is_missing
from .messages import one_of
from .weights import check_weights

MAX_LEVELS_SHOWN = 10


class Given(NamedTuple):
    """Samples with what the user gives beside them."""

    X: Any
    covariates: Any = None
    size_factors: Any = None
    sample_weight: Any = None  # of training data
    has_decoder: bool = True  # whether covariates are needed, which encoders are not given


class ListColumn(list):
    """A list with the interface that columns of data frames have."""

    dtype = np.dtype(object)

    def to_list(self):
        """Return the values."""
        return list(self)


class Covariate(NamedTuple):
    """A covariate of the training data."""

    name: str
    levels: list | None  # in the order of their codes; None for a number
    center: float = 0.0  # of a number
    scale: float = 1.0

    @property
    def n_columns(self):
        """Number of its columns: none if it is constant, and tells nothing."""
        return int(len(self.levels) > 1 if self.levels is not None else self.scale > 0)


class ConditionCodec(NamedTuple):
    """Encodes size factors and covariates as columns that follow those of features.

    The log of the size factor, less that of the mean size factor of the training data, is the first column; then comes
    the code of the level of each covariate, or its standardized number.
    """

    covariates: list
    mean_size: float | None  # None without size factors

    @classmethod
    def from_lists(cls, lists):
        """Return the codec of plain values."""
        covariates, mean_size = lists
        return cls([Covariate(*each) for each in covariates], mean_size)

    def to_lists(self):
        """Return plain values, which files can store."""
        return [[list(each) for each in self.covariates], self.mean_size]

    @property
    def n_sizes(self):
        """Number of columns of size factors."""
        return int(self.mean_size is not None)

    @property
    def n_levels(self):
        """Number of the levels of each covariate that is not constant, zero for a number."""
        return [len(each.levels or ()) for each in self.covariates if each.n_columns]

    def encode(self, given, n_samples):
        """Return the columns of samples (n_samples, e), float64.

        Parameters
        ----------
        given : Given
            Covariates of every sample, or a level of all; a level is a value, or with several covariates a dict.
        n_samples : int

        Raises
        ------
        ValueError
            If something is missing, was not in the training data, or is not there for every sample.
        """
        columns = []
        if given.size_factors is not None and self.mean_size is None:
            raise ValueError(
                "size_factors are given, but the model was fitted without them; leave them out, or fit it so."
            )
        if self.mean_size is not None:
            if given.size_factors is None:
                raise ValueError("The model was fitted with size_factors; give those of these samples, too.")
            columns.append(np.log(check_size_factors(given.size_factors, n_samples) / self.mean_size))
        if given.covariates is not None and not self.covariates:
            raise ValueError(
                "covariates are given, but the model was fitted without them; leave them out, or fit it so."
            )
        if given.has_decoder and self.covariates:
            columns += self._encode_covariates(given.covariates, n_samples)
        return np.stack(columns, 1) if columns else np.empty((n_samples, 0))

    def _encode_covariates(self, covariates, n_samples):
        if covariates is None:
            levels = "; ".join(each.name + of_levels(each.levels) for each in self.covariates)
            raise ValueError(
                f"The model was fitted with covariates; give those of every sample, or a level of all: {levels}."
            )
        by_name = columns_by_name(covariates, n_samples, self.covariates)
        return [encode_column(each, by_name[each.name]) for each in self.covariates if each.n_columns]


def make_condition_codec(given, n_samples):
    """Return the codec of the covariates and size factors of training data, of all processes that fit together.

    Raises
    ------
    ValueError
        If they are not there for every sample, or if values are missing, or of several types.
    """
    group, covariates = current_group(), []
    weight = np.ones(n_samples) if given.sample_weight is None else check_weights(given.sample_weight, range(n_samples))
    columns = {} if given.covariates is None else columns_by_name(given.covariates, n_samples)
    for name, series in columns.items():
        refuse_missing_values(name, series)
        levels = categories_of(f"covariates[{name!r}]", series) if has_levels(series) else None
        numbers = np.zeros(0) if levels is not None else np.asarray(series.to_list(), dtype=np.float64)
        parts = group.all_gather_object((name, levels))
        if any((other, each is None) != (name, levels is None) for other, each in parts):
            raise ValueError("covariates should have the same names and types in all processes.")
        if levels is not None:
            union = dict.fromkeys(level for _, each in parts for level in each)
            covariates.append(Covariate(name, levels if len(parts) == 1 else sorted(union)))
        else:
            center = weighted_mean(numbers, weight)
            scale = float(np.sqrt(weighted_mean(np.square(numbers - center), weight)))
            is_constant = scale <= 10 * np.finfo(np.float64).eps * abs(center)
            covariates.append(Covariate(name, None, center, 0.0 if is_constant else scale))
    if given.size_factors is None:
        return ConditionCodec(covariates, None)
    return ConditionCodec(covariates, weighted_mean(check_size_factors(given.size_factors, n_samples), weight))


def weighted_mean(values, weight):
    """Return the mean of values (n,) of all processes that fit together."""
    total, mass = current_group().all_reduce_sum(float(weight @ values), float(weight.sum()))
    return float(total / mass)


def has_levels(series):
    """Return whether a covariate has levels: integers have, numbers with a decimal point have not."""
    return holds_categories(series) or all(isinstance(value, int | np.integer) for value in series.to_list())


def encode_column(covariate, series):
    """Return the codes of the levels of samples, or their standardized numbers (n,)."""
    refuse_missing_values(covariate.name, series)
    if covariate.levels is None:
        numbers = np.asarray(series.to_list())
        if numbers.dtype.kind not in "iuf":
            raise ValueError(f"covariates[{covariate.name!r}] were numbers in training, but are not now.")
        return (numbers - covariate.center) / covariate.scale
    codes, unknown = codes_of(values_of(series), covariate.levels)
    if unknown:
        raise ValueError(
            f"covariates[{covariate.name!r}] has levels that are not in the training data, {unknown}; it has"
            f"{of_levels(covariate.levels)}."
        )
    return codes


def columns_by_name(covariates, n_samples, known=None):
    """Return the columns of covariates by name: of a data frame its own, of arrays their indices.

    Parameters
    ----------
    covariates : DataFrame, Series, array-like of shape (n,) or (n, m), or with ``known`` a level or dict of levels
    n_samples : int
    known : list of Covariate, optional
        Those of the training data, of which all should be there.
    """
    names = None if known is None else [each.name for each in known]
    if known is not None and isinstance(covariates, dict):
        check_known(covariates, names)
        return {name: ListColumn([covariates[name]] * n_samples) for name in names}
    if known is not None and np.ndim(covariates) == 0 and library_of(covariates) is None:
        if len(names) > 1:
            raise ValueError(f"There are covariates {one_of(names)}; give a dict with a level of each.")
        return {names[0]: ListColumn([covariates] * n_samples)}
    if library_of(covariates) is not None:
        columns = {str(name): series_at(covariates, index) for index, name in enumerate(covariates.columns)}
        if known is not None:
            check_known(columns, names)
    else:
        columns = array_columns(covariates)
        if known is not None and len(columns) != len(names):
            raise ValueError(
                f"covariates has {len(columns)} columns, but had {len(names)} in training: {one_of(names)}."
            )
        columns = dict(zip(names or columns, columns.values(), strict=True))
    for series in columns.values():
        if len(series) != n_samples:
            raise ValueError(f"covariates has {len(series)} rows, but X has {n_samples}; give one for each sample.")
    return columns


def array_columns(covariates):
    """Return the columns of an array or a series, named by their indices or by the series."""
    if hasattr(covariates, "to_list") and hasattr(covariates, "name"):
        return {str(covariates.name or 0): covariates}
    values = host_array(covariates)
    values = np.asarray(values, dtype=None if hasattr(values, "dtype") else object)
    if values.ndim not in (1, 2) or not values.shape[-1]:
        raise ValueError(
            f"covariates should be of shape (n_samples,) or (n_samples, n_covariates), but are of {values.shape}."
        )
    values = values[:, None] if values.ndim == 1 else values
    return {str(index): ListColumn(column.tolist()) for index, column in enumerate(values.T)}


def check_known(columns, names):
    """Raise if covariates lack a name of the training data."""
    lacking = [name for name in names if name not in columns]
    if lacking:
        raise ValueError(
            f"covariates lack {one_of(lacking)}, which the training data have; they have {sorted(columns)}."
        )


def refuse_missing_values(name, series):
    """Raise if values of a covariate are missing or infinite."""
    values = values_of(series)
    is_infinite = np.array([isinstance(value, float) and np.isinf(value) for value in values], dtype=bool)
    if is_missing(values).any() or is_infinite.any():
        raise ValueError(
            f"covariates[{name!r}] has missing or infinite values; give them a level of their own, or leave such "
            "samples out."
        )


def check_size_factors(size_factors, n_samples):
    """Return size factors (n_samples,) in float64.

    Raises
    ------
    ValueError
        If they are not positive and finite, or not one for each sample.
    """
    size_factors = host_array(size_factors)
    if isinstance(size_factors, str):
        raise ValueError(f"size_factors={size_factors!r} should be an array of numbers, one for each sample.")
    sizes = np.asarray(column_or_1d(size_factors, dtype=np.float64))
    check_consistent_length(sizes, range(n_samples))
    if not (np.isfinite(sizes).all() and (sizes > 0).all()):
        raise ValueError("size_factors should be positive and finite; leave samples without counts out.")
    return sizes


def of_levels(levels):
    """Return the levels of a covariate as text."""
    if levels is None:
        return " (a number)"
    shown = ", ".join(map(repr, levels[:MAX_LEVELS_SHOWN]))
    return f" {shown}{', ...' if len(levels) > MAX_LEVELS_SHOWN else ''}"
