"""Evidence lower bounds of models with a prior, conditional means of missing values, and draws."""

import copy
import functools
import math
from numbers import Integral

import torch
from sklearn.utils import check_scalar
from sklearn.utils.validation import check_is_fitted

from ..data.arrays import generator_from, to_dtype
from ..fitting.evaluation import balanced_points, normal_points
from ._fit import check_sample_size


class ELBOMixin:
    """Mixin of autoencoders with a prior: variances of latent codes, ELBO, and conditional means."""

    def impute(self, X, n_importance_samples=100):
        """Fill in missing values (NaN) by their conditional means.

        The mean of p(x | z) is averaged over latent codes of a sample, with importance weights by the observed values
        (Mattei and Frellsen 2019, equation 13). Codes are at quasi-random points: the result is deterministic.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data, with values missing as in the training data.
        n_importance_samples : int, default=100
            Latent codes for each sample.

        Returns
        -------
        X_filled : ndarray of shape (n_samples, n_features)
            The samples; observed values are unchanged. Of a data frame, one with the same index and dtypes.

        Raises
        ------
        ValueError
            If values are missing, but none were in the training data.

        References
        ----------
        P.-A. Mattei and J. Frellsen, MIWAE: deep generative modelling and imputation of incomplete data sets, 2019.
        """
        samples = self._within_support(self._validate(X, reset=False))
        check_scalar(n_importance_samples, "n_importance_samples", Integral, min_val=1)
        points = normal_points(2 * math.ceil(n_importance_samples / 2), self._n_features_out)
        return self._filled(X, self._map_model(functools.partial(fill_missing, points=points), samples))

    def posterior_variance(self, X):
        """Return the variances of q(z | x).

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.

        Returns
        -------
        variance : ndarray of shape (n_samples, n_components)
            Variances of the latent codes, whose means are ``transform(X)``.
        """
        X = self._validate(X, reset=False)
        return self._encode(lambda model, x: model.posterior(model.standardize(x)).variance, X)

    def score_samples(self, X):
        """Compute the evidence lower bound (ELBO) on the log-likelihood of each sample.

        The expectation over latent codes is taken at fixed quasi-random points, the same for every sample, so that the
        result is deterministic and does not depend on the other samples.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.

        Returns
        -------
        elbo : ndarray of shape (n_samples,)
            In nats, in the units of the data (the Jacobian of the internal standardization is included). For the
            Bernoulli likelihood on values between 0 and 1, its log-likelihood is minus the cross-entropy.

        Raises
        ------
        ValueError
            If X has values that the likelihood cannot produce.
        """
        return self._score_valid(self._validate(X, reset=False))

    def _score_valid(self, X):
        return self._map_model(elbo_at_points(balanced_points(self._n_features_out)), self._within_support(X))

    def log_likelihood(self, X, n_importance_samples=100, random_state=None):
        """Compute the importance-weighted bound on the log-likelihood of each sample (Burda et al. 2016, equation 8).

        It lies between the ELBO and the log-likelihood, and is closer to the latter with more importance samples.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.
        n_importance_samples : int, default=100
            Latent codes drawn for each sample.
        random_state : int, RandomState instance or None, default=None
            Seeds the draws, which are the same for every sample; None uses the estimator's own ``random_state``.

        Returns
        -------
        log_likelihood : ndarray of shape (n_samples,)
            In nats, in the units of the data. Higher is better.

        References
        ----------
        Y. Burda, R. Grosse and R. Salakhutdinov, Importance weighted autoencoders, 2016.
        """
        X = self._within_support(self._validate(X, reset=False))
        check_scalar(n_importance_samples, "n_importance_samples", Integral, min_val=1)
        generator = generator_from(self.random_state if random_state is None else random_state)
        points = torch.randn(n_importance_samples, self._n_features_out, dtype=torch.float64, generator=generator)

        def bound(model, x):
            u = model.standardize(x)
            q, total = model.posterior(u), None
            for noise in points.to(u):
                weight = model.log_weights(u, q, noise.expand_as(q.mean))
                total = weight if total is None else torch.logaddexp(total, weight)
            return total - math.log(len(points))

        return self._map_model(bound, X)


def elbo_at_points(points):
    """Return a function of a model and rows: their ELBO, with the expectation over codes at fixed points (m, k)."""

    def elbo(model, x):
        u = model.standardize(x)
        q = model.posterior(u)
        return sum(model.elbo(u, q, noise.expand_as(q.mean)).value for noise in points.to(u)) / len(points)

    return elbo


def fill_missing(model, x, points=None):
    """Return rows with missing values replaced by conditional means over codes at fixed points (m, k).

    A category is the one with the largest mean probability. Without points, and where nothing can be averaged, the code
    is the mean of the posterior.
    """
    u, likelihood = model.standardize(x), model.likelihood
    q, x, columns = model.posterior(u), model.features(x), model.covariates_of(u)
    statistics = getattr(likelihood, "statistics", likelihood.mean)
    if points is None or not getattr(likelihood, "has_mean", True):
        return torch.where(x.isnan(), model.decode(q.mean, columns).to(x.dtype), x)
    total = mean = None
    for noise in points.to(u):
        noise = noise.expand_as(q.mean)
        params = model.params(model.prior.draw(q, noise), columns)
        weight, decoded = model.log_weights(u, q, noise), statistics(params)
        if total is None:
            total, mean = weight, decoded
            continue
        total = torch.logaddexp(total, weight)
        mean = mean + (weight - total).exp()[:, None] * (decoded - mean)
    mean = likelihood.from_statistics(mean) if hasattr(likelihood, "from_statistics") else mean
    return torch.where(x.isnan(), mean.to(x.dtype), x)


def draw_generator(estimator, n_samples, random_state):
    """Return the generator of a draw, after checking that so many samples can be drawn."""
    check_is_fitted(estimator)
    check_sample_size(n_samples)
    return generator_from(estimator.random_state if random_state is None else random_state)


def draw_samples(estimator, codes_of, n_samples, generator, conditions=None):
    """Draw latent codes and then samples, in the units and the dtype of the training data.

    Parameters
    ----------
    estimator : BaseEmbedder
    codes_of : callable, (model, standard normal Tensor (n, k)) -> Tensor (n, k)
    n_samples : int
    generator : torch.Generator
    conditions : ndarray of shape (n, e), optional
        Columns of covariates.
    """
    noise = torch.randn(n_samples, estimator._n_features_out, dtype=torch.float64, generator=generator)
    model = copy.deepcopy(estimator.module_).to("cpu", torch.float64)
    with torch.inference_mode():
        columns = None if conditions is None else torch.from_numpy(conditions)
        X = model.likelihood.sample(model.params(codes_of(model, noise), columns), generator).numpy()
    return estimator._in_frame(to_dtype(X, estimator._fit_dtype), whole=True)
