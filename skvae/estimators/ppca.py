"""Probabilistic principal component analysis."""

from numbers import Integral
from typing import ClassVar

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, RealNotInt, StrOptions
from sklearn.utils.validation import check_is_fitted

from ..fitting.ppca import axes_of_rows, axes_of_scatter, fit_ppca
from ..models.ppca import PPCA
from ._base import (
    LatentMixin,
    TorchEstimator,
    centered,
    check_sample_size,
    column_means,
    compute_dtype,
    counted_rows,
    fit_method,
    generator_from,
    resolve_device,
    scatter_about,
    to_dtype,
    to_tensor,
)


class TorchPPCA(LatentMixin, TorchEstimator):
    """Probabilistic principal component analysis, in closed form on CPU or GPU.

    The linear Gaussian latent variable model ``x = W z + mean + noise``: the one that a variational autoencoder with
    linear networks learns. Its covariance is formed in one pass over row chunks and summed in float64, so that the
    variances of float32 data are accurate.

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

    Attributes
    ----------
    components_ : ndarray of shape (n_components_, n_features)
        Principal axes, by decreasing variance.
    explained_variance_ : ndarray of shape (n_components_,)
        Variances of the data along the axes, in squared units of the data.
    explained_variance_ratio_ : ndarray of shape (n_components_,)
        Their shares of the total variance.
    noise_variance_ : float
        Variance of the noise: the mean variance along the other axes.
    mean_ : ndarray of shape (n_features,)
        Means of the features.
    n_components_ : int
        Number of components.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features, if X has names that are all strings.

    See Also
    --------
    sklearn.decomposition.PCA : Principal components, whose `score_samples` agrees with this one.
    VAEEmbedder : The nonlinear model.

    Notes
    -----
    With more features than rows, the noise variance is the mean over all other directions, also those in which the data
    do not vary. scikit-learn leaves these out or in, depending on its solver.

    References
    ----------
    M. E. Tipping and C. M. Bishop, Probabilistic Principal Component Analysis, 1999.
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
    }

    def __init__(self, n_components=None, *, device="auto", chunk_size=None, random_state=None):
        self.n_components = n_components
        self.device = device
        self.chunk_size = chunk_size
        self.random_state = random_state

    @fit_method
    def fit(self, X, y=None, sample_weight=None):
        """Fit the model.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training data.
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
            If X is not a finite numeric table of at least two rows, or has fewer rows or features than components.
        """
        X = self._validate(X, reset=True, min_samples=2)
        X, weight, _ = counted_rows(X, sample_weight)
        if isinstance(self.n_components, Integral) and self.n_components > min(X.shape):
            raise ValueError(
                f"n_components={self.n_components} is larger than the smaller of n_samples={len(X)} and "
                f"n_features={X.shape[1]}; decrease n_components."
            )

        device = resolve_device(self.device, dtype=torch.float64)
        dtype, mean = compute_dtype(X.dtype, device), column_means(X, weight)
        n_samples = len(X) if weight is None else float(weight.sum())
        if len(X) < X.shape[1]:  # the products of rows are fewer than those of features
            root = 1.0 if weight is None else to_tensor(np.sqrt(weight), dtype, device)[:, None]
            squares, axes = axes_of_rows(centered(X, mean, dtype, device) * root)
        else:
            squares, axes = axes_of_scatter(scatter_about(X, mean, weight, dtype, device, self.chunk_size))
        model, total_variance = fit_ppca(squares, axes, n_samples, self.n_components, dtype)

        self.mean_ = to_dtype(mean, X.dtype)
        self.components_ = to_dtype(model.axes.cpu().numpy(), X.dtype)
        self.explained_variance_ = to_dtype(model.variances.cpu().numpy(), X.dtype)
        self.explained_variance_ratio_ = to_dtype((model.variances / total_variance).cpu().numpy(), X.dtype)
        self.noise_variance_ = float(model.noise_variance)
        self.n_components_ = self._n_features_out = len(self.components_)
        return self

    def transform(self, X):
        """Embed rows: the mean of p(z | x).

        It is the projection on the principal axes, scaled to about unit variance and shrunk by the noise.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.

        Returns
        -------
        Z : ndarray of shape (n_samples, n_components_)
            Codes.
        """
        return self._map_model(PPCA.posterior_mean, self._validate(X, reset=False))

    def posterior_variance(self):
        """Variances of p(z | x), which are the same for every row.

        Returns
        -------
        variance : ndarray of shape (n_components_,)
        """
        check_is_fitted(self)
        return to_dtype(self._model(torch.float64, "cpu").posterior_variance.numpy(), self.mean_.dtype)

    def inverse_transform(self, Z):
        """Decode codes: the mean of p(x | z).

        Parameters
        ----------
        Z : array-like of shape (n_samples, n_components_)
            Codes.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            Expected rows.
        """
        Z = self._validate_codes(Z)
        return self._map_model(PPCA.decode, Z)

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
        return self._map_model(PPCA.log_prob, self._validate(X, reset=False))

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
        parts = self.mean_, self.components_, self.explained_variance_, self.noise_variance_
        return PPCA(*(torch.tensor(part, dtype=dtype, device=device) for part in parts))

    def _map_model(self, function, X):
        """Apply a method of the model to chunks of rows."""
        device = resolve_device(self.device, dtype=torch.float64)
        dtype = compute_dtype(X.dtype, device)
        model, width = self._model(dtype, device), 3 * self.n_features_in_
        rows = {"dtype": dtype, "device": device, "width": width, "chunk_size": self.chunk_size}
        return self._map(lambda x: function(model, x), X, **rows)
