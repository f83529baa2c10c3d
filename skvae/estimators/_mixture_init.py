"""Initialization of a mixture by the user: parameters, labels, responsibilities, a clusterer."""

import warnings

import numpy as np
import torch
from sklearn.base import clone
from sklearn.utils import check_array
from sklearn.utils.validation import has_fit_parameter

from ..data.arrays import host_array, named_in_errors, to_tensor
from ..data.labels import read_labels, sorted_classes
from ..data.messages import shown
from ..data.samples import is_lazy
from ..fitting.distributed import alone, current_group
from ..fitting.mixture_init import one_hot
from ..fitting.rows import row_chunks
from ..fitting.weighted_rows import WeightedRows, sample_indices
from ._base import TorchEstimator
from ._fit import fit_seed

SUM_TOLERANCE = 1e-6  # of sums that should be one


def check_init(name, value, shape):
    """Return an array-like of some shape as a float64 array.

    Raises
    ------
    ValueError
        If it has another shape, or is not finite.
    """
    settings = {"ensure_2d": False, "allow_nd": True, "ensure_min_samples": 0, "input_name": name}
    with named_in_errors(name):
        value = check_array(host_array(value), dtype=np.float64, **settings)
    if value.shape != shape:
        raise ValueError(f"{name} should have the shape {shape}, but it has the shape {value.shape}.")
    return value


def check_component_weights(name, value, n_components):
    """Return weights of components, between zero and one and summing to one.

    Raises
    ------
    ValueError
        If they are not.
    """
    weights, tolerance = check_init(name, value, (n_components,)), _sum_tolerance(value)
    total = weights.sum()
    if (weights < 0).any() or (weights > 1).any() or not np.allclose(total, 1, atol=tolerance):
        raise ValueError(
            f"{name} should be between 0 and 1 and sum to 1, but its values are between {shown(weights.min(), 0, 1)} "
            f"and {shown(weights.max(), 0, 1)} and sum to {shown(total, 1)}."
        )
    return weights if tolerance == SUM_TOLERANCE else weights / total


def _sum_tolerance(value):
    """Return how far a sum of numbers may be from one: more where they have few digits, as those of bfloat16."""
    dtype = getattr(value, "dtype", None)
    if isinstance(dtype, torch.dtype):
        return max(SUM_TOLERANCE, torch.finfo(dtype).eps) if dtype.is_floating_point else SUM_TOLERANCE
    is_float = isinstance(dtype, np.dtype) and dtype.kind == "f"
    return max(SUM_TOLERANCE, float(np.finfo(dtype).eps)) if is_float else SUM_TOLERANCE


def check_precisions_init(value, n_components, n_features, covariance_type, family):
    """Return covariances and factor, as tensors with all axes, from precisions in the shape of ``precisions_``.

    Raises
    ------
    ValueError
        If the shape is another one, or the precisions are not positive definite.
    """
    precisions = check_init("precisions_init", value, family.compact_shape(n_components, n_features))
    precisions = family.expand(torch.tensor(precisions))
    factor, positive = family.factor_from_precisions(precisions)
    if not (positive.all() and family.is_symmetric(precisions)):
        raise ValueError(f"precisions_init should be {family.requirement} for covariance_type={covariance_type!r}.")
    return family.covariances(factor), factor


def responsibilities_from(init_params, samples, y, n_components, random_state):
    """Return labels (n,) or responsibilities (n, k) of the samples, from labels, responsibilities or a clusterer.

    Parameters
    ----------
    init_params : "labels", array-like of shape (n_passed, n_components), or clusterer
        A clusterer is fitted to a random sample where X is read a chunk at a time, and predicts the labels of X.
    samples : WeightedSamples
    y : array-like of shape (n_passed,) or None
        Class labels for "labels"; -1 is unlabelled.
    n_components : int
    random_state : int, RandomState instance or None
        Seeds a clusterer that has no seed.

    Raises
    ------
    ValueError
        If they do not fit the samples or the number of components.
    """
    if isinstance(init_params, str):
        return _class_labels(y, samples, n_components)
    if hasattr(init_params, "fit_predict"):
        return _cluster_labels(init_params, samples, n_components, random_state)
    with named_in_errors("init_params"):
        resp = check_array(host_array(init_params), dtype=np.float64, input_name="init_params")
    shape = samples.n_passed, n_components
    if resp.shape != shape:
        raise ValueError(
            f"init_params as an array should hold responsibilities of shape {shape}, one row for each row of X, but it "
            f"has the shape {resp.shape}."
        )
    sums, tolerance = resp.sum(axis=1), _sum_tolerance(init_params)
    wrong = ~(np.isclose(sums, 1, atol=tolerance) | (sums == 0))
    if (resp < 0).any() or wrong.any():
        row = f", that of row {wrong.argmax()} to {shown(sums[wrong.argmax()], 1)}" if wrong.any() else ""
        raise ValueError(
            "init_params as an array should hold responsibilities: not negative, and summing to 1 in each row (or to 0 "
            f"for a row without any), but the values begin at {shown(resp.min(), 0)} and rows sum to up to "
            f"{shown(sums.max(), 1)}{row}."
        )
    if tolerance > SUM_TOLERANCE:
        resp = resp / np.where(sums > 0, sums, 1)[:, None]
    return resp[samples.selected]


