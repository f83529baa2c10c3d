"""Likelihoods of rows with missing values."""

import torch
from torch import nn


class Observed(nn.Module):
    """A likelihood for rows in which values are missing (NaN), at random.

    The bound is that of the values that are there: those that are missing are left out of the likelihood (Mattei and
    Frellsen 2019, equation 4). The encoder sees zeros in their place, and beside all inputs a mask of the features,
    one where there is a value.

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
        """Number of encoder inputs: those of the likelihood, and the mask."""
        return self.likelihood.n_inputs(n_features) + n_features

    def n_outputs(self, n_features):
        """Number of decoder outputs."""
        return self.likelihood.n_outputs(n_features)

    def standardize(self, x):
        """What is stored for training of the rows x; missing values stay missing."""
        return self.likelihood.standardize(x)

    def inputs(self, u):
        """What the encoder sees."""
        seen = ~u.isnan()
        inputs = self.likelihood.inputs(u.nan_to_num(nan=getattr(self.likelihood, "missing", 0.0)))
        if inputs.shape == u.shape:
            inputs = torch.where(seen, inputs, 0.0)
        return torch.cat([inputs, seen.to(inputs.dtype)], -1)

    def log_prob(self, u, params):
        """Log-density of the values that are there, in nats (n,)."""
        parts = self.likelihood.feature_log_prob(u.nan_to_num(nan=0.0), params)
        return torch.where(u.isnan(), 0.0, parts).sum(-1)

    def mean(self, params):
        """Expected rows in the data's units."""
        return self.likelihood.mean(params)

    def sample(self, params, generator):
        """Draw rows, without missing values."""
        return self.likelihood.sample(params, generator)
