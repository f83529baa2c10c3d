"""What the models are: densities and networks in torch, with no data, devices, files or seeds."""

from .covariances import COVARIANCES, Mixture
from .latent import ELBO, LatentModel
from .likelihoods import LIKELIHOODS, Bernoulli, Gaussian
from .moments import Moments
from .networks import ACTIVATIONS, NETWORKS
from .ppca import PPCA
from .priors import Flat, Posterior, StandardNormal

__all__ = [
    "ACTIVATIONS",
    "COVARIANCES",
    "ELBO",
    "LIKELIHOODS",
    "NETWORKS",
    "PPCA",
    "Bernoulli",
    "Flat",
    "Gaussian",
    "LatentModel",
    "Mixture",
    "Moments",
    "Posterior",
    "StandardNormal",
]
