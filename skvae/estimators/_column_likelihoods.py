"""Likelihoods of single columns: from a list, or chosen by the columns of a data frame."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from sklearn.utils._indexing import _get_column_indices

from ..data.frames import FrameCodec, are_flags, library_of, make_codec, merge_codecs, warn_of_identifiers
from ..fitting.distributed import current_group
from ..fitting.warnings import warn
from ..models import Categorical
from ..models.mixed import ColumnLikelihoods, Group
from ._likelihood_choice import choose_likelihood

COUNTS = "negative_binomial"  # likelihood of counts, where it is chosen


class ListedColumns(NamedTuple):
    """Columns of training data, before they become numbers."""

    codec: FrameCodec | None  # of a data frame that does not hold numbers alone
    features: list | None  # indices of the columns of each entry of a list of likelihoods


def list_columns(likelihood, X, shape):
    """Return the `ListedColumns` of training data.

    Parameters
    ----------
    likelihood : object
        The parameter of the estimator.
    X : DataFrame, array or samples of shape (n, d)
    shape : tuple or None
        That of images, which are no columns of different types.

    Raises
    ------
    ValueError
        If entries of a list have another form, if a column is in two of them, or if columns hold mixed values.
    """
    is_list = isinstance(likelihood, list | tuple)
    X = np.asarray(X) if isinstance(X, list | tuple) else X
    if is_list and len(getattr(X, "shape", ())) != 2:
        return ListedColumns(None, None)  # validation says what is wrong
    features = read_columns(likelihood, X) if is_list else None
    by_column = is_list or (isinstance(likelihood, str) and likelihood == "auto")
    if not by_column or shape is not None or library_of(X) is None:
        return ListedColumns(None, features)
    listed = zip(likelihood, features, strict=True) if is_list else ()
    categorical = [index for (_, each, _), part in listed if is_categorical(each) for index in part]
    codec = merge_codecs(current_group().all_gather_object(make_codec(X, categorical)))
    n_samples = sum(current_group().all_gather_int(len(X)))
    if current_group().rank == 0:
        warn_of_identifiers(codec, n_samples, categorical)
    return ListedColumns(codec, features)


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
        columns = columns(X) if callable(columns) else columns
        is_all = isinstance(columns, slice) and columns == slice(None)
        indices = list(range(X.shape[1])) if is_all else list(map(int, _get_column_indices(X, columns)))
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

    Each entry of a list is a group, and so are all other columns for which the same likelihood is chosen.

    Parameters
    ----------
    likelihood : object
        The parameter of the estimator.
    listed : ListedColumns
    columns : Columns
        Of the encoded data.

    Raises
    ------
    ValueError
        If a name is unknown, or if categories have a likelihood of numbers.
    """
    if listed.codec is None and listed.features is None:
        return None
    columns.check_observed()
    groups, owned = [], set()
    for (_, each, _), features in zip(likelihood if listed.features else (), listed.features or (), strict=True):
        if features and not (isinstance(each, str) and each == "auto"):
            groups.append(Group(choose_likelihood(each, columns.select(features)), features))
            owned.update(features)
    others = {}
    for feature in range(len(columns.ranges.low)):
        if feature not in owned:
            others.setdefault(automatic(columns, listed.codec, feature), []).append(feature)
    if COUNTS in others and current_group().rank == 0:
        names = columns.named(others[COUNTS])
        warn(
            f"Column(s) {names} of X hold whole numbers with a long tail, for which likelihood='auto' takes "
            f"{COUNTS!r}; if they are no counts, give likelihood=[('amounts', 'gaussian_features', {names})]."
        )
    groups += [Group(each, features) for each, features in others.items()]
    for group in groups if listed.codec is not None else ():
        check_categories(group, listed.codec)
    return ColumnLikelihoods([with_categories(group, listed.codec) for group in groups])


def automatic(columns, codec, feature):
    """Return the name of the likelihood of a column.

    Categories are categorical, and booleans, as flags of 0 and 1, Bernoulli. Counts are negative binomial, fractions
    between 0 and 1 continuous Bernoulli, and other numbers Gaussian with a noise scale of their own.
    """
    categories = None if codec is None else codec.columns[feature].categories
    if categories is not None and not are_flags(categories):
        return "categorical"
    if columns.ranges.low[feature] >= 0 and columns.ranges.high[feature] <= 1:
        return "bernoulli" if columns.ranges.whole[feature] else "continuous_bernoulli"
    return COUNTS if columns.select([feature]).look_like_counts() else "gaussian_features"


def check_categories(group, codec):
    """Raise if columns of categories have a likelihood of numbers by its name; a Bernoulli of booleans is none."""
    if not isinstance(group.likelihood, str) or is_categorical(group.likelihood):
        return
    for feature in group.features:
        column = codec.columns[feature]
        is_flag = group.likelihood == "bernoulli" and are_flags(column.categories)
        if column.categories is not None and not is_flag:
            raise ValueError(
                f"Column {column.name!r} of X holds categories, but its likelihood is {group.likelihood!r}; give it "
                "'categorical', or convert the column to numbers."
            )


def with_categories(group, codec):
    """Return a group whose likelihood has the categories of a frame, also those without a sample."""
    if codec is None or not is_categorical(group.likelihood):
        return group
    return group._replace(likelihood=Categorical(np.maximum(codec.n_categories[group.features], 1).tolist()))
