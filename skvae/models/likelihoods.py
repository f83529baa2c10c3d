"""Observation models p(x | z) of real features: likelihoods, whose parameters are the outputs of a decoder."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from .counts import Categorical, NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from .covariances import LOG_2PI
from .features import Likelihood, Support


class UnitInterval(Likelihood):
    """Base class of likelihoods of features in [0, 1], with one decoder output for each feature."""

    support = Support(0.0, 1.0)

    @classmethod
    def from_data(cls, summary):
        """Return the likelihood, which does not depend on the data."""
        return cls()


class Bernoulli(UnitInterval):
    """Bernoulli features: probabilities or binary values in [0, 1]; the decoder outputs logits.

    For values strictly between 0 and 1 this is the usual cross-entropy, which is not normalized over [0, 1].
    """

    def feature_log_prob(self, u, params):
        """Return the log-probability of each value in nats (n, d)."""
        return -F.binary_cross_entropy_with_logits(params, u, reduction="none")

    def mean(self, params):
        """Return expected samples in the units of the data."""
        return params.sigmoid()

    def sample(self, params, generator):
        """Draw binary samples."""
        return torch.bernoulli(params.sigmoid(), generator=generator)


class ContinuousBernoulli(UnitInterval):
    """Continuous Bernoulli features in [0, 1] (Loaiza-Ganem and Cunningham 2019); the decoder outputs logits.

    The cross-entropy of the Bernoulli with the constant that makes it a density over [0, 1] (their equation 8). With
    natural parameter eta (the logit) and h = eta / 2,

        log p(x) = eta (x - 1/2) - log(sinh(h) / h).

    The mean is not the sigmoid of the logit, but lies nearer to 1/2.
    """

    def feature_log_prob(self, u, params):
        """Return the log-density of each value in nats (n, d)."""
        return params * (u - 0.5) - LogSinhc.apply(params / 2)

    def mean(self, params):
        """Return expected samples in the units of the data (their equation 9)."""
        return 0.5 + 0.5 * langevin(params / 2)

    def sample(self, params, generator):
        """Draw samples by inverting the distribution function."""
        uniform = torch.empty_like(params).uniform_(generator=generator)
        # For negative logits; the sign swaps x and 1 - x. In the limit of 0 the ratio is the draw itself.
        slope = params.abs().clamp(min=1e-30)
        falling = -torch.log1p(uniform * torch.expm1(-slope)) / slope
        return torch.where(params > 0, 1 - falling, falling).clamp(0, 1)


class LogSinhc(torch.autograd.Function):
    """The even function log(sinh(h) / h), with a derivative written out to avoid cancellation near 0."""

    @staticmethod
    def forward(ctx, h):
        """Return the values."""
        ctx.save_for_backward(h)
        size = h.abs().clamp(min=1e-30)
        return size + torch.log(-torch.expm1(-2 * size) / (2 * size))

    @staticmethod
    def backward(ctx, grad):
        """Return the gradient."""
        return grad * langevin(*ctx.saved_tensors)


def langevin(h, near=0.25):
    """Return coth(h) - 1 / h, the derivative of log(sinh(h) / h); a series between -near and near."""
    is_near = h.abs() < near  # not by clamp, whose gradient at the bound differs between versions of torch
    small, size = torch.where(is_near, h, 0.0), torch.where(is_near, near, h.abs())
    square = small.square()
    terms = 1 / 3 + square * (-1 / 45 + square * (2 / 945 + square * (-1 / 4725 + square * 2 / 93555)))
    return torch.where(is_near, small * terms, (1 / size.tanh() - 1 / size) * h.sign())


class Standardized(Likelihood):
    """Base class of likelihoods of real features, which are standardized for the networks.

    Parameters
    ----------
    mean, scale : Tensor of shape (d,)
        Means and scales of the features, by which samples are standardized.
    """

    support = Support()

    def __init__(self, mean, scale):
        super().__init__()
        self.register_buffer("feature_mean", mean)
        self.register_buffer("feature_scale", scale)

    def standardize(self, x):
        """Return samples in the units of the model: features with mean 0 and, unless they share a scale, variance 1."""
        return (x - self.feature_mean) / self.feature_scale

    def in_units(self, u):
        """Return standardized values in the units of the data."""
        return u * self.feature_scale + self.feature_mean


class Normal(Standardized):
    """Base class of likelihoods with normal features, which differ in the noise scale.

    Subclasses have ``n_outputs(n_features)`` and ``noise(params)``, which returns expected standardized samples (n, d)
    and the log of the noise scale of standardized features. The last axis of the latter has length d, or 1 if
    features share the scale; the others broadcast with samples.

    Parameters
    ----------
    mean, scale : Tensor of shape (d,)
        Means and scales of the features, by which samples are standardized.
    """

    min_scale = 1e-3

    def log_prob(self, u, params):
        """Return the log-density of each sample in nats, in the units of the data (n,)."""
        location, log_scale = self.noise(params)
        n_scales = log_scale.shape[-1]
        squares = (u - location).square().unflatten(-1, (n_scales, -1)).sum(-1)  # (n, n_scales)
        energy = (squares * (-2 * log_scale).exp()).sum(-1)
        n_features = u.shape[-1]
        constant = n_features // n_scales * log_scale.sum(-1) + n_features * 0.5 * LOG_2PI
        return -0.5 * energy - (constant + self.feature_scale.log().sum())

    def feature_log_prob(self, u, params):
        """Return the log-density of each value in nats, in the units of the data (n, d)."""
        location, log_scale = self.noise(params)
        energy = (u - location).square() * (-2 * log_scale).exp()
        return -0.5 * (energy + LOG_2PI) - log_scale - self.feature_scale.log()

    def mean(self, params):
        """Return expected samples in the units of the data."""
        return self.in_units(self.noise(params)[0])

    def sample(self, params, generator):
        """Draw samples in the units of the data."""
        location, log_scale = self.noise(params)
        noise = torch.empty_like(location).normal_(generator=generator)
        return self.in_units(location + log_scale.exp() * noise)


class LearnedNormal(Normal):
    """Base class of normal likelihoods whose noise scales are learned with the networks.

    They stay above ``min_scale``, so that perfect reconstruction cannot make the density infinite.
    """

    def __init__(self, mean, scale):
        super().__init__(mean, scale)
        # In units of ten, because Adam moves every parameter by about lr a step: the noise scale of clean data is
        # e**-3 or less, and would be reached only after thousands of steps.
        self.raw_log_scale = nn.Parameter(torch.zeros(self.scales_shape(len(mean)), dtype=torch.float32))

    @property
    def log_scale(self):
        """Log of the noise scale of a standardized feature () or (d,)."""
        floor = math.log(self.min_scale)
        return floor + F.softplus(10 * self.raw_log_scale - floor)

    def noise(self, params):
        """Return expected standardized samples and the log of the noise scale, (1,) or (d,)."""
        return params, torch.atleast_1d(self.log_scale)


class Gaussian(LearnedNormal):
    """Normal features with one learned noise scale, that of standardized features.

    Rybkin et al. 2021, "Simple and effective VAE training with calibrated decoders".

    Parameters
    ----------
    mean, scale : Tensor of shape (d,)
        Means and scales of the features, by which samples are standardized.
    """

    def scales_shape(self, n_features):
        """Return the shape of the learned scales."""
        return ()


class FeatureGaussian(LearnedNormal):
    """Normal features, each with its own learned noise scale, the same for all samples.

    Parameters
    ----------
    mean, scale : Tensor of shape (d,)
        Means and scales of the features, by which samples are standardized.
    """

    def scales_shape(self, n_features):
        """Return the shape of the learned scales."""
        return (n_features,)


class FixedGaussian(Normal):
    """Normal features with a noise scale that is not learned.

    The log-likelihood is then a constant less the weighted squared error: with ``noise_scale=1`` and features of unit
    variance, half the squared error.

    Parameters
    ----------
    mean, scale : Tensor of shape (d,)
        Means and scales of the features, by which samples are standardized.
    noise_scale : float, default=1.0
        Standard deviation of the noise of standardized features.

    Raises
    ------
    ValueError
        If ``noise_scale`` is not positive and finite.
    """

    def __init__(self, mean, scale, noise_scale=1.0):
        super().__init__(mean, scale)
        if not 0 < noise_scale < math.inf:
            raise ValueError(f"noise_scale={noise_scale!r} should be a positive finite number.")
        self.noise_scale = noise_scale

    def noise(self, params):
        """Return expected standardized samples and the log of the noise scale (1,)."""
        return params, params.new_full((1,), math.log(self.noise_scale))


class SampleGaussian(Normal):
    """Normal features whose noise scale is a function of the latent code: one for each sample, in standardized units.

    The last decoder output is the log of the scale, bounded smoothly between ``min_scale`` and its inverse. A sample
    that is reconstructed exactly cannot make the density infinite, and far from the data the noise stays finite.

    Parameters
    ----------
    mean, scale : Tensor of shape (d,)
        Means and scales of the features, by which samples are standardized.
    """

    def n_outputs(self, n_features):
        """Return the number of decoder outputs: the means and a log-scale."""
        return n_features + 1

    def noise(self, params):
        """Return expected standardized samples (n, d) and the logs of their noise scales (n, 1)."""
        bound = -math.log(self.min_scale)
        return params[..., :-1], bound * (params[..., -1:] / bound).tanh()


LIKELIHOODS = {
    "bernoulli": Bernoulli,
    "continuous_bernoulli": ContinuousBernoulli,
    "gaussian": Gaussian,
    "gaussian_fixed": FixedGaussian,
    "gaussian_features": FeatureGaussian,
    "gaussian_samples": SampleGaussian,
    "poisson": Poisson,
    "negative_binomial": NegativeBinomial,
    "zero_inflated_negative_binomial": ZeroInflatedNegativeBinomial,
    "categorical": Categorical,
}
