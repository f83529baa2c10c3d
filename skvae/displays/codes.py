"""Latent codes of estimators and pipelines, their distribution, and decoders."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from ..data.arrays import generator_from
from ..models import COVARIANCES


def last_step(estimator):
    """Return the estimator itself, or the last step of a pipeline."""
    last = estimator.steps[-1][1] if isinstance(estimator, Pipeline) else estimator
    return last.estimator if isinstance(last, FrozenEstimator) else last


def codes_of(estimator, X):
    """Return latent codes of samples, which are the inputs of mixtures and other estimators without a decoder."""
    if hasattr(last_step(estimator), "inverse_transform"):
        return estimator.transform(X)
    if isinstance(estimator, Pipeline) and len(estimator) > 1:
        return estimator[:-1].transform(X)
    return X


def decoder_of(estimator):
    """Return ``inverse_transform`` of an estimator.

    Raises
    ------
    TypeError
        If it has none. For a pipeline, the error names the steps without one.
    """
    if hasattr(estimator, "inverse_transform"):
        return estimator.inverse_transform
    last = type(last_step(estimator)).__name__
    if not isinstance(estimator, Pipeline):
        raise TypeError(f"{last} has no inverse_transform; give an embedder, or a pipeline that ends in one.")
    steps = [step for _, step in estimator.steps if step is not None and not isinstance(step, str)]
    lacking = [type(step).__name__ for step in steps if not hasattr(step, "inverse_transform")]
    if isinstance(steps[-1], Pipeline) and lacking == ["Pipeline"]:
        return decoder_of(steps[-1])  # its error is about the steps that decide
    if len(steps) > 1 and not hasattr(steps[-1], "inverse_transform") and len(lacking) == 1:
        raise TypeError(
            f"The pipeline ends in a {last}, which has no inverse_transform; give the steps before it, pipeline[:-1]."
        )
    raise TypeError(
        f"Steps {lacking} of the pipeline have no inverse_transform; give an embedder, or a pipeline whose steps all "
        "have one."
    )


class LatentDistribution(NamedTuple):
    """A Gaussian mixture over latent codes, perhaps of one component, and the decoder."""

    weights: np.ndarray  # (k,)
    means: np.ndarray  # (k, d)
    covariances: np.ndarray  # (k, d, d)
    decode: Callable | None  # ndarray (n, d) -> ndarray (n, n_features); None if there is no decoder

    @property
    def mean(self):
        """Mean of the mixture (d,)."""
        return self.weights @ self.means

    def component(self, index):
        """Return the distribution of latent codes of one component."""
        return self._replace(weights=np.ones(1), means=self.means[[index]], covariances=self.covariances[[index]])

    def quantiles(self, axis, probabilities):
        """Return quantiles of the marginal distribution along an axis (n,)."""
        means, scales = self.means[:, axis], np.sqrt(self.covariances[:, axis, axis])

        def excess(z, probability):
            return self.weights @ ndtr((z - means) / scales) - probability

        def quantile(probability):
            ends = means + scales * ndtri(probability)  # that of the mixture is between those of its components
            margin = 1e-9 * (1 + np.ptp(ends))
            return brentq(excess, ends.min() - margin, ends.max() + margin, args=(probability,), xtol=1e-12)

        return np.array([quantile(probability) for probability in probabilities])

    def sample(self, n_samples, generator):
        """Draw latent codes of each component (k, n_samples, d)."""
        k, d = self.means.shape
        noise = torch.randn(k, n_samples, d, dtype=torch.float64, generator=generator).numpy()
        variances, axes = np.linalg.eigh(self.covariances)
        roots = axes * np.sqrt(variances.clip(0))[:, None]
        return self.means[:, None] + noise @ np.swapaxes(roots, 1, 2)


def latent_distribution(estimator):
    """Return the distribution of latent codes: the prior, a mixture fitted to them, or a normal with their moments.

    Raises
    ------
    TypeError
        If the estimator has none, or a step of a pipeline has no decoder.
    """
    check_is_fitted(estimator)
    last = last_step(estimator)
    decode = None
    if hasattr(last, "inverse_transform"):
        decode = decoder_of(estimator)
    elif isinstance(estimator, Pipeline) and len(estimator) > 1:
        decode = decoder_of(estimator[:-1])
    if hasattr(last, "_latent_distribution"):
        return LatentDistribution(*last._latent_distribution(), decode)
    if hasattr(last, "covariances_"):
        means, covariances = (np.asarray(part, dtype=float) for part in mixture_of(last))
        weights = np.asarray(last.weights_, dtype=float)
        return LatentDistribution(weights / weights.sum(), means, covariances, decode)
    raise TypeError(
        f"{type(last).__name__} has no distribution of latent codes; give a VAEEmbedder, AutoencoderEmbedder, "
        "VaDEClusterer or TorchPPCA, a Gaussian mixture, or a pipeline that ends in one."
    )


def mixture_of(last):
    """Return means and covariance matrices of an estimator with a mixture, or None and None."""
    if not hasattr(last, "covariances_"):
        return None, None
    return last.means_, full_covariances(last.covariances_, last.covariance_type, last.means_)


def full_covariances(covariances, covariance_type, means):
    """Return covariance matrices (k, d, d) from those in the shape that an estimator of a covariance type publishes."""
    k, d = np.shape(means)
    if covariance_type in COVARIANCES:  # those of other estimators are variances if they have an axis less
        covariances = COVARIANCES[covariance_type].expand(torch.tensor(covariances)).numpy()
    if covariances.ndim == 3:
        return np.broadcast_to(covariances, (k, d, d))
    return np.broadcast_to(covariances, (k, d))[:, :, None] * np.eye(d)


def generator_of(estimator, random_state):
    """Return a generator that is seeded by a random state, or for None by that of the estimator."""
    own = getattr(last_step(estimator), "random_state", None)
    return generator_from(own if random_state is None else random_state)
