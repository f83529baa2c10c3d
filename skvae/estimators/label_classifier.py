"""Classifier whose clusters are named by a few labels."""

from numbers import Integral
from typing import ClassVar

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.sparse import issparse
from sklearn import get_config
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, _fit_context, clone
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import accuracy_score
from sklearn.pipeline import Pipeline
from sklearn.utils import _safe_indexing, check_consistent_length, get_tags
from sklearn.utils._param_validation import HasMethods, StrOptions
from sklearn.utils.metadata_routing import MetadataRouter, MethodMapping, process_routing
from sklearn.utils.validation import _num_samples, check_is_fitted, has_fit_parameter
from torch.utils.data import Dataset, Subset

from ..data.arrays import device_dtype, host_array, to_tensor
from ..data.labels import read_class_labels, sorted_classes
from ..data.torch_datasets import dataset_of
from ..data.weights import check_not_text, nonnegative_weights
from ..fitting.warnings import warn
from ._base import CheckedParametersMixin
from ._fit import transactional

MAX_NAMED = 10  # clusters that a warning names


def majority(counts):
    """Give probability one to the most frequent class of each cluster, the first of equally frequent ones."""
    return np.eye(counts.shape[1])[counts.argmax(axis=1)]


def proportional(counts):
    """Return the frequencies of the classes in each cluster."""
    return counts / counts.sum(axis=1, keepdims=True)


def hungarian(counts):
    """Give probability one to the class that a cluster is matched to, one to one, else to its majority class.

    A cluster and a class without a common sample are no match, although the best matching may have to pair them.
    """
    table = majority(counts)
    clusters, classes = linear_sum_assignment(counts, maximize=True)
    matched = counts[clusters, classes] > 0
    table[clusters[matched]] = np.eye(counts.shape[1])[classes[matched]]
    return table


ASSIGNMENTS = {"majority": majority, "proportional": proportional, "hungarian": hungarian}


