"""Gaussian mixtures by expectation-maximization."""

from contextlib import contextmanager
from functools import partial
from numbers import Integral, Real
from typing import ClassVar

import numpy as np
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, DensityMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_array
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from ..data.arrays import FLOATS, compute_dtype, generator_from, host_array, is_exact, resolve_device, to_tensor
from ..data.chunks import column_means, map_samples
from ..data.missing import any_missing, check_columns, filled_in, impute_chunk, observed_means, rows_with_values
from ..data.tensors import WeightedSamples
from ..data.weights import positive_weight_samples, weighted_sum
from ..fitting.devices import serial_if_small
from ..fitting.distributed import current_group
from ..fitting.em import MixtureFit, fit_best_mixture, step_mixture
from ..fitting.em_steps import e_step
from ..fitting.missing import PatternRows, observed_e_step
from ..fitting.mixture_init import INIT_METHODS, draw_responsibilities, initial_mixture
from ..fitting.squarem import ACCELERATIONS
from ..fitting.warnings import warn
from ..fitting.weighted_rows import WeightedRows
from ..fitting.whitened_rows import WhitenedRows, largest_product
from ..models.covariances import COVARIANCES, Mixture
from ._base import ScoreMixin, TorchEstimator
from ._fit import (
    batch_by_batch,
    check_enough_rows,
    check_index,
    check_processes,
    check_sample_size,
    fit_generator,
    fit_method,
)
from ._mixture_init import (
    check_component_weights,
    check_init,
    check_precisions_init,
    responsibilities_from,
    responsibility_function,
)
from .export import MixtureModel

EXACT = ("_exact_means", "_exact_factor")  # in float64, where the published parameters in float32 are not accurate
MAX_ON_HOST = 2**17  # numbers in the covariances of a mixture whose M-step for a batch is computed on the CPU


