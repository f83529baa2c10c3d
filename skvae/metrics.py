"""Scores of clusterings and embeddings that scikit-learn does not have."""

import math
from numbers import Integral, Real

import numpy as np
from scipy import sparse
from scipy.optimize import linear_sum_assignment
from sklearn.utils import check_array, check_consistent_length, check_scalar
from sklearn.utils.validation import _check_sample_weight

from .data.arrays import FLOATS, host_array
from .data.frames import library_of
from .data.labels import check_types, is_missing, label_array, plain
from .models.images import check_channels_first

__all__ = [
    "active_units",
    "clustering_accuracy_score",
    "match_clusters",
    "matched_confusion_matrix",
    "reconstruction_error",
    "structural_similarity_score",
]


def _contingency(labels_true, labels_pred, sample_weight):
    """Return classes, clusters, their counts (n_classes, n_clusters), and the one-to-one matching with the largest sum.

    Other than scikit-learn's ``contingency_matrix``, counts may be weighted.
    """
    labels_true = _check_labels(labels_true, "labels_true")
    labels_pred = _check_labels(labels_pred, "labels_pred")
    check_consistent_length(labels_true, labels_pred)
    weight = np.ones(len(labels_true), dtype=np.int64)
    if sample_weight is not None:
        weight = _check_sample_weight(
            host_array(sample_weight), labels_true, dtype=np.float64, ensure_non_negative=True
        )
        if not weight.any():
            raise ValueError("Every sample_weight is zero; at least one sample should count.")
        labels_true, labels_pred, weight = labels_true[weight > 0], labels_pred[weight > 0], weight[weight > 0]
    classes, rows = np.unique(labels_true, return_inverse=True)
    clusters, columns = np.unique(labels_pred, return_inverse=True)
    counts = sparse.coo_array((weight, (rows, columns)), shape=(len(classes), len(clusters))).toarray()
    return classes, clusters, counts, linear_sum_assignment(counts, maximize=True)


def _check_labels(labels, name):
    """Return labels as an array; raise if one is missing."""
    labels = label_array(labels, name)
    if (n_missing := np.count_nonzero(is_missing(labels))) > 0:
        raise ValueError(
            f"Input {name} contains NaN: {n_missing} of {len(labels)} labels are missing; leave these samples out."
        )
    labels = plain(labels)
    check_types(labels, name)
    return check_array(labels, ensure_2d=False, dtype=None, input_name=name)


def match_clusters(labels_true, labels_pred, *, sample_weight=None):
    """Match clusters to classes one to one, so that as many samples as possible agree.

    Parameters
    ----------
    labels_true : array-like of shape (n_samples,)
        Classes; numbers or strings.
    labels_pred : array-like of shape (n_samples,)
        Clusters; numbers or strings.
    sample_weight : array-like of shape (n_samples,), default=None
        Nonnegative weights of the samples; an integer weight is as many equal samples, and a weight of zero none.

    Returns
    -------
    classes : dict
        The class of each matched cluster. With more clusters than classes, some clusters are not among the keys.

    References
    ----------
    H. W. Kuhn, The Hungarian method for the assignment problem, 1955.

    Examples
    --------
    >>> from skvae.metrics import match_clusters
    >>> match_clusters(["a", "a", "b", "b"], [1, 1, 0, 1])
    {1: 'a', 0: 'b'}
    """
    classes, clusters, _, (rows, columns) = _contingency(labels_true, labels_pred, sample_weight)
    return dict(zip(clusters[columns].tolist(), classes[rows].tolist(), strict=True))


