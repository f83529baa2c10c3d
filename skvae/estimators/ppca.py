"""Probabilistic principal component analysis."""

import math
from numbers import Integral, Real
from typing import ClassVar

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils._param_validation import Interval, RealNotInt, StrOptions
from sklearn.utils.validation import check_is_fitted

from ..data.arrays import compute_dtype, float_dtype, generator_from, is_exact, resolve_device, to_dtype, to_tensor
from ..data.chunks import CenteredColumns, centered, column_means, scatter_about
from ..data.columns import Columns
from ..data.missing import any_missing, check_columns, filled_in, impute_chunk, observed_means, rows_with_values
from ..data.weights import counted_rows
from ..fitting.distributed import current_group
from ..fitting.missing import PatternRows, completed, observed_e_step
from ..fitting.ppca import Rounding, axes_of_rows, axes_of_scatter, choose_observed, fit_ppca, fit_ppca_observed
from ..fitting.warnings import warn
from ..models.covariances import COVARIANCES, moved
from ..models.ppca import PPCA
from ._base import LatentMixin, TorchEstimator, fit_method
from ._checks import check_processes, check_sample_size, row_count
from .export import LinearEncoder

EXACT = ("_exact_mean", "_exact_components", "_exact_variances")  # in float64, where float32 is not enough
MIN_SHARE = 1e-4  # of the largest variance: float32 has three digits of such ones
DEGENERATE, LOWEST_SCORE = (
    1e-12,
    -1e6,
)  # share of the largest variance, and nats for each feature, of a density that is one
MIN_NOISE = 1e-8  # in units of the largest variance and square of a mean: float32 rounds samples to this


