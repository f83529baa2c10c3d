"""What a user may give a mixture to start from: parameters, labels, responsibilities, a clusterer."""

import warnings

import numpy as np
import torch
from sklearn.base import clone
from sklearn.utils import check_array
from sklearn.utils.validation import has_fit_parameter

from ..data.arrays import host_array, named_in_errors, to_tensor
from ..data.labels import read_labels, sorted_classes
from ..data.messages import shown
from ..data.samples import LazySamples
from ..fitting.chunks import row_chunks
from ..fitting.distributed import alone, current_group
from ..fitting.starts import from_labels
from ..fitting.streams import sample_indices
from ._base import TorchEstimator

SLACK = 1e-6  # of sums that should be one


def check_init(name, value, shape):
    """A float64 array of the right shape, or an error that says what is wrong."""
    settings = {"ensure_2d": False, "allow_nd": True, "ensure_min_samples": 0, "input_name": name}
    with named_in_errors(name):
        value = check_array(host_array(value), dtype=np.float64, **settings)
    if value.shape != shape:
        raise ValueError(f"{name} should have the shape {shape}, but it has the shape {value.shape}.")
    return value


def check_component_weights(name, value, n_components):
    """Weights of components, between zero and one and summing to one."""
    weights, slack = check_init(name, value, (n_components,)), _slack_of_sum(value)
    total = weights.sum()
    if (weights < 0).any() or (weights > 1).any() or not np.allclose(total, 1, atol=slack):
        raise ValueError(
            f"{name} should be between 0 and 1 and sum to 1, but its values are between {shown(weights.min(), 0, 1)} "
            f"and {shown(weights.max(), 0, 1)} and sum to {shown(total, 1)}."
        )
    return weights if slack == SLACK else weights / total


def _slack_of_sum(value):
    """How far a sum of numbers may be from one: more where they have few digits, as those of bfloat16."""
    dtype = getattr(value, "dtype", None)
    if isinstance(dtype, torch.dtype):
        return max(SLACK, torch.finfo(dtype).eps) if dtype.is_floating_point else SLACK
    return max(SLACK, float(np.finfo(dtype).eps)) if isinstance(dtype, np.dtype) and dtype.kind == "f" else SLACK


def check_precisions_init(value, n_components, n_features, covariance_type, family):
    """Factor and covariances, as tensors with all axes, of precisions in the published shape."""
    precisions = check_init("precisions_init", value, family.compact_shape(n_components, n_features))
    precisions = family.expand(torch.tensor(precisions))
    factor, positive = family.factor_from_precisions(precisions)
    symmetric = precisions.ndim < 3 or torch.allclose(precisions, precisions.mT)
    if not (positive.all() and symmetric):
        kind = "symmetric and positive definite" if precisions.ndim == 3 else "positive"
        raise ValueError(f"precisions_init should be {kind} for covariance_type={covariance_type!r}.")
    return factor, family.covariances(factor)


def given_responsibilities(init_params, X, y, n_components, *, weight, counted, n_given, draw_seed):
    """Component of each row that counts (n,), or responsibilities (n, k), that ``init_params`` and y say.

    Parameters
    ----------
    init_params : "labels", array-like of shape (n_given, n_components), or clusterer
    X : ndarray or LazySamples of shape (n, n_features)
        Rows that count. A clusterer is fitted to a sample of a table, and predicts the labels of its rows.
    y : array-like of shape (n_given,) or None
        Class labels for "labels"; -1 is unlabelled.
    weight : ndarray of shape (n,) or None
        Weights of these rows, passed to a clusterer that takes them.
    counted : slice or ndarray of shape (n_given,)
        Selects the rows that count among the rows given.
    n_given : int
        Number of rows given.
    draw_seed : callable
        Gives a seed for a clusterer that has none.
    """
    if isinstance(init_params, str):
        return _class_labels(y, n_components, counted, n_given)
    if hasattr(init_params, "fit_predict"):
        return _cluster_labels(init_params, X, n_components, weight, draw_seed)
    with named_in_errors("init_params"):
        resp = check_array(host_array(init_params), dtype=np.float64, input_name="init_params")
    if resp.shape != (n_given, n_components):
        raise ValueError(
            f"init_params as an array should hold responsibilities of shape {(n_given, n_components)}, one row for "
            f"each row of X, but it has the shape {resp.shape}."
        )
    sums, slack = resp.sum(axis=1), _slack_of_sum(init_params)
    wrong = ~(np.isclose(sums, 1, atol=slack) | (sums == 0))
    if (resp < 0).any() or wrong.any():
        row = f", that of row {wrong.argmax()} to {shown(sums[wrong.argmax()], 1)}" if wrong.any() else ""
        raise ValueError(
            "init_params as an array should hold responsibilities: not negative, and summing to 1 in each row (or to 0 "
            f"for a row without any), but the values begin at {shown(resp.min(), 0)} and rows sum to up to "
            f"{shown(sums.max(), 1)}{row}."
        )
    if slack > SLACK:
        resp = resp / np.where(sums > 0, sums, 1)[:, None]
    return resp[counted]


