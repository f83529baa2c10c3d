"""Rows with missing values as EM sees them: grouped by the pattern of what is missing.

What is maximised is the likelihood of the observed values, which is right where values are missing at random: whether
one is missing may depend on what is observed, but not on what it would have been. EM completes each row by its
expectation, and the covariance of what it completed enters the sums (Ghahramani and Jordan 1994).
"""

from functools import partial

import torch

from ..models.covariances import LOG_2PI, Mixture
from ..models.moments import Moments
from .distributed import SINGLE_PROCESS
from .em import checked_step
from .rows import MIN_TOLERANCE, Expected, lowest_of_all

BLOCK_BYTES = 2**22  # what a block of patterns works on should stay in a cache
MAX_ROWS = 1024  # of one pattern in a block
WORD = 30  # features in one number of a pattern's code
PILOT_STEPS = 10  # of EM, for the single Gaussian that completes rows before there is a mixture


def pattern_codes(observed):
    """A number for each row, equal for rows in which the same values are observed (n,).

    Parameters
    ----------
    observed : Tensor of shape (n, d), bool
    """
    codes = torch.zeros(len(observed), dtype=torch.int64, device=observed.device)
    for part in observed.split(WORD, 1):
        bits = 2 ** torch.arange(part.shape[1], device=observed.device)
        words, places = (part * bits).sum(1).unique(return_inverse=True)
        codes = (codes * len(words) + places).unique(return_inverse=True)[1]
    return codes


