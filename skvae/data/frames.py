"""Data frames with columns of different types: as numbers for models, and numbers as frames again."""

from collections import Counter
from numbers import Real
from typing import NamedTuple

import numpy as np

from ..fitting.warnings import warn
from .labels import is_missing
from .messages import one_of

MAX_NAMED = 10  # columns, or categories, in an error
MAX_CATEGORIES = 50  # of a column of text, up to which it is none of identifiers in any case
CATEGORY_TYPES = ("str", "bool", "int", "float")  # of values that can be categories
ORDERED = "ordered category"  # dtype of pandas, whose name does not tell
LISTED = ("category", ORDERED, "Enum")  # dtypes that list the categories
SIGNED = ("int8", "int16", "int32", "int64")
INTEGERS = (*SIGNED, *(f"u{name}" for name in SIGNED))  # in lower case
FLOATS = ("float32", "float64")
TEXT = ("object", "str", "string", "bool", "boolean", "String", "Boolean", "Categorical")


class Column(NamedTuple):
    """A column of a data frame."""

    name: str
    dtype: str  # its name in the library of the frame
    categories: list | None  # in the order of their codes 0, 1, ...; None for numbers

    @property
    def is_integer(self):
        """Whether it holds integers that are no categories."""
        return self.categories is None and self.dtype.lower() in INTEGERS


class FrameCodec(NamedTuple):
    """Encodes a data frame as numbers, with a code for each category, and decodes numbers as a frame."""

    library: str  # "pandas" or "polars"
    columns: list

    @classmethod
    def from_lists(cls, lists):
        """Return the codec of plain values."""
        library, columns = lists
        return cls(library, [Column(*column) for column in columns])

    def to_lists(self):
        """Return plain values, which files can store."""
        return [self.library, [list(column) for column in self.columns]]

    @property
    def n_categories(self):
        """Number of the categories of each column (d,), zero for numbers."""
        return np.array([len(column.categories or ()) for column in self.columns])

    @property
    def kinds(self):
        """Names and dtypes of the columns, and whether they hold numbers."""
        return tuple((name, dtype, categories is None) for name, dtype, categories in self.columns)

    def encode(self, X):
        """Return a frame of numbers, and categories that are not among those of the training data.

        Parameters
        ----------
        X : DataFrame
            Columns that had numbers in the training data, or were not in it, are left as they are.

        Returns
        -------
        encoded : DataFrame
            With the same columns. A missing category is NaN; an unknown one has the code after the last.
        unknown : dict
            Unknown categories of each column that has some.

        Raises
        ------
        ValueError
            If a name occurs twice.
        """
        check_names(X)
        known = {column.name: column.categories for column in self.columns if column.categories is not None}
        encoded, unknown = {}, {}
        for index, name in enumerate(X.columns):
            encoded[name] = series_at(X, index)
            if name in known:
                encoded[name], others = codes_of(values_of(encoded[name]), known[name])
                unknown |= {name: others} if others else {}
        return make_frame(library_of(X), encoded), unknown

    def decode(self, values, whole, index=None):
        """Return numbers as a frame with the columns of the training data.

        Parameters
        ----------
        values : ndarray of shape (n, d)
            A category has the nearest code.
        whole : bool
            Whether columns of integers hold integers again; expected values are none.
        index : pandas.Index, optional
            Index of a frame of pandas.

        Returns
        -------
        X : DataFrame of pandas or polars
        """
        series = pandas_series if self.library == "pandas" else polars_series
        parts = zip(self.columns, np.asarray(values, dtype=np.float64).T, strict=True)
        frame = make_frame(self.library, {column.name: series(column, part, whole) for column, part in parts})
        return frame if index is None or self.library != "pandas" else frame.set_axis(index)

    def fill(self, X, values):
        """Return a frame with its missing values replaced.

        Parameters
        ----------
        X : DataFrame
            Of the columns of the training data.
        values : ndarray of shape (n, d)
            Values in the place of missing ones, as for `decode`.
        """
        decoded, filled = self.decode(values, whole=True), {}
        for index, name in enumerate(X.columns):
            column, own = series_at(X, index), series_at(decoded, index)
            missing = is_missing(values_of(column))
            if not missing.any():
                filled[name] = column
            elif library_of(X) == "pandas":
                own = own.set_axis(X.index)
                if not missing.all() and str(column.dtype) == str(own.dtype) == "category":
                    column = column.cat.add_categories(own.cat.categories.difference(column.cat.categories, sort=False))
                    own = own.astype(column.dtype)
                filled[name] = own if missing.all() else column.where(~missing, own)
            else:
                values = np.where(missing, values_of(own), values_of(column))
                filled[name] = type(column)(values.tolist(), dtype=own.dtype if missing.all() else column.dtype)
        return make_frame(library_of(X), filled)