class ClusterLabelClassifier(ClassifierMixin, MetaEstimatorMixin, CheckedParametersMixin, BaseEstimator):
    """Classifier from clusters that are found without labels and named by a few labelled samples.

    `fit` clusters all samples and does not show their labels to the clusterer. The labelled samples then estimate
    P(class | cluster), and ``predict_proba(x)`` is the sum over clusters of P(cluster | x) P(class | cluster).

    Parameters
    ----------
    estimator : estimator
        Clusterer or mixture with ``fit`` and ``predict``, or a pipeline that ends in one; it is cloned. If it has
        ``predict_proba``, as mixtures do, P(cluster | x) is that, else one for the predicted cluster. Clusterers that
        cannot assign new samples, such as :class:`sklearn.cluster.DBSCAN`, cannot be used. A
        :class:`sklearn.frozen.FrozenEstimator` around a fitted one is not fitted again.

    assignment : {"majority", "proportional", "hungarian"}, default="majority"
        How P(class | cluster) follows from the labelled samples of a cluster.

        - "majority": one for their most frequent class; of equally frequent ones, the first in ``classes_``.
        - "proportional": the frequencies of their classes.
        - "hungarian": clusters and classes are matched one to one, so that as many labelled samples as possible agree.
          Clusters that are left over, or would be paired with a class that none of their samples has, take their
          majority class. With fewer clusters than classes, some classes are never predicted.

    unlabelled : "auto", int, str or None, default="auto"
        Value of y that marks samples without a label. None, NaN, NA and NaT always do. "auto": -1 if the labels are
        integers, unless -1 and 1 are the only ones, which then are two classes, as they usually are; and the number -1
        among strings. None: no other value.

    Attributes
    ----------
    estimator_ : estimator
        The fitted clusterer.
    classes_ : ndarray of shape (n_classes,)
        Classes in sorted order.
    class_prior_ : ndarray of shape (n_classes,)
        Frequencies of the classes among all labelled samples.
    counts_ : ndarray of shape (n_clusters, n_classes)
        Numbers of labelled samples, or their weights, by cluster (the most probable one) and class.
    table_ : ndarray of shape (n_clusters, n_classes)
        P(class | cluster). Clusters without a labelled sample have ``class_prior_``.
    cluster_labels_ : ndarray of shape (n_samples,)
        Cluster of each training sample, labelled or not.
    n_features_in_ : int
        Number of features, if the clusterer knows it.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, if X has names that are all strings.

    See Also
    --------
    skvae.metrics.clustering_accuracy_score : Score of clusters that are matched to classes.
    sklearn.semi_supervised.SelfTrainingClassifier : Labels from a classifier for samples without one.

    Notes
    -----
    Clusters are numbered from 0. Samples in no cluster (label -1), and new samples in a cluster without a training
    sample, get ``class_prior_``.

    Labels are counted in the most probable cluster of their sample. Weighting them by P(cluster | x) would blur
    the table a second time, after the sum over clusters in ``predict_proba``.

    References
    ----------
    O. Chapelle, B. Schölkopf and A. Zien (editors), Semi-Supervised Learning, 2006 (section 1.2.2, cluster-then-label).
    H. W. Kuhn, The Hungarian method for the assignment problem, 1955.

    Examples
    --------
    >>> import numpy as np
    >>> from skvae import ClusterLabelClassifier, TorchGMM
    >>> X = np.array([[0.0], [0.2], [0.4], [7.0], [7.3], [7.5]])
    >>> y = np.array(["low", None, None, None, "high", None])
    >>> classifier = ClusterLabelClassifier(TorchGMM(2, random_state=0)).fit(X, y)
    >>> classifier.predict([[0.1], [7.1]]).tolist()
    ['low', 'high']
    >>> classifier.predict_proba([[7.1]]).round(3)
    array([[1., 0.]])
    """

    _parameter_constraints: ClassVar[dict] = {
        "estimator": [HasMethods(["fit", "predict"])],
        "assignment": [StrOptions(set(ASSIGNMENTS))],
        "unlabelled": [str, Integral, None],
    }
    _fitted_schema: ClassVar[dict] = {
        **{"classes_": ("c", "OUbiuf"), "cluster_labels_": ("n", "iu"), "class_prior_": "c"},
        **{"counts_": "kc", "table_": "kc"},
    }

    def __init__(self, estimator, *, assignment="majority", unlabelled="auto"):
        self.estimator = estimator
        self.assignment = assignment
        self.unlabelled = unlabelled

    @_fit_context(prefer_skip_nested_validation=False)  # the parameters of the clusterer are the user's as well
    @transactional
    def fit(self, X, y, sample_weight=None, **fit_params):
        """Find clusters in all samples, and learn their classes from the labelled ones.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training data in any form that the clusterer takes.
        y : array-like of shape (n_samples,)
            Classes, integers or strings; None, NaN, NA, NaT and the value of ``unlabelled`` for samples without. A
            list, an array, a Series of pandas or polars, or a tensor. The string "nan" is a class.
        sample_weight : array-like of shape (n_samples,), default=None
            Nonnegative weights of the samples. They are passed to the clusterer if it takes them, and count labels.
        **fit_params : dict
            Passed to ``estimator.fit``, or routed if metadata routing is enabled.

        Returns
        -------
        self : ClusterLabelClassifier
            The fitted classifier.

        Raises
        ------
        ValueError
            If no sample is labelled, no labelled sample has a positive weight, or y is not one class for each sample,
            but for example real numbers or one-hot vectors.
        TypeError
            If some classes are strings and some numbers.

        Warns
        -----
        UserWarning
            If clusters have no labelled sample, or if the clusterer does not take the weights.
        """
        X = dataset_of(X)
        rows, labels, mark, _ = read_class_labels(y, self.unlabelled)
        sample_weight = checked_weights(sample_weight, X, y)
        weight = np.ones(_num_samples(y)) if sample_weight is None else sample_weight
        classes, codes = sorted_classes(labels)
        if len(labels):
            check_labelled_weight(weight[rows])

        # None is given as y because FrozenEstimator.fit insists on one.
        estimator = clone(self.estimator).fit(X, None, **self._params_of_estimator(sample_weight, fit_params))
        clusters, n_clusters = hard_clusters(estimator, X)

        inside = clusters[rows] >= 0
        shape = n_clusters, len(classes)
        cells = np.ravel_multi_index((clusters[rows][inside], codes[inside]), shape)
        counts = np.bincount(cells, weight[rows][inside], minlength=n_clusters * len(classes)).reshape(shape)
        prior = np.bincount(codes, weight[rows], minlength=len(classes))

        self.estimator_, self.classes_, self.cluster_labels_ = estimator, classes, clusters
        self.counts_, self.class_prior_, self._mark = counts, prior / prior.sum(), mark
        self._precision = held_dtype(X)
        labelled = counts.sum(axis=1) > 0
        self.table_ = np.tile(self.class_prior_, (n_clusters, 1))
        self.table_[labelled] = ASSIGNMENTS[self.assignment](counts[labelled])
        warn_of_unlabelled(labelled)
        return self

    def predict(self, X):
        """Predict the most probable class of each sample.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.

        Returns
        -------
        y : ndarray of shape (n_samples,)
            Classes; an array also for a tensor if they are strings.
        """
        best = self.predict_proba(X).argmax(axis=1)
        if isinstance(best, torch.Tensor) and self.classes_.dtype.kind in "biuf":
            return to_tensor(self.classes_, device_dtype(self.classes_.dtype, best.device), best.device)[best]
        return self.classes_[host_array(best)]

    def predict_proba(self, X):
        """Predict probabilities of the classes for each sample.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes)
            Sum over clusters of P(cluster | x) P(class | cluster), in the order of ``classes_``. Rows sum to one.
        """
        check_is_fitted(self)
        if hasattr(self.estimator_, "predict_proba"):
            resp = self.estimator_.predict_proba(X)
            if isinstance(resp, torch.Tensor):
                return resp @ torch.from_numpy(self.table_).to(resp)
            return resp @ self.table_.astype(resp.dtype, copy=False)
        # k-means of scikit-learn cannot predict samples of another precision than it was fitted to.
        if self._precision is not None and (isinstance(X, np.ndarray) or issparse(X)) and X.dtype.kind in "fiub":
            X = X.astype(self._precision, copy=False)
        clusters, n_clusters = self.estimator_.predict(X), len(self.table_)
        is_named, table = (clusters >= 0) & (clusters < n_clusters), np.vstack([self.table_, self.class_prior_])
        if isinstance(clusters, torch.Tensor):
            dtype = X.dtype if X.is_floating_point() else device_dtype(table.dtype, clusters.device)
            return to_tensor(table, dtype, clusters.device)[torch.where(is_named, clusters, n_clusters)]
        return table[np.where(is_named, clusters, n_clusters)]

    def score(self, X, y, sample_weight=None):
        """Compute the share of the labelled samples whose class is predicted; samples without a label do not count.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.
        y : array-like of shape (n_samples,)
            Classes; unlabelled samples are marked as in `fit`.
        sample_weight : array-like of shape (n_samples,), default=None
            Nonnegative weights of the samples; an integer weight is as many equal samples, and a weight of zero none.

        Returns
        -------
        score : float
            Accuracy, between 0 and 1.

        Raises
        ------
        ValueError
            If no sample is labelled, no labelled sample has a positive weight, or y or the weights are not one for each
            sample.
        """
        check_is_fitted(self)
        X = dataset_of(X)
        weight = checked_weights(sample_weight, X, y)
        rows, labels, _, _ = read_class_labels(y, self._mark)
        if weight is not None:
            check_labelled_weight(weight[rows])
            counted = weight[rows] > 0
            rows, labels = rows[counted], labels[counted]
            weight = weight[rows]
        if len(rows) < _num_samples(y):
            X = Subset(X, rows.tolist()) if isinstance(X, Dataset) else _safe_indexing(X, rows)
        return accuracy_score(labels, host_array(self.predict(X)), sample_weight=weight)

    @property
    def n_features_in_(self):
        """Number of features."""
        return self.estimator_.n_features_in_

    @property
    def feature_names_in_(self):
        """Names of the features."""
        return self.estimator_.feature_names_in_

    def get_metadata_routing(self):
        """Return the metadata routing of this estimator.

        Returns
        -------
        routing : MetadataRouter
            ``fit`` uses what it requests, and gives the rest to the ``fit`` of the clusterer.
        """
        mapping = MethodMapping().add(caller="fit", callee="fit")
        return MetadataRouter(owner=self).add_self_request(self).add(estimator=self.estimator, method_mapping=mapping)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags = get_tags(self.estimator).input_tags
        return tags

    def _parameter_message(self, message, name, value):
        if name == "estimator" and hasattr(value, "fit_predict") and not hasattr(value, "predict"):
            last = type(value.steps[-1][1] if isinstance(value, Pipeline) else value).__name__
            return (
                f"{message} {last} labels the rows that it is fitted to and cannot label new ones; use a clusterer "
                "with predict, such as TorchMiniBatchKMeans, TorchGMM, VaDEClusterer or KMeans."
            )
        return super()._parameter_message(message, name, value)

    def _params_of_estimator(self, sample_weight, fit_params):
        """Return the parameters for the fit of the clusterer."""
        if get_config()["enable_metadata_routing"]:
            return process_routing(self, "fit", sample_weight=sample_weight, **fit_params).estimator.fit
        if sample_weight is None:
            return fit_params
        if has_fit_parameter(self.estimator, "sample_weight"):
            return fit_params | {"sample_weight": sample_weight}
        by_name = any(name.endswith("__sample_weight") for name in fit_params)
        if not by_name and not isinstance(self.estimator, FrozenEstimator):
            warn(
                f"{type(self.estimator).__name__}.fit takes no sample_weight, so the weights count labels but do not "
                "shape the clusters; for a step of a pipeline, give them by name as well (step__sample_weight=...).",
            )
        return fit_params