def responsibility_function(resp, n_components, dtype, device):
    """Return the function from a slice to responsibilities (b, k), from labels (n,) or responsibilities (n, k)."""
    if resp.ndim == 2:
        return lambda rows: to_tensor(resp[rows], dtype, device)
    labels = to_tensor(resp, torch.int64, device)
    return lambda rows: one_hot(labels[rows], n_components, dtype)


def _class_labels(y, samples, n_components):
    """Return indices among the sorted classes; -1 for samples without a label."""
    if y is None:
        raise ValueError("init_params='labels' needs y, the labels of the samples (-1: unlabelled); give fit(X, y).")
    labels, n_passed = read_labels(y, unlabelled=-1), samples.n_passed
    if labels.n_samples != n_passed:
        raise ValueError(f"y should have a label for each of the {n_passed} rows of X, but it has {labels.n_samples}.")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The number of unique classes")  # one label for each class is enough
        classes, indices = sorted_classes(labels.values)
    codes = np.full(n_passed, -1)
    codes[labels.rows] = indices
    return _joint_codes(codes[samples.selected], classes, n_components, "y holds {} classes (-1 left out)")


def _cluster_labels(clusterer, samples, n_components, random_state):
    """Return labels by a clone of the clusterer, which gets a seed if it takes one and has none."""
    clusterer, X, weight = clone(clusterer), samples.X, samples.weight
    if clusterer.get_params().get("random_state", 0) is None:
        clusterer.set_params(random_state=fit_seed(random_state))
    takes_weight = has_fit_parameter(clusterer, "sample_weight")
    group = current_group()
    # Estimators of this package fit the samples of all processes; others fit those of their own process.
    is_joint = group.size == 1 or isinstance(clusterer, TorchEstimator)
    if any(group.all_gather_int(is_lazy(X))) or not is_joint:
        generator = torch.Generator().manual_seed(fit_seed(random_state))
        labels = _labels_from_sample(clusterer, X, weight, n_components, takes_weight, generator)
    else:
        labels = clusterer.fit_predict(X, **({"sample_weight": weight} if takes_weight and weight is not None else {}))
    labels = np.asarray(labels)
    clusters, codes = np.unique(labels, return_inverse=True)
    message = f"init_params={clusterer!r} found {{}} clusters"
    return _joint_codes(np.where(labels >= 0, codes, -1), clusters, n_components, message)


def _labels_from_sample(clusterer, X, weight, n_components, takes_weight, generator):
    """Return labels by a clusterer that is fitted to a random sample, the same in all processes."""
    if not hasattr(clusterer, "predict"):
        raise ValueError(
            f"X is read a chunk at a time, or by several processes, but init_params={clusterer!r} has no predict and "
            "labels only samples that it is fitted to; give a clusterer with predict, or the labels as y with "
            "init_params='labels'."
        )
    group, weight = current_group(), None if weight is None else torch.from_numpy(weight)
    indices, sample_weight = sample_indices(WeightedRows(X, weight, group), n_components, generator)
    sample = group.all_gather(torch.from_numpy(X[indices.numpy()])).numpy()
    settings = {}
    if takes_weight and sample_weight is not None:
        settings["sample_weight"] = group.all_gather(sample_weight).numpy()
    with alone():
        clusterer.fit(sample, **settings)
    return np.concatenate([clusterer.predict(X[rows]) for rows in row_chunks(*X.shape)])


def _joint_codes(codes, classes, n_components, message):
    """Return indices of labels among the classes of all processes, from those among the classes of this one.

    Parameters
    ----------
    codes : ndarray of shape (n_samples,)
        Indices into ``classes``; -1 for samples without a label.
    classes : ndarray of shape (n_classes,)
        In sorted order.
    n_components : int
        The number of classes that there should be.
    message : str
        Begins the error if there are not; braces stand for their number.
    """
    own = np.unique(codes[codes >= 0])
    joint_classes = np.unique(np.concatenate(current_group().all_gather_object(classes[own])))
    if len(joint_classes) != n_components:
        raise ValueError(f"{message.format(len(joint_classes))}, but n_components={n_components}; let the two agree.")
    joint = np.full(len(codes), -1)
    joint[codes >= 0] = np.searchsorted(joint_classes, classes[codes[codes >= 0]])
    return joint
