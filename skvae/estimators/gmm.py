"""Gaussian mixtures by expectation-maximisation."""

import warnings
from functools import partial
from numbers import Integral, Real
from typing import ClassVar

import numpy as np
import torch
from sklearn.base import DensityMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_array
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from ..fitting.em import WhitenedRows, e_step, fit_mixture, start_mixture
from ..fitting.starts import STARTS
from ..models.covariances import COVARIANCES, Mixture
from ._base import (
    ScoreMixin,
    TorchEstimator,
    check_enough_rows,
    check_sample_size,
    compute_dtype,
    fit_method,
    generator_from,
    resolve_device,
    to_tensor,
)


class TorchGMM(ScoreMixin, DensityMixin, TorchEstimator):
    """Gaussian mixture fitted by expectation-maximisation on CPU or GPU.

    Parameters, attributes and results are those of :class:`sklearn.mixture.GaussianMixture`. The data are centred, the
    sums are kept in float64 whatever the dtype of the data, and rows are visited in chunks, so that nothing of size
    ``n_samples x n_components x n_features`` is ever held.

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
        Number of starts; the one with the highest lower bound is kept.

    init_params : {"kmeans", "k-means++", "random", "random_from_data"}, default="kmeans"
        How responsibilities start: from k-means clusters, from rows chosen by k-means++, at random, or from random
        rows.

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
    lower_bounds_ : list of shape (n_iter_,)
        Its lower bound at each iteration.
    n_regularized_ : int
        Number of components whose covariance was singular in spite of ``reg_covar``, and was regularized further.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features, if X has names that are all strings.

    See Also
    --------
    sklearn.mixture.GaussianMixture : The same model in NumPy.
    VAEEmbedder : Codes on which a mixture finds clusters that it does not find in the data.

    References
    ----------
    C. M. Bishop, Pattern Recognition and Machine Learning, 2006, section 9.2 (equations 9.23 to 9.28).

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

    _parameter_constraints: ClassVar[dict] = {
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "covariance_type": [StrOptions(set(COVARIANCES))],
        "tol": [Interval(Real, 0.0, None, closed="left")],
        "reg_covar": [Interval(Real, 0.0, None, closed="left")],
        "max_iter": [Interval(Integral, 0, None, closed="left")],
        "n_init": [Interval(Integral, 1, None, closed="left")],
        "init_params": [StrOptions(set(STARTS))],
        "weights_init": ["array-like", None],
        "means_init": ["array-like", None],
        "precisions_init": ["array-like", None],
        "random_state": ["random_state"],
        "warm_start": ["boolean"],
        "device": [str, torch.device],
        "chunk_size": [Interval(Integral, 1, None, closed="left"), None],
        "verbose": ["verbose"],
        "verbose_interval": [Interval(Integral, 1, None, closed="left")],
    }

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
        self.device = device
        self.chunk_size = chunk_size
        self.verbose = verbose
        self.verbose_interval = verbose_interval

    @fit_method
    def fit(self, X, y=None):
        """Estimate the mixture with the EM algorithm.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training data.
        y : Ignored
            Present for API consistency.

        Returns
        -------
        self : TorchGMM
            The fitted estimator.

        Raises
        ------
        ValueError
            If X is not a finite numeric table with at least ``n_components`` rows.

        Warns
        -----
        ConvergenceWarning
            If EM did not reach ``tol``, or if components had to be regularized by more than ``reg_covar``.
        """
        X = self._validate(X, reset=True, min_samples=2)
        check_enough_rows(X, self.n_components)
        center = X.mean(axis=0, dtype=np.float64)
        given = self._given_parameters(center)

        generator = generator_from(self.random_state)

        device = resolve_device(self.device, dtype=torch.float64)
        x = torch.from_numpy(X - center).to(device, compute_dtype(X.dtype, device))
        best = self._best_fit(x, center, given, generator)

        self._publish(best, center, X.dtype)
        return self

    def fit_predict(self, X, y=None):
        """Fit the mixture and return the component of each row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training data.
        y : Ignored
            Present for API consistency.

        Returns
        -------
        labels : ndarray of shape (n_samples,)
            ``fit(X).predict(X)``.
        """
        return self.fit(X, y).predict(X)

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
        return self._e_step(X, lambda evidence, log_resp: log_resp.argmax(1))

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
        return self._e_step(X, lambda evidence, log_resp: log_resp.exp())

    def score_samples(self, X):
        """Log-likelihood of each row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.

        Returns
        -------
        log_likelihood : ndarray of shape (n_samples,)
            In nats.
        """
        return self._e_step(X, lambda evidence, log_resp: evidence)

    def bic(self, X):
        """Bayesian information criterion on X; lower is better.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.

        Returns
        -------
        bic : float
            ``-2 log-likelihood + n_parameters log(n_samples)``.
        """
        log_likelihoods = self.score_samples(X)
        n_samples = len(log_likelihoods)
        return float(-2 * log_likelihoods.sum(dtype=np.float64) + self._n_parameters() * np.log(n_samples))

    def aic(self, X):
        """Akaike information criterion on X; lower is better.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.

        Returns
        -------
        aic : float
            ``-2 log-likelihood + 2 n_parameters``.
        """
        return float(-2 * self.score_samples(X).sum(dtype=np.float64) + 2 * self._n_parameters())

    def sample(self, n_samples=1, random_state=None):
        """Draw rows from the mixture.

        Parameters
        ----------
        n_samples : int, default=1
            Number of rows.
        random_state : int, RandomState instance or None, default=None
            Seeds the draw; None uses the estimator's own ``random_state``.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            Rows, grouped by component.
        y : ndarray of shape (n_samples,)
            Their components.
        """
        check_is_fitted(self)
        check_sample_size(n_samples)
        generator = generator_from(self.random_state if random_state is None else random_state)
        family, mixture = COVARIANCES[self.covariance_type], self._mixture(torch.float64, "cpu")
        y = mixture.log_weights.exp().multinomial(n_samples, replacement=True, generator=generator).sort().values
        noise = torch.randn(n_samples, mixture.means.shape[1], dtype=torch.float64, generator=generator)
        factor = mixture.factor.expand(len(mixture.means), *mixture.factor.shape[1:])
        x = torch.cat([mixture.means[c] + family.color(noise[y == c], factor[c]) for c in y.unique()])
        return x.numpy().astype(self.means_.dtype), y.numpy()

    def _best_fit(self, x, center, given, generator):
        """Run EM from every start and keep the one with the highest lower bound. The rows x are overwritten."""
        warm = self.warm_start and hasattr(self, "converged_")
        mixtures = [self._mixture(torch.float64, x.device, center)] if warm else self._starts(x, given, generator)
        rows = WhitenedRows(x, COVARIANCES[self.covariance_type], self.reg_covar, chunk_size=self.chunk_size)
        previous, report, best = self.lower_bound_ if warm else -np.inf, self._report if self.verbose else None, None
        for init, mixture in enumerate(mixtures):
            self._print(f"Initialization {init}")
            if callable(mixture):
                mixture = mixture(rows)
            fit = fit_mixture(rows, mixture, previous, tol=self.tol, max_iter=self.max_iter, report=report)
            self._print(f"Initialization {'converged' if fit.converged else 'did not converge'}.")
            if best is None or fit.lower_bounds[-1:] > best.lower_bounds[-1:]:
                best = fit
        if self.max_iter > 0 and not best.converged:
            warnings.warn(
                f"EM did not converge within max_iter={self.max_iter} iterations: the last one still changed the lower "
                f"bound by tol={self.tol} or more. Increase max_iter or tol, or start elsewhere (init_params, n_init).",
                ConvergenceWarning,
                stacklevel=5,
            )
        if best.regularized:
            warnings.warn(
                f"The covariances of components {sorted(best.regularized)} are singular, and were regularized by more "
                f"than reg_covar={self.reg_covar}: too few distinct rows, or linearly dependent features, for this "
                "many components. Increase reg_covar, decrease n_components, or use a simpler covariance_type.",
                ConvergenceWarning,
                stacklevel=5,
            )
        return best

    def _starts(self, x, given, generator):
        """What to start from: the mixture that the user gave, or functions of the whitened rows that complete it."""
        if all(part is not None for part in given):
            return [Mixture(*(part.to(x.device) for part in given))]

        def complete(resp_of, rows):
            found = start_mixture(rows, resp_of, self.n_components)
            pairs = zip(given, found, strict=True)
            return Mixture(*(theirs if mine is None else mine.to(theirs.device) for mine, theirs in pairs))

        responsibilities = [STARTS[self.init_params](x, self.n_components, generator) for _ in range(self.n_init)]
        return [partial(complete, resp_of) for resp_of in responsibilities]

    def _given_parameters(self, center):
        """Starting parameters from the ``*_init`` parameters, None where there are none."""
        family, n_features = COVARIANCES[self.covariance_type], len(center)
        log_weights = means = covariances = factor = None
        if self.weights_init is not None:
            weights = _check_init("weights", self.weights_init, (self.n_components,))
            if (weights < 0).any() or (weights > 1).any() or not np.allclose(weights.sum(), 1, atol=1e-6):
                raise ValueError(
                    f"weights_init should be between 0 and 1 and sum to 1, but its values are between "
                    f"{weights.min():.5g} and {weights.max():.5g} and sum to {weights.sum():.5g}."
                )
            log_weights = torch.tensor(weights).log()
        if self.means_init is not None:
            given = _check_init("means", self.means_init, (self.n_components, n_features))
            means = torch.tensor(given - center)
        if self.precisions_init is not None:
            shape = family.compact_shape(self.n_components, n_features)
            precisions = family.expand(torch.tensor(_check_init("precisions", self.precisions_init, shape)))
            factor, positive = family.factor_from_precisions(precisions)
            symmetric = precisions.ndim < 3 or torch.allclose(precisions, precisions.mT)
            if not (positive.all() and symmetric):
                kind = "symmetric and positive definite" if precisions.ndim == 3 else "positive"
                raise ValueError(f"precisions_init should be {kind} for covariance_type={self.covariance_type!r}.")
            covariances = family.covariances(factor)
        return log_weights, means, covariances, factor

    def _publish(self, fit, center, dtype):
        """Set the fitted attributes as arrays in the dtype of the data."""
        family, mixture = COVARIANCES[self.covariance_type], fit.mixture.to("cpu")
        precisions = family.precisions(mixture.factor)
        self.weights_ = mixture.log_weights.exp().numpy().astype(dtype)
        self.means_ = (mixture.means.numpy() + center).astype(dtype)
        self.covariances_ = family.compact(mixture.covariances).numpy().astype(dtype)
        self.precisions_ = family.compact(precisions).numpy().astype(dtype)
        self.precisions_cholesky_ = family.compact(mixture.factor).numpy().astype(dtype)
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
        parts = (
            np.log(self.weights_, dtype=np.float64),
            self.means_.astype(np.float64) - center,
            family.expand(to_tensor(self.covariances_, dtype, device)),
            family.expand(to_tensor(self.precisions_cholesky_, dtype, device)),
        )
        return Mixture(*(torch.as_tensor(part).to(device=device, dtype=dtype) for part in parts))

    def _e_step(self, X, select):
        """Map the E-step over the rows and select one of its results."""
        X = self._validate(X, reset=False)
        device = resolve_device(self.device, dtype=torch.float64)
        dtype, family = compute_dtype(X.dtype, device), COVARIANCES[self.covariance_type]
        mixture = self._mixture(dtype, device)
        return self._map(
            lambda x: select(*e_step(x, mixture, family)),
            X,
            dtype=dtype,
            device=device,
            width=3 * (X.shape[1] + len(mixture.means)),
            chunk_size=self.chunk_size,
        )

    def _n_parameters(self):
        n_components, n_features = self.means_.shape
        family = COVARIANCES[self.covariance_type]
        return n_components * (n_features + 1) - 1 + family.n_parameters(n_components, n_features)

    def _print(self, message):
        if self.verbose:
            print(message)

    def _report(self, iteration, lower_bound, gain):
        if iteration % self.verbose_interval == 0:
            detail = f"\t lower bound {lower_bound:.5f}\t gain {gain:.5f}" if self.verbose > 1 else ""
            print(f"  Iteration {iteration}{detail}")


def _check_init(name, value, shape):
    """A float64 array of the right shape, or an error that says what is wrong."""
    value = check_array(value, dtype=np.float64, ensure_2d=False, allow_nd=True, ensure_min_samples=0)
    if value.shape != shape:
        raise ValueError(f"{name}_init should have the shape {shape}, but it has the shape {value.shape}.")
    return value