def decoded_values(column, values):
    """Return the categories or integers of a column as objects (n,), None where values are missing."""
    missing = np.isnan(values)
    numbers = np.rint(np.where(missing, 0, values))
    if column.categories is not None:
        codes = numbers.clip(0, len(column.categories) - 1).astype(np.int64)
        labels = np.array([*column.categories, None], dtype=object)[codes]
    else:
        limits = np.iinfo(column.dtype.lower())
        # Not to the last integers of 64 bits, which floats do not have.
        labels = numbers.clip(limits.min, min(limits.max, 2.0**63 - 1024)).astype(np.int64).astype(object)
    return np.where(missing, None, labels)


def pandas_series(column, values, whole):
    """Return numbers as a column of pandas; integers and booleans among which some are missing get another dtype."""
    import pandas as pd

    dtype = column.dtype
    if column.categories is None and not (column.is_integer and whole):
        return pd.Series(values, dtype=None if column.is_integer else dtype)
    labels = decoded_values(column, values)
    if dtype in ("category", ORDERED):
        return pd.Series(pd.Categorical(labels, column.categories, ordered=dtype == ORDERED))
    holds_none = dtype not in ("bool", *INTEGERS) or not np.isnan(values).any()
    return pd.Series(labels, dtype=dtype if holds_none else object)


def polars_series(column, values, whole):
    """Return numbers as a column of polars."""
    import polars as pl

    dtype = pl.Enum(column.categories) if column.dtype == "Enum" else getattr(pl, column.dtype)
    if column.categories is None and not (column.is_integer and whole):
        return pl.Series(values, dtype=None if column.is_integer else dtype, nan_to_null=True)
    return pl.Series(decoded_values(column, values).tolist(), dtype=dtype)


def library_of(X):
    """Return the name of the library of a data frame, "pandas" or "polars", or None for anything else."""
    libraries = {base.__module__.partition(".")[0] for base in type(X).__mro__}
    if not (hasattr(X, "iloc") or hasattr(X, "to_series")) or not hasattr(X, "columns"):
        return None
    return next((library for library in ("pandas", "polars") if library in libraries), None)


def make_frame(library, columns):
    """Return a data frame of columns by name."""
    if library == "pandas":
        import pandas as pd

        return pd.DataFrame(columns)
    import polars as pl

    return pl.DataFrame(columns)


def series_at(X, index):
    """Return a column of a data frame."""
    return X.iloc[:, index] if hasattr(X, "iloc") else X.to_series(index)


def values_of(series):
    """Return the values of a column as objects (n,)."""
    return np.fromiter(series.to_list(), dtype=object, count=len(series))


def refuse_repeated_names(X):
    """Raise if a name of a column occurs twice."""
    counts = Counter(X.columns)
    repeated = sorted(str(name) for name, count in counts.items() if count > 1)
    if repeated:
        raise ValueError(f"Columns of X have the same name: {one_of(repeated[:MAX_NAMED])}; rename them.")


def check_names(X):
    """Raise if a name of a column occurs twice, or is no string."""
    refuse_repeated_names(X)
    if not all(isinstance(name, str) for name in X.columns):
        raise TypeError("Names of columns of X should be strings; rename them (X.columns = X.columns.astype(str)).")


def make_codec(X, categorical=()):
    """Return the codec of a data frame.

    Parameters
    ----------
    X : DataFrame of pandas or polars
    categorical : collection of int
        Indices of columns that hold categories, whatever their type. Others do if they hold no numbers.

    Returns
    -------
    codec : FrameCodec or None
        None if all columns hold numbers or booleans, which are numbers then.

    Raises
    ------
    ValueError
        If a name occurs twice, or if a column has values of several types, or of a type that is no category.
    TypeError
        If a name is no string.
    """
    series = [series_at(X, index) for index in range(len(X.columns))]
    has_categories = [index in categorical or holds_categories(each) for index, each in enumerate(series)]
    are_numbers = [index not in categorical and is_boolean(each) for index, each in enumerate(series)]
    if not any(has and not is_number for has, is_number in zip(has_categories, are_numbers, strict=True)):
        return None
    check_names(X)
    columns = [
        Column(name, dtype_name(each, has), categories_of(name, each) if has else None)
        for name, each, has in zip(X.columns, series, has_categories, strict=True)
    ]
    return FrameCodec(library_of(X), columns)


