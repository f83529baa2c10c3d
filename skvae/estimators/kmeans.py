"""Mini-batch k-means."""

from functools import partial
from numbers import Integral, Real
from typing import ClassVar

import numpy as np
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_array
from sklearn.utils._param_validation import Interval, StrOptions

from ..data.arrays import compute_dtype, host_array, named_in_errors, resolve_device, tensor_dtype, to_dtype, to_tensor
from ..data.chunks import map_chunks
from ..data.tables import Table, TensorRows, streamed
from ..data.weights import check_weights
from ..fitting.chunks import blocks_of, row_chunks
from ..fitting.devices import in_float64, read, to_device, wide_dtype
from ..fitting.distributed import current_group
from ..fitting.minibatch import (
    SEEDINGS,
    WeightedRows,
    by_counts,
    constant_rate,
    fit_mini_batches,
    mini_batch_step,
    reassign,
    should_reassign,
    start_centers,
)
from ..fitting.nearest import MAX_CHUNK, NearestCenters, distances, squared_residuals
from ..fitting.pool import PooledRows
from ..fitting.streams import draw_indices
from ..fitting.threads import serial_if_small
from ..fitting.warnings import warn
from ._base import TorchEstimator, batch_by_batch, fit_method
from ._checks import check_processes, fit_seed, row_count
from .export import Centers

NARROW = 1e-4  # mean squared distance within clusters over that of centres: float32 has four digits of such distances
MAP_BYTES = 2**22  # what a chunk of rows works on stays in a cache
POOL_BYTES = 2**26  # rows that batches are drawn from, when not all are held
POOL_BATCHES = 8  # but no fewer rows than so many batches have
POOL_RUNS = 256  # from so many places at least: from fewer, batches would differ from one another
LARGEST = {torch.float32: 1e16, torch.float64: 1e150}  # sums of squares of larger numbers can overflow


