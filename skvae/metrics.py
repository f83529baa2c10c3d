"""Scores of clusterings that scikit-learn does not have. Labels only score here; no model is chosen with them."""

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.metrics.cluster import contingency_matrix
from sklearn.utils import check_array, check_consistent_length, column_or_1d

__all__ = ["clustering_accuracy_score", "match_clusters", "matched_confusion_matrix"]


def _contingency(labels_true, labels_pred):
    """Classes, clusters, their counts (n_classes, n_clusters) and the one-to-one matching with the largest sum."""
    labels_true, labels_pred = _check_labels(labels_true), _check_labels(labels_pred)
    check_consistent_length(labels_true, labels_pred)
    counts = contingency_matrix(labels_true, labels_pred)
    return np.unique(labels_true), np.unique(labels_pred), counts, linear_sum_assignment(counts, maximize=True)


def _check_labels(labels):
    labels = column_or_1d(labels)
    return check_array(labels, ensure_2d=False, dtype=None, input_name="labels")


def match_clusters(labels_true, labels_pred):
    """Match clusters to classes one to one, so that as many rows as possible agree.

    Parameters
    ----------
    labels_true : array-like of shape (n_samples,)
        Classes; numbers or strings.
    labels_pred : array-like of shape (n_samples,)
        Clusters; numbers or strings.

    Returns
    -------
    classes : dict
        The class of each matched cluster. With more clusters than classes, some clusters are not in it.

    References
    ----------
    H. W. Kuhn, The Hungarian method for the assignment problem, 1955.

    Examples
    --------
    >>> from skvae.metrics import match_clusters
    >>> match_clusters(["a", "a", "b", "b"], [1, 1, 0, 1])
    {1: 'a', 0: 'b'}
    """
    classes, clusters, _, (rows, columns) = _contingency(labels_true, labels_pred)
    return dict(zip(clusters[columns].tolist(), classes[rows].tolist(), strict=True))


def clustering_accuracy_score(labels_true, labels_pred):
    """Accuracy under the best one-to-one matching of clusters to classes.

    Parameters
    ----------
    labels_true : array-like of shape (n_samples,)
        Classes; numbers or strings.
    labels_pred : array-like of shape (n_samples,)
        Clusters; numbers or strings. There may be more or fewer of them than classes.

    Returns
    -------
    accuracy : float
        Share of rows whose cluster is matched to their class, between 0 and 1.

    References
    ----------
    J. Xie, R. Girshick and A. Farhadi, Unsupervised Deep Embedding for Clustering Analysis, 2016 (equation 10).

    Examples
    --------
    >>> from skvae.metrics import clustering_accuracy_score
    >>> clustering_accuracy_score([0, 0, 1, 1], [1, 1, 0, 0])
    1.0
    >>> clustering_accuracy_score(["a", "a", "b", "b"], [1, 1, 0, 1])
    0.75
    """
    _, _, counts, matching = _contingency(labels_true, labels_pred)
    return float(counts[matching].sum() / counts.sum())


def matched_confusion_matrix(labels_true, labels_pred):
    """Confusion matrix whose columns are clusters, in the order of the classes they are matched to.

    Parameters
    ----------
    labels_true : array-like of shape (n_samples,)
        Classes; numbers or strings.
    labels_pred : array-like of shape (n_samples,)
        Clusters; numbers or strings.

    Returns
    -------
    matrix : ndarray of shape (n_classes, n_clusters)
        Counts. Columns of matched clusters come first, in the order of their classes, then the others in sorted order.
        With as many clusters as classes, matched pairs are on the diagonal.
    clusters : ndarray of shape (n_clusters,)
        The cluster of each column.

    Examples
    --------
    >>> from skvae.metrics import matched_confusion_matrix
    >>> matrix, clusters = matched_confusion_matrix([0, 0, 1, 1], [5, 5, 3, 5])
    >>> matrix
    array([[2, 0],
           [1, 1]])
    >>> clusters
    array([5, 3])
    """
    _, clusters, counts, (_, columns) = _contingency(labels_true, labels_pred)
    others = np.setdiff1d(np.arange(len(clusters)), columns)
    order = np.concatenate([columns, others]).astype(int)
    return counts[:, order], clusters[order]
