"""Probabilistic principal component analysis."""

import math
from functools import cache
from numbers import Integral, Real
from typing import ClassVar

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils._param_validation import Interval, RealNotInt, StrOptions
from sklearn.utils.validation import check_is_fitted

from ..data.arrays import compute_dtype, float_dtype, generator_from, is_exact, resolve_device, to_dtype, to_tensor
from ..data.chunks import centered, centered_columns, column_means, map_samples, scatter_about
from ..data.columns import Columns
from ..data.inputs import as_matrix
from ..data.missing import any_missing, check_columns, filled_in, impute_chunk, observed_means, rows_with_values
from ..data.weights import positive_weight_samples
from ..fitting.distributed import current_group
from ..fitting.missing import PatternRows, impute, observed_e_step
from ..fitting.ppca import VarianceFloor, fit_ppca, fit_ppca_em, gram_spectrum, scatter_spectrum
from ..fitting.warnings import warn
from ..fitting.weighted_rows import WeightedRows
from ..models.covariances import COVARIANCES
from ..models.gaussians import copy_to_device
from ..models.ppca import PPCA
from ._base import LatentMixin, TorchEstimator
from ._fit import check_processes, check_sample_size, fit_method, row_count
from .export import LinearEncoder

EXACT = ("_exact_mean", "_exact_components", "_exact_variances")  # in float64, where float32 is not enough
MIN_SHARE = 1e-4  # of the largest variance: float32 has three digits of such variances
DEGENERATE = 1e-12  # share of the largest variance at which a density is degenerate
LOWEST_SCORE = -1e6  # of samples under it, in nats per feature
MIN_NOISE = 1e-8  # in units of the largest variance and squared mean, to which float32 rounds samples


