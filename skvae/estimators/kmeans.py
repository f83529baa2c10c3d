"""Mini-batch k-means."""

import math
from functools import partial
from numbers import Integral, Real
from typing import ClassVar

import numpy as np
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_array
from sklearn.utils._param_validation import Interval, StrOptions

from ..data.arrays import compute_dtype, host_array, named_in_errors, resolve_device, to_dtype, to_tensor
from ..data.chunks import map_chunks
from ..data.inputs import as_matrix
from ..data.tensors import as_tensor, batch_sampler, count_distinct_samples, on_device, sample_array
from ..data.weights import check_weights
from ..fitting.devices import in_float64, read, serial_if_small, to_device, wide_dtype
from ..fitting.distributed import current_group
from ..fitting.minibatch import (
    SEEDINGS,
    best_initialization,
    constant_rate,
    fit_mini_batches,
    partial_fit_step,
    rate_by_counts,
)
from ..fitting.nearest import MAX_CHUNK, NearestCenters, distances, squared_residuals
from ..fitting.rows import rows_in_cache
from ..fitting.warnings import warn
from ._base import TorchEstimator
from ._fit import batch_by_batch, check_processes, fit_method, fit_seed, row_count
from .export import Centers

MIN_FLOAT32_RATIO = 1e-4  # of the inertia to the spread of the centres: float32 has four digits of such distances
MAP_BYTES = 2**21  # of a chunk and what is computed from it, which stay in a cache
MAX_VALUE = {torch.float32: 1e16, torch.float64: 1e150}  # sums of squares of larger numbers can overflow


