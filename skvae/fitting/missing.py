"""Incomplete samples as EM visits them: grouped by the pattern of what is missing.

EM maximizes the likelihood of the observed values, which is right where values are missing at random: whether a value
is missing may depend on observed values, but not on itself. Missing values are replaced by their expectation, and their
conditional covariance enters the sums (Ghahramani and Jordan 1994).
"""

from functools import partial

import torch

from ..models.covariances import LOG_2PI, Mixture, Moments
from .em_steps import EMRows, EStepSums, checked_step, lowest_of_all

BLOCK_BYTES = 2**22  # what a block of patterns works on should stay in a cache
MAX_ROWS = 1024  # of one pattern in a block
WORD = 30  # features in one word of a pattern's code
PILOT_STEPS = 10  # of EM, for the single Gaussian that imputes values before there is a mixture


def pattern_codes(observed):
    """Return a number for each row (n,), equal for rows in which the same values are observed.

    Parameters
    ----------
    observed : Tensor of shape (n, d), bool
    """
    codes = torch.zeros(len(observed), dtype=torch.int64, device=observed.device)
    for part in observed.split(WORD, 1):
        bits = 2 ** torch.arange(part.shape[1], device=observed.device)
        words, indices = (part * bits).sum(1).unique(return_inverse=True)
        codes = (codes * len(words) + indices).unique(return_inverse=True)[1]
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
        # Patterns of one shape, with as many missing values and as many rows, become neighbours.
        shapes, shape_of, counts = torch.stack([n_missing, sizes], 1).unique(
            dim=0, return_inverse=True, return_counts=True
        )
        starts = starts[shape_of.argsort(stable=True)]
        lacking = (~observed[order[starts]]).nonzero()[:, 1]
        # The host waits for the device a few times here, not for every shape.
        for m, size, count in torch.cat([shapes, counts[:, None]], 1).tolist():
            positions = starts[:count, None] + torch.arange(size, device=order.device)
            rows, missing = order[positions], lacking[: count * m].view(count, m)  # (p, size), (p, m)
            starts, lacking = starts[count:], lacking[count * m :]
            self.groups += [(part, missing) for part in rows.split(MAX_ROWS, 1)]

    def blocks(self, n_components):
        """Yield rows (p, b), which values are observed (p, d), and the indices of missing ones (p, m), in blocks."""
        n_features = self.observed.shape[1]
        for rows, missing in self.groups:
            width = n_components * n_features * (rows.shape[1] + missing.shape[1])
            n_patterns = max(1, BLOCK_BYTES // (8 * width))
            for block, indices in zip(rows.split(n_patterns), missing.split(n_patterns), strict=True):
                yield block, self.observed[block[:, 0]], indices


def posterior(conditional, mixture):
    """Return log-likelihood (p, b) and log-responsibilities (k, p, b) of rows.

    Parameters
    ----------
    conditional : Conditional
    mixture : Mixture
    """
    joint = mixture.log_weights[:, None, None] + conditional.log_prob
    peak = joint.amax(0)
    joint = joint - peak  # far from all components, the differences would be lost in rounding
    norm = joint.logsumexp(0)
    return peak + norm, joint - norm


def _conditionals(x, patterns, mixture, family, failures=None):
    """Yield rows (p, b) of x, indices of their missing values (p, m) and their `Conditional`, in blocks.

    With a list for failures (see `Covariance.condition`), the host does not wait for the device.
    """
    for rows, observed, missing in patterns.blocks(len(mixture.means)):
        yield rows, missing, family.condition(x[rows], observed, missing, mixture.means, mixture.factor, failures)


def _visit(function, x, patterns, mixture, family):
    """Call a function with rows (p, b) of x and their `Conditional`, in blocks.

    On an accelerator all blocks are visited again if a root does not exist in one: the host waits for it once.
    """
    failures = None if x.device.type == "cpu" else []
    for rows, _, conditional in _conditionals(x, patterns, mixture, family, failures):
        function(rows, conditional)
    if failures and torch.stack(failures).any():
        for rows, _, conditional in _conditionals(x, patterns, mixture, family):
            function(rows, conditional)


def _expected_rows(conditional, mixture):
    """Return expected rows (p, b, d): the conditional means of the components, weighted by responsibilities."""
    resp = posterior(conditional, mixture)[1].exp()
    return (resp[..., None] * (conditional.residual + mixture.means[:, None, None])).sum(0)


def _impute(x, patterns, mixture, family):
    """Replace missing values of rows x by their expectation; observed values remain."""
    result = torch.empty_like(x)

    def fill(rows, conditional):
        result[rows] = _expected_rows(conditional, mixture)

    _visit(fill, x, patterns, mixture, family)
    return torch.where(patterns.observed, x, result)


def observed_e_step(x, mixture, family):
    """Return log-likelihood (n,) and log-responsibilities (n, k) of rows with missing values, NaN.

    A row without any value has the log-likelihood zero and the weights of the components.
    """
    patterns, x = Patterns(~x.isnan()), x.nan_to_num(nan=0.0)
    log_likelihoods, log_resp = x.new_empty(len(x)), x.new_empty(len(x), len(mixture.means))

    def fill(rows, conditional):
        log_likelihoods[rows], part = posterior(conditional, mixture)
        log_resp[rows] = part.permute(1, 2, 0)

    _visit(fill, x, patterns, mixture, family)
    return log_likelihoods, log_resp


def impute(x, mixture, family):
    """Replace NaN in rows (n, d) by its expectation given the observed values of its row."""
    return _impute(x.nan_to_num(nan=0.0), Patterns(~x.isnan()), mixture, family)


class PatternRows(EMRows):
    """Samples with missing values, and the sums of EM over them.

    Each feature is scaled to unit variance (all to unit mean variance where the covariances are pooled over them).
    Everything is computed in float64.

    Parameters
    ----------
    rows : WeightedRows
        Centred, in float64, NaN where values are missing.
    family : Covariance
    reg_covar : float
        Regularization of the covariances, in squared units of x.
    covariance : Tensor, optional
        The covariance whose variances are to be one, in the form of the family; that of the observed values if None.

    Raises
    ------
    ValueError
        If the squares of the values are out of the range of float64.
    """

    def __init__(self, rows, family, reg_covar, covariance=None):
        x, weight, group = rows
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
        self._imputed = None

    def sums_from_resp(self, resp_of, n_components, mixture=None):
        """Return the sums for fixed responsibilities, as `EMRows` has it.

        Imputed values (see `imputed`) count as if they had been observed: a component that starts from one row should
        not be the wider the fewer values of that row are observed.
        """
        resp = resp_of(slice(0, len(self.x))).to(self.x) * self.weight[:, None]
        means = self.x.new_zeros(n_components, self.x.shape[1])
        moments = self.family.moments(self._whitened_imputed(), resp, means)
        return EStepSums(type(moments)(*self.group.all_reduce_sum(*moments)), means)

    def e_step_sums(self, mixtures, condition_numbers=None):
        """Return the sums of an E-step of several mixtures, as `EMRows` has it.

        On an accelerator, call `check_roots` and repeat the step where `EStepSums.n_failed` is above zero.
        """
        return [self._sums_of(mixture) for mixture in mixtures]

    def least_likely(self, mixture, n_rows):
        """Return the imputed rows with the lowest density for the number of their observed values (n_rows, d)."""
        log_likelihoods, imputed = self.x.new_empty(len(self.x)), torch.empty_like(self.x)
        mixture, device = mixture.to(self.x.device), mixture.means.device

        def fill(rows, conditional):
            log_likelihoods[rows] = posterior(conditional, mixture)[0]
            imputed[rows] = _expected_rows(conditional, mixture)

        _visit(fill, self.x, self.patterns, mixture, self.family)
        # A value of unit variance has this expected log-density.
        scores = log_likelihoods + 0.5 * (LOG_2PI + 1) * self.patterns.observed.to(log_likelihoods).sum(1)
        lowest, indices = scores.topk(min(n_rows, len(scores)), largest=False)
        return lowest_of_all(lowest, imputed[indices], self.group).to(device)

    def imputed(self):
        """Return rows imputed by a single Gaussian after a few steps of EM, in the coordinates of the data (n, d)."""
        return self._whitened_imputed() / self.scales

    def _whitened_imputed(self):
        if self._imputed is None:
            one = self.family.identity(self.x, self.x.shape[1])[None]
            mixture = Mixture(self.x.new_zeros(1), self.x.new_zeros(1, self.x.shape[1]), one, one)
            for _ in range(PILOT_STEPS):
                mixture = checked_step(partial(self._sums_of, mixture), self).mixture
            self._imputed = _impute(self.x, self.patterns, mixture, self.family)
        return self._imputed

    def _sums_of(self, mixture):
        moments, log_likelihood = self.family.empty_moments(mixture.means), self.x.new_zeros(())
        failures = None if self.checks_roots else []
        for rows, missing, conditional in _conditionals(self.x, self.patterns, mixture, self.family, failures):
            log_likelihoods, log_resp = posterior(conditional, mixture)
            weight = self.weight[rows]
            log_likelihood = log_likelihood + (weight * log_likelihoods).sum()
            self.family.accumulate_conditional(moments, conditional, missing, log_resp.exp_().mul_(weight))
        n_failed = torch.zeros_like(log_likelihood)
        if failures:
            n_failed = torch.stack(failures).sum().to(log_likelihood)
        *moments, log_likelihood, n_failed = self.group.all_reduce_sum(*moments, log_likelihood, n_failed)
        return EStepSums(self.family.complete(Moments(*moments)), mixture.means, log_likelihood, n_failed=n_failed)