def warn_of_identifiers(codec, n_samples, listed=()):
    """Warn of columns of text with so many categories that they may be identifiers, numbers or dates.

    Parameters
    ----------
    codec : FrameCodec or None
    n_samples : int
    listed : collection of int
        Columns whose likelihood the user has chosen.
    """
    for index, column in enumerate(codec.columns if codec is not None else ()):
        n_categories = len(column.categories or ())
        if index not in listed and column.dtype in TEXT and n_categories > max(MAX_CATEGORIES, n_samples // 2):
            warn(
                f"Column {column.name!r} of X is text with {n_categories} categories in {n_samples} samples; leave "
                "identifiers out, and convert numbers or dates that are stored as text."
            )


def merge_codecs(codecs):
    """Return the codec of a frame whose rows are shared by several processes, from those of the processes.

    Raises
    ------
    ValueError
        If columns differ, or have numbers in one process and categories in another.
    """
    first = codecs[0]
    if all(codec == first for codec in codecs):
        return first
    if None in codecs or len({codec.kinds for codec in codecs}) > 1:
        raise ValueError(
            "Columns of X differ between processes in names or types; give each a part of the same data frame, with "
            "categories as a dtype (pandas.CategoricalDtype)."
        )
    merged = []
    for columns in zip(*(codec.columns for codec in codecs), strict=True):
        column = columns[0]
        if column.categories is not None:
            union = list(dict.fromkeys(category for each in columns for category in each.categories))
            column = column._replace(categories=union if column.dtype in LISTED else sorted(union))
        merged.append(column)
    return first._replace(columns=merged)


def dtype_name(series, has_categories=True):
    """Return the name of a dtype that values of a column can be converted to, its own if possible."""
    if getattr(series.dtype, "ordered", False) is True:
        return ORDERED
    name = str(series.dtype).partition("(")[0].partition("[")[0]
    if name.lower() in (*INTEGERS, *FLOATS) or (has_categories and name in (*TEXT, *LISTED)):
        return name
    is_pandas = hasattr(series, "iloc")
    return ("object" if is_pandas else "String") if has_categories else ("float64" if is_pandas else "Float64")


def are_flags(categories):
    """Return whether categories are False and True; 0 and 1 are equal to them, but are numbers."""
    return categories is not None and [*map(repr, categories)] == ["False", "True"]


def is_boolean(series):
    """Return whether a column holds booleans, by its dtype."""
    return dtype_name(series) in ("bool", "boolean", "Boolean")


def holds_categories(series):
    """Return whether a column holds no numbers: categories, strings, booleans, or objects that are no numbers."""
    if dtype_name(series) in LISTED:
        return True
    kind = getattr(series.dtype, "kind", None)  # of NumPy, and of dtypes with missing values of pandas
    if kind is not None and kind != "O":
        return kind not in "iufc"
    if hasattr(series.dtype, "is_numeric"):
        return not series.dtype.is_numeric()
    values = values_of(series)
    present = values[~is_missing(values)].tolist()
    return any(isinstance(value, bool | np.bool_) or not isinstance(value, Real) for value in present)


def categories_of(name, series):
    """Return the categories of a column: those of its dtype, or its values in ascending order.

    Raises
    ------
    ValueError
        If it has values of several types, or of a type that is no category.
    """
    is_listed = dtype_name(series) in LISTED  # also those that do not occur
    categories = np.fromiter(series.dtype.categories if is_listed else values_of(series), dtype=object)
    categories = categories[~is_missing(categories)].tolist()
    categories = [value.item() if isinstance(value, np.generic) else value for value in categories]
    types = sorted({type(value).__name__ for value in categories})
    foreign = [each for each in types if each not in CATEGORY_TYPES]
    if foreign:
        raise ValueError(
            f"Column {name!r} of X holds values of type {foreign[0]}, which are no numbers, strings or booleans; "
            "convert them (astype(str), or dates to numbers of days), or leave the column out."
        )
    if len(types) > 1 and "str" in types:
        raise ValueError(
            f"Column {name!r} of X holds values of several types, {' and '.join(types)}; convert all to strings "
            "(astype(str)), or all to numbers."
        )
    if is_boolean(series):
        return [False, True]
    distinct = list(dict.fromkeys(categories))
    return distinct if is_listed else sorted(distinct)


def codes_of(values, categories):
    """Return the codes of values (n,), and a list of those that are not among the categories.

    Parameters
    ----------
    values : ndarray of shape (n,), objects
    categories : list

    Returns
    -------
    codes : ndarray of shape (n,)
        NaN for a missing value, the number of categories for one that is not among them.
    unknown : list
    """
    lookup, missing = {category: code for code, category in enumerate(categories)}, is_missing(values)
    known = (np.nan if gap else lookup.get(value, len(lookup)) for value, gap in zip(values, missing, strict=True))
    codes = np.fromiter(known, dtype=np.float64, count=len(values))
    return codes, list(dict.fromkeys(values[codes == len(lookup)]))[:MAX_NAMED]
