"""Observation models p(x | z): what the outputs of a decoder mean.

Conventions
-----------
Rows come in two forms: ``x`` in the data's own units, and ``u = standardize(x)``, what the networks see. The decoder
gives ``params``. `log_prob` is the log-density of x in nats and in the data's own units (it contains the Jacobian of
the standardisation), so that values from different likelihoods and models can be compared. `mean` and `sample`
answer in the data's own units as well.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from .covariances import LOG_2PI


class Bernoulli(nn.Module):
    """Each feature is a probability or a binary value in [0, 1]; the decoder gives logits.

    For values strictly between 0 and 1 this is the usual cross-entropy, which is not normalised over [0, 1].
    """

    support = (0.0, 1.0)

    @classmethod
    def from_data(cls, mean, scale):
        """The likelihood for data with these feature means and standard deviations (not used here)."""
        return cls()

    def n_outputs(self, n_features):
        """Number of decoder outputs."""
        return n_features

    def standardize(self, x):
        """What the networks see of the rows x."""
        return x

    def log_prob(self, u, params):
        """Log-probability of the rows in nats (n,)."""
        return -F.binary_cross_entropy_with_logits(params, u, reduction="none").sum(-1)

    def mean(self, params):
        """Expected rows in the data's units."""
        return params.sigmoid()

    def sample(self, params, generator):
        """Draw binary rows."""
        return torch.bernoulli(params.sigmoid(), generator=generator)


class Gaussian(nn.Module):
    """Normal features with one learned noise scale, in units of each feature's standard deviation.

    The noise scale is learned with the networks (Rybkin et al. 2021, "Simple and effective VAE training with
    calibrated decoders") and stays above ``min_scale``, so that perfect reconstruction cannot make the density
    infinite.

    Parameters
    ----------
    mean, scale : Tensor of shape (d,)
        Feature means and standard deviations, by which rows are standardised.
    """

    support = (-math.inf, math.inf)
    min_scale = 1e-3

    def __init__(self, mean, scale):
        super().__init__()
        self.register_buffer("feature_mean", mean)
        self.register_buffer("feature_scale", scale)
        # In units of ten, because Adam moves every parameter by about lr a step: the noise scale of clean data is
        # e**-3 or less, and would be reached only after thousands of steps.
        self.raw_log_scale = nn.Parameter(torch.zeros((), dtype=torch.float32))

    @classmethod
    def from_data(cls, mean, scale):
        """The likelihood for data with these feature means and standard deviations."""
        return cls(mean, scale)

    def n_outputs(self, n_features):
        """Number of decoder outputs."""
        return n_features

    @property
    def log_scale(self):
        """Log of the noise scale of a standardised feature ()."""
        floor = math.log(self.min_scale)
        return floor + F.softplus(10 * self.raw_log_scale - floor)

    def standardize(self, x):
        """What the networks see of the rows x."""
        return (x - self.feature_mean) / self.feature_scale

    def log_prob(self, u, params):
        """Log-density of the rows in nats, in the data's units (n,)."""
        log_scale = self.log_scale
        squares = (u - params).square().sum(-1) * (-2 * log_scale).exp()
        constant = u.shape[-1] * (log_scale + 0.5 * LOG_2PI) + self.feature_scale.log().sum()
        return -0.5 * squares - constant

    def mean(self, params):
        """Expected rows in the data's units."""
        return params * self.feature_scale + self.feature_mean

    def sample(self, params, generator):
        """Draw rows in the data's units."""
        noise = torch.empty_like(params).normal_(generator=generator)
        return self.mean(params + self.log_scale.exp() * noise)


LIKELIHOODS = {"bernoulli": Bernoulli, "gaussian": Gaussian}