class TorchGMM(ScoreMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin, DensityMixin, TorchEstimator):
    """Gaussian mixture fitted by expectation-maximisation on CPU or GPU.

    Parameters, attributes and results are those of :class:`sklearn.mixture.GaussianMixture`. The data are centred, sums
    are in float64 whatever the dtype of the data, products are in float64 too where float32 has too few digits for
    narrow components, and samples are processed in chunks, so that no array of size
    ``n_samples x n_components x n_features`` is ever in memory.

    Values of X may be missing, as NaN: the likelihood is then that of the observed values, exactly.

    Parameters
    ----------
    n_components : int, default=1
        Number of components.

    covariance_type : {"full", "tied", "diag", "spherical", "tied_diag", "tied_spherical"}, default="full"
        Form of the covariances: any matrix, one matrix for all components, variances for each feature, one variance
        for each component, one set of feature variances for all components, or one variance for everything.

    tol : float, default=1e-3
        EM stops when the lower bound (mean log-likelihood of a sample, in nats) gains less than this.

    reg_covar : float, default=1e-6
        Added to the diagonal of the covariances, in squared units of the data.

    max_iter : int, default=100
        Largest number of iterations.

    n_init : int, default=1
        Number of initializations; the fit with the highest lower bound is the result. They are fitted together, in the
        same passes over the samples. There is one fit if the initialization is not random.

    init_params : {"kmeans", "k-means++", "random", "random_from_data", "labels"}, array-like of shape \
            (n_samples, n_components) or clusterer, default="kmeans"
        Initial responsibilities: by k-means clusters, by samples chosen by k-means++, at random, by random samples, by
        the classes passed to `fit` as y (component c starts as the mean and covariance of the c-th class in sorted
        order; -1, None, NaN, NA and NaT are unlabelled), an array of responsibilities, or by the labels of a clone of
        the clusterer (below zero: none).

    weights_init : array-like of shape (n_components,), default=None
        Initial weights, summing to one.

    means_init : array-like of shape (n_components, n_features), default=None
        Initial means.

    precisions_init : array-like, default=None
        Initial precisions (inverse covariances), in the shape of ``precisions_``.

    random_state : int, RandomState instance or None, default=None
        Seeds the initialization and `sample`. No global random state is used, also with None.

    warm_start : bool, default=False
        Continue from the result of the last fit.

    acceleration : {"squarem"} or None, default=None
        Whether to extrapolate EM steps. This takes fewer iterations to the same ``tol``, far fewer to a small one, and
        may end in another local maximum.

    learning_decay : float, default=0.7
        How fast `partial_fit` forgets, in (0.5, 1]: a batch after ``b`` equal ones enters with the step
        ``(b + 1) ** -learning_decay``. With 1 all samples count the same for ever.

    device : str or torch.device, default="auto"
        Where to compute; "auto" is cuda if available, else cpu (mps has no float64).

    chunk_size : int, default=None
        Samples processed at once. It changes memory and speed, never the result; None chooses.

    verbose : int, default=0
        Print iterations; above 1 also the lower bound.

    verbose_interval : int, default=10
        Iterations between two lines.

    Attributes
    ----------
    weights_ : ndarray of shape (n_components,)
        Weights of the components; they sum to one.
    means_ : ndarray of shape (n_components, n_features)
        Means, in the units of the data.
    covariances_ : ndarray
        Covariances: (n_components, n_features, n_features) if "full", (n_features, n_features) if "tied",
        (n_components, n_features) if "diag", (n_components,) if "spherical", (n_features,) if "tied_diag", () if
        "tied_spherical".
    precisions_ : ndarray
        Inverse covariances, in the shape of ``covariances_``.
    precisions_cholesky_ : ndarray
        Upper triangular ``F`` with ``F @ F.T`` the precision, or its square root, in the shape of ``covariances_``.
    converged_ : bool
        Whether the best fit reached ``tol``.
    n_iter_ : int
        Iterations of the best fit.
    lower_bound_ : float
        Its last lower bound on the mean log-likelihood of a sample, in nats.
    lower_bounds_ : list of shape (`n_iter_`,)
        Its lower bound at each iteration.
    n_regularized_ : int
        Number of components whose covariance was singular in spite of ``reg_covar``, and was regularized further.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, if X has names that are all strings.

    See Also
    --------
    sklearn.mixture.GaussianMixture : The same model in NumPy.
    VAEEmbedder : Latent codes on which a mixture finds clusters that it does not find in the data.

    Notes
    -----
    Missing values (NaN) are taken to be missing at random: whether a value is missing may depend on the observed values
    of its sample, not on itself. EM then maximizes the likelihood of the observed values, samples being grouped by the
    values that are missing, and all methods use the marginal densities of observed values. Initializations are drawn
    from samples imputed by their expectation under a single Gaussian (of the same covariance type), after ten steps of
    EM; a clusterer passed as ``init_params`` is fitted to these samples too. Samples without any value are ignored in a
    fit. A fit with missing values always computes in float64.

    Sparse matrices, and arrays on disk (memory maps, HDF5, zarr) that would be larger than a gigabyte as dense arrays,
    are read a chunk at a time, and centred and whitened then: one pass over the data for each iteration, shared by all
    initializations, in an amount of memory that does not depend on the number of samples. The result is that of data in
    memory, except for the initialization, which uses a random sample of 100,000 rows, or as many as need 64 MB, but at
    least 40 for each component; responsibilities of all samples follow from it. A clusterer passed as ``init_params``
    is fitted to such a sample, and predicts the labels of all. Values cannot be missing in data that are read a chunk
    at a time; sparse matrices with missing values are converted to dense arrays as a whole.

    References
    ----------
    C. M. Bishop, Pattern Recognition and Machine Learning, 2006, section 9.2 (equations 9.23 to 9.28).
    R. Varadhan and C. Roland, Simple and globally convergent methods for accelerating the convergence of any EM
    algorithm, 2008 (scheme S3).
    Z. Ghahramani and M. I. Jordan, Supervised learning from incomplete data via an EM approach, 1994.
    O. Cappe and E. Moulines, On-line expectation-maximization algorithm for latent data models, 2009 (equation 14).

    Examples
    --------
    >>> import numpy as np
    >>> from skvae import TorchGMM
    >>> X = np.array([[1.0, 2], [1, 4], [1, 0], [10, 2], [10, 4], [10, 0]])
    >>> gmm = TorchGMM(n_components=2, random_state=0).fit(X)
    >>> np.sort(gmm.means_[:, 0])
    array([ 1., 10.])
    >>> labels = gmm.predict([[0, 0], [12, 3]])
    >>> bool(labels[0] != labels[1])
    True
    """

    _allows_nan = True
    _streams_nan = False
    _parameter_constraints: ClassVar[dict] = {
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "covariance_type": [StrOptions(set(COVARIANCES))],
        "tol": [Interval(Real, 0.0, None, closed="left")],
        "reg_covar": [Interval(Real, 0.0, None, closed="left")],
        "max_iter": [Interval(Integral, 0, None, closed="left")],
        "n_init": [Interval(Integral, 1, None, closed="left")],
        "init_params": [StrOptions({*INIT_METHODS, "labels"}), "array-like", HasMethods("fit_predict")],
        "weights_init": ["array-like", None],
        "means_init": ["array-like", None],
        "precisions_init": ["array-like", Interval(Real, 0.0, None, closed="neither"), None],
        "random_state": ["random_state"],
        "warm_start": ["boolean"],
        "acceleration": [StrOptions({name for name in ACCELERATIONS if name}), None],
        "learning_decay": [Interval(Real, 0.5, 1.0, closed="right")],
        "device": [str, torch.device],
        "chunk_size": [Interval(Integral, 1, None, closed="left"), None],
        "verbose": ["verbose"],
        "verbose_interval": [Interval(Integral, 1, None, closed="left")],
    }
    _fitted_schema: ClassVar[dict] = {
        **{"weights_": "k", "means_": "km", "_exact_means": "km"},
        **dict.fromkeys(("covariances_", "precisions_", "precisions_cholesky_", "_exact_factor"), "..."),
        **{"lower_bound_": float, "lower_bounds_": list, "converged_": bool, "_weight_seen": float},
        **{"n_iter_": int, "n_regularized_": int},
    }

    def _export_module(self, dtype):
        return MixtureModel(self._mixture(torch.float64, "cpu"), COVARIANCES[self.covariance_type])

    def __init__(
        self,
        n_components=1,
        *,
        covariance_type="full",
        tol=1e-3,
        reg_covar=1e-6,
        max_iter=100,
        n_init=1,
        init_params="kmeans",
        weights_init=None,
        means_init=None,
        precisions_init=None,
        random_state=None,
        warm_start=False,
        acceleration=None,
        learning_decay=0.7,
        device="auto",
        chunk_size=None,
        verbose=0,
        verbose_interval=10,
    ):
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.tol = tol
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.weights_init = weights_init
        self.means_init = means_init
        self.precisions_init = precisions_init
        self.random_state = random_state
        self.warm_start = warm_start
        self.acceleration = acceleration
        self.learning_decay = learning_decay
        self.device = device
        self.chunk_size = chunk_size
        self.verbose = verbose
        self.verbose_interval = verbose_interval

    @classmethod
    def from_parameters(cls, weights, means, covariances, **params):
        """Return a fitted mixture from its parameters, without data.

        Parameters
        ----------
        weights : array-like of shape (n_components,)
            Weights of the components; they sum to one.
        means : array-like of shape (n_components, n_features)
            Means; the mixture has their floating dtype.
        covariances : array-like
            Covariances, in the shape that ``covariances_`` has for the ``covariance_type``.
        **params
            Further parameters of the estimator, such as ``covariance_type`` and ``random_state``.

        Returns
        -------
        gmm : TorchGMM
            It predicts, scores and samples; `partial_fit`, and `fit` with ``warm_start``, continue from it.

        Raises
        ------
        ValueError
            If shapes are inconsistent, the weights do not sum to one, or a covariance is not positive definite.

        Examples
        --------
        >>> from skvae import TorchGMM
        >>> gmm = TorchGMM.from_parameters([0.5, 0.5], [[-3.0], [3.0]], [1.0, 4.0], covariance_type="spherical")
        >>> gmm.predict([[-2.0], [9.0]])
        array([0, 1])
        """
        means = check_array(host_array(means), dtype=FLOATS, input_name="means")
        gmm = cls(**{"n_components": len(means), **params})
        gmm._validate_params()
        if gmm.n_components != len(means):
            raise ValueError(f"There are {len(means)} means, but n_components={gmm.n_components}; leave it out.")
        family = COVARIANCES[gmm.covariance_type]
        weights = torch.tensor(check_component_weights("weights", weights, len(means)))
        covariances = check_init("covariances", covariances, family.compact_shape(*means.shape))
        covariances = family.expand(torch.tensor(covariances))
        factor, positive = family.factor(covariances)
        if not positive.all() or not family.is_symmetric(covariances):
            raise ValueError(
                f"The covariances should be symmetric and positive definite, in the form of covariance_type="
                f"{gmm.covariance_type!r}, but those of components {(~positive).nonzero().flatten().tolist()} are not."
            )
        mixture = Mixture(weights.log(), torch.tensor(means, dtype=torch.float64), covariances, factor)
        gmm.n_features_in_, gmm._weight_seen = means.shape[1], 0.0
        gmm._publish(MixtureFit(mixture, [], True, frozenset(), 0), 0.0, means.dtype)
        return gmm

    @fit_method
    def fit(self, X, y=None, sample_weight=None):
        """Estimate the mixture with the EM algorithm.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training data; NaN is a missing value.
        y : array-like of shape (n_samples,), default=None
            Class labels for the initialization, in any form that `ClusterLabelClassifier.fit` takes; -1, None, NaN, NA
            or NaT where unlabelled. Used only with ``init_params="labels"``.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples; an integer weight is as many equal samples, and a weight of zero none.

        Returns
        -------
        self : TorchGMM
            The fitted estimator.

        Raises
        ------
        ValueError
            If X is not a numeric array, finite but for NaN, of at least ``n_components`` samples, if a feature has no
            value, or if the initialization does not fit X.

        Warns
        -----
        ConvergenceWarning
            If EM did not reach ``tol``, or if components had to be regularized by more than ``reg_covar``.
        """
        X = self._validate(X, reset=True, min_samples=2)
        check_processes(self, X)
        samples = self._training_samples(X, sample_weight)

        is_warm = self.warm_start and hasattr(self, "converged_")
        if is_warm:
            rows, inits = self._em_rows(samples), [self._current_init(samples.center)]
        else:
            rows, inits = self._initialize(samples, y)

        is_verbose = self.verbose and current_group().rank == 0
        with self._computing(X):
            best = fit_best_mixture(
                rows,
                inits,
                self.n_components,
                tol=self.tol,
                max_iter=self.max_iter,
                lower_bound=self.lower_bound_ if is_warm else -np.inf,
                acceleration=self.acceleration,
                report=self._print_iteration if is_verbose else None,
            )
        if is_verbose:
            print(f"The best initialization {'converged' if best.converged else 'did not converge'}.")
        self._warn_if_not_converged(best)
        self._warn_if_regularized(best)

        self._publish(best, samples.center, X.dtype)
        self._weight_seen = rows.total_weight
        return self

    @batch_by_batch
    @fit_method
    def partial_fit(self, X, y=None, sample_weight=None):
        """Take one step of stepwise EM with a batch of samples.

        The first batch also initializes the mixture, as in `fit`, so it should contain all clusters. After `fit`, or in
        a mixture `from_parameters`, the step continues from there.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            A batch; NaN is a missing value. For a `torch.utils.data.DataLoader` or an iterator of batches, one step is
            taken with each.
        y : array-like of shape (n_samples,), default=None
            Class labels for the initialization, as in `fit`; used in the first batch only.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples.

        Returns
        -------
        self : TorchGMM
            The fitted estimator. ``n_iter_`` counts the batches; ``lower_bounds_`` holds the mean log-likelihood of
            each before its step, in a mixture whose components are wider where they come from too few samples.

        Raises
        ------
        ValueError
            If X is not a numeric array, finite but for NaN, with the features of the earlier batches, if it has no
            value at all, or if the first batch has fewer than ``n_components`` samples or a feature without a value.
        """
        first = not hasattr(self, "converged_")
        X = self._validate(X, reset=first, min_samples=2 if first else 1)
        check_processes(self, X)
        weight_seen, lower_bounds = (0.0, []) if first else (self._weight_seen, self.lower_bounds_)

        if first:
            samples = self._training_samples(X, sample_weight)
            rows, (init, *_) = self._initialize(samples, y)
        else:
            samples = self._batch_samples(X, sample_weight)
            rows, init = self._continue(samples)
        with self._computing(X):
            step = step_mixture(rows, init(rows), weight_seen, self.learning_decay)
        self._warn_if_regularized(step)

        self._publish(step, samples.center, X.dtype if first else self.means_.dtype)
        self._weight_seen = weight_seen + rows.total_weight
        self.lower_bounds_ = [*lower_bounds, *step.lower_bounds]
        self.n_iter_ = len(self.lower_bounds_)
        return self

    def fit_predict(self, X, y=None, sample_weight=None):
        """Fit the mixture and return the component of each sample.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training data.
        y : array-like of shape (n_samples,), default=None
            Class labels for the initialization, as in `fit`.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples.

        Returns
        -------
        labels : ndarray of shape (n_samples,)
            ``fit(X, y, sample_weight).predict(X)``.
        """
        return self.fit(X, y, sample_weight).predict(X)

    def predict(self, X):
        """Return the most probable component of each sample.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.

        Returns
        -------
        labels : ndarray of shape (n_samples,)
            Indices of components.
        """
        return self._e_step(self._validate(X, reset=False), lambda log_likelihoods, log_resp: log_resp.argmax(1))

    def predict_proba(self, X):
        """Return the posterior probability of each component for each sample.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.

        Returns
        -------
        resp : ndarray of shape (n_samples, n_components)
            Responsibilities; each row sums to one.
        """
        return self._e_step(self._validate(X, reset=False), lambda log_likelihoods, log_resp: log_resp.exp())

    def transform(self, X):
        """Return responsibilities, as `predict_proba`, for the next step of a pipeline.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.

        Returns
        -------
        resp : ndarray of shape (n_samples, n_components)
            Responsibilities; each row sums to one.
        """
        return self.predict_proba(X)

    def score_samples(self, X):
        """Return the log-likelihood of each sample; of its observed values, where others are missing.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.

        Returns
        -------
        log_likelihood : ndarray of shape (n_samples,)
            In nats; zero for a sample without any value.
        """
        return self._score_valid(self._validate(X, reset=False))

    def _score_valid(self, X):
        return self._e_step(X, lambda log_likelihoods, log_resp: log_likelihoods)

    def impute(self, X):
        """Replace missing values by their expectation given the observed values of their sample.

        It is the mean of the conditional means of the components, weighted by the responsibilities.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data, with NaN where values are missing.

        Returns
        -------
        X_filled : ndarray of shape (n_samples, n_features)
            The data without NaN. Observed values are unchanged.

        References
        ----------
        Z. Ghahramani and M. I. Jordan, Supervised learning from incomplete data via an EM approach, 1994, section 3.

        Examples
        --------
        >>> import numpy as np
        >>> from skvae import TorchGMM
        >>> gmm = TorchGMM.from_parameters([1.0], [[1.0, 2.0]], [[[1.0, 0.5], [0.5, 1.0]]])
        >>> gmm.impute([[3.0, np.nan], [np.nan, np.nan]])
        array([[3., 3.],
               [1., 2.]])
        """
        X = self._validate(X, reset=False)
        device, family = resolve_device(self.device, dtype=torch.float64), COVARIANCES[self.covariance_type]
        mixture = self._mixture(torch.float64, device)
        rows = {"dtype": compute_dtype(X.dtype, device), "device": device, "chunk_size": self.chunk_size}
        return map_samples(lambda x: impute_chunk(x, mixture, family), X, width=3 * X.shape[1], **rows)

    def bic(self, X, sample_weight=None):
        """Return the Bayesian information criterion on X; lower is better.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.
        sample_weight : array-like of shape (n_samples,), default=None
            Nonnegative weights of the samples; an integer weight is as many equal samples, and a weight of zero none.

        Returns
        -------
        bic : float
            ``-2 log-likelihood + n_parameters log(n_samples)``; with weights w,
            ``-2 sum_i w_i log p(x_i) + n_parameters log(sum_i w_i)``.

        Raises
        ------
        ValueError
            If the weights are not finite, negative, all zero, or not one for each sample.

        Examples
        --------
        A histogram has the criterion of the samples that it counts:

        >>> import numpy as np
        >>> from skvae import TorchGMM
        >>> centers, counts = np.array([[-1.0], [0.0], [1.0]]), [30, 50, 20]
        >>> gmm = TorchGMM(random_state=0).fit(centers, sample_weight=counts)
        >>> round(gmm.bic(centers, sample_weight=counts), 3)
        221.663
        >>> round(gmm.bic(np.repeat(centers, counts, axis=0)), 3)
        221.663
        """
        log_likelihood, n_samples = self._total_score(X, sample_weight)
        return float(-2 * log_likelihood + self._n_parameters() * np.log(n_samples))

    def aic(self, X, sample_weight=None):
        """Return the Akaike information criterion on X; lower is better.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.
        sample_weight : array-like of shape (n_samples,), default=None
            Nonnegative weights of the samples; an integer weight is as many equal samples, and a weight of zero none.

        Returns
        -------
        aic : float
            ``-2 log-likelihood + 2 n_parameters``; with weights w, the log-likelihood is ``sum_i w_i log p(x_i)``.

        Raises
        ------
        ValueError
            If the weights are not finite, negative, all zero, or not one for each sample.
        """
        return -2 * self._total_score(X, sample_weight)[0] + 2 * self._n_parameters()

    def icl(self, X, sample_weight=None):
        """Return the integrated completed likelihood on X, as an information criterion; lower is better.

        It is the BIC with a penalty for components that overlap: few, well separated ones have the lowest.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.
        sample_weight : array-like of shape (n_samples,), default=None
            Nonnegative weights of the samples; an integer weight is as many equal samples, and a weight of zero none.

        Returns
        -------
        icl : float
            ``bic - 2 sum_i w_i log max_c p(c | x_i)``, with the weights w_i, or 1.

        Raises
        ------
        ValueError
            If the weights are not finite, negative, all zero, or not one for each sample.

        References
        ----------
        C. Biernacki, G. Celeux and G. Govaert, Assessing a mixture model for clustering with the integrated completed
        likelihood, 2000.
        """
        valid, weight = self._validate_weighted(X, sample_weight)
        certainties = host_array(self._e_step(valid, lambda log_likelihoods, log_resp: log_resp.amax(1)))
        return self.bic(X, sample_weight) - 2 * weighted_sum(certainties, weight)

    def sample(self, n_samples=1, random_state=None, *, component=None):
        """Draw samples from the mixture.

        Parameters
        ----------
        n_samples : int, default=1
            Number of samples.
        random_state : int, RandomState instance or None, default=None
            Seeds the draw; None uses the estimator's own ``random_state``.
        component : int, default=None
            The component of all samples; None draws components by their weights.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            Samples, grouped by component.
        y : ndarray of shape (n_samples,)
            Their components.

        Raises
        ------
        ValueError
            If there is no such component, or ``n_samples`` is less than one.

        Examples
        --------
        >>> from skvae import TorchGMM
        >>> gmm = TorchGMM.from_parameters([0.5, 0.5], [[-30.0], [30.0]], [1.0, 1.0], covariance_type="spherical")
        >>> X, y = gmm.sample(4, random_state=0, component=1)
        >>> bool((X > 20).all()), y
        (True, array([1, 1, 1, 1]))
        """
        check_is_fitted(self)
        check_sample_size(n_samples)
        generator = generator_from(self.random_state if random_state is None else random_state)
        family, mixture = COVARIANCES[self.covariance_type], self._mixture(torch.float64, "cpu")
        if component is None:
            y = mixture.log_weights.exp().multinomial(n_samples, replacement=True, generator=generator).sort().values
        else:
            y = torch.full((n_samples,), check_index("component", component, len(mixture.means)))
        noise = torch.randn(n_samples, mixture.means.shape[1], dtype=torch.float64, generator=generator)
        factor = mixture.factor.expand(len(mixture.means), *mixture.factor.shape[1:])
        x = torch.cat([mixture.means[c] + family.color(noise[y == c], factor[c]) for c in y.unique()])
        return x.numpy().astype(self.means_.dtype), y.numpy()

    def _training_samples(self, X, sample_weight):
        """Return the samples of positive weight, without those that have no value, and their centre."""
        n_passed = len(X)
        X, weight, selected = positive_weight_samples(X, sample_weight)
        check_enough_rows(X, self.n_components)
        center = column_means(X, weight)
        has_missing = np.isnan(center).any() and any_missing(X)
        if has_missing:
            check_columns(self, X)
            X, weight, selected = rows_with_values(X, weight, selected)
            check_enough_rows(X, self.n_components)
            center = observed_means(X, weight)
        return WeightedSamples(X, weight, center, has_missing, selected, n_passed)

    def _batch_samples(self, X, sample_weight):
        """Return the samples of positive weight of a further batch, about the mean of the mixture."""
        X, weight, _ = positive_weight_samples(X, sample_weight)
        center = np.average(self.means_, axis=0, weights=self.weights_).astype(np.float64)
        has_missing = any_missing(X)
        if has_missing:
            X, weight, _ = rows_with_values(X, weight)
        return WeightedSamples(X, weight, center, has_missing)

    def _em_rows(self, samples, covariance=None):
        """Return samples as EM visits them.

        Parameters
        ----------
        samples : WeightedSamples
        covariance : Tensor, optional
            The covariance in whose coordinates EM runs; that of the samples if None.

        Returns
        -------
        rows : EMRows
        """
        family, device = COVARIANCES[self.covariance_type], resolve_device(self.device, dtype=torch.float64)
        if samples.has_missing:
            return PatternRows(samples.weighted_rows(torch.float64, device), family, self.reg_covar, covariance)
        read = partial(samples.weighted_rows, device=device, block_size=self.chunk_size)
        with self._computing(samples.X):
            rows = read(compute_dtype(samples.X.dtype, device))
            settings = {"chunk_size": self.chunk_size, "read_again": read}
            return WhitenedRows(rows, family, self.reg_covar, covariance, **settings)

    def _initialize(self, samples, y):
        """Return samples as EM visits them, and functions from these to the mixtures that EM starts from."""
        if samples.has_missing:
            rows = self._em_rows(samples)
            imputed = WeightedRows(rows.imputed(), rows.weight, rows.group)
            samples = samples._replace(X=filled_in(samples.X, imputed.x.cpu().numpy() + samples.center))
            return rows, self._inits(imputed, samples.center, self._user_responsibilities(samples, y))
        resp = self._user_responsibilities(samples, y)
        with self._computing(samples.X) as device:  # but not around a clusterer of the user's
            # In float64 whatever the dtype of X: in another precision, other samples may be drawn.
            inits = self._inits(samples.weighted_rows(torch.float64, device, self.chunk_size), samples.center, resp)
        return self._em_rows(samples), inits

    def _user_responsibilities(self, samples, y):
        """Return labels or responsibilities of samples by ``init_params``; None where these are to be drawn."""
        if isinstance(self.init_params, str) and self.init_params in INIT_METHODS:
            return None
        return responsibilities_from(self.init_params, samples, y, self.n_components, self.random_state)

    def _inits(self, rows, center, resp):
        """Return a function from `EMRows` to a mixture for each initialization."""
        n_components, params = self.n_components, self._user_parameters(center)
        if resp is not None:
            drawn = [responsibility_function(resp, n_components, rows.x.dtype, rows.x.device)]
        elif all(param is not None for param in params):
            drawn = [None]
        else:
            generator = fit_generator(self.random_state)
            drawn = draw_responsibilities(self.init_params, self.n_init, rows, n_components, generator)
        return [partial(initial_mixture, resp_of=each, n_components=n_components, params=params) for each in drawn]

    def _user_parameters(self, center):
        """Return log-weights, means, covariances and factor of ``*_init`` about a centre, None where they are None."""
        family, shape = COVARIANCES[self.covariance_type], (self.n_components, len(center))
        log_weights = means = covariances = factor = None
        if self.weights_init is not None:
            weights = check_component_weights("weights_init", self.weights_init, self.n_components)
            log_weights = torch.tensor(weights).log()
        if self.means_init is not None:
            means = torch.tensor(check_init("means_init", self.means_init, shape) - center)
        if self.precisions_init is not None:
            covariances, factor = check_precisions_init(self.precisions_init, *shape, self.covariance_type, family)
        return log_weights, means, covariances, factor

    def _current_init(self, center):
        """Return a function from `EMRows` to the current mixture, about a centre."""
        mixture = self._current_mixture("cpu", center)
        return partial(initial_mixture, resp_of=None, n_components=self.n_components, params=mixture)

    def _continue(self, samples):
        """Return a further batch as EM visits it, and a function from this to the current mixture."""
        # A small mixture stays on the host, with the M-step: an accelerator is waited for at each decision.
        is_small = self.precisions_cholesky_.size <= MAX_ON_HOST
        device = "cpu" if is_small else resolve_device(self.device, dtype=torch.float64)
        mixture = self._current_mixture(device, samples.center)
        return self._em_rows(samples, COVARIANCES[self.covariance_type].total(mixture)), lambda rows: mixture

    def _warn_if_not_converged(self, fit):
        if self.max_iter > 0 and not fit.converged and current_group().rank == 0:
            warn(
                f"EM did not converge within max_iter={self.max_iter} iterations: the last one still changed the lower "
                f"bound by tol={self.tol} or more. Increase max_iter or tol, or start elsewhere (init_params, n_init).",
                ConvergenceWarning,
            )

    def _warn_if_regularized(self, fit):
        if fit.regularized and current_group().rank == 0:
            warn(
                f"The covariances of components {sorted(fit.regularized)} are singular, and were regularized by more "
                f"than reg_covar={self.reg_covar}: too few distinct rows, or linearly dependent features, for this "
                "many components. Increase reg_covar, decrease n_components, or use a simpler covariance_type.",
                ConvergenceWarning,
            )

    def _publish(self, fit, center, dtype):
        """Set the fitted attributes as arrays in the dtype of the data."""
        family, mixture = COVARIANCES[self.covariance_type], fit.mixture.to("cpu")
        precisions = family.precisions(mixture.factor)
        means = mixture.means.numpy() + center
        too_large = mixture.covariances.flatten(1).abs().amax(1) > np.finfo(dtype).max
        if too_large.any():
            components = too_large.nonzero().flatten().tolist()
            raise ValueError(f"The covariances of components {components} are not finite; scale the input data.")
        for name in EXACT:
            vars(self).pop(name, None)
        if dtype == np.float32 and not family.fits_float32(mixture._replace(means=torch.from_numpy(means))):
            self._exact_means, self._exact_factor = means, family.compact(mixture.factor).numpy()
        self.weights_ = mixture.log_weights.exp().numpy().astype(dtype, copy=False)
        self.means_ = means.astype(dtype, copy=False)
        self.covariances_ = family.compact(mixture.covariances).numpy().astype(dtype, copy=False)
        self.precisions_ = family.compact(precisions).numpy().astype(dtype, copy=False)
        self.precisions_cholesky_ = family.compact(mixture.factor).numpy().astype(dtype, copy=False)
        self.lower_bounds_, self.converged_ = fit.lower_bounds, fit.converged
        self.lower_bound_ = fit.lower_bounds[-1] if fit.lower_bounds else -np.inf
        self.n_iter_ = len(fit.lower_bounds)
        self.n_regularized_ = len(fit.regularized)

    def _mixture(self, dtype, device, center=0.0):
        """Return the fitted mixture as tensors, about a centre."""
        family = COVARIANCES[self.covariance_type]
        expected = family.compact_shape(len(self.means_), self.n_features_in_)
        if self.means_.shape[1] != self.n_features_in_ or self.covariances_.shape != expected:
            raise ValueError(
                f"The fitted means of shape {self.means_.shape} and covariances of shape {self.covariances_.shape} do "
                f"not match covariance_type={self.covariance_type!r} and {self.n_features_in_} features; fit again "
                "with warm_start=False."
            )
        means, covariances, factor = self.means_, self.covariances_, self.precisions_cholesky_
        if is_exact(self, EXACT, (means, factor)):
            means, factor = self._exact_means, self._exact_factor
            covariances = family.compact(family.covariances(family.expand(torch.tensor(factor))))
        return Mixture(
            to_tensor(self.weights_, torch.float64, "cpu").log().to(dtype),
            torch.from_numpy(means.astype(np.float64) - center).to(dtype),
            family.expand(to_tensor(covariances, dtype, "cpu")),
            family.expand(to_tensor(factor, dtype, "cpu")),
        ).to(device)

    def _current_mixture(self, device, center):
        """Return the mixture to continue from."""
        if len(self.means_) != self.n_components:
            raise ValueError(
                f"The mixture to continue from has {len(self.means_)} components, but n_components="
                f"{self.n_components}; set it back, or fit a clone from the beginning."
            )
        return self._mixture(torch.float64, device, center)

    def _e_step(self, X, select):
        """Map the E-step over validated data and select one of its results."""
        family, in_float64 = COVARIANCES[self.covariance_type], None

        def complete(x, *parameters):
            return select(*e_step(x, Mixture(*parameters), family))

        def incomplete(x, *parameters):
            nonlocal in_float64
            if in_float64 is None:
                in_float64 = Mixture(*parameters) if dtype == torch.float64 else self._mixture(torch.float64, device)
            return select(*observed_e_step(x.double(), in_float64, family))

        with self._computing(X) as device:
            exact = is_exact(self, EXACT, (self.means_, self.precisions_cholesky_))
            dtype = torch.float64 if exact else compute_dtype(X.dtype, device)
            mixture = self._mixture(dtype, "cpu")
            rows = {"dtype": dtype, "device": device, "width": 3 * (X.shape[1] + len(mixture.means))}
            return map_samples(
                complete, X, parameters=mixture, incomplete=incomplete, chunk_size=self.chunk_size, **rows
            )

    @contextmanager
    def _computing(self, X):
        """Compute on the yielded device, without gradients, and in one thread if products are too small for several."""
        n_operations = largest_product(COVARIANCES[self.covariance_type], X.shape[1], self.n_components)
        device = resolve_device(self.device, dtype=torch.float64)
        with serial_if_small(n_operations, device), torch.inference_mode():
            yield device

    def _n_parameters(self):
        n_components, n_features = self.means_.shape
        family = COVARIANCES[self.covariance_type]
        return n_components * (n_features + 1) - 1 + family.n_parameters(n_components, n_features)

    @property
    def _n_features_out(self):
        """Return the number of responsibilities that `transform` returns."""
        return len(self.weights_)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _print_iteration(self, first, run, iteration, lower_bound, gain):
        if iteration % self.verbose_interval == 0:
            detail = f"\t lower bound {lower_bound:.5f}\t gain {gain:.5f}" if self.verbose > 1 else ""
            print(f"Initialization {first + run}, iteration {iteration}{detail}")