def clustering_accuracy_score(labels_true, labels_pred, *, sample_weight=None):
    """Compute the accuracy under the best one-to-one matching of clusters to classes.

    Parameters
    ----------
    labels_true : array-like of shape (n_samples,)
        Classes; numbers or strings.
    labels_pred : array-like of shape (n_samples,)
        Clusters; numbers or strings. There may be more or fewer of them than classes.
    sample_weight : array-like of shape (n_samples,), default=None
        Nonnegative weights of the samples; an integer weight is as many equal samples, and a weight of zero none.

    Returns
    -------
    accuracy : float
        Share of the samples, or of their weight, whose cluster is matched to their class, between 0 and 1.

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
    _, _, counts, matching = _contingency(labels_true, labels_pred, sample_weight)
    return float(counts[matching].sum() / counts.sum())


def matched_confusion_matrix(labels_true, labels_pred, *, sample_weight=None):
    """Compute the confusion matrix of classes and clusters, with clusters in the order of their matched classes.

    Parameters
    ----------
    labels_true : array-like of shape (n_samples,)
        Classes; numbers or strings.
    labels_pred : array-like of shape (n_samples,)
        Clusters; numbers or strings.
    sample_weight : array-like of shape (n_samples,), default=None
        Nonnegative weights of the samples; an integer weight is as many equal samples, and a weight of zero none.

    Returns
    -------
    matrix : ndarray of shape (n_classes, n_clusters)
        Counts, or sums of weights. Columns of matched clusters come first, in the order of their classes, then the
        others in sorted order. With as many clusters as classes, matched pairs are on the diagonal.
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
    _, clusters, counts, (_, columns) = _contingency(labels_true, labels_pred, sample_weight)
    others = np.setdiff1d(np.arange(len(clusters)), columns)
    order = np.concatenate([columns, others]).astype(int)
    return counts[:, order], clusters[order]


def active_units(Z, *, threshold=0.01):
    """Count active latent dimensions: those in which latent codes vary between samples.

    Parameters
    ----------
    Z : array-like of shape (n_samples, n_components)
        Posterior means E[z | x], which are ``transform(X)`` of a :class:`~skvae.VAEEmbedder`.
    threshold : float, default=0.01
        Variance above which a dimension is active, in squared units of the latent space.

    Returns
    -------
    n_active : int
        Between 0 and ``n_components``.

    Raises
    ------
    ValueError
        If Z is not a finite 2-D array with two samples or more, or the threshold is negative.

    References
    ----------
    Y. Burda, R. Grosse and R. Salakhutdinov, Importance Weighted Autoencoders, 2016 (section 5.2).

    Examples
    --------
    >>> from skvae.metrics import active_units
    >>> active_units([[-1.0, 0.00, 3.0], [1.0, 0.01, 3.0]])
    1
    """
    Z = check_array(host_array(Z), dtype=FLOATS, ensure_min_samples=2, input_name="Z")
    check_scalar(threshold, "threshold", Real, min_val=0)
    return int((Z.var(axis=0, dtype=np.float64) > threshold).sum())


def reconstruction_error(estimator, X, *, sample_weight=None):
    """Compute the mean squared error between X and its reconstruction by an embedder.

    Parameters
    ----------
    estimator : estimator
        A fitted transformer with ``reconstruct`` or ``inverse_transform``: an embedder, a pipeline that ends in one, or
        scikit-learn's ``PCA`` to compare with.
    X : array-like of shape (n_samples, n_features)
        Data. Missing values (NaN), if the estimator takes them, do not count.
    sample_weight : array-like of shape (n_samples,), default=None
        Nonnegative weights of the samples.

    Returns
    -------
    error : float
        Mean over samples and features, in squared units of X; 0 is perfect.

    Raises
    ------
    TypeError
        If the estimator cannot decode, or was fitted to a data frame with categories.
    ValueError
        If X has another number of features than in the fit, or all values are missing or have a weight of zero.

    See Also
    --------
    sklearn.metrics.mean_squared_error : The same for two arrays.

    Examples
    --------
    >>> import numpy as np
    >>> from skvae import TorchPPCA
    >>> from skvae.metrics import reconstruction_error
    >>> X = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [3.0, 3.5]])
    >>> round(reconstruction_error(TorchPPCA(1).fit(X), X), 3)
    0.004
    """
    if hasattr(estimator, "reconstruct"):
        decoded = estimator.reconstruct(X)
        if library_of(decoded) is not None:
            raise TypeError(
                f"reconstruction_error compares numbers, but {type(estimator).__name__} was fitted to a data frame "
                "with categories; compare the columns of X and of estimator.reconstruct(X)."
            )
    elif hasattr(estimator, "inverse_transform"):
        decoded = estimator.inverse_transform(estimator.transform(X))
    else:
        advice = "an embedder that decodes, such as pipeline[:-1]" if hasattr(estimator, "steps") else "an embedder"
        raise TypeError(f"{type(estimator).__name__} has neither reconstruct nor inverse_transform; give {advice}.")
    X, sample_weight = host_array(X), host_array(sample_weight)
    X = check_array(X, dtype=FLOATS, ensure_all_finite="allow-nan", allow_nd=True).reshape(len(X), -1)
    squares = (X - np.asarray(host_array(decoded), dtype=np.float64).reshape(X.shape)) ** 2
    weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
    observed = ~np.isnan(X)
    total = weight @ observed.sum(axis=1)
    if not total > 0:
        raise ValueError("Every value of X is missing or has a sample_weight of zero; at least one should count.")
    return float(weight @ np.where(observed, squares, 0.0).sum(axis=1) / total)