class TorchMiniBatchKMeans(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, TorchEstimator):
    """K-means on random mini-batches of the samples, on CPU or GPU.

    Parameters, attributes and results are those of :class:`sklearn.cluster.MiniBatchKMeans`. In each step, the samples
    of a batch are assigned to their nearest centres, and each centre moves towards the mean of its samples.

    Parameters
    ----------
    n_clusters : int, default=8
        Number of clusters.

    init : {"k-means++", "random"}, array-like of shape (n_clusters, n_features) or callable, default="k-means++"
        Initialization: samples far from one another, random samples, an array of centres (whose order the clusters
        have), or a function of ``X``, ``n_clusters`` and ``random_state`` that returns centres.

    max_iter : int, default=100
        Maximum number of epochs.

    batch_size : int, default=1024
        Samples in a batch, drawn with replacement and with probability proportional to their weight. If there are no
        more distinct samples than that, each batch is all samples.

    learning_rate : "counts" or float, default="counts"
        How far a centre moves towards the mean of its samples in the batch. "counts": it becomes the mean of all
        samples that it has seen. A float is the step of gradient descent on the quantization error, see Notes.

    tol : float, default=0.0
        The fit stops when the squared movement of the centres in a step, summed over centres, is at most this share of
        the mean variance of the features. 0: never.

    max_no_improvement : int or None, default=10
        The fit stops when the running mean of the inertia has not decreased for this number of steps. None: never.

    init_size : int, default=None
        Samples drawn for an initialization; None: three batches, or three samples for each cluster if three batches
        have fewer samples than there are clusters.

    n_init : int or "auto", default="auto"
        Number of initializations; that with the lowest inertia on a sample is used. "auto": 3 for "random" and for a
        callable, else 1.

    reassignment_ratio : float, default=0.01
        A centre that has seen less than this share of the weight of the busiest one is reassigned to a sample of the
        batch, drawn with probability proportional to its squared distance to its centre.

    compute_labels : bool, default=True
        Label the training data after the fit.

    random_state : int, RandomState instance or None, default=None
        Seed of the fit.

    verbose : int, default=0
        Print the inertia of each step.

    device : str or torch.device, default="auto"
        Device; "auto" is the first available of cuda, mps (for float32 data) and cpu.

    Attributes
    ----------
    cluster_centers_ : ndarray of shape (n_clusters, n_features)
        Centres.
    labels_ : ndarray of shape (n_samples,)
        Cluster of each training sample, if ``compute_labels``.
    inertia_ : float
        Weighted sum of the squared distances of the training samples to their centres; without ``compute_labels`` an
        estimate from the last batches.
    n_iter_ : int
        Number of epochs.
    n_steps_ : int
        Number of batches.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, if X has names that are all strings.

    See Also
    --------
    sklearn.cluster.MiniBatchKMeans : The same in NumPy and Cython.
    TorchGMM : Clusters with covariances and weights.

    Notes
    -----
    In a batch of weight B, the samples of a centre c have weight b and mean m. It moves by ``r (m - c)``. For "counts",
    ``r = b / n`` where n is the weight of all samples that the centre has seen, those of the batch included. For a
    float eta, ``r = min(1, 2 eta b / B)``. Without the limit this is a step of gradient descent, with the constant step
    eta, on the quantization error ``mean_i |x_i - c(i)|^2``; with it, no centre moves past the mean of its samples.

    Draws depend neither on the order of the samples nor on whether equal samples are repeated or have a weight: an
    integer weight is the same as that many equal samples, and epochs are counted in distinct samples.

    Of sparse matrices, batches are made dense, and the samples drawn for the initialization, which a callable as
    ``init`` gets as X. The draws are those from the dense array. Arrays on disk (memory maps, HDF5, zarr) that would be
    larger than a gigabyte as dense arrays are read a chunk at a time. Batches are then drawn from a pool in memory: as
    many samples as need 64 MB, but at least eight batches. The pool is initialized with a random sample of all samples,
    which the initialization uses (a callable gets it as X), and is renewed after every batch with runs of neighbouring
    samples from random places. Draws then depend on the order of the samples, and epochs are counted in samples. The
    same applies to sparse matrices with fewer distinct samples than a batch or an initialization has. `partial_fit`
    holds its batch in memory.

    References
    ----------
    L. Bottou and Y. Bengio, Convergence Properties of the K-Means Algorithms, 1995 (section 3).
    D. Sculley, Web-Scale K-Means Clustering, 2010 (algorithm 1).

    Examples
    --------
    >>> import numpy as np
    >>> from skvae import TorchMiniBatchKMeans
    >>> X = np.array([[1.0, 2], [1, 4], [1, 0], [10, 2], [10, 4], [10, 0]])
    >>> kmeans = TorchMiniBatchKMeans(n_clusters=2, init=[[0, 0], [12, 3]]).fit(X)
    >>> kmeans.cluster_centers_
    array([[ 1.,  2.],
           [10.,  2.]])
    >>> kmeans.predict([[0, 0], [12, 3]])
    array([0, 1])
    """

    _parameter_constraints: ClassVar[dict] = {
        "n_clusters": [Interval(Integral, 1, None, closed="left")],
        "init": [StrOptions(set(SEEDINGS)), callable, "array-like"],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [StrOptions({"counts"}), Interval(Real, 0, None, closed="neither")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "max_no_improvement": [Interval(Integral, 0, None, closed="left"), None],
        "init_size": [Interval(Integral, 1, None, closed="left"), None],
        "n_init": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "reassignment_ratio": [Interval(Real, 0, None, closed="left")],
        "compute_labels": ["boolean"],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
        "device": [str, torch.device],
    }
    _fitted_schema: ClassVar[dict] = {
        **{"cluster_centers_": "kd", "labels_": ("n", "iu"), "inertia_": float, "n_iter_": int, "n_steps_": int},
        **{"_counts": "k", "_n_features_out": int, "_partial_seed": int, "_in_float64": bool},
    }

    def _export_module(self, dtype):
        return Centers(self.cluster_centers_)

    def __init__(
        self,
        n_clusters=8,
        *,
        init="k-means++",
        max_iter=100,
        batch_size=1024,
        learning_rate="counts",
        tol=0.0,
        max_no_improvement=10,
        init_size=None,
        n_init="auto",
        reassignment_ratio=0.01,
        compute_labels=True,
        random_state=None,
        verbose=0,
        device="auto",
    ):
        self.n_clusters = n_clusters
        self.init = init
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.tol = tol
        self.max_no_improvement = max_no_improvement
        self.init_size = init_size
        self.n_init = n_init
        self.reassignment_ratio = reassignment_ratio
        self.compute_labels = compute_labels
        self.random_state = random_state
        self.verbose = verbose
        self.device = device

    @fit_method
    def fit(self, X, y=None, sample_weight=None):
        """Compute the clusters.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training data.
        y : Ignored
            Present for API consistency.
        sample_weight : array-like of shape (n_samples,), default=None
            Nonnegative weights of the samples. An initialization by an array or a callable ignores them.

        Returns
        -------
        self : TorchMiniBatchKMeans
            The fitted estimator.

        Raises
        ------
        ValueError
            If X is not a finite numeric array with at least ``n_clusters`` samples, or initial centres have another
            shape.

        Warns
        -----
        ConvergenceWarning
            If clusters are empty, as they are with fewer distinct samples than clusters.
        """
        passed = as_matrix(X)
        # The sampler finds values that are not finite: a pass over the samples less.
        X = self._validate(passed, reset=True, checks_finite=False)
        weight = self._check_data(X, sample_weight, min_samples=self.n_clusters)
        seed = fit_seed(self.random_state)
        self._warn_of_unused_parameters()
        vars(self).pop("_in_float64", None)

        with self._thread_limit(X):
            while True:  # at most twice
                generator = torch.Generator().manual_seed(seed)
                sampler = self._sampler(X, weight, generator)
                self._check_values(sampler, passed)
                fit = fit_mini_batches(
                    sampler,
                    self._initial_centers(X, sampler, generator, self._init_size()),
                    generator,
                    max_iter=self.max_iter,
                    batch_size=self.batch_size,
                    rates=self._rates(),
                    tol=self.tol,
                    max_no_improvement=self.max_no_improvement,
                    reassignment_ratio=self.reassignment_ratio,
                    report=_report if self.verbose and current_group().rank == 0 else None,
                )
                if not _needs_float64(fit.centers, fit.counts, fit.mean_inertia):
                    break
                self._in_float64 = True

        self.n_steps_, self.n_iter_ = fit.n_steps, -(-fit.n_steps * fit.batch_size // sampler.n_distinct)
        self.inertia_ = fit.mean_inertia * sampler.total_weight
        self._partial_seed = int(torch.randint(2**62, (), generator=generator))
        self._publish(fit.centers, fit.counts, sampler, X)
        if self.compute_labels:
            self._warn_of_empty_clusters(X)
        return self

    @batch_by_batch
    @fit_method
    def partial_fit(self, X, y=None, sample_weight=None):
        """Make one step with X as the batch; the first call chooses the initial centres among its samples.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Batch. A `torch.utils.data.DataLoader` or an iterator of batches is one step for each.
        y : Ignored
            Present for API consistency.
        sample_weight : array-like of shape (n_samples,), default=None
            Nonnegative weights of the samples.

        Returns
        -------
        self : TorchMiniBatchKMeans
            The estimator, with ``labels_`` and ``inertia_`` of this batch.

        Raises
        ------
        ValueError
            As for `fit`; later batches may have fewer samples than there are clusters.
        """
        is_first = not hasattr(self, "cluster_centers_")
        X = self._validate(X, reset=is_first)[:]  # as a dense array
        weight = self._check_data(X, sample_weight, min_samples=self.n_clusters if is_first else 1)
        if is_first:
            self._warn_of_unused_parameters(init_size=False)
        seed, n_done = (fit_seed(self.random_state), 0) if is_first else (self._partial_seed, self.n_steps_)

        with self._thread_limit(X):
            while True:  # at most twice
                generator = torch.Generator().manual_seed(seed + n_done)
                sampler = self._sampler(X, weight, generator)
                self._check_values(sampler, X)
                if is_first:
                    centers = self._initial_centers(X, sampler, generator, row_count(X))
                    counts = np.zeros(self.n_clusters)
                    self._partial_seed = int(torch.randint(2**62, (), generator=generator))
                else:
                    centers = sampler.centered(_to_wide_tensor(self.cluster_centers_, sampler.x))
                    counts = self._counts
                centers, counts, mean_inertia = partial_fit_step(
                    sampler,
                    centers,
                    _to_wide_tensor(counts, sampler.x),
                    generator,
                    n_done=n_done,
                    rates=self._rates(),
                    reassignment_ratio=self.reassignment_ratio,
                )
                if not _needs_float64(centers, counts, mean_inertia):
                    break
                self._in_float64 = True

        self.n_steps_, self.n_iter_, self.inertia_ = n_done + 1, 1, mean_inertia * sampler.total_weight
        self._publish(centers, counts, sampler, X)
        return self

    def fit_predict(self, X, y=None, sample_weight=None):
        """Compute the clusters and return the cluster of each sample.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training data.
        y : Ignored
            Present for API consistency.
        sample_weight : array-like of shape (n_samples,), default=None
            Nonnegative weights of the samples.

        Returns
        -------
        labels : ndarray of shape (n_samples,)
            ``fit(X).predict(X)``.
        """
        self.fit(X, sample_weight=sample_weight)
        if not self.compute_labels or isinstance(X, torch.Tensor):  # labels of a tensor may be one
            return self.predict(X)
        return self.labels_

    def predict(self, X):
        """Predict the nearest centre of each sample.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.

        Returns
        -------
        labels : ndarray of shape (n_samples,)
            Indices of clusters.
        """
        return self._map_centered(NearestCenters, self._validate(X, reset=False))

    def transform(self, X):
        """Compute the distances of the samples to the centres.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.

        Returns
        -------
        distances : ndarray of shape (n_samples, n_clusters)
            In units of the data; zero between equal points.
        """
        X = self._validate(X, reset=False)
        return self._map_centered(lambda centers: partial(distances, centers=centers), X)

    def score(self, X, y=None, sample_weight=None):
        """Return minus the inertia of X: higher is better.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.
        y : Ignored
            Present for API consistency.
        sample_weight : array-like of shape (n_samples,), default=None
            Nonnegative weights of the samples; an integer weight is as many equal samples, and a weight of zero none.

        Returns
        -------
        score : float
            Minus the weighted sum of the squared distances of the samples to their nearest centres.

        Raises
        ------
        ValueError
            If the weights are not finite, negative, all zero, or not one for each sample.
        """
        X, weight = self._validate_weighted(X, sample_weight)
        device = self._options(X)["device"]
        X = on_device(X, device)
        return -self._labels_and_inertia(X, _weight_tensor(weight, device))[1]

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _check_data(self, X, sample_weight, min_samples):
        """Check the data against those of other processes, the number of samples, and the weights; return these."""
        check_processes(self, X)
        if (n_samples := row_count(X)) < min_samples:
            raise ValueError(
                f"n_clusters={min_samples} is larger than n_samples={n_samples}; decrease n_clusters, or add samples."
            )
        return None if sample_weight is None else check_weights(sample_weight, X)

    def _warn_of_unused_parameters(self, init_size=True):
        if init_size and self.init_size is not None and self.init_size < self.n_clusters:
            warn(
                f"init_size={self.init_size} is smaller than n_clusters={self.n_clusters}; the initialization uses "
                f"{self._init_size()} samples instead.",
                RuntimeWarning,
            )
        if self._has_init_array() and self.n_init != "auto" and self.n_init > 1:
            warn(
                f"n_init={self.n_init} has no effect: with an array as init, there is only one initialization.",
                RuntimeWarning,
            )

    def _has_init_array(self):
        return not isinstance(self.init, str) and not callable(self.init)

    def _init_size(self):
        if self.init_size is None:
            return 3 * (self.batch_size if 3 * self.batch_size >= self.n_clusters else self.n_clusters)
        return self.init_size if self.init_size >= self.n_clusters else 3 * self.n_clusters

    def _rates(self):
        return rate_by_counts if self.learning_rate == "counts" else constant_rate(self.learning_rate)

    def _thread_limit(self, X):
        """Return a context with one thread if products of a batch with the centres are too small for several."""
        n_rows = max(self.batch_size, MAX_CHUNK)
        return serial_if_small(n_rows * self.n_clusters * X.shape[1], self._options(X)["device"])

    def _options(self, X):
        """Return the dtype and the device on which samples are clustered."""
        device = resolve_device(self.device, dtype=compute_dtype(X.dtype, "cpu"))
        dtype = torch.float64 if hasattr(self, "_in_float64") else compute_dtype(X.dtype, device)
        return {"dtype": dtype, "device": device}

    def _sampler(self, X, weight, generator):
        """Return a sampler of batches."""
        options = self._options(X)
        return batch_sampler(
            X,
            _weight_tensor(weight, options["device"]),
            **options,
            generator=generator,
            batch_size=self.batch_size,
            init_size=self._init_size(),
        )

    def _check_values(self, sampler, X):
        """Raise if values of X are not finite, or so large that squared distances can overflow."""
        dtype = sampler.x.dtype
        if sampler.is_within(MAX_VALUE[dtype]):
            return
        if not math.isfinite(sampler.largest):
            self._validate(X, reset=True)
        raise ValueError(
            f"X has values up to {sampler.largest:.3g}, and squared distances between such numbers overflow in "
            f"{dtype}; divide X by a constant."
        )

    def _initial_centers(self, X, sampler, generator, init_size):
        """Return initial centres, less the offset of the sampler."""
        group, n_init = current_group(), self.n_init
        if self._has_init_array():
            n_init = 1
        elif n_init == "auto":
            n_init = 1 if self.init == "k-means++" else 3

        def initialize(sample):
            if isinstance(self.init, str):
                return sample.x[SEEDINGS[self.init](sample, self.n_clusters, generator)]
            centers = self.init
            if callable(self.init):
                state = np.random.RandomState(int(torch.randint(2**31, (), generator=generator)))
                if group.size > 1:  # the same sample in all processes
                    array = to_dtype((sample.x + sampler.offset).cpu().numpy(), X.dtype)
                else:
                    array = sample_array(X, sampler, self._init_size(), generator)
                centers = self.init(array, self.n_clusters, random_state=state)
            centers = _to_wide_tensor(self._check_centers(centers, X), sampler.x)
            return sampler.centered(group.broadcast(centers))

        return best_initialization(sampler, initialize, n_init, init_size, generator)

    def _check_centers(self, centers, X):
        """Check initial centres from the user; return them as an array."""
        with named_in_errors("init"):
            centers = check_array(host_array(centers), dtype=np.float64, input_name="init")
        if centers.shape != (self.n_clusters, X.shape[1]):
            raise ValueError(
                f"init has centres of shape {centers.shape}, but (n_clusters, n_features) = "
                f"{(self.n_clusters, X.shape[1])} was expected."
            )
        return centers

    def _publish(self, centers, counts, sampler, X):
        """Set the fitted attributes."""
        centers = (centers.to(wide_dtype(sampler.x)) + sampler.offset).cpu().numpy()
        self.cluster_centers_ = to_dtype(centers, X.dtype)
        self._counts, self._n_features_out = counts.cpu().numpy(), self.n_clusters
        vars(self).pop("labels_", None)
        if self.compute_labels:
            X = on_device(X, self._options(X)["device"])
            labels, inertia = self._labels_and_inertia(X, sampler.weight)
            (self.inertia_,) = current_group().all_reduce_sum(inertia)
            self.labels_ = host_array(labels)

    def _warn_of_empty_clusters(self, X):
        group = current_group()
        (sizes,) = group.all_reduce_sum(torch.from_numpy(np.bincount(self.labels_, minlength=self.n_clusters)))
        n_nonempty = int(sizes.count_nonzero())
        if n_nonempty == self.n_clusters:
            return
        n_distinct = count_distinct_samples(X, self.n_clusters)
        if group.rank > 0:
            return
        if n_distinct < self.n_clusters:
            advice = f"X has only {n_distinct} distinct samples; decrease n_clusters"
        else:
            advice = "the fit was too short for this many clusters; increase max_iter, or decrease n_clusters"
        warn(f"Only {n_nonempty} of n_clusters={self.n_clusters} clusters have samples: {advice}.", ConvergenceWarning)

    def _map_centered(self, make_function, X, visit=None):
        """Apply a function to chunks of samples less the mean of the centres; return one array or tensor.

        Parameters
        ----------
        make_function : callable, Tensor (k, d) -> (Tensor (b, d) -> Tensor (b, ...))
            Makes the function from the centres less their mean.
        X : ndarray, LazySamples or TensorSamples of shape (n, d)
        visit : callable, (Tensor (b, d), Tensor (b, ...), Tensor (m, d)) -> None, optional
            Called in order with the samples of each chunk, the results, and memory that may be overwritten, m >= b.
        """
        options, mean = self._options(X), self.cluster_centers_.mean(axis=0, dtype=np.float64)
        mean = mean.astype(X.dtype)  # the very number that is subtracted from the samples
        arrays = [to_tensor(array, options["dtype"], "cpu") for array in (self.cluster_centers_, mean[None])]
        tensors = to_device(torch.cat(arrays), options["device"])
        offset = tensors[-1]
        function = make_function(tensors[:-1] - offset)
        n_rows = rows_in_cache(X.shape[1] + len(self.cluster_centers_), MAP_BYTES)
        # Fresh memory for each chunk would cost more than the work.
        buffer = offset.new_empty(min(len(X), n_rows), X.shape[1])

        def apply(chunk):
            x = as_tensor(chunk, **options)
            result = function(torch.sub(x, offset, out=buffer[: len(x)]))
            if visit is not None:
                visit(x, result, buffer)
            return result

        with self._thread_limit(X):
            return map_chunks(apply, X, n_rows)

    def _labels_and_inertia(self, X, weight):
        """Compute the nearest centres, and the weighted sum of the squared distances to them, in one pass."""
        options, parts = self._options(X), []
        centers = to_device(to_tensor(self.cluster_centers_, options["dtype"], "cpu"), options["device"])
        labels = self._map_centered(
            NearestCenters,
            X,
            lambda x, chunk_labels, buffer: parts.append(squared_residuals(x, centers, chunk_labels, buffer)),
        )
        squares = in_float64(torch.cat(parts))
        (inertia,) = read([squares.sum() if weight is None else squares @ in_float64(weight)])
        return labels, inertia


def _needs_float64(centers, counts, mean_inertia):
    """Return whether float32 gives too few digits of the squared distances, which are small between far centres."""
    if centers.dtype != torch.float32 or wide_dtype(centers) != torch.float64:
        return False
    squares = centers.double().square().sum(1)
    (spread,) = read([torch.where(counts.any(), counts.double() @ squares / counts.sum(), squares.mean())])
    return mean_inertia < MIN_FLOAT32_RATIO * spread


def _to_wide_tensor(array, x):
    """Copy an array to the device of x, in the wide dtype."""
    return to_device(to_tensor(array, wide_dtype(x), "cpu"), x.device)


def _weight_tensor(weight, device):
    """Copy weights to a device; None if there are none."""
    return None if weight is None else to_device(to_tensor(weight, compute_dtype(np.float64, device), "cpu"), device)


def _report(step, n_steps, mean, running_mean):
    running = "" if running_mean is None else f", running mean {running_mean:.6g}"
    print(f"Step {step} of at most {n_steps}: mean inertia {mean:.6g}{running}")
