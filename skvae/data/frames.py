"""Data frames with columns of different types: as numbers for models, and numbers as frames again."""

from numbers import Real
from typing import NamedTuple

import numpy as np

from .labels import is_missing
from .messages import one_of

MAX_NAMED = 10  # columns, or categories, in an error
CATEGORY_TYPES = ("str", "bool", "int", "float")  # of values that can be categories
INTEGERS_AND_BOOLEANS = {"bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))}
ORDERED = "ordered category"  # dtype of pandas, whose name does not tell
LISTED = ("category", ORDERED, "Enum")  # dtypes that have the categories


class Column(NamedTuple):
    """A column of a data frame."""

    name: str
    dtype: str  # its name in the library of the frame
    categories: list | None  # in the order of their codes 0, 1, ...; None for numbers


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
    def has_categories(self):
        """Which columns hold categories (d,)."""
        return np.array([column.categories is not None for column in self.columns])

    @property
    def kinds(self):
        """Names and dtypes of the columns, and whether they hold categories."""
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
        """
        known = {column.name: column.categories for column in self.columns if column.categories is not None}
        encoded, unknown = {}, {}
        for index, name in enumerate(X.columns):
            encoded[name] = series_at(X, index)
            if name in known:
                encoded[name], others = codes_of(values_of(encoded[name]), known[name])
                unknown |= {name: others} if others else {}
        return make_frame(library_of(X), encoded), unknown

    def decode(self, values, whole):
        """Return numbers as a frame with the columns of the training data.

        Parameters
        ----------
        values : ndarray of shape (n, d)
            A category has the nearest code.
        whole : bool
            Whether columns of integers hold integers again; expected values are none.

        Returns
        -------
        X : DataFrame of pandas or polars
        """
        series = pandas_series if self.library == "pandas" else polars_series
        parts = zip(self.columns, np.asarray(values, dtype=np.float64).T, strict=True)
        return make_frame(self.library, {column.name: series(column, part, whole) for column, part in parts})


def pandas_series(column, values, whole):
    """Return numbers as a column of pandas; integers and booleans among which some are missing get another dtype."""
    import pandas as pd

    missing, dtype = np.isnan(values), column.dtype
    numbers = np.rint(np.where(missing, -1, values)).astype(np.int64)
    if column.categories is not None and "category" in dtype:
        return pd.Series(pd.Categorical.from_codes(numbers, column.categories, ordered=dtype == ORDERED))
    if column.categories is None and not is_integer(column):
        return pd.Series(values, dtype=dtype)
    if column.categories is None and not whole:
        return pd.Series(values)
    labels = (
        numbers.astype(object) if column.categories is None else np.array([*column.categories, None], object)[numbers]
    )
    labels[missing] = None
    holds_none = dtype not in INTEGERS_AND_BOOLEANS or not missing.any()
    return pd.Series(labels, dtype=dtype if holds_none else object)


def polars_series(column, values, whole):
    """Return numbers as a column of polars."""
    import polars as pl

    missing, dtype = np.isnan(values), getattr(pl, column.dtype)
    numbers = np.rint(np.where(missing, -1, values)).astype(np.int64)
    if column.categories is None and not (is_integer(column) and whole):
        return pl.Series(values, dtype=None if is_integer(column) else dtype, nan_to_null=True)
    labels = (
        numbers.astype(object) if column.categories is None else np.array([*column.categories, None], object)[numbers]
    )
    labels[missing] = None
    return pl.Series(labels.tolist(), dtype=pl.Enum(column.categories) if column.dtype == "Enum" else dtype)


def labels_of(column, numbers, missing):
    """Return integers, or the categories with these codes, as objects (n,), None where they are missing."""
    labels = numbers if column.categories is None else np.array([*column.categories, None], dtype=object)[numbers]
    return np.where(missing, None, labels)


def is_integer(column):
    """Return whether a column of numbers holds integers."""
    return "int" in column.dtype.lower()


def library_of(X):
    """Return the name of the library of a data frame, "pandas" or "polars", or None for anything else."""
    library = type(X).__module__.partition(".")[0]
    is_frame = library in ("pandas", "polars") and hasattr(X, "columns") and hasattr(X, "dtypes")
    return library if is_frame else None


def make_frame(library, columns):
    """Return a data frame of columns by name."""
    if library == "pandas":
        import pandas as pd

        return pd.DataFrame({name: getattr(values, "array", values) for name, values in columns.items()})
    import polars as pl

    return pl.DataFrame(columns)


def series_at(X, index):
    """Return a column of a data frame."""
    return X.iloc[:, index] if hasattr(X, "iloc") else X.to_series(index)


def values_of(series):
    """Return the values of a column as objects (n,)."""
    return np.fromiter(series.to_list(), dtype=object, count=len(series))


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
        None if all columns hold numbers.

    Raises
    ------
    ValueError
        If a name occurs twice, or if a column has values of several types, or of a type that is no category.
    TypeError
        If a name is no string.
    """
    names, library = list(X.columns), library_of(X)
    series = [series_at(X, index) for index in range(len(names))]
    if not any(index in categorical or holds_categories(each) for index, each in enumerate(series)):
        return None
    repeated = {str(name) for name in names if names.count(name) > 1}
    if repeated:
        raise ValueError(f"Columns of X have the same name: {one_of(sorted(repeated)[:MAX_NAMED])}; rename them.")
    if not all(isinstance(name, str) for name in names):
        raise TypeError("Names of columns of X should be strings; rename them (X.columns = X.columns.astype(str)).")
    columns = []
    for index, (name, each) in enumerate(zip(names, series, strict=True)):
        has_categories = index in categorical or holds_categories(each)
        columns.append(Column(name, dtype_name(each), categories_of(name, each) if has_categories else None))
    return FrameCodec(library, columns)


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
    kinds = [
        None if codec is None else [(*column[:2], column[2] is None) for column in codec.columns] for codec in codecs
    ]
    if any(kind != kinds[0] for kind in kinds):
        raise ValueError(
            "Columns of X differ between processes in names or types; give each a part of the same data frame, with "
            "categories as a dtype (pandas.CategoricalDtype)."
        )
    merged = []
    for columns in zip(*(codec.columns for codec in codecs), strict=True):
        categories = [column.categories for column in columns]
        if categories[0] is not None and any(each != categories[0] for each in categories):
            columns = [columns[0]._replace(categories=sorted(set().union(*categories)))]
        merged.append(columns[0])
    return first._replace(columns=merged)


def dtype_name(series):
    """Return the name of the dtype of a column, without its categories."""
    return ORDERED if getattr(series.dtype, "ordered", False) is True else str(series.dtype).partition("(")[0]


def holds_categories(series):
    """Return whether a column holds no numbers: categories, strings, booleans, or objects that are no numbers."""
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
            "convert them (dates to numbers of days), or leave the column out."
        )
    if len(types) > 1 and "str" in types:
        raise ValueError(
            f"Column {name!r} of X holds values of several types, {' and '.join(types)}; convert all to "
            "strings (astype(str)), or all to numbers."
        )
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
