"""What models with a prior say of rows: bounds on their log-likelihood, conditional means, and draws."""

import copy
import functools
import math
from numbers import Integral

import torch
from sklearn.utils import check_scalar

from ..data.arrays import generator_from, to_dtype
from ..fitting.quadrature import balanced_points, normal_points


class BoundMixin:
    """What embedders with a prior share: variances of codes, bounds on the log-likelihood, and conditional means."""

    def impute(self, X, n_importance_samples=100):
        """Fill in missing values (NaN) by their conditional means.

        The mean of p(x | z) is averaged over codes of a row, each weighted by how well it explains what is there
        (Mattei and Frellsen 2019, equation 13). The codes lie at quasi-random points, so the result is not random.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data, like that of training in what is missing.
        n_importance_samples : int, default=100
            Codes for each row.

        Returns
        -------
        X_filled : ndarray of shape (n_samples, n_features)
            The rows; values that were there are unchanged.

        Raises
        ------
        ValueError
            If values are missing, but none were in the training data.

        References
        ----------
        P.-A. Mattei and J. Frellsen, MIWAE: deep generative modelling and imputation of incomplete data sets, 2019.
        """
        X = self._validate(X, reset=False)
        X = self._within_support(X)
        check_scalar(n_importance_samples, "n_importance_samples", Integral, min_val=1)
        points = normal_points(2 * math.ceil(n_importance_samples / 2), self._n_features_out)
        return self._map_array(functools.partial(fill_missing, points=points), X)

    def posterior_variance(self, X):
        """Variances of q(z | x).

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.

        Returns
        -------
        variance : ndarray of shape (n_samples, n_components)
            Variances of the codes, whose means are ``transform(X)``.
        """
        X = self._validate(X, reset=False)
        return self._encode(lambda model, x: model.posterior(model.standardize(x)).variance, X)

    def score_samples(self, X):
        """Evidence lower bound on the log-likelihood of each row.

        The expectation over codes is taken at a fixed set of quasi-random points, the same for every row, so that the
        result is reproducible and does not depend on the other rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.

        Returns
        -------
        elbo : ndarray of shape (n_samples,)
            In nats, in the units of the data (the Jacobian of the internal standardisation is in it). For the
            Bernoulli likelihood on values between 0 and 1, the log-likelihood in it is minus the cross-entropy.

        Raises
        ------
        ValueError
            If X has values that the likelihood can not produce.
        """
        return self._score_valid(self._validate(X, reset=False))

    def _score_valid(self, X):
        X = self._within_support(X)
        return self._map_array(elbo_at_points(balanced_points(self._n_features_out)), X)

    def log_likelihood(self, X, n_importance_samples=100, random_state=None):
        """Importance-weighted bound on the log-likelihood of each row (Burda et al. 2016, equation 8).

        It lies between the evidence lower bound and the log-likelihood, and comes nearer to this with more samples.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.
        n_importance_samples : int, default=100
            Codes drawn for each row.
        random_state : int, RandomState instance or None, default=None
            Seeds the draws, which are the same for every row; None uses the estimator's own ``random_state``.

        Returns
        -------
        log_likelihood : ndarray of shape (n_samples,)
            In nats, in the units of the data. Higher is better.

        References
        ----------
        Y. Burda, R. Grosse and R. Salakhutdinov, Importance weighted autoencoders, 2016.
        """
        X = self._validate(X, reset=False)
        X = self._within_support(X)
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

        return self._map_array(bound, X)


def elbo_at_points(points):
    """A function of a model and rows: their ELBO, the expectation over codes being taken at fixed points (m, k)."""

    def elbo(model, x):
        u = model.standardize(x)
        q = model.posterior(u)
        return sum(model.elbo(u, q, noise.expand_as(q.mean)).value for noise in points.to(u)) / len(points)

    return elbo


def fill_missing(model, x, points=None):
    """Rows with conditional means in the place of missing values; the codes are those at fixed points (m, k).

    Without points, and where values have no mean, the code is the mean of the posterior.
    """
    u = model.standardize(x)
    q = model.posterior(u)
    if points is None or not getattr(model.likelihood, "has_mean", True):
        return torch.where(x.isnan(), model.decode(q.mean).to(x.dtype), x)
    total = mean = None
    for noise in points.to(u):
        noise = noise.expand_as(q.mean)
        weight, decoded = model.log_weights(u, q, noise), model.decode(model.prior.draw(q, noise))
        if total is None:
            total, mean = weight, decoded
            continue
        total = torch.logaddexp(total, weight)
        mean = mean + (weight - total).exp()[:, None] * (decoded - mean)
    return torch.where(x.isnan(), mean.to(x.dtype), x)


def draw_rows(estimator, codes_of, n_samples, generator):
    """Draw codes and then rows, in the units and the dtype of the training data.

    Parameters
    ----------
    codes_of : callable, (model, standard normal Tensor (n, k)) -> Tensor (n, k)
    """
    noise = torch.randn(n_samples, estimator._n_features_out, dtype=torch.float64, generator=generator)
    model = copy.deepcopy(estimator.module_).to("cpu", torch.float64)
    with torch.inference_mode():
        X = model.likelihood.sample(model.decoder(codes_of(model, noise)), generator).numpy()
    return to_dtype(X, estimator._fit_dtype)
