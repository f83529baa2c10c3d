"""Covariates of decoders, and size factors of counts."""

from typing import Any, NamedTuple

import numpy as np

from ..fitting.distributed import current_group
from ..fitting.warnings import warn
from .arrays import host_array
from .frames import categories_of, codes_of, holds_categories, library_of, series_at, values_of
from .labels import is_missing
from .weights import check_weights

MAX_LEVELS_SHOWN = 10
MAX_INTEGER_LEVELS = 20  # without a warning


class Given(NamedTuple):
    """Samples, and the covariates, size factors and weights that a method got with them."""

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
        """Number of its columns: none if it is constant."""
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

    def check(self):
        """Raise if values are not those of training data.

        Raises
        ------
        ValueError
            If levels occur twice, or if a size factor or the units of a number are not possible.
        """
        names = [each.name for each in self.covariates]
        for each in self.covariates:
            levels = [each.name] if each.levels is None else each.levels
            if not isinstance(levels, list) or not levels or any(isinstance(level, list | dict) for level in levels):
                raise ValueError(f"covariates[{each.name!r}] has no list of levels.")
            if len(set(map(repr, levels))) < len(levels) or is_missing(np.array(levels, dtype=object)).any():
                raise ValueError(f"covariates[{each.name!r}] has levels that are missing, or occur twice.")
            if not (np.isfinite(each.center) and np.isfinite(each.scale) and each.scale >= 0):
                raise ValueError(f"covariates[{each.name!r}] has a unit that is not possible.")
        if len(set(names)) < len(names) or not all(isinstance(name, str) for name in names):
            raise ValueError("Names of covariates should be strings that occur once.")
        if self.mean_size is not None and not (np.isfinite(self.mean_size) and self.mean_size > 0):
            raise ValueError(f"The mean size factor is {self.mean_size!r}.")

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
                raise ValueError(
                    "The model was fitted with size_factors; give those of these samples, too. In a pipeline or a "
                    "search, request them by metadata routing: set_transform_request(size_factors=True)."
                )
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
        encoded = [(each.n_columns, encode_column(each, by_name[each.name])) for each in self.covariates]
        return [column for n_columns, column in encoded if n_columns]  # those that are constant are checked alone


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
        levels = levels_of(name, series) if has_levels(series) else None
        numbers = np.zeros(0) if levels is not None else np.asarray(series.to_list(), dtype=np.float64)
        parts = group.all_gather_object((name, levels))
        if any((other, each is None) != (name, levels is None) for other, each in parts):
            raise ValueError("covariates should have the same names and types in all processes.")
        if levels is not None:
            union = dict.fromkeys(level for _, each in parts for level in each)
            warn_of_numbers(name, list(union), group.rank)
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


def warn_of_numbers(name, levels, rank):
    """Warn if there are so many integers that they may be numbers."""
    if rank == 0 and len(levels) > MAX_INTEGER_LEVELS and all(type(level) is int for level in levels):
        warn(
            f"covariates[{name!r}] has {len(levels)} integers, each of which is a level of its own; give floats if "
            "they are numbers, such as ages, or strings if they are names."
        )


def levels_of(name, series):
    """Return the levels of a covariate."""
    try:
        return categories_of(name, series)
    except ValueError as error:
        raise ValueError(str(error).replace(f"Column {name!r} of X", f"covariates[{name!r}]")) from None


def has_levels(series):
    """Return whether a covariate has levels: integers have, numbers with a decimal point have not."""
    return holds_categories(series) or all(isinstance(value, int | np.integer) for value in series.to_list())


