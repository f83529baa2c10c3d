"""Models: densities and networks in torch, without data, devices, files or seeds."""

from .counts import Categorical, Counts, NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from .covariances import COVARIANCES, Mixture, Moments
from .features import FeatureSummary, Likelihood, Support
from .latent import ELBO, CovariateInputs, LatentModel
from .likelihoods import (
    LIKELIHOODS,
    Bernoulli,
    ContinuousBernoulli,
    FeatureGaussian,
    FixedGaussian,
    Gaussian,
    SampleGaussian,
)
from .missing import MaskedLikelihood, Observed
from .mixed import MixedLikelihood
from .networks import ACTIVATIONS, NETWORKS
from .ppca import PPCA
from .priors import Flat, GaussianMixturePrior, Posterior, Prior, StandardNormal

__all__ = [
    "ACTIVATIONS",
    "COVARIANCES",
    "ELBO",
    "LIKELIHOODS",
    "NETWORKS",
    "PPCA",
    "Bernoulli",
    "Categorical",
    "ContinuousBernoulli",
    "Counts",
    "CovariateInputs",
    "FeatureGaussian",
    "FeatureSummary",
    "FixedGaussian",
    "Flat",
    "Gaussian",
    "GaussianMixturePrior",
    "LatentModel",
    "Likelihood",
    "MaskedLikelihood",
    "MixedLikelihood",
    "Mixture",
    "Moments",
    "NegativeBinomial",
    "Observed",
    "Poisson",
    "Posterior",
    "Prior",
    "SampleGaussian",
    "StandardNormal",
    "Support",
    "ZeroInflatedNegativeBinomial",
]