class TorchPPCA(LatentMixin, TorchEstimator):
    """Probabilistic principal component analysis, in closed form on CPU or GPU.

    The linear Gaussian latent variable model ``x = W z + mean + noise``, which a variational autoencoder with linear
    networks learns as well. Its covariance is computed in one pass over chunks of samples and summed in float64, so
    that the variances of float32 data are accurate.

    Values of X may be missing, as NaN: EM then maximizes the likelihood of the observed values.

    Parameters
    ----------
    n_components : int, float, "mle" or None, default=None
        Size of the embedding; a float in (0, 1) is the share of the variance to reach; "mle" is Minka's choice; None
        keeps every direction in which the data vary.

    device : str or torch.device, default="auto"
        Device of computations; "auto" is cuda if available, else cpu (mps has no float64).

    chunk_size : int, default=None
        Number of samples processed at once; None chooses it.

    random_state : int, RandomState instance or None, default=None
        Seeds `sample`; the fit is not random.

    tol : float, default=1e-6
        With missing values, EM stops when the mean log-likelihood of a sample increases by less, in nats.

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
    With more features than samples, the noise variance is the mean over all other directions, including those in which
    the data do not vary. Whether scikit-learn includes these depends on its solver.

    Missing values (NaN) are assumed to be missing at random: whether a value is missing may depend on the observed
    values of its sample, not on itself. The M-step of EM is the closed form with the expected moments of the samples.
    Variances are over the number of samples with a value less one, as they are over all samples less one without
    missing values. A share of the variance, and None, are determined by the maximum likelihood covariance, which needs
    more samples than features; Minka's choice needs complete samples. Samples without any value are left out of a fit.
    A fit with missing values is always computed in float64.

    Sparse matrices, and arrays on disk (memory maps, HDF5, zarr) that would be larger than a gigabyte as dense arrays,
    are read in chunks; those on disk are held in memory during a fit if there are fewer samples than features. Arrays
    read in chunks cannot have missing values; sparse matrices with missing values are made dense as a whole.

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
            Weights of the samples; an integer weight is as many equal samples.

        Returns
        -------
        self : TorchPPCA
            The fitted estimator.

        Raises
        ------
        ValueError
            If X is not numeric, has infinite values, fewer than two samples, fewer samples or features than components,
            or a feature without a value; or if missing values leave the number of components undetermined.

        Warns
        -----
        ConvergenceWarning
            If EM, with missing values, did not reach ``tol``.
        """
        passed = as_matrix(X)
        # Without weights, the mean has values that are not finite if X does: a pass over the samples less.
        X = self._validate(passed, reset=True, min_samples=2, checks_finite=sample_weight is not None)
        check_processes(self, X)
        X, weight, _ = positive_weight_samples(X, sample_weight)
        mean = column_means(X, weight)
        if sample_weight is None and not np.isfinite(mean).all():
            self._validate(passed, reset=True, min_samples=2)
        is_incomplete = np.isnan(mean).any() and any_missing(X)
        if is_incomplete:
            check_columns(self, X)
            X, weight, _ = rows_with_values(X, weight)
        if isinstance(self.n_components, Integral) and self.n_components > min(n_samples := row_count(X), X.shape[1]):
            raise ValueError(
                f"n_components={self.n_components} is larger than the smaller of n_samples={n_samples} and "
                f"n_features={X.shape[1]}; decrease n_components."
            )

        if is_incomplete:
            model, total_variance, self.n_iter_ = self._fit_em(X, weight)
        else:
            model, total_variance, self.n_iter_ = self._fit_closed_form(X, weight, mean)
        check_variance(float(total_variance), X)
        return self._publish(model, total_variance, X.dtype)

    def _fit_closed_form(self, X, weight, mean):
        """Return the model, the total variance and the number of iterations."""
        device = resolve_device(self.device, dtype=torch.float64)
        dtype = compute_dtype(X.dtype, device)
        floor = VarianceFloor.of(dtype)
        n_rows, total_weight = current_group().all_reduce_sum(len(X), float(len(X) if weight is None else weight.sum()))

        def fit_in(dtype):
            if n_rows < X.shape[1]:  # the Gram matrix is smaller than the scatter matrix
                spectrum = gram_spectrum(centered_columns(X, mean, weight, dtype, device), X.shape[1])
            else:
                scatter = scatter_about(X, mean, weight, dtype, device, self.chunk_size)
                spectrum = scatter_spectrum(scatter, self.n_components)
            return spectrum.squares, *fit_ppca(spectrum, total_weight, self.n_components, floor)

        squares, model, total_variance = fit_in(dtype)
        if dtype != torch.float64:
            if isinstance(self.n_components, Real):
                smallest = min(model.noise_variance or model.variances[-1], model.variances[-1])
                largest = model.variances[0]
            else:  # all variances decide on the number of components
                smallest, largest = squares[-1], squares[0]
            if smallest < MIN_SHARE * largest:
                _, model, total_variance = fit_in(torch.float64)
        return model._replace(mean=model.mean + torch.from_numpy(mean).to(device)), total_variance, 1

    def _fit_em(self, X, weight):
        """Return the results of `_fit_closed_form`, by EM on the observed values."""
        low, high = Columns(X, current_group()).ranges[:2]
        if np.array_equal(low, high):  # constant features determine their missing values
            return self._fit_closed_form(filled_in(X, low), weight, low.astype(np.float64))
        if self.n_components == "mle":
            raise ValueError(
                "n_components='mle' supposes complete rows, but X has NaN; give a number, or a share of the variance."
            )
        if not isinstance(self.n_components, Integral) and (n_samples := row_count(X)) <= X.shape[1]:
            raise ValueError(
                f"n_components={self.n_components} needs more samples than features where values are missing, but X "
                f"has {n_samples} samples with a value and {X.shape[1]} features; give a number of components."
            )
        device, group = resolve_device(self.device, dtype=torch.float64), current_group()
        mean = observed_means(X, weight)
        x = centered(X, mean, torch.float64, device)
        weight = x.new_ones(len(x)) if weight is None else to_tensor(weight, torch.float64, device)
        # The axes depend on the units of the features, so that all are divided by the same scale.
        scale = root_mean_square(x, weight, group)
        unit = torch.eye(X.shape[1], dtype=torch.float64, device=device)[None]
        rows = PatternRows(WeightedRows(x / scale, weight, group), COVARIANCES["full"], 0.0, unit)
        floor = VarianceFloor.of(compute_dtype(X.dtype, device))
        fit = fit_ppca_em(rows, self.n_components, floor, tol=self.tol, max_iter=self.max_iter)
        if not fit.converged and group.rank == 0:
            warn(
                f"EM did not converge within max_iter={self.max_iter} iterations: the last one still changed the mean "
                f"log-likelihood by tol={self.tol} or more. Increase max_iter or tol, or decrease n_components.",
                ConvergenceWarning,
            )
        center, axes, variances, noise_variance = fit.model
        center = center * scale + torch.from_numpy(mean).to(device)
        model = PPCA(center, axes, variances * scale**2, noise_variance * scale**2)
        return model, fit.total_variance * scale**2, fit.n_iter

    def _publish(self, model, total_variance, dtype):
        """Set the fitted attributes from a model in float64."""
        parts = [part.cpu().numpy() for part in (model.mean, model.axes, model.variances)]
        for name in EXACT:
            vars(self).pop(name, None)
        if float_dtype(dtype) == np.float32 and not fits_float32(model):
            self._exact_mean, self._exact_components, self._exact_variances = parts
        self.mean_, self.components_, self.explained_variance_ = (to_dtype(part, dtype) for part in parts)
        ratio = model.variances / torch.maximum(total_variance, model.variances.sum())  # of equal samples, too
        self.explained_variance_ratio_ = to_dtype(ratio.cpu().numpy(), dtype)
        self.noise_variance_ = float(model.noise_variance)
        self.n_components_ = self._n_features_out = len(self.components_)
        return self

    def transform(self, X):
        """Encode samples by the mean of p(z | x).

        It is the projection on the principal axes, scaled to about unit variance and shrunk by the noise. Where values
        are missing, it is the expectation given the observed ones, zero for a sample without any.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.

        Returns
        -------
        Z : ndarray of shape (n_samples, `n_components_`)
            Latent codes.
        """
        # Codes are linear in the sample, so that their expectation is the code of the expected sample.
        return self._map_model(
            PPCA.posterior_mean,
            self._validate(X, reset=False),
            lambda x, model, *density: model.posterior_mean(impute(x, *density)),
        )

    def posterior_variance(self):
        """Return the variances of p(z | x), which are the same for every sample without missing values.

        Returns
        -------
        variance : ndarray of shape (`n_components_`,)
        """
        check_is_fitted(self)
        return to_dtype(self._model(torch.float64, "cpu").posterior_variance.numpy(), self.mean_.dtype)

    def inverse_transform(self, Z):
        """Decode latent codes by the mean of p(x | z).

        Parameters
        ----------
        Z : array-like of shape (n_samples, `n_components_`)
            Latent codes.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            Expected samples.
        """
        Z = self._validate_codes(Z)
        return self._map_model(PPCA.decode, Z)

    def score_samples(self, X):
        """Compute the log-likelihood of each sample, of its observed values where others are missing.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.

        Returns
        -------
        log_likelihood : ndarray of shape (n_samples,)
            In nats; zero for a sample without any value.

        Warns
        -----
        RuntimeWarning
            If the density is degenerate: no noise is left, and samples lie outside the span of the components.
        """
        return self._score_valid(self._validate(X, reset=False))

    def _score_valid(self, X):
        scores = self._map_model(PPCA.log_prob, X, lambda x, model, *density: observed_e_step(x, *density)[0])
        largest, smallest = float(self.explained_variance_[0]), float(self.explained_variance_[-1])
        smallest = min(smallest, self.noise_variance_ or smallest)  # without noise all directions are components
        is_flat = smallest < DEGENERATE * largest or largest <= 4 * np.finfo(self.mean_.dtype).tiny
        q, d = self.components_.shape
        if is_flat and float(scores.min()) < LOWEST_SCORE * d:
            warn(
                f"The noise variance is zero up to rounding, because {q} components explain all of the training "
                "samples, and others get arbitrarily low scores: the density is degenerate. Decrease n_components "
                "('mle' chooses), or fit more samples.",
                RuntimeWarning,
            )
        return scores

    def impute(self, X):
        """Replace missing values by their expectation given the observed values of their sample.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data, with NaN where values are missing.

        Returns
        -------
        X_filled : ndarray of shape (n_samples, n_features)
            The data without NaN. Observed values are unchanged.

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
        return map_samples(
            lambda x: impute_chunk(x, mixture, family),
            X,
            dtype=compute_dtype(X.dtype, device),
            device=device,
            width=3 * X.shape[1],
            chunk_size=self.chunk_size,
        )

    def sample(self, n_samples=1, random_state=None):
        """Draw samples from the model.

        Parameters
        ----------
        n_samples : int, default=1
            Number of samples.
        random_state : int, RandomState instance or None, default=None
            Seeds the draw; None uses the estimator's own ``random_state``.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            Samples.
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
        return PPCA(*copy_to_device(parts, device))

    def _map_model(self, function, X, incomplete=None):
        """Apply a function of the model to chunks of X, and another one to chunks with missing values.

        Parameters
        ----------
        function : callable, PPCA and Tensor (b, d) -> Tensor (b, ...)
        X : ndarray, LazySamples or TensorSamples of shape (n, d)
            Validated samples or latent codes.
        incomplete : callable, optional
            It gets a chunk, the model, and its density (mixture and family), in float64.
        """
        device = resolve_device(self.device, dtype=torch.float64)
        exact = is_exact(self, EXACT, (self.mean_, self.components_, self.explained_variance_))
        dtype = torch.float64 if exact else compute_dtype(X.dtype, device)

        @cache  # computed when a chunk needs it, because it is a matrix where the model is a few axes
        def density(device):
            model = self._model(torch.float64, device)
            return model, model.as_mixture(), COVARIANCES["full"]

        return map_samples(
            lambda x, *parts: function(PPCA(*parts), x),
            X,
            dtype=dtype,
            device=device,
            width=3 * self.n_features_in_,
            chunk_size=self.chunk_size,
            parameters=self._model(dtype, "cpu"),
            incomplete=incomplete and (lambda x, *_: incomplete(x.double(), *density(x.device))),
        )


