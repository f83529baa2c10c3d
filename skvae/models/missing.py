"""Likelihoods of samples with missing values."""

import torch
from torch import nn


class MaskedLikelihood(nn.Module):
    """A likelihood of samples in which values are missing (NaN), at random.

    The ELBO is that of the observed values: missing ones are left out of the likelihood (Mattei and Frellsen 2019,
    equation 4). The inputs of the encoder are zeros in their place, followed by a mask of the features, which is one
    for an observed value.

    Parameters
    ----------
    likelihood : Module
        A likelihood with ``feature_log_prob``.

    References
    ----------
    P.-A. Mattei and J. Frellsen, MIWAE: deep generative modelling and imputation of incomplete data sets, 2019.
    """

    def __init__(self, likelihood):
        super().__init__()
        self.likelihood, self.support = likelihood, likelihood.support
        self.has_mean = getattr(likelihood, "has_mean", True)

    def n_inputs(self, n_features):
        """Return the number of encoder inputs: those of the likelihood, and the mask."""
        return self.likelihood.n_inputs(n_features) + n_features

    def n_outputs(self, n_features):
        """Return the number of decoder outputs."""
        return self.likelihood.n_outputs(n_features)

    def standardize(self, x):
        """Return samples in the units of the model; missing values stay missing."""
        return self.likelihood.standardize(x)

    def inputs(self, u):
        """Return the inputs of the encoder."""
        inputs = masked_inputs(self.likelihood, u)
        return torch.cat([inputs, (~u.isnan()).to(inputs.dtype)], -1)

    def log_prob(self, u, params):
        """Return the log-density of the observed values in nats (n,)."""
        parts = self.likelihood.feature_log_prob(u.nan_to_num(nan=0.0), params)
        return torch.where(u.isnan(), 0.0, parts).sum(-1)

    def mean(self, params):
        """Return expected samples in the units of the data."""
        return self.likelihood.mean(params)

    def statistics(self, params):
        """Return what is averaged over latent codes."""
        return getattr(self.likelihood, "statistics", self.likelihood.mean)(params)

    def from_statistics(self, statistics):
        """Return expected samples from averages of `statistics`."""
        return self.likelihood.from_statistics(statistics) if hasattr(self.likelihood, "statistics") else statistics

    def sample(self, params, generator):
        """Draw samples, without missing values."""
        return self.likelihood.sample(params, generator)


def masked_inputs(likelihood, u):
    """Return the inputs of the encoder of samples with missing values, without a mask: zeros in their place."""
    if hasattr(likelihood, "masked_inputs"):
        return likelihood.masked_inputs(u)
    inputs = likelihood.inputs(u.nan_to_num(nan=getattr(likelihood, "missing", 0.0)))
    return torch.where(u.isnan(), 0.0, inputs) if inputs.shape == u.shape else inputs


Observed = MaskedLikelihood  # the name in pickles of version 0.1.0 that hold modules of users
