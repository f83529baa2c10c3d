"""Gaussian mixtures by expectation-maximisation."""

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
from ..data.chunks import centered, column_means
from ..data.missing import any_missing, check_columns, filled_in, impute_chunk, observed_means, rows_with_values
from ..data.tables import Table, streamed
from ..data.weights import counted_rows, weighted_sum
from ..fitting.distributed import current_group
from ..fitting.em import MixtureFit, fit_mixtures, start_mixture, step_mixture
from ..fitting.missing import PatternRows, observed_e_step
from ..fitting.rows import WhitenedRows, e_step, largest_product
from ..fitting.squarem import ACCELERATIONS
from ..fitting.starts import STARTS, draw_starts
from ..fitting.threads import serial_if_small
from ..fitting.warnings import warn
from ..models.covariances import COVARIANCES, Mixture
from ._base import ScoreMixin, TorchEstimator, batch_by_batch, fit_method
from ._checks import check_enough_rows, check_index, check_processes, check_sample_size, fit_generator, fit_seed
from ._mixture_starts import (
    check_component_weights,
    check_init,
    check_precisions_init,
    given_responsibilities,
    responsibilities_of,
)
from .export import MixtureModel

EXACT = ("_exact_means", "_exact_factor")  # in float64, where float32 is not enough for what is published
MAX_ON_HOST = 2**17  # numbers in the covariances of a mixture whose M-step for a batch is made on the CPU


