"""Protocol of observation models, and the summary of the training data that they are made from."""

import math
from typing import NamedTuple, Protocol

from torch import Tensor


class FeatureSummary(Protocol):
    """Statistics of the features of the training data."""

    mean: Tensor  # (d,), float64
    scale: Tensor  # (d,), float64: standard deviations, and one for a constant feature
    maximum: Tensor  # (d,), float64


class Support(NamedTuple):
    """Values that a likelihood can produce.

    Parameters
    ----------
    low, high : float or tuple of float
        Bounds, which are possible values themselves if they are finite; a tuple has one for each feature.
    integers : bool, default=False
        Whether values are whole numbers.
    """

    low: float | tuple = -math.inf
    high: float | tuple = math.inf
    integers: bool = False


class Likelihood(Protocol):
    """Observation model p(x | z), a module.

    Samples have three forms: ``x`` in the units of the data; ``u = standardize(x)``, which is stored for training, and
    in which float32 loses nothing that matters; and ``inputs(u)``, the inputs of the encoder. ``params`` are the
    outputs of the decoder. Densities are in nats and in the units of the data (they contain the Jacobian of the
    standardization), so that values of different likelihoods and models can be compared.

    With a method ``feature_log_prob(u, params)`` (n, d), whose sums are ``log_prob``, values may be missing (see
    `MaskedLikelihood`).
    """

    support: Support

    @classmethod
    def from_data(cls, summary: FeatureSummary):
        """Return the likelihood for training data with this summary."""

    def n_inputs(self, n_features):
        """Return the number of encoder inputs."""

    def n_outputs(self, n_features):
        """Return the number of decoder outputs."""

    def standardize(self, x):
        """Return samples in the units of the model."""

    def inputs(self, u):
        """Return the inputs of the encoder."""

    def log_prob(self, u, params):
        """Return the log-density of each sample in nats (n,)."""

    def mean(self, params):
        """Return expected samples in the units of the data."""

    def sample(self, params, generator):
        """Draw samples in the units of the data."""