class Patterns:
    """Rows in blocks (p, b) of p patterns, each with b rows, that lack the same number of values.

    Parameters
    ----------
    observed : Tensor of shape (n, d), bool
    """

    def __init__(self, observed):
        self.observed, self.groups = observed, []
        codes = pattern_codes(observed)
        order, sizes = codes.argsort(stable=True), codes.bincount()
        starts = sizes.cumsum(0) - sizes
        n_missing = (~observed[order[starts]]).sum(1)
        kinds, kind_of, counts = torch.stack([n_missing, sizes], 1).unique(
            dim=0, return_inverse=True, return_counts=True
        )
        starts = starts[kind_of.argsort(stable=True)]  # those of a kind are neighbours
        lacking = (~observed[order[starts]]).nonzero()[:, 1]
        # The host waits for the device a few times here, not for every kind.
        for m, size, count in torch.cat([kinds, counts[:, None]], 1).tolist():
            places = starts[:count, None] + torch.arange(size, device=order.device)
            rows, missing = order[places], lacking[: count * m].view(count, m)  # (p, size), (p, m)
            starts, lacking = starts[count:], lacking[count * m :]
            self.groups += [(part, missing) for part in rows.split(MAX_ROWS, 1)]

    def blocks(self, n_components):
        """Rows (p, b), what is observed of them (p, d) and the indices of what is not (p, m), a block at a time."""
        n_features = self.observed.shape[1]
        for rows, missing in self.groups:
            width = n_components * n_features * (rows.shape[1] + missing.shape[1])
            n_patterns = max(1, BLOCK_BYTES // (8 * width))
            for some, lack in zip(rows.split(n_patterns), missing.split(n_patterns), strict=True):
                yield some, self.observed[some[:, 0]], lack


def posterior(found, mixture):
    """Log-likelihood (p, b) and log-responsibilities (k, p, b) of rows.

    Parameters
    ----------
    found : Conditional
    mixture : Mixture
    """
    joint = mixture.log_weights[:, None, None] + found.log_prob
    peak = joint.amax(0)
    joint = joint - peak  # far from all components, the differences would be lost beside their size
    norm = joint.logsumexp(0)
    return peak + norm, joint - norm


def _conditionals(x, patterns, mixture, family, failures=None):
    """Rows (p, b) of x, indices of their missing values (p, m) and their `Conditional`, a block at a time.

    With a list for failures (see `Covariance.condition`), the host does not wait for the device.
    """
    for rows, observed, missing in patterns.blocks(len(mixture.means)):
        yield rows, missing, family.condition(x[rows], observed, missing, mixture.means, mixture.factor, failures)


def _visit(function, x, patterns, mixture, family):
    """Call a function with rows (p, b) of x and their `Conditional`, a block at a time.

    On an accelerator all blocks are visited again if a root does not exist in one: it is waited for once.
    """
    failures = None if x.device.type == "cpu" else []
    for rows, _, found in _conditionals(x, patterns, mixture, family, failures):
        function(rows, found)
    if failures and torch.stack(failures).any():
        for rows, _, found in _conditionals(x, patterns, mixture, family):
            function(rows, found)


def _expected(found, mixture):
    """Expected rows (p, b, d): the conditional means of the components, weighted by responsibilities."""
    resp = posterior(found, mixture)[1].exp()
    return (resp[..., None] * (found.residual + mixture.means[:, None, None])).sum(0)


def _filled(x, patterns, mixture, family):
    """Rows x with the expectation of what they lack; the values that are observed stay."""
    result = torch.empty_like(x)

    def fill(rows, found):
        result[rows] = _expected(found, mixture)

    _visit(fill, x, patterns, mixture, family)
    return torch.where(patterns.observed, x, result)


def observed_e_step(x, mixture, family):
    """Log-likelihood (n,) and log-responsibilities (n, k) of rows with missing values, NaN.

    A row without any value has the log-likelihood zero and the weights of the components.
    """
    patterns, x = Patterns(~x.isnan()), x.nan_to_num(nan=0.0)
    evidence, log_resp = x.new_empty(len(x)), x.new_empty(len(x), len(mixture.means))

    def fill(rows, found):
        evidence[rows], part = posterior(found, mixture)
        log_resp[rows] = part.permute(1, 2, 0)

    _visit(fill, x, patterns, mixture, family)
    return evidence, log_resp


def completed(x, mixture, family):
    """Rows with NaN replaced by its expectation given the observed values of its row (n, d)."""
    return _filled(x.nan_to_num(nan=0.0), Patterns(~x.isnan()), mixture, family)


class PatternRows:
    """Rows with missing values, and the sums of EM over them: what `WhitenedRows` is for complete ones.

    Each feature is brought to unit variance (all to unit mean variance where the covariances are pooled over them).
    Everything is computed in float64.

    Parameters
    ----------
    x : Tensor of shape (n, d)
        Centred rows in float64, NaN where values are missing.
    family : Covariance
    reg_covar : float
        Regularization of the covariances, in squared units of x.
    weight : Tensor of shape (n,), optional
        Weights of the rows; one each if not given.
    covariance : Tensor, optional
        The covariance whose variances are to be one, in the form of the family; that of the observed values if not
        given.
    group : SingleProcess or Group
        The processes that have shards of the rows; sums are those over all of them.

    Raises
    ------
    ValueError
        If the squares of the values are out of the range of float64.
    """

    can_refine, min_tolerance = False, MIN_TOLERANCE

    def __init__(self, x, family, reg_covar, weight=None, covariance=None, group=SINGLE_PROCESS):
        self.family, self.group, self.n_features = family, group, x.shape[1]
        self.weight = x.new_ones(len(x)) if weight is None else weight.to(x)
        self.patterns = Patterns(~x.isnan())
        self.x = torch.where(self.patterns.observed, x, 0.0)
        self.checks_roots = x.device.type == "cpu"
        self.n_rows, self.total_weight, counts, squares = group.all_reduce_sum(
            len(x), float(self.weight.sum()), self.weight @ self.patterns.observed.to(x), self.weight @ self.x.square()
        )
        variances = squares / counts if covariance is None else family.variances(covariance)[0].expand(x.shape[1])
        if not torch.isfinite(variances).all():
            wrong = (~torch.isfinite(variances)).nonzero().flatten().tolist()
            raise ValueError(f"The variances of features {wrong} are not finite; scale the input data.")
        self.whitener = family.axis_whitener(variances + reg_covar)
        self.scales = x.new_ones(1, x.shape[1])
        family.whiten(self.scales.clone(), self.whitener.to(x.device), self.scales)
        self.x *= self.scales
        self.log_scale = float(counts @ self.scales[0].log()) / self.total_weight
        self.regularization = family.regularization(reg_covar, self.whitener)
        self._completed = None

    def moments(self, resp_of, n_components):
        """Sums for given responsibilities.

        Rows are completed by a single Gaussian (`filled`) and count as if they had been observed: a component that
        starts from one row should not be the wider the less of that row is known.

        Parameters
        ----------
        resp_of : callable, slice -> Tensor (b, k)
            Responsibilities of the rows of a slice.
        """
        resp = resp_of(slice(0, len(self.x))).to(self.x) * self.weight[:, None]
        means = self.x.new_zeros(n_components, self.x.shape[1])
        moments = self.family.moments(self._whole(), resp, means)
        return Expected(type(moments)(*self.group.all_reduce_sum(*moments)), means)

    def expect(self, mixtures, spreads=None):
        """E-step of several mixtures: the sums for each.

        Unless `check_roots` was called on an accelerator, the host does not wait for it, and `Expected.failed` says
        whether it has to be called, and the step repeated.
        """
        return [self._expect(mixture) for mixture in mixtures]

    def check_roots(self):
        """From now on, look at each root whether it exists, which waits for the device, and find another if not."""
        self.checks_roots = True

    def n_together(self, n_components):
        """How many mixtures it pays to give to `expect` at once."""
        return 1

    def is_accurate_for(self, mixture):
        """Whether these rows keep the digits that the mixture needs (): as many as there are."""
        return mixture.means.new_ones(())

    def spread(self, mixture):
        """What decides on the form of the E-step of a mixture (): there is one form only."""
        return mixture.means.new_zeros(())

    def wants_residuals(self, spread):
        """Whether sums have lost too many digits: they have not."""
        return False

    def refine(self):
        """Make the rows anew, in a form that keeps more digits: there is none."""
        return False

    def least_likely(self, mixture, n_rows):
        """The rows with the lowest density for the number of their observed values, completed (n_rows, d)."""
        evidence, rows_of = self.x.new_empty(len(self.x)), torch.empty_like(self.x)
        mixture, wanted = mixture.to(self.x.device), mixture.means.device

        def fill(rows, found):
            evidence[rows], rows_of[rows] = posterior(found, mixture)[0], _expected(found, mixture)

        _visit(fill, self.x, self.patterns, mixture, self.family)
        # A value of unit variance has this expected log-density.
        evidence = evidence + 0.5 * (LOG_2PI + 1) * self.patterns.observed.to(evidence).sum(1)
        lowest, indices = evidence.topk(min(n_rows, len(evidence)), largest=False)
        return lowest_of_all(lowest, rows_of[indices], self.group).to(wanted)

    def filled(self):
        """Rows completed by a single Gaussian after a few steps of EM, in the coordinates of the data (n, d)."""
        return self._whole() / self.scales

    def _whole(self):
        if self._completed is None:
            one = self.family.identity(self.x, self.x.shape[1])[None]
            mixture = Mixture(self.x.new_zeros(1), self.x.new_zeros(1, self.x.shape[1]), one, one)
            for _ in range(PILOT_STEPS):
                mixture = checked_step(partial(self._expect, mixture), self).mixture
            self._completed = _filled(self.x, self.patterns, mixture, self.family)
        return self._completed

    def _expect(self, mixture):
        moments, total = self.family.empty_moments(mixture.means), self.x.new_zeros(())
        failures = None if self.checks_roots else []
        for rows, missing, found in _conditionals(self.x, self.patterns, mixture, self.family, failures):
            evidence, log_resp = posterior(found, mixture)
            weight = self.weight[rows]
            total = total + (weight * evidence).sum()
            self.family.accumulate_conditional(moments, found, missing, log_resp.exp_().mul_(weight))
        failed = torch.stack(failures).sum().to(total) if failures else torch.zeros_like(total)
        *moments, total, failed = self.group.all_reduce_sum(*moments, total, failed)
        return Expected(self.family.complete(Moments(*moments)), mixture.means, total, failed=failed)