def encode_column(covariate, series):
    """Return the codes of the levels of samples, or their standardized numbers (n,)."""
    refuse_missing_values(covariate.name, series)
    if covariate.levels is None:
        numbers = np.asarray(series.to_list())
        if numbers.dtype.kind not in "iuf":
            raise ValueError(
                f"covariates[{covariate.name!r}] has values such as {series.to_list()[0]!r}, but it had numbers in the "
                "training data; give numbers."
            )
        return (numbers - covariate.center) / (covariate.scale or 1.0)
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
    covariates : DataFrame, Series, array-like of shape (n,) or (n, m), or dict of columns; with ``known`` also a level,
        or a dict of them
    n_samples : int
    known : list of Covariate, optional
        Those of the training data, of which all should be there.
    """
    names = None if known is None else [each.name for each in known]
    if isinstance(covariates, dict):
        columns = {str(name): level_or_column(value, n_samples, known is None) for name, value in covariates.items()}
        if known is not None:
            check_known(columns, names)
    elif known is not None and library_of(covariates) is None and np.ndim(host_array(covariates)) == 0:
        if len(names) > 1:
            raise ValueError(
                f"covariates={covariates!r:.80} is one level, but there are {', '.join(names)}; give a dict with a "
                "level of each."
            )
        columns = {names[0]: level_or_column(covariates, n_samples, False)}
    elif library_of(covariates) is not None:
        columns = {str(name): series_at(covariates, index) for index, name in enumerate(covariates.columns)}
        if len(columns) < len(covariates.columns):
            raise ValueError(f"Names of covariates occur twice: {[*map(str, covariates.columns)]}; rename them.")
        if known is not None:
            check_known(columns, names)
    else:
        columns = array_columns(covariates)
        if known is not None and len(columns) != len(names):
            raise ValueError(
                f"covariates has {len(columns)} columns, but had {len(names)} in training: {', '.join(names)}."
            )
        columns = dict(zip(names or columns, columns.values(), strict=True))
    if not columns:
        raise ValueError("covariates have no columns; give some, or leave them out.")
    for series in columns.values():
        if len(series) != n_samples:
            raise ValueError(f"covariates has {len(series)} rows for {n_samples} samples; give one for each sample.")
    return columns


def level_or_column(value, n_samples, needs_column):
    """Return a column of covariates: a level that is repeated, or the values of an array."""
    value = value if hasattr(value, "to_list") else host_array(value)
    if np.ndim(value) == 0 and not needs_column:
        return ListColumn([value.item() if hasattr(value, "item") else value] * n_samples)
    if np.ndim(value) != 1:
        raise ValueError(f"A covariate in a dict should be of shape (n_samples,), but is of {np.shape(value)}.")
    return value if hasattr(value, "to_list") else ListColumn(np.asarray(value, dtype=object).tolist())


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
    """Raise if covariates do not have the names of the training data."""
    lacking = [name for name in names if name not in columns]
    if lacking:
        raise ValueError(
            f"covariates lack {', '.join(lacking)}, which the training data have; they have {sorted(columns)}."
        )
    unknown = [name for name in columns if name not in names]
    if unknown:
        raise ValueError(f"covariates have {', '.join(unknown)}, but the training data only {', '.join(names)}.")


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
    try:
        sizes = np.asarray(host_array(size_factors), dtype=np.float64)
    except (TypeError, ValueError):
        sizes = np.empty(())
    if sizes.ndim == 2 and sizes.shape[1] == 1:
        sizes = sizes[:, 0]
    if sizes.shape != (n_samples,):
        raise ValueError(
            f"size_factors should be {n_samples} numbers, one for each sample, but got {size_factors!r:.80}."
        )
    wrong = sizes[~(np.isfinite(sizes) & (sizes > 0))]
    if len(wrong):
        raise ValueError(
            f"size_factors should be positive and finite, but {len(wrong)} are not, such as {wrong[0]:g}; leave such "
            "samples out."
        )
    return sizes


def of_levels(levels):
    """Return the levels of a covariate as text."""
    if levels is None:
        return " (a number)"
    shown = ", ".join(map(repr, levels[:MAX_LEVELS_SHOWN]))
    return f" {shown}{', ...' if len(levels) > MAX_LEVELS_SHOWN else ''}"