def responsibilities_of(given, dtype, device, n_components):
    """The function from a slice to the responsibilities of its rows, that EM starts from."""
    if given.ndim == 1:
        return from_labels(to_tensor(given, torch.int64, device), n_components, dtype)
    return lambda rows: to_tensor(given[rows], dtype, device)


def _class_labels(y, n_components, counted, n_given):
    """Places of the labels among the sorted classes; -1 for rows without a label."""
    if y is None:
        raise ValueError("init_params='labels' needs y, the labels of the rows (-1: unlabelled); give fit(X, y).")
    labels = read_labels(y, unlabelled=-1)
    if labels.n_samples != n_given:
        raise ValueError(f"y should have a label for each of the {n_given} rows of X, but it has {labels.n_samples}.")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The number of unique classes")  # one label for each class is enough
        classes, codes = sorted_classes(labels.values)
    places = np.full(n_given, -1)
    places[labels.rows] = codes
    places = places[counted]
    return _places(places, classes, n_components, "y holds {} classes (-1 left out)")


def _cluster_labels(clusterer, X, n_components, weight, draw_seed):
    """Labels of a clone of the clusterer, which gets a seed if it wants one and has none."""
    clusterer = clone(clusterer)
    if clusterer.get_params().get("random_state", 0) is None:
        clusterer.set_params(random_state=draw_seed())
    weighted = has_fit_parameter(clusterer, "sample_weight")
    group = current_group()
    # Estimators of this package fit the rows of all processes; others know their own alone.
    alike = group.size == 1 or isinstance(clusterer, TorchEstimator)
    if any(group.all_gather_int(isinstance(X, LazySamples))) or not alike:
        generator = torch.Generator().manual_seed(draw_seed())
        labels = _labels_from_sample(clusterer, X, n_components, weight, weighted, generator)
    else:
        labels = clusterer.fit_predict(X, **({"sample_weight": weight} if weighted and weight is not None else {}))
    labels = np.asarray(labels)
    found, codes = np.unique(labels, return_inverse=True)
    return _places(
        np.where(labels >= 0, codes, -1), found, n_components, f"init_params={clusterer!r} found {{}} clusters"
    )


def _labels_from_sample(clusterer, X, n_components, weight, weighted, generator):
    """Labels of rows by a clusterer that is fitted to a sample of them, the same in all processes."""
    if not hasattr(clusterer, "predict"):
        raise ValueError(
            f"X is read a chunk at a time, or by several processes, but init_params={clusterer!r} has no predict and "
            "labels only rows that it is fitted to; give a clusterer with predict, or the labels as y with "
            "init_params='labels'."
        )
    group, weight = current_group(), None if weight is None else torch.from_numpy(weight)
    indices, held = sample_indices(X, n_components, generator, weight, group)
    sample = group.all_gather(torch.from_numpy(X[indices.numpy()])).numpy()
    settings = {"sample_weight": group.all_gather(held).numpy()} if weighted and held is not None else {}
    with alone():
        clusterer.fit(sample, **settings)
    return np.concatenate([clusterer.predict(X[rows]) for rows in row_chunks(*X.shape)])


def _places(codes, classes, n_components, found):
    """Places of labels among the classes that occur in any process, from those among the classes of this one.

    Parameters
    ----------
    codes : ndarray of shape (n_samples,)
        Places among ``classes``; -1 for samples that do not count.
    classes : ndarray of shape (n_classes,)
        In sorted order.
    n_components : int
        As many classes as there should be.
    found : str
        Begins the error if there are not.
    """
    own = np.unique(codes[codes >= 0])
    everywhere = np.unique(np.concatenate(current_group().all_gather_object(classes[own])))
    if len(everywhere) != n_components:
        raise ValueError(f"{found.format(len(everywhere))}, but n_components={n_components}; let the two agree.")
    out = np.full(len(codes), -1)
    out[codes >= 0] = np.searchsorted(everywhere, classes[codes[codes >= 0]])
    return out