def checked_weights(sample_weight, X, y):
    """Return weights of samples in float64, or None if there are none.

    Raises
    ------
    ValueError
        If they are not finite, negative, or not one for each sample, or if X and y have different numbers of samples.
    """
    check_not_text(sample_weight)  # which has a length
    check_consistent_length(X, y, sample_weight)
    return None if sample_weight is None else nonnegative_weights(sample_weight, y)


def check_labelled_weight(weight):
    """Raise if no labelled sample has a positive weight."""
    if not weight.any():
        raise ValueError("Every labelled row has a sample_weight of zero; at least one row with a class should count.")


def hard_clusters(estimator, X):
    """Predict the cluster of each sample; return the clusters and their number.

    Raises
    ------
    ValueError
        If the estimator predicts no clusters.
    """
    if hasattr(estimator, "predict_proba"):
        resp = estimator.predict_proba(X)
        return resp.argmax(axis=1), resp.shape[1]
    clusters = np.asarray(estimator.predict(X))
    if clusters.ndim != 1 or clusters.dtype.kind not in "iu":
        raise ValueError(
            f"{type(estimator).__name__}.predict returned an array of shape {clusters.shape} and dtype "
            f"{clusters.dtype}; ClusterLabelClassifier needs a clusterer, which returns a whole number for each row."
        )
    return clusters, max(int(clusters.max()) + 1, 0)


def held_dtype(X):
    """Return the dtype in which clusterers of scikit-learn hold X; None for frames, whose columns have their own."""
    if hasattr(X, "dtypes"):
        return None
    return np.float32 if getattr(getattr(X, "dtype", None), "name", None) == "float32" else np.float64


def warn_of_unlabelled(labelled):
    """Warn of clusters without a labelled sample."""
    if labelled.all():
        return
    unlabelled = np.flatnonzero(~labelled).tolist()
    names = ", ".join(map(str, unlabelled[:MAX_NAMED])) + (", ..." if len(unlabelled) > MAX_NAMED else "")
    warn(
        f"{len(unlabelled)} of {len(labelled)} clusters have no labelled row ({names}); rows there get the frequencies "
        "of all labels.",
    )