class TorchMiniBatchKMeans(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, TorchEstimator):
    """K-means on small random batches of the rows, on CPU or GPU.

    Parameters, attributes and results are those of :class:`sklearn.cluster.MiniBatchKMeans`. In each step, the rows of
    a batch are assigned to their nearest centres, and each centre moves towards the mean of its rows.

    Parameters
    ----------
    n_clusters : int, default=8
        Number of clusters.

    init : {"k-means++", "random"}, array-like of shape (n_clusters, n_features) or callable, default="k-means++"
        Where to start: rows far from one another, random rows, given centres (whose order the clusters keep), or a
        function of ``X``, ``n_clusters`` and ``random_state`` that returns centres.

    max_iter : int, default=100
        Largest number of passes over the rows.

    batch_size : int, default=1024
        Rows in a batch, drawn with replacement and with probability proportional to their weight. If there are no more
        distinct rows than that, each batch is all rows.

    learning_rate : "counts" or float, default="counts"
        How far a centre moves towards the mean of its rows in the batch. "counts": it becomes the mean of all rows that
        it has seen. A float is the step of gradient descent on the quantization error, see Notes.

    tol : float, default=0.0
        The fit stops when the centres move less in a step: the sum of their squared movements is at most this share of
        the mean variance of the features. 0: never.

    max_no_improvement : int or None, default=10
        The fit stops when the running mean of the inertia has not fallen for so many steps. None: never.

    init_size : int, default=None
        Rows in the sample in which a start is looked for; None: three batches, or three rows for each cluster if three
        batches have fewer rows than there are clusters.

    n_init : int or "auto", default="auto"
        Number of starts that are tried; that with the lowest inertia on a sample is kept. "auto": 3 for "random" and
        for a callable, else 1.

    reassignment_ratio : float, default=0.01
        A centre that has seen less than this share of the weight of the busiest one is put elsewhere: on a row of the
        batch, drawn with probability proportional to its squared distance to its centre.

    compute_labels : bool, default=True
        Label the training data after the fit.

    random_state : int, RandomState instance or None, default=None
        Seeds the fit.

    verbose : int, default=0
        Print the inertia of each step.

    device : str or torch.device, default="auto"
        Where to compute; "auto" takes the first of cuda, mps (for float32 data) and cpu that is there.

    Attributes
    ----------
    cluster_centers_ : ndarray of shape (n_clusters, n_features)
        Centres.
    labels_ : ndarray of shape (n_samples,)
        Cluster of each training row, if ``compute_labels``.
    inertia_ : float
        Weighted sum of the squared distances of the training rows to their centres; without ``compute_labels`` an
        estimate from the last batches.
    n_iter_ : int
        Passes over the rows.
    n_steps_ : int
        Batches.
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
    Of a batch of weight B, a centre c has rows of weight b, with mean m. It moves by ``r (m - c)``. For "counts",
    ``r = b / n`` where n is the weight of all rows that the centre has seen, those of the batch included. For a float
    eta, ``r = min(1, 2 eta b / B)``. Without the limit this is a step of gradient descent, with the constant step eta,
    on the quantization error ``mean_i |x_i - c(i)|^2``; with it, no centre moves past the mean of its rows.

    Draws depend neither on the order of the rows nor on whether equal rows are repeated or have a weight: an integer
    weight is the same as that many equal rows, and passes are counted in distinct rows.

    Of sparse matrices, the rows of a batch are dense, and those in which a start is looked for; a callable as ``init``
    gets these as X. The draws are those from the dense array. Arrays on disk (memory maps, HDF5, zarr) that would be
    larger than a gigabyte as dense rows are read a chunk at a time. Batches are then drawn from a pool of rows that is
    held: as many as need 64 MB, but at least eight batches. The pool begins as a random sample of all rows, in which
    the start is looked for (a callable gets it as X), and is renewed by every batch with runs of neighbouring rows from
    random places. Draws then depend on the order of the rows, and passes are counted in rows. So it is with sparse rows
    of fewer kinds than a batch or a start has rows. `partial_fit` holds its batch.

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
        """Find the clusters.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training data.
        y : Ignored
            Present for API consistency.
        sample_weight : array-like of shape (n_samples,), default=None
            Nonnegative weights of the rows. They do not affect a start from given centres or from a callable.

        Returns
        -------
        self : TorchMiniBatchKMeans
            The fitted estimator.

        Raises
        ------
        ValueError
            If X is not a finite numeric table with at least ``n_clusters`` rows, or the starting centres do not fit it.

        Warns
        -----
        ConvergenceWarning
            If clusters are left without rows, as they are with fewer distinct rows than clusters.
        """
        X = self._validate(X, reset=True)
        check_processes(self, X)
        self._warn_of_init_size()
        self._warn_of_n_init()
        vars(self).pop("_in_float64", None)
        seed = fit_seed(self.random_state)

        with self._threads(X):
            rows, fit, generator = self._fit_batches(X, sample_weight, seed)
            if self._loses_digits(fit.centers, fit.counts, fit.mean_inertia):
                self._in_float64 = True
                rows, fit, generator = self._fit_batches(X, sample_weight, seed)

        self.n_steps_, self.n_iter_ = fit.n_steps, -(-fit.n_steps * fit.batch_size // len(rows))
        self.inertia_ = fit.mean_inertia * rows.total_weight
        self._partial_seed = int(torch.randint(2**62, (), generator=generator))
        self._publish(fit.centers, fit.counts, rows, X)
        self._warn_of_empty_clusters(X)
        return self

    @batch_by_batch
    @fit_method
    def partial_fit(self, X, y=None, sample_weight=None):
        """Make one step with X as the batch; the first call chooses the starting centres among its rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Batch. A `torch.utils.data.DataLoader` or an iterator of batches is one step for each.
        y : Ignored
            Present for API consistency.
        sample_weight : array-like of shape (n_samples,), default=None
            Nonnegative weights of the rows.

        Returns
        -------
        self : TorchMiniBatchKMeans
            The estimator, with ``labels_`` and ``inertia_`` of this batch.

        Raises
        ------
        ValueError
            As for `fit`; later batches may have fewer rows than there are clusters.
        """
        first = not hasattr(self, "cluster_centers_")
        X = self._validate(X, reset=first)[:]  # a batch is held, also where tables are not
        check_processes(self, X)
        if first:
            self._warn_of_n_init()
        seed, step = (fit_seed(self.random_state), 0) if first else (self._partial_seed, self.n_steps_)

        with self._threads(X):
            rows, centers, counts, mean = self._step(X, sample_weight, seed, step)
            if self._loses_digits(centers, counts, mean):
                self._in_float64 = True
                rows, centers, counts, mean = self._step(X, sample_weight, seed, step)

        self.n_steps_, self.n_iter_, self.inertia_ = step + 1, 1, mean * rows.total_weight
        self._publish(centers, counts, rows, X)
        return self

    def fit_predict(self, X, y=None, sample_weight=None):
        """Find the clusters and return that of each row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training data.
        y : Ignored
            Present for API consistency.
        sample_weight : array-like of shape (n_samples,), default=None
            Nonnegative weights of the rows.

        Returns
        -------
        labels : ndarray of shape (n_samples,)
            ``fit(X).predict(X)``.
        """
        self.fit(X, sample_weight=sample_weight)
        if not self.compute_labels or isinstance(X, torch.Tensor):
            return self.predict(X)
        return self.labels_

    def predict(self, X):
        """Nearest centre of each row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.

        Returns
        -------
        labels : ndarray of shape (n_samples,)
            Indices of clusters.
        """
        return self._labels(self._validate(X, reset=False))

    def transform(self, X):
        """Distances of the rows to the centres.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.

        Returns
        -------
        distances : ndarray of shape (n_samples, n_clusters)
            In units of the data; zero between equal points.
        """
        return self._map_centered(self._validate(X, reset=False), lambda centers: partial(distances, centers=centers))

    def score(self, X, y=None, sample_weight=None):
        """Minus the inertia of X: higher is better.

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
        X = self._on_device(X)
        return -self._inertia(X, self._labels(X), _weight_tensor(weight, self._device(X.dtype)))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _rows(self, X, sample_weight, generator=None, n_needed=None):
        """Weighted rows on the device, to draw batches from: by way of a pool, if there are more than it holds."""
        n_needed = self.n_clusters if n_needed is None else n_needed
        if (n_samples := row_count(X)) < n_needed:
            raise ValueError(
                f"n_clusters={n_needed} is more than there are rows: X has {n_samples} sample(s). Decrease n_clusters, "
                "or add rows."
            )
        device = self._device(X.dtype)
        dtype, weight = self._dtype(X.dtype, device), _weight_tensor(_weights(sample_weight, X), device)
        if current_group().size > 1:
            return self._shared_rows(X, dtype, device, weight, generator)
        if isinstance(X, Table) and X.run_length == 1:
            rows = self._read_rows(X, dtype, device, weight)
            if rows is not None:
                return rows
        if isinstance(X, Table) and len(X) > (size := self._pool_size(X)):
            run_length = min(X.run_length, max(1, size // POOL_RUNS))
            rows = PooledRows(streamed(X, dtype, device), weight, size, run_length, generator)
            _check_range(rows.largest, dtype)
            return rows
        x = _as_tensor(X[:], dtype, device)
        _check_range(_largest(x), dtype)
        return WeightedRows(x, weight)

    def _read_rows(self, X, dtype, device, weight):
        """Weighted rows of a table that are read where they are, or None if a batch would be all of them."""
        x, sample = streamed(X, dtype, device), max(self.batch_size, self._n_init_rows())
        _check_range(_largest(x), dtype)
        rows = WeightedRows(x, weight)
        return rows if len(rows) > sample or len(X) <= sample else None

    def _shared_rows(self, X, dtype, device, weight, generator):
        """As `_rows`, where several processes have the rows: by way of pools, if one of them has too many to hold."""
        group, size, lazy = current_group(), self._pool_size(X), isinstance(X, Table)
        if any(group.all_gather_int(lazy and X.run_length > 1 and len(X) > size)):
            table = X if lazy else Table(X, X.dtype)
            run_length = min(table.run_length, max(1, size // POOL_RUNS))
            stream = streamed(table, dtype, device)
            rows = PooledRows(stream, weight, min(size, len(X)), run_length, generator, group)
            _check_range(rows.largest, dtype)
            return rows
        x = streamed(X, dtype, device) if lazy and X.run_length == 1 else _as_tensor(X[:], dtype, device)
        _check_range(_largest(x), dtype)
        return WeightedRows(x, weight, group)

    def _fit_batches(self, X, sample_weight, seed):
        """Rows, what mini-batch k-means finds in them, and the generator that it leaves."""
        generator = torch.Generator().manual_seed(seed)
        rows = self._rows(X, sample_weight, generator)
        fit = fit_mini_batches(
            rows,
            self._start(X, rows, generator, self._n_init_rows()),
            generator,
            max_iter=self.max_iter,
            batch_size=self.batch_size,
            rates=self._rates(),
            tol=self.tol,
            max_no_improvement=self.max_no_improvement,
            reassignment_ratio=self.reassignment_ratio,
            report=self._report if self.verbose and current_group().rank == 0 else None,
        )
        return rows, fit, generator

    def _step(self, X, sample_weight, seed, step):
        """Rows of a batch, and centres, their counts and the mean inertia after a step with it."""
        first = step == 0
        rows = self._rows(X, sample_weight, n_needed=self.n_clusters if first else 1)
        generator = torch.Generator().manual_seed(seed + step)
        if first:
            centers, counts = self._start(X, rows, generator, row_count(X)), np.zeros(self.n_clusters)
            self._partial_seed = int(torch.randint(2**62, (), generator=generator))
        else:
            centers = rows.centered(_copied(self.cluster_centers_, rows.x))
            counts = self._counts
        x, weight, group = rows.batch(len(rows), generator)
        counts = _copied(counts, x)
        centers, counts, mean = mini_batch_step(x, weight, centers, counts, self._rates(), group)
        mean, looks = read([mean, should_reassign(step + 1, self.reassignment_ratio, counts)])
        if looks:
            centers, counts = reassign(x, weight, centers, counts, self.reassignment_ratio, generator, group)
        return rows, centers, counts, max(0.0, mean)

    def _loses_digits(self, centers, counts, mean_inertia):
        """Whether clusters are so narrow for their distances that float32 gives too few digits of squared distances."""
        if centers.dtype != torch.float32 or wide_dtype(centers) != torch.float64:
            return False
        squares = centers.double().square().sum(1)
        (between,) = read([torch.where(counts.any(), counts.double() @ squares / counts.sum(), squares.mean())])
        return mean_inertia < NARROW * between

    def _threads(self, X):
        """Within this, one thread computes where products of a batch with the centres are too small for several."""
        n_rows = max(self.batch_size, MAX_CHUNK)
        return serial_if_small(n_rows * self.n_clusters * X.shape[1], self._device(X.dtype))

    def _dtype(self, dtype, device):
        """The dtype in which rows of a dtype are clustered: float64 where float32 has too few digits."""
        return torch.float64 if hasattr(self, "_in_float64") else compute_dtype(dtype, device)

    def _pool_size(self, X):
        """Rows that are held of a table: many batches, and the sample in which a start is looked for."""
        return max(POOL_BYTES // (X.dtype.itemsize * X.shape[1]), POOL_BATCHES * self.batch_size, self._n_init_rows())

    def _device(self, dtype):
        return resolve_device(self.device, dtype=compute_dtype(dtype, "cpu"))

    def _rates(self):
        return by_counts if self.learning_rate == "counts" else constant_rate(self.learning_rate)

    def _warn_of_init_size(self):
        if self.init_size is not None and self.init_size < self.n_clusters:
            warn(
                f"init_size={self.init_size} is smaller than n_clusters={self.n_clusters}; the start is looked for in "
                f"{3 * self.n_clusters} rows instead.",
                RuntimeWarning,
            )

    def _has_given_centers(self):
        return not isinstance(self.init, str) and not callable(self.init)

    def _warn_of_n_init(self):
        if self._has_given_centers() and self.n_init != "auto" and self.n_init > 1:
            warn(
                f"n_init={self.n_init} has no effect, because init is an array: there is one start.",
                RuntimeWarning,
            )

    def _n_init_rows(self):
        if self.init_size is None:
            return 3 * (self.batch_size if 3 * self.batch_size >= self.n_clusters else self.n_clusters)
        return self.init_size if self.init_size >= self.n_clusters else 3 * self.n_clusters

    def _start(self, X, rows, generator, init_size):
        """Centres to start from, less the offset of the rows."""
        named, group = isinstance(self.init, str), current_group()
        given = self._has_given_centers()
        n_init = {"auto": 1 if given or self.init == "k-means++" else 3}.get(self.n_init, self.n_init)
        n_init = 1 if given else n_init

        def start(x, weight):
            if named:
                return x[SEEDINGS[self.init](x, self.n_clusters, generator, weight)]
            if given:
                return rows.centered(group.broadcast(self._checked_centers(self.init, X, rows)))
            state = np.random.RandomState(int(torch.randint(2**31, (), generator=generator)))
            if group.size > 1:  # the same sample in each
                held = to_dtype((x + rows.offset).cpu().numpy(), X.dtype)
            else:
                held = self._held(X, rows, generator)
            centers = self._checked_centers(self.init(held, self.n_clusters, random_state=state), X, rows)
            return rows.centered(group.broadcast(centers))

        return start_centers(rows, [start] * n_init, init_size, generator)

    def _held(self, X, rows, generator):
        """An array of the rows, or of a table those that are held, or a sample."""
        if not isinstance(X, Table):
            return X
        if isinstance(rows.x, torch.Tensor):
            return rows.x.cpu().numpy()
        return X[draw_indices(rows.x, min(len(X), self._n_init_rows()), generator, rows.weight).numpy()]

    def _checked_centers(self, centers, X, rows):
        """Starting centres that the user gave, as a tensor."""
        with named_in_errors("init"):
            centers = check_array(host_array(centers), dtype=np.float64, input_name="init")
        if centers.shape != (self.n_clusters, X.shape[1]):
            raise ValueError(
                f"init has centres of shape {centers.shape}, but (n_clusters, n_features) = "
                f"{(self.n_clusters, X.shape[1])} was expected."
            )
        return _copied(centers, rows.x)

    def _publish(self, centers, counts, rows, X):
        """Set the fitted attributes."""
        published = (centers.to(wide_dtype(rows.x)) + rows.offset).cpu().numpy()
        self.cluster_centers_ = to_dtype(published, X.dtype)
        self._counts, self._n_features_out = counts.cpu().numpy(), self.n_clusters
        vars(self).pop("labels_", None)
        if not self.compute_labels:
            return
        X = self._on_device(X)
        labels = self._labels(X)
        inertia = self._inertia(X, labels, rows.weight)
        (self.inertia_,) = current_group().all_reduce_sum(inertia)
        self.labels_ = host_array(labels)

    def _warn_of_empty_clusters(self, X):
        if not self.compute_labels:
            return
        (sizes,) = current_group().all_reduce_sum(
            torch.from_numpy(np.bincount(self.labels_, minlength=self.n_clusters))
        )
        n_found = int(sizes.count_nonzero())
        if n_found == self.n_clusters:
            return
        n_distinct = _count_distinct(X, self.n_clusters)
        if current_group().rank > 0:
            return
        if n_distinct < self.n_clusters:
            advice = f"X has only {n_distinct} distinct rows; decrease n_clusters"
        else:
            advice = "the fit was too short for this many clusters; increase max_iter, or decrease n_clusters"
        warn(
            f"Only {n_found} of n_clusters={self.n_clusters} clusters have rows: {advice}.",
            ConvergenceWarning,
        )

    def _report(self, step, n_steps, mean, running_mean):
        running = "" if running_mean is None else f", running mean {running_mean:.6g}"
        print(f"Step {step} of at most {n_steps}: mean inertia {mean:.6g}{running}")

    def _labels(self, X):
        """Nearest centres of validated rows."""
        return self._map_centered(X, NearestCenters)

    def _map_centered(self, X, function_for):
        """Apply a function to chunks of validated rows less the mean of the centres; return one array or tensor.

        Parameters
        ----------
        X : ndarray, Table or TensorRows of shape (n, d)
        function_for : callable, Tensor (k, d) -> (Tensor (b, d) -> Tensor (b, ...))
            Gives the function for the centres less their mean.
        """
        device = self._device(X.dtype)
        dtype, middle = self._dtype(X.dtype, device), self.cluster_centers_.mean(axis=0, dtype=np.float64)
        middle = middle.astype(X.dtype)  # the very number that is taken from the rows
        arrays = [to_tensor(array, dtype, "cpu") for array in (self.cluster_centers_, middle[None])]
        copied = to_device(torch.cat(arrays), device)
        offset = copied[-1]
        function = function_for(copied[:-1] - offset)
        n_rows = row_chunks(len(X), X.shape[1] + len(self.cluster_centers_), n_bytes=MAP_BYTES)[0].stop
        # Fresh memory for each chunk would cost more than the work.
        buffer = offset.new_empty(min(len(X), n_rows), X.shape[1])

        def apply(found):
            return function(torch.sub(_as_tensor(found, dtype, device), offset, out=buffer[: len(found)]))

        with self._threads(X):
            return map_chunks(apply, X, n_rows)

    def _on_device(self, X):
        """An array as rows of a tensor on an accelerator, for more than one pass over them; else X itself."""
        device = self._device(X.dtype)
        if device.type == "cpu" or not isinstance(X, np.ndarray):
            return X
        return TensorRows(_as_tensor(X, tensor_dtype(X.dtype), device))

    def _inertia(self, X, labels, weight):
        """Sum of the squared distances of rows to their centres, times their weights."""
        device = self._device(X.dtype)
        dtype = self._dtype(X.dtype, device)
        centers = to_device(to_tensor(self.cluster_centers_, dtype, "cpu"), device)
        parts = []
        for rows in [slice(None)] if isinstance(X, np.ndarray) else row_chunks(*X.shape):
            x, own = _as_tensor(X[rows], dtype, device), torch.as_tensor(labels[rows]).to(device)
            squares = in_float64(squared_residuals(x, centers, own))
            parts.append(squares.sum() if weight is None else squares @ in_float64(weight[rows]))
        total = 0.0
        for part in read(parts):
            total += part  # as `sum` adds floats from Python 3.12 on, it has other last bits
        return total


def _as_tensor(X, dtype, device):
    """The array, or tensor, as a tensor of a dtype on a device, shared where that is possible."""
    if isinstance(X, torch.Tensor):
        return X.to(device, dtype)
    if X.flags.writeable and X.flags.c_contiguous:
        return torch.from_numpy(X).to(device, dtype)
    return to_tensor(X, dtype, device)


def _copied(array, x):
    """A copy of an array on the device of rows, in the wide dtype."""
    return to_device(to_tensor(array, wide_dtype(x), "cpu"), x.device)


def _weight_tensor(weight, device):
    """Weights of rows on a device, None if there are none."""
    return None if weight is None else to_device(to_tensor(weight, compute_dtype(np.float64, device), "cpu"), device)


def _largest(x):
    """Largest absolute value of rows."""
    return max(map(abs, read([extreme for block in blocks_of(x) for extreme in torch.aminmax(x[block])])))


def _check_range(largest, dtype):
    """Raise if squared distances between values of this size can overflow."""
    if largest > LARGEST[dtype]:
        raise ValueError(
            f"X has values up to {largest:.3g}, and squared distances between such numbers overflow in {dtype}; divide "
            "X by a constant."
        )


def _count_distinct(X, n_enough):
    """Number of distinct rows, or at least ``n_enough`` if there are that many."""
    found = np.empty((0, X.shape[1]), X.dtype)
    for rows in row_chunks(*X.shape):
        found = np.unique(np.concatenate([found, X[rows]]), axis=0)
        if len(found) >= n_enough:
            break
    return len(np.unique(np.concatenate(current_group().all_gather_object(found)), axis=0))


def _weights(sample_weight, X):
    """Checked weights, None if there are none."""
    if sample_weight is None:
        return None
    return check_weights(sample_weight, X)
