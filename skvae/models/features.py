"""Base class of observation models, and the summary of the training data that they are made from."""

import math
from typing import NamedTuple, Protocol

from torch import Tensor, nn


class FeatureSummary(Protocol):
    """Statistics of the features of the training data."""

    mean: Tensor  # (d,), float64
    scale: Tensor  # (d,), float64: units, by which features are divided; one for a constant feature
    maximum: Tensor  # (d,), float64


class Support(NamedTuple):
    """Values that a likelihood can produce.

    Parameters
    ----------
    low, high : float or tuple of float
        Bounds, which are possible values themselves if they are finite; a tuple has one for each feature.
    integers : bool or tuple of bool, default=False
        Whether values are whole numbers.
    """

    low: float | tuple = -math.inf
    high: float | tuple = math.inf
    integers: bool | tuple = False


class Likelihood(nn.Module):
    """Base class of observation models p(x | z), with defaults for one encoder input and output for each feature.

    Samples have three forms: ``x`` in the units of the data; ``u = standardize(x)``, which is stored for training, and
    in which float32 loses nothing that matters; and ``inputs(u)``, the inputs of the encoder. ``params`` are the
    outputs of the decoder. Densities are in nats and in the units of the data (they contain the Jacobian of the
    standardization), so that values of different likelihoods and models can be compared.

    Subclasses have ``support`` (a `Support`), ``mean(params)`` and ``sample(params, generator)``, in the units of the
    data, and ``feature_log_prob(u, params)`` (n, d). Without the latter, they have ``log_prob``, and values cannot be
    missing (see `MaskedLikelihood`). Modules of users need not inherit from it.

    Attributes
    ----------
    has_mean : bool
        Whether `statistics` can be averaged; without, missing values are those expected at one code.
    missing : float
        Value of ``u`` that replaces missing ones in `inputs`. In densities zero does, which should be finite there.
    """

    has_mean = True
    missing = 0.0

    @classmethod
    def from_data(cls, summary: FeatureSummary):
        """Return the likelihood for training data with this summary."""
        return cls(summary.mean, summary.scale)

    def n_inputs(self, n_features):
        """Return the number of encoder inputs."""
        return n_features

    def n_outputs(self, n_features):
        """Return the number of decoder outputs."""
        return n_features

    def standardize(self, x):
        """Return samples in the units of the model."""
        return x

    def inputs(self, u):
        """Return the inputs of the encoder."""
        return u

    def statistics(self, params):
        """Return what is averaged where samples are expected over several latent codes: their expectations."""
        return self.mean(params)

    def from_statistics(self, statistics):
        """Return expected samples in the units of the data from averages of `statistics`."""
        return statistics

    def log_prob(self, u, params):
        """Return the log-density of each sample in nats (n,)."""
        return self.feature_log_prob(u, params).sum(-1)
