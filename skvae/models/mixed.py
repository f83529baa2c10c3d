"""Likelihood of features of different types, each with a likelihood of its own."""

from typing import Any, NamedTuple

import torch
from torch import nn

from .counts import Categorical
from .features import Likelihood, Support
from .missing import masked_inputs


def statistics_size(likelihood, n_features):
    """Return the number of `statistics` of a sample."""
    return likelihood.n_outputs(n_features) if isinstance(likelihood, Categorical) else n_features


class MixedLikelihood(Likelihood):
    """Groups of features with different likelihoods, which are independent given the latent code.

    The log-likelihood of a sample is the sum of those of its features, in nats. Inputs of the encoder, and outputs of
    the decoder, are those of the first group, then those of the second, and so on.

    Parameters
    ----------
    likelihoods : list of Likelihood
        They have ``feature_log_prob``.
    features : list of list of int
        Indices of the features of each; each feature occurs once.
    """

    def __init__(self, likelihoods, features):
        super().__init__()
        self.likelihoods, self.features = nn.ModuleList(likelihoods), [list(part) for part in features]
        self.n_features = sum(map(len, self.features))
        supports = [Support(*likelihood.support) for likelihood in likelihoods]
        self.support = Support(
            self._in_order([support.low for support in supports]),
            self._in_order([support.high for support in supports]),
            self._in_order([support.integers for support in supports]),
        )
        order = torch.tensor([feature for part in self.features for feature in part])
        self.register_buffer("order", order)  # of the features, one group after the other
        self.register_buffer("inverse", order.argsort())

    def _in_order(self, values):
        """Return one value for each feature, from those of the groups: a number, or one for each of their features."""
        result = [None] * self.n_features
        for part, value in zip(self.features, values, strict=True):
            each = value if isinstance(value, tuple) else (value,) * len(part)
            for feature, entry in zip(part, each, strict=True):
                result[feature] = entry
        return tuple(result)

    def n_inputs(self, n_features):
        """Return the number of encoder inputs."""
        return sum(each.n_inputs(len(part)) for each, part in self._groups())

    def n_outputs(self, n_features):
        """Return the number of decoder outputs."""
        return sum(each.n_outputs(len(part)) for each, part in self._groups())

    def standardize(self, x):
        """Return samples in the units of the model."""
        return self._joined([each.standardize(part) for each, part in self._with_groups(x)])

    def inputs(self, u):
        """Return the inputs of the encoder."""
        return torch.cat([each.inputs(part) for each, part in self._with_groups(u)], -1)

    def masked_inputs(self, u):
        """Return the inputs of the encoder for samples with missing values."""
        return torch.cat([masked_inputs(each, part) for each, part in self._with_groups(u)], -1)

    def feature_log_prob(self, u, params):
        """Return the log-density of each value in nats, in the units of the data (n, d)."""
        parts = zip(self._with_groups(u), self._outputs(params), strict=True)
        return self._joined([each.feature_log_prob(part, own) for (each, part), own in parts])

    def log_prob(self, u, params):
        """Return the log-density of each sample in nats (n,)."""
        parts = zip(self._with_groups(u), self._outputs(params), strict=True)
        return sum(each.log_prob(part, own) for (each, part), own in parts)

    def mean(self, params):
        """Return expected samples in the units of the data; of categories, the most probable ones."""
        return self._each(params, lambda each, own: each.mean(own))

    def statistics(self, params):
        """Return what is averaged over latent codes, of one group after the other."""
        pairs = zip(self.likelihoods, self._outputs(params), strict=True)
        return torch.cat([each.statistics(own) for each, own in pairs], -1)

    def from_statistics(self, statistics):
        """Return expected samples from averages of `statistics`."""
        sizes = [statistics_size(each, len(part)) for each, part in self._groups()]
        pairs = zip(self.likelihoods, statistics.split(sizes, -1), strict=True)
        return self._joined([each.from_statistics(part) for each, part in pairs])

    def sample(self, params, generator):
        """Draw samples."""
        return self._each(params, lambda each, own: each.sample(own, generator))

    def _each(self, params, function):
        pairs = zip(self.likelihoods, self._outputs(params), strict=True)
        return self._joined([function(each, own) for each, own in pairs])

    def _groups(self):
        return zip(self.likelihoods, self.features, strict=True)

    def _with_groups(self, x):
        """Return pairs of a likelihood and the values of its features."""
        return zip(self.likelihoods, x[..., self.order].split([len(part) for part in self.features], -1), strict=True)

    def _outputs(self, params):
        """Return the decoder outputs of each group."""
        return params.split([each.n_outputs(len(part)) for each, part in self._groups()], -1)

    def _joined(self, parts):
        """Return values of the groups in the order of the features."""
        return torch.cat(parts, -1)[..., self.inverse]


class Group(NamedTuple):
    """Columns with the same likelihood."""

    likelihood: Any  # a name, a module, or a class with ``from_data``
    features: list  # indices


class ColumnLikelihoods(NamedTuple):
    """Likelihoods of all columns of a dataset, by groups."""

    groups: list

    def build(self, columns, build):
        """Return the likelihood of a sample.

        Parameters
        ----------
        columns : Columns
        build : callable, (likelihood, columns) -> Module
            Builds the likelihood of a group.
        """
        parts = [build(likelihood, columns.select(features)) for likelihood, features in self.groups]
        features = [group.features for group in self.groups]
        is_one = len(parts) == 1 and features[0] == list(range(len(features[0])))
        return parts[0] if is_one else MixedLikelihood(parts, features)