class TorchPPCA(LatentMixin, TorchEstimator):
    """Probabilistic principal component analysis, in closed form on CPU or GPU.

    The linear Gaussian latent variable model ``x = W z + mean + noise``: the one that a variational autoencoder with
    linear networks learns. Its covariance is formed in one pass over row chunks and summed in float64, so that the
    variances of float32 data are accurate.

    Values of X may be missing, as NaN: EM then finds the maximum of the likelihood of the observed values.

    Parameters
    ----------
    n_components : int, float, "mle" or None, default=None
        Size of the embedding; a float in (0, 1) is the share of the variance to reach; "mle" is Minka's choice; None
        keeps every direction in which the data vary.

    device : str or torch.device, default="auto"
        Where to compute; "auto" takes cuda if it is there, else cpu (mps has no float64).

    chunk_size : int, default=None
        Rows visited at once; None chooses.

    random_state : int, RandomState instance or None, default=None
        Seeds `sample`; the fit is not random.

    tol : float, default=1e-6
        With missing values, EM stops when the mean log-likelihood of a row gains less than this, in nats.

    max_iter : int, default=1000
        With missing values, largest number of iterations of EM.

    Attributes
    ----------
    components_ : ndarray of shape (`n_components_`, n_features)
        Principal axes, by decreasing variance.
    explained_variance_ : ndarray of shape (`n_components_`,)
        Variances of the data along the axes, in squared units of the data.
    explained_variance_ratio_ : ndarray of shape (`n_components_`,)
        Their shares of the total variance.
    noise_variance_ : float
        Variance of the noise: the mean variance along the other axes.
    mean_ : ndarray of shape (n_features,)
        Means of the features.
    n_components_ : int
        Number of components.
    n_iter_ : int
        Number of iterations of EM; one without missing values.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, if X has names that are all strings.

    See Also
    --------
    sklearn.decomposition.PCA : Principal components, whose `score_samples` agrees with this one.
    VAEEmbedder : The nonlinear model.

    Notes
    -----
    With more features than rows, the noise variance is the mean over all other directions, also those in which the data
    do not vary. scikit-learn leaves these out or in, depending on its solver.

    Missing values (NaN) are taken to be missing at random: whether a value is missing may depend on the observed values
    of its row, not on itself. The M-step of EM is the closed form, with the expected moments of the rows. Variances
    count the rows that have a value less one, as they do without missing values. A share of the variance, and None, are
    decided by the maximum likelihood covariance, which needs more rows than features; Minka's choice supposes complete
    rows. Rows without any value are left out of a fit. A fit with missing values computes in float64 always.

    Sparse matrices, and arrays on disk (memory maps, HDF5, zarr) that would be larger than a gigabyte as dense rows,
    are read a chunk at a time; those on disk are held in a fit if there are fewer rows than features. Values can not be
    missing in rows that are read so; sparse rows with missing values are dense as a whole.

    References
    ----------
    M. E. Tipping and C. M. Bishop, Probabilistic Principal Component Analysis, 1999.
    A. Ilin and T. Raiko, Practical approaches to principal component analysis in the presence of missing values, 2010.
    T. P. Minka, Automatic choice of dimensionality for PCA, 2000.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import TorchPPCA
    >>> X = load_iris().data
    >>> ppca = TorchPPCA(n_components=2).fit(X)
    >>> ppca.transform(X).shape
    (150, 2)
    >>> round(float(ppca.explained_variance_ratio_.sum()), 3)
    0.978
    """

    _allows_nan = True
    _streams_nan = False
    _parameter_constraints: ClassVar[dict] = {
        "n_components": [
            Interval(Integral, 1, None, closed="left"),
            Interval(RealNotInt, 0, 1, closed="neither"),
            StrOptions({"mle"}),
            None,
        ],
        "device": [str, torch.device],
        "chunk_size": [Interval(Integral, 1, None, closed="left"), None],
        "random_state": ["random_state"],
        "tol": [Interval(Real, 0.0, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
    }
    _fitted_schema: ClassVar[dict] = {
        **{"mean_": "d", "components_": "qd", "explained_variance_": "q", "explained_variance_ratio_": "q"},
        **{"_exact_mean": "d", "_exact_components": "qd", "_exact_variances": "q", "noise_variance_": float},
        **{"n_components_": int, "n_iter_": int, "_n_features_out": int},
    }

    def _export_module(self, dtype):
        return LinearEncoder(self.transform, self.mean_)

    def _latent_distribution(self):
        """Return weights, means and covariances of the prior, which is N(0, I)."""
        return np.ones(1), np.zeros((1, self.n_components_)), np.eye(self.n_components_)[None]

    def __init__(
        self, n_components=None, *, device="auto", chunk_size=None, random_state=None, tol=1e-6, max_iter=1000
    ):
        self.n_components = n_components
        self.device = device
        self.chunk_size = chunk_size
        self.random_state = random_state
        self.tol = tol
        self.max_iter = max_iter

    @fit_method
    def fit(self, X, y=None, sample_weight=None):
        """Fit the model.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training data; NaN is a missing value.
        y : Ignored
            Present for API consistency.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows; an integer weight is as many equal rows.

        Returns
        -------
        self : TorchPPCA
            The fitted estimator.

        Raises
        ------
        ValueError
            If X is not a finite numeric table, but for NaN, of at least two rows, has fewer rows or features than
            components, or a column without a value; or if missing values leave the number of components open.

        Warns
        -----
        ConvergenceWarning
            If EM, with missing values, did not reach ``tol``.
        """
        X = self._validate(X, reset=True, min_samples=2)
        check_processes(self, X)
        X, weight, _ = counted_rows(X, sample_weight)
        mean = column_means(X, weight)
        incomplete = np.isnan(mean).any() and any_missing(X)
        if incomplete:
            check_columns(self, X)
            X, weight, _ = rows_with_values(X, weight)
            mean = observed_means(X, weight)
            low, high = Columns(X, current_group()).ranges[:2]
            if np.array_equal(low, high):  # nothing is left to estimate
                X, mean, incomplete = filled_in(X, low), low.astype(np.float64), False
        n_rows = row_count(X)
        if isinstance(self.n_components, Integral) and self.n_components > min(n_rows, X.shape[1]):
            raise ValueError(
                f"n_components={self.n_components} is larger than the smaller of n_samples={n_rows} and "
                f"n_features={X.shape[1]}; decrease n_components."
            )

        fit_rows = self._fit_incomplete if incomplete else self._fit_complete
        model, total_variance, self.n_iter_ = fit_rows(X, weight, mean)
        check_variance(float(total_variance), X)
        parts = mean + model.mean.cpu().numpy(), model.axes.cpu().numpy(), model.variances.cpu().numpy()
        for name in EXACT:
            vars(self).pop(name, None)
        if float_dtype(X.dtype) == np.float32 and not fits_float32(model, parts[0]):
            self._exact_mean, self._exact_components, self._exact_variances = parts
        self.mean_, self.components_, self.explained_variance_ = (to_dtype(part, X.dtype) for part in parts)
        ratio = model.variances / torch.maximum(total_variance, model.variances.sum())  # of equal rows, too
        self.explained_variance_ratio_ = to_dtype(ratio.cpu().numpy(), X.dtype)
        self.noise_variance_ = float(model.noise_variance)
        self.n_components_ = self._n_features_out = len(self.components_)
        return self

    def _fit_complete(self, X, weight, mean):
        """Model about the means of the features, total variance and number of iterations."""
        device = resolve_device(self.device, dtype=torch.float64)
        dtype, group = compute_dtype(X.dtype, device), current_group()
        n_rows, n_samples = group.all_reduce_sum(len(X), float(len(X) if weight is None else weight.sum()))
        rounding = Rounding.of(dtype)
        squares, axes = self._spectrum(X, weight, mean, n_rows, dtype, device)
        model, total_variance = fit_ppca(squares, axes, n_samples, self.n_components, rounding)
        if dtype != torch.float64:
            chosen = isinstance(self.n_components, Real)  # else all variances matter
            smallest = min(model.noise_variance or model.variances[-1], model.variances[-1]) if chosen else squares[-1]
            largest = model.variances[0] if chosen else squares[0]
            if smallest < MIN_SHARE * largest:
                squares, axes = self._spectrum(X, weight, mean, n_rows, torch.float64, device)
                model, total_variance = fit_ppca(squares, axes, n_samples, self.n_components, rounding)
        return model, total_variance, 1

    def _spectrum(self, X, weight, mean, n_rows, dtype, device):
        """Sums of squares along the principal axes, and these, from products in a dtype."""
        group = current_group()
        if n_rows < X.shape[1]:  # the products of rows are fewer than those of features
            columns = CenteredColumns(X if group.size == 1 else X[:], mean, weight, dtype, device)
            columns = columns if group.size == 1 else [group.all_gather(block) for block in columns]
            return axes_of_rows(columns, X.shape[1])
        return axes_of_scatter(scatter_about(X, mean, weight, dtype, device, self.chunk_size))

    def _fit_incomplete(self, X, weight, mean):
        """As `_fit_complete`, by EM."""
        self._check_decidable(X)
        device = resolve_device(self.device, dtype=torch.float64)
        x = centered(X, mean, torch.float64, device)
        weight = x.new_ones(len(x)) if weight is None else to_tensor(weight, torch.float64, device)
        group = current_group()
        scale = _mean_scale(x, weight, group)
        # The axes depend on the units of the features, so that only a common one may be changed.
        unit = torch.eye(X.shape[1], dtype=torch.float64, device=device)[None]
        rows = PatternRows(x / scale, COVARIANCES["full"], 0.0, weight, unit, group)

        rounding = Rounding.of(compute_dtype(X.dtype, device))
        settings = {"rounding": rounding, "tol": self.tol, "max_iter": self.max_iter}
        n_components, n_iter, start = self.n_components, 0, None
        if not isinstance(n_components, Integral):
            n_components, full = choose_observed(rows, n_components, **settings)
            n_iter, start = len(full.lower_bounds), full.model
        fit = fit_ppca_observed(rows, n_components, start=start, **settings)
        if not fit.converged and group.rank == 0:
            warn(
                f"EM did not converge within max_iter={self.max_iter} iterations: the last one still changed the mean "
                f"log-likelihood by tol={self.tol} or more. Increase max_iter or tol, or decrease n_components.",
                ConvergenceWarning,
            )
        found = fit.model
        variances, noise_variance = found.variances * scale**2, found.noise_variance * scale**2
        model = PPCA(found.mean * scale, found.axes, variances, noise_variance)
        return model, fit.total_variance * scale**2, n_iter + len(fit.lower_bounds)

    def _check_decidable(self, X):
        """Raise if missing values leave the number of components open."""
        if self.n_components == "mle":
            raise ValueError(
                "n_components='mle' supposes complete rows, but X has NaN; give a number, or a share of the variance."
            )
        if not isinstance(self.n_components, Integral) and (n_rows := row_count(X)) <= X.shape[1]:
            raise ValueError(
                f"n_components={self.n_components} needs more rows than features where values are missing, but X has "
                f"{n_rows} rows with a value and {X.shape[1]} features; give a number of components."
            )

    def transform(self, X):
        """Embed rows: the mean of p(z | x).

        It is the projection on the principal axes, scaled to about unit variance and shrunk by the noise. Where values
        are missing it is the expectation given the others, zero for a row without any.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.

        Returns
        -------
        Z : ndarray of shape (n_samples, `n_components_`)
            Codes.
        """
        # The code is linear in the row, so that its mean is the code of the expected row.
        return self._map_rows(
            PPCA.posterior_mean,
            lambda x, model, *density: model.posterior_mean(completed(x, *density)),
            self._validate(X, reset=False),
        )

    def posterior_variance(self):
        """Variances of p(z | x), which are the same for every row without missing values.

        Returns
        -------
        variance : ndarray of shape (`n_components_`,)
        """
        check_is_fitted(self)
        return to_dtype(self._model(torch.float64, "cpu").posterior_variance.numpy(), self.mean_.dtype)

    def inverse_transform(self, Z):
        """Decode codes: the mean of p(x | z).

        Parameters
        ----------
        Z : array-like of shape (n_samples, `n_components_`)
            Codes.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            Expected rows.
        """
        Z = self._validate_codes(Z)
        return self._map_model(PPCA.decode, Z)

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

        Warns
        -----
        RuntimeWarning
            If the density is degenerate: no noise is left, and samples lie outside of what the components span.
        """
        return self._score_valid(self._validate(X, reset=False))

    def _score_valid(self, X):
        scores = self._map_rows(PPCA.log_prob, lambda x, model, *density: observed_e_step(x, *density)[0], X)
        largest, smallest = float(self.explained_variance_[0]), float(self.explained_variance_[-1])
        smallest = min(smallest, self.noise_variance_ or smallest)  # without noise all directions are components
        is_flat = smallest < DEGENERATE * largest or largest <= 4 * np.finfo(self.mean_.dtype).tiny
        q, d = self.components_.shape
        if is_flat and float(scores.min()) < LOWEST_SCORE * d:
            warn(
                f"The noise variance is zero but for rounding, because {q} components explain all of the training "
                "samples, and others get arbitrarily low scores: the density is degenerate. Decrease n_components "
                "('mle' chooses), or fit more samples.",
                RuntimeWarning,
            )
        return scores

    def impute(self, X):
        """Replace missing values by their expectation given the observed values of their row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data, with NaN where values are missing.

        Returns
        -------
        X_filled : ndarray of shape (n_samples, n_features)
            The data without NaN. Observed values are as they were.

        Examples
        --------
        >>> import numpy as np
        >>> from skvae import TorchPPCA
        >>> X = np.array([[1.0, 2], [2, 4], [3, 6], [4, np.nan]])
        >>> TorchPPCA(1).fit(X).impute(X).round(3)
        array([[1., 2.],
               [2., 4.],
               [3., 6.],
               [4., 8.]])
        """
        X = self._validate(X, reset=False)
        device, family = resolve_device(self.device, dtype=torch.float64), COVARIANCES["full"]
        mixture = self._model(torch.float64, device).as_mixture()
        rows = {"dtype": compute_dtype(X.dtype, device), "device": device, "chunk_size": self.chunk_size}
        return self._map(lambda x: impute_chunk(x, mixture, family), X, width=3 * X.shape[1], **rows)

    def sample(self, n_samples=1, random_state=None):
        """Draw rows from the model.

        Parameters
        ----------
        n_samples : int, default=1
            Number of rows.
        random_state : int, RandomState instance or None, default=None
            Seeds the draw; None uses the estimator's own ``random_state``.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            Rows.
        """
        check_is_fitted(self)
        check_sample_size(n_samples)
        generator = generator_from(self.random_state if random_state is None else random_state)
        sizes = self.n_components_, self.n_features_in_
        noises = (torch.randn(n_samples, size, dtype=torch.float64, generator=generator) for size in sizes)
        return to_dtype(self._model(torch.float64, "cpu").sample(*noises).numpy(), self.mean_.dtype)

    def _model(self, dtype, device):
        parts = self.mean_, self.components_, self.explained_variance_
        if is_exact(self, EXACT, parts):
            parts = self._exact_mean, self._exact_components, self._exact_variances
        parts = [torch.tensor(part, dtype=dtype) for part in (*parts, self.noise_variance_)]
        return PPCA(*moved(parts, device))

    def _map_model(self, function, X, incomplete=None):
        """Apply a method of the model to chunks of rows or codes, and a function to chunks with missing values."""
        device = resolve_device(self.device, dtype=torch.float64)
        exact = is_exact(self, EXACT, (self.mean_, self.components_, self.explained_variance_))
        dtype = torch.float64 if exact else compute_dtype(X.dtype, device)
        rows = {"dtype": dtype, "device": device, "width": 3 * self.n_features_in_, "chunk_size": self.chunk_size}
        parameters = self._model(dtype, "cpu")
        return self._map(
            lambda x, *parts: function(PPCA(*parts), x), X, parameters=parameters, incomplete=incomplete, **rows
        )

    def _map_rows(self, complete, incomplete, X):
        """Apply a method of the model to chunks of validated rows, a function to those with missing values.

        The function gets rows, the model and its density (mixture and family) in float64.
        """
        density = []  # made when a chunk needs it, because it is a matrix where the model is a few axes

        def with_density(x, *_):
            if not density:
                model = self._model(torch.float64, x.device)
                density.extend([model, model.as_mixture(), COVARIANCES["full"]])
            return incomplete(x.double(), *density)

        return self._map_model(complete, X, with_density)


def fits_float32(model, mean):
    """Whether a model in float32 gives densities with the precision of float32."""
    smallest = min(float(model.noise_variance) or math.inf, float(model.variances[-1]))
    return smallest > MIN_NOISE * (float(model.variances[0]) + float(np.square(mean).max()))


def check_variance(total_variance, X):
    """Raise if the variances of rows are beyond what the dtype of X holds.

    Raises
    ------
    ValueError
        If they are too large, or if they are too small and not zero, as those of equal rows are.
    """
    limits = np.finfo(float_dtype(X.dtype))
    too_small = total_variance < limits.tiny and np.not_equal(*Columns(X).ranges[:2]).any()
    if too_small or total_variance > limits.max:
        advice = "multiply" if too_small else "divide"
        raise ValueError(f"The variances of X are beyond the range of {limits.dtype}; {advice} X by a constant.")


def _mean_scale(x, weight, group):
    """Root of the weighted mean square of the values that are there, one if all are zero."""
    largest = float(group.all_gather(x.nan_to_num(nan=0.0).abs().max()[None]).max())
    largest = largest or 1.0  # the squares of the values may be out of range
    squares, counts = group.all_reduce_sum(
        (weight @ (x / largest).square().nan_to_num(nan=0.0)).sum(), (weight @ (~x.isnan()).to(x)).sum()
    )
    squares = squares / counts
    return largest * float(squares.sqrt()) or 1.0
