"""Observation models of integers: counts and codes of categories."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from .covariances import LOG_2PI
from .features import Likelihood, Support

LOG_RATE_BOUND = 20.0
LOG_DISPERSION_BOUND = 10.0
MIN_MEAN = 1e-3
ZERO_LOGIT = 2.0
MAX_CATEGORIES = 2**20


class Counts(Likelihood):
    """Base class of likelihoods of counts: the decoder outputs log-rates, relative to the mean of each feature.

    They are bounded smoothly to +-20, so that rates and gradients stay finite.

    With size factors, the rates of a sample are multiplied by its total, in units of the mean total, and counts are
    divided by it for the encoder: latent codes need not describe how many counts a sample has, only their shares.
    Densities are those given the total. Or the logs of size factors are given, as a last column of samples. Without a
    sample, as in `mean` and `sample`, the size factor is one.

    Parameters
    ----------
    mean, scale : Tensor of shape (d,)
        Feature means and standard deviations.

    Attributes
    ----------
    size_factors : {"total", "given"} or None
        Where size factors are from; it can be set.
    """

    support = Support(0.0, math.inf, integers=True)
    size_factors = None

    def __init__(self, mean, scale):
        super().__init__()
        self.register_buffer("log_mean", mean.clamp(min=MIN_MEAN).log())
        # Mean and standard deviation of log(1 + x), if 1 + x is log-normal.
        variance = (scale / (1 + mean)).square().log1p()
        self.register_buffer("input_mean", mean.log1p() - 0.5 * variance)
        self.register_buffer("input_scale", variance.sqrt())

    def inputs(self, u):
        """Return log(1 + x), shifted and scaled to about unit variance; a number below 0 counts as 0."""
        counts, log_size = self._split(u)
        counts = counts.clamp(min=0)
        if self.size_factors is not None:
            counts = counts / (self.log_total(counts) if log_size is None else log_size).exp()
        return (counts.log1p() - self.input_mean.to(u.dtype)) / self.input_scale.to(u.dtype)

    def log_total(self, counts):
        """Return the logs of the totals of samples (n, 1), at least 1, by the mean total."""
        return counts.sum(-1, keepdim=True).clamp(min=1).log() - self.log_mean.logsumexp(0).to(counts.dtype)

    def log_rate(self, params, log_size=None):
        """Return logs of the expected counts (n, d), for logs of size factors (n, 1) if there are any."""
        log_rate = self.log_mean.to(params.dtype) + LOG_RATE_BOUND * (params / LOG_RATE_BOUND).tanh()
        return log_rate if log_size is None else log_rate + log_size

    def sized(self, u):
        """Return counts (n, d), and the logs of their size factors (n, 1) or None."""
        counts, log_size = self._split(u)
        return counts, self.log_total(counts) if self.size_factors == "total" else log_size

    def _split(self, u):
        """Return counts, and the logs of size factors that are given, or None."""
        return (u[..., :-1], u[..., -1:]) if self.size_factors == "given" else (u, None)

    def mean(self, params):
        """Return expected samples in the units of the data."""
        return self.log_rate(params).exp()


class Poisson(Counts):
    """Poisson counts: variance equal to the mean."""

    def feature_log_prob(self, u, params):
        """Return the log-probability of each count in nats (n, d)."""
        u, log_size = self.sized(u)
        log_rate, count, is_positive = self.log_rate(params, log_size), u.clamp(min=1), (u > 0).to(params.dtype)
        constant = stirling_error(count) + 0.5 * (count.log() + LOG_2PI)
        # For a count of zero, the deviance is that of a count of 1, which is rate - 1 - log(rate).
        zero = (1 - is_positive) * (1 + log_rate)
        return -(deviance(count, log_rate - count.log()) + zero + is_positive * constant)

    def sample(self, params, generator):
        """Draw samples of counts."""
        return torch.poisson(self.mean(params), generator=generator)


class NegativeBinomial(Counts):
    """Negative binomial counts with mean mu and variance mu + mu^2 / theta.

    The inverse dispersion theta of each feature is learned with the networks, and the same for all samples. It is
    initialized from the moments of the feature, and stays between e^-10 and e^10; a Poisson has infinite theta.

    Parameters
    ----------
    mean, scale : Tensor of shape (d,)
        Feature means and standard deviations.

    Attributes
    ----------
    has_shifts : bool
        Whether the last d parameters are added to the logs of theta, in units of ten; it can be set.
    """

    has_shifts = False

    def __init__(self, mean, scale):
        super().__init__(mean, scale)
        excess = (scale.square() - mean).clamp(min=1e-30)
        initial = (2 * mean.clamp(min=MIN_MEAN).log() - excess.log()) / LOG_DISPERSION_BOUND
        # In units of ten, because Adam moves every parameter by about lr a step.
        raw = LOG_DISPERSION_BOUND / 10 * initial.clamp(-0.9, 0.9).atanh()
        self.raw_log_dispersion = nn.Parameter(raw.to(torch.float32))

    @property
    def log_theta(self):
        """Log of the inverse dispersion of each feature (d,)."""
        return self._log_theta(self.raw_log_dispersion)

    @staticmethod
    def _log_theta(raw):
        return LOG_DISPERSION_BOUND * (10 * raw / LOG_DISPERSION_BOUND).tanh()

    def _dispersed(self, params):
        """Return the parameters without shifts, and the logs of the inverse dispersions, (d,) or (n, d)."""
        raw = self.raw_log_dispersion.to(params.dtype)
        if not self.has_shifts:
            return params, self._log_theta(raw)
        params, shifts = params.split([params.shape[-1] - len(raw), len(raw)], -1)
        return params, self._log_theta(raw + shifts)

    def mean(self, params):
        """Return expected samples in the units of the data."""
        return super().mean(self._dispersed(params)[0])

    def feature_log_prob(self, u, params):
        """Return the log-probability of each count in nats (n, d).

        It is that of a binomial with real parameters, written as deviances and Stirling errors (Loader 2000, "Fast and
        accurate computation of binomial probabilities"). Differences of log-gamma functions would lose all digits of
        float32 for large counts or theta.
        """
        u, log_size = self.sized(u)
        params, log_theta = self._dispersed(params)
        log_mu = self.log_rate(params, log_size)
        mu, theta, count, is_positive = log_mu.exp(), log_theta.exp(), u.clamp(min=1), (u > 0).to(params.dtype)
        total, difference = count + theta, count - mu
        # log((x + theta) / (mu + theta)), accurate where they are nearly equal and where one is much larger.
        shared = difference.sign() * torch.log1p(difference.abs() / (torch.minimum(count, mu) + theta))
        of_positive = (
            stirling_error(total) - stirling_error(theta) - stirling_error(count)
            - deviance(theta, shared) - deviance(count, log_mu - count.log() + shared)
            + 0.5 * (log_theta - total.log() - count.log() - LOG_2PI)
        )  # fmt: skip
        of_zero = -theta * F.softplus(log_mu - log_theta)
        return is_positive * of_positive + (1 - is_positive) * of_zero  # both are finite; faster than where

    def sample(self, params, generator):
        """Draw Poisson counts whose rates are drawn from gamma distributions."""
        params, log_theta = self._dispersed(params)
        theta, mean = log_theta.exp().expand_as(params), self.log_rate(params).exp()
        # torch.distributions draws gammas by this function too, but without a generator.
        rate = torch._standard_gamma(theta, generator=generator) * mean / theta
        return torch.poisson(rate, generator=generator)


class ZeroInflatedNegativeBinomial(NegativeBinomial):
    """Negative binomial counts, which are zero for another reason with a probability of their own.

    The decoder outputs log-rates, and then logits of these probabilities, which begin at 0.12 (Lopez et al. 2018, "Deep
    generative modeling for single-cell transcriptomics").

    Parameters
    ----------
    mean, scale : Tensor of shape (d,)
        Feature means and standard deviations.
    """

    def n_outputs(self, n_features):
        """Return the number of decoder outputs: two for each feature."""
        return 2 * n_features

    def feature_log_prob(self, u, params):
        """Return the log-probability of each count in nats (n, d)."""
        rates, logits = self._parts(params)
        of_counts = super().feature_log_prob(u, rates) + F.logsigmoid(-logits)
        return torch.where(self._split(u)[0] > 0, of_counts, torch.logaddexp(of_counts, F.logsigmoid(logits)))

    def mean(self, params):
        """Return expected samples in the units of the data."""
        rates, logits = self._parts(params)
        return super().mean(rates) * torch.sigmoid(-logits)

    def sample(self, params, generator):
        """Draw negative binomial counts, and then which of them are zero."""
        rates, logits = self._parts(params)
        counts = super().sample(rates, generator)
        return counts * torch.bernoulli(torch.sigmoid(-logits), generator=generator)

    def _parts(self, params):
        """Return log-rates and shifts of dispersions, if there are any, and logits of the probability of zero."""
        d = len(self.raw_log_dispersion)
        rates, logits, shifts = params.split([d, d, params.shape[-1] - 2 * d], -1)
        return torch.cat([rates, shifts], -1) if self.has_shifts else rates, logits - ZERO_LOGIT


def deviance(count, log_ratio):
    """Return half the Poisson deviance of counts from rates with these log(rate / count), accurate near 0 too."""
    return count * (torch.expm1(log_ratio) - log_ratio)


def stirling_error(x):
    """Return log(Gamma(x + 1)) less Stirling's approximation ``(x + 1/2) log(x) - x + log(2 pi) / 2``, for x > 0.

    It is the asymptotic series at x + 8, and eight steps of the recurrence Gamma(x + 1) = x Gamma(x); torch's lgamma
    takes as long, and its gradient much longer.
    """
    inverse = 1 / (x + 8)
    share, square = x * inverse, inverse * inverse
    series = 1 / 12 - square * (1 / 360 - square * (1 / 1260 - square * (1 / 1680 - square / 1188)))
    # The product of (x + i) / (x + 8) for i = 1, ..., 7, in pairs: (x + 1)(x + 7) = x (x + 8) + 7.
    steps = (share + 7 * square) * (share + 12 * square) * (share + 15 * square) * (share + 4 * inverse)
    return inverse * series + (x + 0.5) * torch.log1p(8 / x) - 8 - steps.log()


class Categorical(Likelihood):
    """Categorical features, coded 0, 1, ..., C - 1, without order; the decoder outputs logits.

    The logits of the categories of the first feature come first, then those of the second, and so on. Codes up to the
    largest of the training data are possible, whether they occurred in it or not.

    Parameters
    ----------
    n_categories : tuple of int
        Number of categories of each feature.
    """

    support = Support(0.0, math.inf, integers=True)  # of the class; instances are bounded by the training data
    missing = -1.0  # stands for a missing code; the encoder's inputs are zero for codes of no category

    def __init__(self, n_categories):
        super().__init__()
        self.n_categories = tuple(n_categories)
        self.support = Support(0.0, tuple(float(n - 1) for n in self.n_categories), integers=True)
        counts = torch.tensor(self.n_categories)
        starts = counts.cumsum(0) - counts
        self.register_buffer("counts", counts)
        self.register_buffer("starts", starts)
        # Features with equal numbers of categories are computed as one block.
        self.sizes = sorted(set(self.n_categories))
        for size in self.sizes:
            features = (counts == size).nonzero()[:, 0]
            self.register_buffer(f"features_{size}", features)
            self.register_buffer(f"columns_{size}", (starts[features, None] + torch.arange(size)).flatten())

    @classmethod
    def from_data(cls, summary):
        """Return the likelihood for training data with this summary: codes up to the largest of each feature.

        Raises
        ------
        ValueError
            If there are more than 2**20 categories in all.
        """
        total = float((summary.maximum + 1).sum())
        if total > MAX_CATEGORIES:
            raise ValueError(
                f"The features of X have {total:.0f} categories in all, and {MAX_CATEGORIES} is the maximum of a "
                "categorical likelihood; give codes from 0 without gaps (OrdinalEncoder), or merge rare ones."
            )
        return cls(int(maximum) + 1 for maximum in summary.maximum.tolist())

    def n_inputs(self, n_features):
        """Return the number of encoder inputs: one for each category of each feature."""
        return sum(self.n_categories)

    def n_outputs(self, n_features):
        """Return the number of decoder outputs: one for each category of each feature."""
        return sum(self.n_categories)

    def inputs(self, u):
        """Return one-hot codes, all zero for a code that is not in the support."""
        is_valid = (u >= 0) & (u < self.counts) & (u == u.round())
        columns = torch.where(is_valid, u, 0.0).long() + self.starts
        return u.new_zeros(len(u), sum(self.n_categories)).scatter_(-1, columns, is_valid.to(u.dtype))

    def log_prob(self, u, params):
        """Return the log-probability of each sample in nats (n,)."""
        codes = u.long()
        return sum(
            logits.log_softmax(-1).gather(-1, codes[..., features, None]).sum((-2, -1))
            for features, logits in self._blocks(params)
        )

    def feature_log_prob(self, u, params):
        """Return the log-probability of each code in nats (n, d)."""
        codes, log_prob = u.long(), params.new_empty(*params.shape[:-1], len(self.n_categories))
        for features, logits in self._blocks(params):
            log_prob[..., features] = logits.log_softmax(-1).gather(-1, codes[..., features, None]).squeeze(-1)
        return log_prob

    def mean(self, params):
        """Return the most probable code of each feature (n, d); codes have no mean."""
        return self._each_block(params, lambda logits: logits.argmax(-1))

    def statistics(self, params):
        """Return the probabilities of all categories (n, c)."""
        probabilities = torch.empty_like(params)
        for size, (_, logits) in zip(self.sizes, self._blocks(params), strict=True):
            probabilities[..., getattr(self, f"columns_{size}")] = logits.softmax(-1).flatten(-2)
        return probabilities

    def from_statistics(self, statistics):
        """Return the most probable code of each feature (n, d)."""
        return self.mean(statistics)

    def sample(self, params, generator):
        """Draw samples of codes."""

        def draw(logits):
            flat = logits.softmax(-1).flatten(0, -2)
            return torch.multinomial(flat, 1, generator=generator).view(logits.shape[:-1])

        return self._each_block(params, draw)

    def _blocks(self, params):
        """Yield features and their logits (n, features, categories) for each number of categories."""
        for size in self.sizes:
            columns = getattr(self, f"columns_{size}")
            logits = params if len(self.sizes) == 1 else params.index_select(-1, columns)
            yield getattr(self, f"features_{size}"), logits.unflatten(-1, (-1, size))

    def _each_block(self, params, function):
        codes = params.new_empty(*params.shape[:-1], len(self.n_categories))
        for features, logits in self._blocks(params):
            codes[..., features] = function(logits).to(codes.dtype)
        return codes