def fits_float32(model):
    """Return whether the parameters in float32 give densities with the precision of float32."""
    smallest = min(float(model.noise_variance) or math.inf, float(model.variances[-1]))
    return smallest > MIN_NOISE * (float(model.variances[0]) + float(model.mean.square().max()))


def check_variance(total_variance, X):
    """Raise a ValueError if the dtype of X overflows, or underflows for samples that are not all equal."""
    limits = np.finfo(float_dtype(X.dtype))
    too_small = total_variance < limits.tiny and np.not_equal(*Columns(X).ranges[:2]).any()
    if too_small or total_variance > limits.max:
        advice = "multiply" if too_small else "divide"
        raise ValueError(f"The variances of X are beyond the range of {limits.dtype}; {advice} X by a constant.")


def root_mean_square(x, weight, group):
    """Return the weighted root mean square of the observed values, or one if all are zero."""
    largest = float(group.all_gather(x.nan_to_num(nan=0.0).abs().max()[None]).max())
    largest = largest or 1.0  # squares of the values may overflow
    squares, counts = group.all_reduce_sum(
        (weight @ (x / largest).square().nan_to_num(nan=0.0)).sum(), (weight @ (~x.isnan()).to(x)).sum()
    )
    squares = squares / counts
    return largest * float(squares.sqrt()) or 1.0