def structural_similarity_score(X_true, X_pred, *, image_shape, data_range, win_size=7, sample_weight=None):
    """Compute the mean structural similarity of images and their reconstructions.

    It compares means, variances and covariances of the pixels in windows, and agrees with human perception better than
    the mean squared error.

    Parameters
    ----------
    X_true : array-like of shape (n_samples, n_features)
        Images, flattened; the shape ``(n_samples, *image_shape)`` is accepted as well.
    X_pred : array-like of the same shape
        Their reconstructions.
    image_shape : tuple of int, (height, width) or (channels, height, width)
        Shape of an image. The similarities of channels are averaged.
    data_range : float
        Difference between the largest and the smallest value that a pixel can have, such as 1 or 255.
    win_size : int, default=7
        Odd side of the square windows, in pixels.
    sample_weight : array-like of shape (n_samples,), default=None
        Nonnegative weights of the images.

    Returns
    -------
    score : float
        Between -1 and 1; 1 for equal images.

    Raises
    ------
    ImportError
        If scikit-image is not installed.
    ValueError
        If shapes are inconsistent, or a window is larger than the images.

    Notes
    -----
    This is scikit-image's ``structural_similarity`` with its settings: uniform windows and unbiased covariances.

    References
    ----------
    Z. Wang, A. C. Bovik, H. R. Sheikh and E. P. Simoncelli, Image Quality Assessment: From Error Visibility to
    Structural Similarity, 2004 (equation 13).

    Examples
    --------
    >>> import numpy as np
    >>> from skvae.metrics import structural_similarity_score
    >>> X = np.random.default_rng(0).uniform(size=(3, 64))
    >>> structural_similarity_score(X, X, image_shape=(8, 8), data_range=1)
    1.0
    >>> round(structural_similarity_score(X, X[::-1], image_shape=(8, 8), data_range=1), 2)
    0.36
    """
    try:
        from skimage.metrics import structural_similarity
    except ImportError as error:
        raise ImportError(
            "structural_similarity_score needs scikit-image; install it with 'pip install skvae[images]'."
        ) from error
    X_true, X_pred = (_check_images(X, image_shape, name) for X, name in ((X_true, "X_true"), (X_pred, "X_pred")))
    check_consistent_length(X_true, X_pred, sample_weight)
    check_scalar(data_range, "data_range", Real, min_val=0, include_boundaries="neither")
    check_scalar(win_size, "win_size", Integral, min_val=1)
    if win_size % 2 == 0 or win_size > min(X_true.shape[2:]):
        raise ValueError(
            f"win_size={win_size} should be odd and at most the smaller side of the images, {min(X_true.shape[2:])}."
        )
    weight = _check_sample_weight(host_array(sample_weight), X_true, dtype=np.float64, ensure_non_negative=True)
    settings = {"win_size": win_size, "data_range": data_range, "channel_axis": 0}
    scores = [structural_similarity(*pair, **settings) for pair in zip(X_true, X_pred, strict=True)]
    return float(np.average(scores, weights=weight))


def _check_images(X, image_shape, name):
    """Return images as an array (n, channels, height, width)."""
    check_channels_first(image_shape)
    X = check_array(host_array(X), dtype=FLOATS, allow_nd=True, input_name=name)
    shape = tuple(image_shape)
    if X.ndim == 4 and X.shape[1:] != shape and X.shape[-1:] + X.shape[1:-1] == shape:
        raise ValueError(
            f"{name} has the shape {X.shape}, with channels last, but image_shape={image_shape!r}; give "
            f"np.moveaxis({name}, -1, 1)."
        )
    if len(shape) not in (2, 3) or X.shape[1:] not in ((math.prod(shape),), shape):
        raise ValueError(
            f"{name} has the shape {X.shape}, but image_shape={image_shape!r} was given; it should be (height, width) "
            "or (channels, height, width) of its images."
        )
    return X.reshape(len(X), *(1, *shape)[-3:])
