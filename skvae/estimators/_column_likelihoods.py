"""Likelihoods of single columns: from a list, or chosen by the columns of a data frame."""

from collections.abc import Sequence
from typing import NamedTuple

from sklearn.utils._indexing import _get_column_indices

from ..data.frames import FrameCodec, library_of, make_codec, merge_codecs
from ..fitting.distributed import current_group
from ..fitting.warnings import warn
from ..models import Categorical
from ..models.mixed import ColumnLikelihoods, Group
from ._likelihood_choice import choose_likelihood

COUNTS = "negative_binomial"  # likelihood of counts, where it is chosen


class ListedColumns(NamedTuple):
    """What a fit keeps of the columns of its data, before they become numbers."""

    codec: FrameCodec | None  # of a data frame that does not hold numbers alone
    features: list | None  # indices of the columns of each entry of a list of likelihoods


def list_columns(likelihood, X, shape):
    """Return the `ListedColumns` of training data.

    Parameters
    ----------
    likelihood : object
        The parameter of the estimator.
    X : object
        As the user gave it.
    shape : tuple or None
        That of images, which are no columns of different types.

    Raises
    ------
    ValueError
        If entries of a list have another form, if a column is in two of them, or if columns hold mixed values.
    """
    is_list = isinstance(likelihood, list | tuple)
    features = read_columns(likelihood, X) if is_list else None
    by_column = is_list or (isinstance(likelihood, str) and likelihood == "auto")
    if not by_column or shape is not None or library_of(X) is None:
        return ListedColumns(None, features)
    listed = zip(likelihood, features, strict=True) if is_list else ()
    categorical = [index for (_, each, _), part in listed if is_categorical(each) for index in part]
    return ListedColumns(merge_codecs(current_group().all_gather_object(make_codec(X, categorical))), features)


def is_categorical(likelihood):
    """Return whether an entry of a list is the categorical likelihood by its name."""
    return isinstance(likelihood, str) and likelihood == "categorical"


def read_columns(likelihood, X):
    """Return the indices of the columns of each entry of a list, by the rules of `ColumnTransformer`.

    Raises
    ------
    ValueError
        If an entry has another form, or if a column is in two of them.
    """
    features, owners = [], {}
    for entry in likelihood:
        if not isinstance(entry, Sequence) or isinstance(entry, str) or len(entry) != 3:
            raise ValueError(
                "likelihood should be a name, an object, or a list of (name, likelihood, columns) as of "
                f"ColumnTransformer, but an entry is {entry!r}."
            )
        name, _, columns = entry
        indices = list(map(int, _get_column_indices(X, columns(X) if callable(columns) else columns)))
        twice = [index for index in indices if index in owners]
        if twice:
            raise ValueError(
                f"Column {name_of(X, twice[0])!r} of X has two likelihoods in the list, {owners[twice[0]]!r} and "
                f"{name!r}; leave it in one of them."
            )
        owners |= dict.fromkeys(indices, name)
        features.append(indices)
    return features


def name_of(X, index):
    """Return the name of a column, or its index."""
    return list(X.columns)[index] if hasattr(X, "columns") else index


def choose_column_likelihoods(likelihood, listed, columns):
    """Return a `ColumnLikelihoods` where columns have likelihoods of their own, else None.

    Parameters
    ----------
    likelihood : object
        The parameter of the estimator.
    listed : ListedColumns
    columns : Columns
        Of the encoded data.
    """
    if listed.codec is None and listed.features is None:
        return None
    columns.check_observed()
    n_features, chosen, counts = len(columns.ranges.low), {}, []
    for (_, each, _), features in zip(likelihood if listed.features else (), listed.features or (), strict=True):
        if not (isinstance(each, str) and each == "auto"):
            chosen |= dict.fromkeys(features, choose_likelihood(each, columns.select(features)))
    for feature in range(n_features):
        if feature not in chosen:
            chosen[feature] = automatic(columns.select([feature]), listed.codec, feature)
            counts += [feature] if chosen[feature] == COUNTS else []
    if counts and current_group().rank == 0:
        warn(
            f"Column(s) {columns.named(counts)} of X hold whole numbers with a long tail, for which likelihood='auto' "
            f"takes {COUNTS!r}; if they are no counts, give likelihood=[('amounts', 'gaussian_features', "
            f"{columns.named(counts)})]."
        )
    groups = {}
    for feature in range(n_features):
        each = chosen[feature]
        key = each if isinstance(each, str) else id(each)
        groups.setdefault(key, Group(each, [])).features.append(feature)
    return ColumnLikelihoods([with_categories(group, listed.codec) for group in groups.values()])


def automatic(column, codec, feature):
    """Return the name of the likelihood of a column.

    Categories are categorical, counts negative binomial, flags (0 and 1) Bernoulli, fractions between 0 and 1
    continuous Bernoulli, and other numbers Gaussian with a noise scale of their own.
    """
    if codec is not None and codec.columns[feature].categories is not None:
        return "categorical"
    low, high, fraction, _, n_observed = column.ranges
    if n_observed[0] and low[0] >= 0 and high[0] <= 1:
        return "bernoulli" if fraction is None else "continuous_bernoulli"
    return COUNTS if column.look_like_counts() else "gaussian_features"


def with_categories(group, codec):
    """Return a group whose likelihood has the categories of a frame, also those without a sample."""
    if codec is None or not is_categorical(group.likelihood):
        return group
    categories = [codec.columns[feature].categories for feature in group.features]
    return group._replace(likelihood=Categorical([max(1, len(each)) for each in categories]))