class TorchGMM(ScoreMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin, DensityMixin, TorchEstimator):
    """Gaussian mixture fitted by expectation-maximisation on CPU or GPU.

    Parameters, attributes and results are those of :class:`sklearn.mixture.GaussianMixture`. The data are centred, the
    sums are kept in float64 whatever the dtype of the data, products are made in float64 too where float32 has too few
    digits for narrow components, and rows are visited in chunks, so that nothing of size
    ``n_samples x n_components x n_features`` is ever held.

    Values of X may be missing, as NaN: the likelihood is then that of the observed values, exactly.

    Parameters
    ----------
    n_components : int, default=1
        Number of components.

    covariance_type : {"full", "tied", "diag", "spherical", "tied_diag", "tied_spherical"}, default="full"
        Form of the covariances: any matrix, one matrix for all components, variances for each feature, one variance
        for each component, one set of feature variances for all components, or one variance for everything.

    tol : float, default=1e-3
        EM stops when the lower bound (mean log-likelihood of a row, in nats) gains less than this.

    reg_covar : float, default=1e-6
        Added to the diagonal of the covariances, in squared units of the data.

    max_iter : int, default=100
        Largest number of iterations.

    n_init : int, default=1
        Number of starts; the one with the highest lower bound is kept. They are fitted together, in the same passes
        over the rows. A start that the user gives is made once.

    init_params : {"kmeans", "k-means++", "random", "random_from_data", "labels"}, array-like of shape \
            (n_samples, n_components) or clusterer, default="kmeans"
        How responsibilities start: from k-means clusters, from rows chosen by k-means++, at random, from random rows,
        from the classes that `fit` gets as y (component c starts as the mean and covariance of the c-th class in sorted
        order; -1, None, NaN, NA and NaT are unlabelled), from given responsibilities, or from the labels of a clone of
        the clusterer (below zero: none).

    weights_init : array-like of shape (n_components,), default=None
        Starting weights, summing to one.

    means_init : array-like of shape (n_components, n_features), default=None
        Starting means.

    precisions_init : array-like, default=None
        Starting precisions (inverse covariances), in the shape of ``precisions_``.

    random_state : int, RandomState instance or None, default=None
        Seeds the start and `sample`. No global random state is used, also with None.

    warm_start : bool, default=False
        Start the next fit from the result of the last one.

    acceleration : {"squarem"} or None, default=None
        Whether to extrapolate EM steps. It takes fewer iterations to the same ``tol``, far fewer to a small one. The
        local maximum where it ends may be another one.

    learning_decay : float, default=0.7
        How fast `partial_fit` forgets, in (0.5, 1]: a batch after ``b`` equal ones enters with the step
        ``(b + 1) ** -learning_decay``. With 1 every row seen counts the same for ever.

    device : str or torch.device, default="auto"
        Where to compute; "auto" takes cuda if it is there, else cpu (mps has no float64).

    chunk_size : int, default=None
        Rows visited at once. It changes memory and speed, never the result; None chooses.

    verbose : int, default=0
        Print the iterations; above 1 also the lower bound.

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
        Whether the best start reached ``tol``.
    n_iter_ : int
        Iterations of the best start.
    lower_bound_ : float
        Its last lower bound on the mean log-likelihood of a row, in nats.
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
    VAEEmbedder : Codes on which a mixture finds clusters that it does not find in the data.

    Notes
    -----
    Missing values (NaN) are taken to be missing at random: whether a value is missing may depend on the observed values
    of its row, not on itself. EM then maximises the likelihood of the observed values, rows being grouped by what they
    lack, and all methods use the marginal densities of what is observed. Starts are drawn among rows completed by their
    expectation under a single Gaussian (one of the same kind: without correlations for "diag" and "spherical"), which
    has seen ten steps of EM; a clusterer given as ``init_params`` sees these rows too. Rows without any value are left
    out of a fit. A fit with missing values computes in float64 always.

    Sparse matrices, and arrays on disk (memory maps, HDF5, zarr) that would be larger than a gigabyte as dense rows,
    are read a chunk at a time, and centred and whitened then: one pass over the rows for each iteration, shared by all
    starts, in an amount of memory that does not depend on their number. The result is that of rows in memory, but for
    the start. This is looked for in a random sample of 100,000 rows, or as many as need 64 MB, but at least 40 for each
    component; responsibilities of all rows follow from it. A clusterer given as ``init_params`` is fitted to such a
    sample, and predicts the labels of all rows. Values can not be missing in rows that are read so; sparse rows with
    missing values are dense as a whole.

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
        "init_params": [StrOptions({*STARTS, "labels"}), "array-like", HasMethods("fit_predict")],
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
        """A fitted mixture from known parameters, without data.

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
            It predicts, scores and samples; `partial_fit`, and `fit` with ``warm_start``, go on from it.

        Raises
        ------
        ValueError
            If the shapes do not belong together, the weights do not sum to one, or a covariance is not positive
            definite.

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
        if not positive.all() or (covariances.ndim == 3 and not torch.allclose(covariances, covariances.mT)):
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
            Class labels to start from, in any form that `ClusterLabelClassifier.fit` takes; -1, None, NaN, NA or NaT
            where unlabelled. Used only with ``init_params="labels"``.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows; an integer weight is as many equal rows, and a weight of zero none.

        Returns
        -------
        self : TorchGMM
            The fitted estimator.

        Raises
        ------
        ValueError
            If X is not a finite numeric table, but for NaN, with at least ``n_components`` rows, if a column has no
            value, or if a start does not fit to X.

        Warns
        -----
        ConvergenceWarning
            If EM did not reach ``tol``, or if components had to be regularized by more than ``reg_covar``.
        """
        X = self._validate(X, reset=True, min_samples=2)
        check_processes(self, X)

        rows, starts, center = self._begin(X, y, sample_weight, warm=self.warm_start and hasattr(self, "converged_"))
        with self._threads(X):
            best = self._best_fit(rows, starts)

        self._publish(best, center, X.dtype)
        self._weight_seen = rows.total_weight
        return self

    @batch_by_batch
    @fit_method
    def partial_fit(self, X, y=None, sample_weight=None):
        """Make one step of stepwise EM with a batch of rows.

        The first batch also starts the mixture, as `fit` does, so it should hold all clusters. After `fit`, or in a
        mixture `from_parameters`, the step goes on from there.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            A batch; NaN is a missing value. A `torch.utils.data.DataLoader` or an iterator of batches is one step for
            each.
        y : array-like of shape (n_samples,), default=None
            Class labels to start from, as in `fit`; used in the first batch only.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows.

        Returns
        -------
        self : TorchGMM
            The fitted estimator. ``n_iter_`` counts the batches; ``lower_bounds_`` holds the mean log-likelihood of
            each before its step, in a mixture whose components are wider where they come from too few rows.

        Raises
        ------
        ValueError
            If X is not a finite numeric table, but for NaN, with the features of the earlier batches, if it has no
            value at all, or if the first batch has fewer than ``n_components`` rows or a column without a value.
        """
        first = not hasattr(self, "converged_")
        X = self._validate(X, reset=first, min_samples=2 if first else 1)
        check_processes(self, X)
        seen, before = (0.0, []) if first else (self._weight_seen, self.lower_bounds_)

        rows, starts, center = self._begin(X, y, sample_weight) if first else self._resume(X, sample_weight)
        with self._threads(X):
            step = step_mixture(rows, starts[0](rows), seen, self.learning_decay)
        self._warn_if_regularized(step)

        n_iter = 1 if first else self.n_iter_ + 1
        self._publish(step, center, X.dtype if first else self.means_.dtype)
        self._weight_seen, self.n_iter_ = seen + rows.total_weight, n_iter
        self.lower_bounds_ = [*before, *step.lower_bounds]
        return self

    def fit_predict(self, X, y=None, sample_weight=None):
        """Fit the mixture and return the component of each row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training data.
        y : array-like of shape (n_samples,), default=None
            Class labels to start from, as in `fit`.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows.

        Returns
        -------
        labels : ndarray of shape (n_samples,)
            ``fit(X, y, sample_weight).predict(X)``.
        """
        return self.fit(X, y, sample_weight).predict(X)

    def predict(self, X):
        """Most probable component of each row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.

        Returns
        -------
        labels : ndarray of shape (n_samples,)
            Indices of components.
        """
        return self._e_step(self._validate(X, reset=False), lambda evidence, log_resp: log_resp.argmax(1))

    def predict_proba(self, X):
        """Posterior probability of each component for each row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.

        Returns
        -------
        resp : ndarray of shape (n_samples, n_components)
            Responsibilities; rows sum to one.
        """
        return self._e_step(self._validate(X, reset=False), lambda evidence, log_resp: log_resp.exp())

    def transform(self, X):
        """Responsibilities, as `predict_proba`: what the next step of a pipeline gets.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.

        Returns
        -------
        resp : ndarray of shape (n_samples, n_components)
            Responsibilities; rows sum to one.
        """
        return self.predict_proba(X)

    def score_samples(self, X):
        """Log-likelihood of each row; of its observed values, where others are missing.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.

        Returns
        -------
        log_likelihood : ndarray of shape (n_samples,)
            In nats; zero for a row without any value.
        """
        return self._score_valid(self._validate(X, reset=False))

    def _score_valid(self, X):
        return self._e_step(X, lambda evidence, log_resp: evidence)

    def impute(self, X):
        """Replace missing values by their expectation given the observed values of their row.

        It is the mean of the conditional means of the components, weighted by the responsibilities.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data, with NaN where values are missing.

        Returns
        -------
        X_filled : ndarray of shape (n_samples, n_features)
            The data without NaN. Observed values are as they were.

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
        return self._map(lambda x: impute_chunk(x, mixture, family), X, width=3 * X.shape[1], **rows)

    def bic(self, X, sample_weight=None):
        """Bayesian information criterion on X; lower is better.

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
        """Akaike information criterion on X; lower is better.

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
        """Integrated completed likelihood on X, as an information criterion; lower is better.

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
        rows, weight = self._validate_weighted(X, sample_weight)
        certainties = host_array(self._e_step(rows, lambda evidence, log_resp: log_resp.amax(1)))
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

    def _begin(self, X, y, sample_weight, *, warm=False):
        """Whitened rows, functions of them that give the mixtures to start from, and the centre of the data."""
        n_given = len(X)
        X, weight, counted = counted_rows(X, sample_weight)
        check_enough_rows(X, self.n_components)
        center = column_means(X, weight)
        if np.isnan(center).any() and any_missing(X):
            return self._begin_incomplete(X, y, weight, counted, n_given, warm)
        given_start = None if warm else self._given_start(X, y, weight, counted, n_given)
        read = partial(self._centered, X, weight, center)
        with self._threads(X):  # but not around a clusterer of the user's
            # In float64 whatever the data are: in another precision other rows may be drawn, and EM may end elsewhere.
            starts = self._chosen_starts(*read(torch.float64), center, given_start, warm)
            return self._whitened(*read(), read_again=read), starts, center

    def _begin_incomplete(self, X, y, weight, counted, n_given, warm):
        """As `_begin`, for rows that count, some with missing values."""
        check_columns(self, X)
        X, weight, counted = rows_with_values(X, weight, counted)
        check_enough_rows(X, self.n_components)
        center = observed_means(X, weight)
        rows = self._incomplete(X, weight, center)
        if warm:
            return rows, self._chosen_starts(None, None, center, None, warm), center
        filled = rows.filled()
        whole = filled_in(X, filled.cpu().numpy() + center)
        given_start = self._given_start(whole, y, weight, counted, n_given)
        return rows, self._chosen_starts(filled, rows.weight, center, given_start, warm), center

    def _chosen_starts(self, x, weight, center, given_start, warm):
        """Functions from whitened rows to the mixtures to start from."""
        if warm:
            return [lambda rows: self._current_mixture(rows.x.device, center)]
        if given_start is None:
            return self._starts(x, weight, center)
        resp_of = responsibilities_of(given_start, x.dtype, x.device, self.n_components)
        return [self._start(resp_of, center)]

    def _resume(self, X, sample_weight):
        """As `_begin`, but with the centre and the coordinates of the mixture that there is."""
        X, weight, _ = counted_rows(X, sample_weight)
        device = resolve_device(self.device, dtype=torch.float64)
        center = np.average(self.means_, axis=0, weights=self.weights_).astype(np.float64)
        # A small mixture stays on the host, with the M-step: an accelerator is waited for at each decision.
        mixture = self._current_mixture("cpu" if self.precisions_cholesky_.size <= MAX_ON_HOST else device, center)
        covariance = COVARIANCES[self.covariance_type].total(mixture)
        if any_missing(X):
            X, weight, _ = rows_with_values(X, weight)
            return self._incomplete(X, weight, center, covariance), [lambda rows: mixture], center
        read = partial(self._centered, X, weight, center)
        rows = self._whitened(*read(), covariance=covariance, read_again=read)
        return rows, [lambda rows: mixture], center

    def _centered(self, X, weight, center, dtype=None):
        """Centred rows and their weights as tensors, or rows that are read and centred when they are needed."""
        device = resolve_device(self.device, dtype=torch.float64)
        dtype = dtype or compute_dtype(X.dtype, device)
        if isinstance(X, Table):
            x = streamed(X, dtype, device, center=center, block_size=self.chunk_size)
        else:
            x = centered(X, center, dtype, device)
        return x, None if weight is None else to_tensor(weight, dtype, device)

    def _whitened(self, x, weight, **settings):
        family = COVARIANCES[self.covariance_type]
        settings |= {"chunk_size": self.chunk_size, "group": current_group()}
        return WhitenedRows(x, family, self.reg_covar, weight, **settings)

    def _incomplete(self, X, weight, center, covariance=None):
        """Rows with missing values as tensors, about a centre."""
        device = resolve_device(self.device, dtype=torch.float64)
        x = centered(X, center, torch.float64, device)
        weight = None if weight is None else to_tensor(weight, torch.float64, device)
        return PatternRows(x, COVARIANCES[self.covariance_type], self.reg_covar, weight, covariance, current_group())

    def _given_start(self, X, y, weight, counted, n_given):
        """Labels or responsibilities of the rows that count, None where ``init_params`` is a method."""
        if isinstance(self.init_params, str) and self.init_params in STARTS:
            return None
        rows = {"weight": weight, "counted": counted, "n_given": n_given}
        seed = partial(fit_seed, self.random_state)
        return given_responsibilities(self.init_params, X, y, self.n_components, draw_seed=seed, **rows)

    def _starts(self, x, weight, center):
        """One start, if all its parameters are given, or ``n_init`` drawn ones."""
        if all(value is not None for value in (self.weights_init, self.means_init, self.precisions_init)):
            return [lambda rows: Mixture(*(part.to(rows.x.device) for part in self._given_parameters(center)))]
        generator = fit_generator(self.random_state)
        drawn = draw_starts(self.init_params, self.n_init, x, self.n_components, generator, weight, current_group())
        return [self._start(resp_of, center) for resp_of in drawn]

    def _start(self, resp_of, center):
        """A function from whitened rows to the mixture that responsibilities imply, but for what the user gives."""
        given = self._given_parameters(center)

        def start(rows):
            found = start_mixture(rows, resp_of, self.n_components)
            pairs = zip(given, found, strict=True)
            return Mixture(*(theirs if mine is None else mine.to(theirs.device) for mine, theirs in pairs))

        return start

    def _best_fit(self, rows, starts):
        """Run EM from every start and keep the one with the highest lower bound."""
        warm = self.warm_start and hasattr(self, "converged_")
        verbose = self.verbose and current_group().rank == 0
        previous, report = self.lower_bound_ if warm else -np.inf, self._report if verbose else None
        settings = {"tol": self.tol, "max_iter": self.max_iter, "acceleration": self.acceleration}
        fits, together = [], min(current_group().all_gather_int(rows.n_together(self.n_components)))
        for first in range(0, len(starts), together):
            report_of = report and partial(report, first)
            fits += fit_mixtures(rows, starts[first : first + together], previous, report=report_of, **settings)
            fits = [max(fits, key=lambda fit: fit.lower_bounds[-1:])]
        best = fits[0]
        if verbose:
            print(f"The best start {'converged' if best.converged else 'did not converge'}.")
        if self.max_iter > 0 and not best.converged and current_group().rank == 0:
            warn(
                f"EM did not converge within max_iter={self.max_iter} iterations: the last one still changed the lower "
                f"bound by tol={self.tol} or more. Increase max_iter or tol, or start elsewhere (init_params, n_init).",
                ConvergenceWarning,
            )
        self._warn_if_regularized(best)
        return best

    def _warn_if_regularized(self, fit):
        if fit.regularized and current_group().rank == 0:
            warn(
                f"The covariances of components {sorted(fit.regularized)} are singular, and were regularized by more "
                f"than reg_covar={self.reg_covar}: too few distinct rows, or linearly dependent features, for this "
                "many components. Increase reg_covar, decrease n_components, or use a simpler covariance_type.",
                ConvergenceWarning,
            )

    def _given_parameters(self, center):
        """Starting parameters from the ``*_init`` parameters, None where there are none."""
        family, shape = COVARIANCES[self.covariance_type], (self.n_components, len(center))
        log_weights = means = covariances = factor = None
        if self.weights_init is not None:
            log_weights = torch.tensor(
                check_component_weights("weights_init", self.weights_init, self.n_components)
            ).log()
        if self.means_init is not None:
            means = torch.tensor(check_init("means_init", self.means_init, shape) - center)
        if self.precisions_init is not None:
            factor, covariances = check_precisions_init(self.precisions_init, *shape, self.covariance_type, family)
        return log_weights, means, covariances, factor

    def _publish(self, fit, center, dtype):
        """Set the fitted attributes as arrays in the dtype of the data."""
        family, mixture = COVARIANCES[self.covariance_type], fit.mixture.to("cpu")
        precisions = family.precisions(mixture.factor)
        means = mixture.means.numpy() + center
        wide = (mixture.covariances.flatten(1).abs().amax(1) > np.finfo(dtype).max).nonzero().flatten().tolist()
        if wide:
            raise ValueError(f"The covariances of components {wide} are not finite; scale the input data.")
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
        """The fitted mixture as tensors, about a centre."""
        family = COVARIANCES[self.covariance_type]
        expected = family.compact_shape(len(self.means_), self.n_features_in_)
        if self.means_.shape[1] != self.n_features_in_ or self.covariances_.shape != expected:
            raise ValueError(
                f"The fitted means of shape {self.means_.shape} and covariances of shape {self.covariances_.shape} do "
                f"not belong to covariance_type={self.covariance_type!r} and {self.n_features_in_} features; fit again "
                "with warm_start=False."
            )
        with np.errstate(divide="ignore"):
            log_weights = np.log(self.weights_, dtype=np.float64)
        means, covariances, factor = self.means_, self.covariances_, self.precisions_cholesky_
        if is_exact(self, EXACT, (means, factor)):
            means, factor = self._exact_means, self._exact_factor
            covariances = family.compact(family.covariances(family.expand(torch.tensor(factor))))
        parts = (
            log_weights,
            means.astype(np.float64) - center,
            family.expand(to_tensor(covariances, dtype, "cpu")),
            family.expand(to_tensor(factor, dtype, "cpu")),
        )
        return Mixture(*(torch.as_tensor(part).to(dtype) for part in parts)).to(device)

    def _current_mixture(self, device, center):
        """The mixture to go on from."""
        if len(self.means_) != self.n_components:
            raise ValueError(
                f"The mixture to go on from has {len(self.means_)} components, but n_components={self.n_components}; "
                "set it back, or fit a clone from the beginning."
            )
        return self._mixture(torch.float64, device, center)

    def _e_step(self, X, select):
        """Map the E-step over validated rows and select one of its results."""
        device = resolve_device(self.device, dtype=torch.float64)
        family = COVARIANCES[self.covariance_type]
        exact = is_exact(self, EXACT, (self.means_, self.precisions_cholesky_))
        dtype = torch.float64 if exact else compute_dtype(X.dtype, device)
        mixture, wide = self._mixture(dtype, "cpu"), []

        def complete(x, *parameters):
            return select(*e_step(x, Mixture(*parameters), family))

        def incomplete(x, *parameters):
            if not wide:
                wide.append(Mixture(*parameters) if dtype == torch.float64 else self._mixture(torch.float64, device))
            return select(*observed_e_step(x.double(), *wide, family))

        rows = {"dtype": dtype, "device": device, "width": 3 * (X.shape[1] + len(mixture.means))}
        with self._threads(X):
            return self._map(complete, X, parameters=mixture, incomplete=incomplete, chunk_size=self.chunk_size, **rows)

    def _threads(self, X):
        """Within this, one thread computes where products of samples are too small for several."""
        n_operations = largest_product(COVARIANCES[self.covariance_type], X.shape[1], self.n_components)
        return serial_if_small(n_operations, resolve_device(self.device, dtype=torch.float64))

    def _n_parameters(self):
        n_components, n_features = self.means_.shape
        family = COVARIANCES[self.covariance_type]
        return n_components * (n_features + 1) - 1 + family.n_parameters(n_components, n_features)

    @property
    def _n_features_out(self):
        """Number of responsibilities that `transform` gives."""
        return len(self.weights_)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _report(self, first, start, iteration, lower_bound, gain):
        if iteration % self.verbose_interval == 0:
            detail = f"\t lower bound {lower_bound:.5f}\t gain {gain:.5f}" if self.verbose > 1 else ""
            print(f"Start {first + start}, iteration {iteration}{detail}")
