"""Identities of EM with missing values."""

import math

import pytest
import torch
from helpers import assert_same_mixture, generator
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

from skvae.fitting.em import fit_mixtures, step_mixture
from skvae.fitting.missing import PatternRows, Patterns, impute, observed_e_step, pattern_codes
from skvae.fitting.mixture_init import mixture_from_resp
from skvae.fitting.ppca import VarianceFloor, fit_ppca, fit_ppca_em, scatter_spectrum
from skvae.fitting.weighted_rows import WeightedRows
from skvae.fitting.whitened_rows import WhitenedRows
from skvae.models import COVARIANCES
from skvae.models.covariances import Mixture
from skvae.models.matrix_covariances import gram_root
from skvae.models.ppca import PPCA

FLOOR = VarianceFloor.of(torch.float64)
K = 3
FULL = COVARIANCES["full"]
over_families = pytest.mark.parametrize("family", COVARIANCES.values(), ids=COVARIANCES)


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def hide(x, share=0.3, seed=0):
    """Rows with NaN; at least one value of each row is left."""
    hidden = torch.rand(x.shape, generator=generator(seed)) < share
    hidden[hidden.all(1), 0] = False
    return torch.where(hidden, torch.nan, x)


@pytest.fixture
def x(correlated):
    x = torch.tensor(correlated)
    return x - x.mean(0)


@pytest.fixture
def x_missing(x):
    x = hide(x)
    return x - x.nanmean(0)


def random_resp(n_rows, k=K, seed=0):
    return randn(n_rows, k, seed=seed).softmax(1)


def as_matrices(covariances, k, d):
    """Covariances of any family as one matrix for each component."""
    return (covariances if covariances.ndim == 3 else covariances.expand(-1, d).diag_embed()).expand(k, d, d)


def random_mixture(family, k=K, d=4, seed=0):
    roots = randn(k, d, d + 2, seed=seed)
    matrices = roots @ roots.mT / d
    moments = family.empty_moments(randn(k, d))
    second = matrices if moments.second.ndim == 3 else matrices.diagonal(dim1=1, dim2=2)
    covariances = (second.mean(0, keepdim=True) if family.tied else second).clone()
    if 1 in family.pooled:
        covariances = covariances.mean(1, keepdim=True)
    return Mixture(
        randn(k, seed=seed + 1).log_softmax(0), randn(k, d, seed=seed + 2), covariances, family.factor(covariances)[0]
    )


def marginal_log_probs(row, log_weights, means, matrices):
    """Joint log-densities of the observed values of one row and each component (k,)."""
    seen = ~row.isnan()
    if not seen.any():
        return log_weights
    return log_weights + MultivariateNormal(means[:, seen], matrices[:, seen][:, :, seen]).log_prob(row[seen])


def fit(x, family, resp=None, max_iter=30, tol=0.0, reg_covar=0.0, weight=None, acceleration=None):
    rows = PatternRows(WeightedRows(x.clone(), weight), family, reg_covar)
    resp = random_resp(len(x)) if resp is None else resp
    mixture = mixture_from_resp(rows, lambda chunk: resp[chunk], resp.shape[1])
    return fit_mixtures(rows, [lambda rows: mixture], tol=tol, max_iter=max_iter, acceleration=acceleration)[0]


# Patterns.


@pytest.mark.parametrize("n_features", [1, 3, 29, 30, 31, 64, 70])
def test_equal_codes_mean_equal_patterns(n_features):
    observed = torch.rand(200, n_features, generator=generator()) < 0.5
    observed[100:] = observed[torch.randint(100, (100,), generator=generator())]
    codes = pattern_codes(observed)
    assert torch.equal(codes[:, None] == codes, (observed[:, None] == observed).all(2))


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize(("n_rows", "n_features"), [(1, 1), (50, 2), (2500, 3), (60, 40)])
def test_blocks_cover_the_rows(n_rows, n_features, share):
    observed = torch.rand(n_rows, n_features, generator=generator()) >= share
    seen = []
    for rows, has, missing in Patterns(observed).blocks(n_components=3):
        assert torch.equal(observed[rows], has[:, None].expand(-1, rows.shape[1], -1))
        assert torch.equal((~has).nonzero()[:, 1].view_as(missing), missing)
        seen.append(rows.flatten())
    assert_close(torch.cat(seen).sort().values, torch.arange(n_rows))


# Densities and expectations.


@over_families
def test_densities_are_marginals(family):
    x = hide(randn(80, 4), share=0.5)
    x[0] = torch.nan
    mixture = random_mixture(family)
    matrices = as_matrices(mixture.covariances, K, 4)
    joint = torch.stack([marginal_log_probs(row, *mixture[:2], matrices) for row in x])
    evidence, log_resp = observed_e_step(x, mixture, family)
    assert_close(evidence, joint.logsumexp(1))
    assert_close(log_resp, joint.log_softmax(1))
    assert evidence[0].item() == pytest.approx(0, abs=1e-15)
    assert_close(log_resp[0], mixture.log_weights)


@over_families
def test_imputed_values_are_conditional_means(family):
    x = hide(randn(80, 4), share=0.5)
    x[0] = torch.nan
    mixture = random_mixture(family)
    matrices, filled = as_matrices(mixture.covariances, K, 4), impute(x, mixture, family)
    resp = observed_e_step(x, mixture, family)[1].exp()
    for row, found, share in zip(x, filled, resp, strict=True):
        o, m = ~row.isnan(), row.isnan()
        expected = [
            mean[m] + matrix[m][:, o] @ torch.linalg.solve(matrix[o][:, o], row[o] - mean[o])
            for mean, matrix in zip(mixture.means, matrices, strict=True)
        ]
        assert_close(found[m], share @ torch.stack(expected))
        assert torch.equal(found[o], row[o])


@over_families
def test_expected_moments_are_those_of_the_textbook(family, x_missing):
    """Of each row: the conditional mean's products, and the conditional covariance (Ghahramani and Jordan 1994)."""
    x, mixture = x_missing[:100], random_mixture(family, d=3)
    rows = PatternRows(WeightedRows(x.clone()), family, 0.0)
    inside = family.whiten_mixture(mixture, rows.whitener)
    moments, reference, *_ = rows.e_step_sums([inside])[0]
    x, matrices = x * rows.scales, as_matrices(inside.covariances, K, 3)
    resp = observed_e_step(x, inside, family)[1].exp()
    weight, first, second = resp.sum(0), torch.zeros(K, 3).double(), torch.zeros(K, 3, 3).double()
    for row, share in zip(x, resp, strict=True):
        o, m = ~row.isnan(), row.isnan()
        for c in range(K):
            slope = torch.linalg.solve(matrices[c][o][:, o], matrices[c][o][:, m]).mT
            residual = torch.where(o, row - reference[c], 0.0)
            residual[m] = slope @ residual[o]
            spread = torch.zeros(3, 3).double()
            spread[m.nonzero(), m.nonzero().mT] = matrices[c][m][:, m] - slope @ matrices[c][o][:, m]
            first[c] += share[c] * residual
            second[c] += share[c] * (residual.outer(residual) + spread)
    second = second.sum(0, keepdim=True) if family.tied else second
    if moments.second.ndim == 2:
        second = second.diagonal(dim1=1, dim2=2)
        second = second.mean(1, keepdim=True) if 1 in family.pooled else second
    assert_close(moments.weight, weight)
    assert_close(moments.first, first)
    assert_close(moments.second, second)


def test_gram_root_of_nearly_dependent_rows():
    """Their products no longer tell them apart, and have no Cholesky factor."""
    rows = torch.tensor([[1.0, 0, 0], [1, 1e-9, 0]], dtype=torch.float64)
    assert torch.linalg.cholesky_ex(rows @ rows.mT).info > 0
    root = gram_root(rows)
    assert root[1, 1].abs().item() == pytest.approx(1e-9, rel=1e-6)
    assert_close(root @ root.mT, rows @ rows.mT)


@pytest.mark.parametrize("noise", [1e-3, 1e-6, 1e-9])
def test_nearly_singular_covariances_are_accurate(noise):
    """Two features that are nearly equal, and a third that depends on their difference."""
    factor = torch.tensor([[1.0, -1 / noise, 0.3], [0, 1 / noise, 0.2], [0, 0, 1.0]], dtype=torch.float64)[None]
    mixture = Mixture(torch.zeros(1).double(), torch.zeros(1, 3).double(), FULL.covariances(factor), factor)
    x = torch.tensor([[0.5, torch.nan, 0.1]], dtype=torch.float64)
    evidence, _ = observed_e_step(x, mixture, FULL)
    filled = impute(x, mixture, FULL)[0, 1].item()
    # By hand: the whitened residuals are x1, (x2 - x1) / noise and 0.3 x1 + 0.2 x2 + x3; x2 is missing.
    a, b = 1 / noise**2 + 0.04, 0.5 / noise**2 - 0.2 * (0.15 + 0.1)
    square = 0.25 + ((b / a - 0.5) / noise) ** 2 + (0.15 + 0.2 * b / a + 0.1) ** 2
    log_det = -math.log(noise) - 0.5 * math.log(a)
    assert filled == pytest.approx(b / a, rel=1e-12)
    assert evidence.item() == pytest.approx(log_det - 0.5 * (square + 2 * math.log(2 * math.pi)), rel=1e-9)


# EM.


@over_families
@pytest.mark.parametrize("reg_covar", [0.0, 0.1])
def test_complete_rows_give_the_same_fit_as_whitened_rows(family, x, reg_covar):
    weight, resp = torch.rand(len(x), generator=generator()).double(), random_resp(len(x))
    mine, theirs = (kind(WeightedRows(x.clone(), weight), family, reg_covar) for kind in (PatternRows, WhitenedRows))
    starts = [mixture_from_resp(rows, lambda chunk: resp[chunk], K) for rows in (mine, theirs)]
    assert_same_mixture(*starts, rtol=1e-8, atol=1e-8)
    fits = [
        fit_mixtures(rows, [lambda rows, start=start: start], tol=0.0, max_iter=10)
        for rows, start in zip((mine, theirs), starts, strict=True)
    ]
    assert_same_mixture(fits[0][0].mixture, fits[1][0].mixture, rtol=1e-8, atol=1e-8)
    assert fits[0][0].lower_bounds == pytest.approx(fits[1][0].lower_bounds)


@over_families
@pytest.mark.parametrize("share", [0.1, 0.6])
def test_lower_bound_never_decreases(family, x, share):
    bounds = torch.tensor(fit(hide(x, share), family, max_iter=100).lower_bounds, dtype=torch.float64)
    assert (bounds.diff() > -1e-12).all()
    assert bounds[-1] > bounds[0] + 0.01


@over_families
def test_lower_bound_is_the_mean_log_likelihood(family, x_missing):
    weight = 0.5 + torch.rand(len(x_missing), generator=generator()).double()
    found = fit(x_missing, family, max_iter=5, weight=weight)
    again = fit_mixtures(
        PatternRows(WeightedRows(x_missing, weight), family, 0.0), [lambda rows: found.mixture], tol=0.0, max_iter=1
    )[0]
    evidence, _ = observed_e_step(x_missing, found.mixture, family)
    assert again.lower_bounds[0] == pytest.approx((weight @ evidence / weight.sum()).item())


@over_families
def test_the_fit_is_a_stationary_point(family, x_missing):
    """The gradient of the log-likelihood of the observed values, by automatic differentiation, is zero."""
    x = x_missing[::3]
    found = fit(x, family, random_resp(len(x), 2), max_iter=20_000, tol=1e-13, acceleration="squarem")
    assert found.converged
    parts = [part.clone().requires_grad_() for part in found.mixture[:3]]
    matrices = as_matrices(parts[2], 2, 3)
    log_weights = parts[0].log_softmax(0)
    mean = torch.stack([marginal_log_probs(row, log_weights, parts[1], matrices).logsumexp(0) for row in x]).mean()
    assert mean.item() == pytest.approx(found.lower_bounds[-1], abs=1e-9)
    for part, gradient in zip(parts, torch.autograd.grad(mean, parts), strict=True):
        assert (part * gradient).abs().max() < 1e-5  # in units of the parameter
    moved = torch.stack([marginal_log_probs(row, log_weights, 1.1 * parts[1], matrices).logsumexp(0) for row in x])
    gradient = torch.autograd.grad(moved.mean(), parts[1])[0]
    assert (parts[1] * gradient).abs().max() > 1e-3


@over_families
def test_mixture_is_equivariant_to_units(family, x_missing):
    units = torch.tensor([1e-30, 1.0, 1e30]).double() if 1 not in family.pooled else torch.tensor(1e30).double()
    one, two = fit(x_missing, family).mixture, fit(x_missing * units, family).mixture
    assert_close(one.log_weights, two.log_weights)
    assert_close(one.means * units, two.means, rtol=1e-7, atol=0)


@over_families
def test_dead_component_is_reseeded(family, x_missing):
    resp = torch.zeros(len(x_missing), K, dtype=torch.float64)
    resp[:300, 0], resp[300:, 1] = 1, 1
    settings = {"reg_covar": 1e-6, "max_iter": 100, "tol": 1e-6}
    found = fit(x_missing, family, resp=resp, **settings)
    assert found.n_reseeded > 0
    assert all(torch.isfinite(part).all() for part in found.mixture)
    assert found.lower_bounds[-1] > fit(x_missing, family, resp=resp[:, :2], **settings).lower_bounds[-1] + 1e-3


def test_numbers_out_of_range_are_a_value_error(x_missing):
    with pytest.raises(ValueError, match=r"The variances of features \[1\] are not finite; scale the input data"):
        PatternRows(WeightedRows(x_missing * torch.tensor([1.0, 1e200, 1.0])), FULL, 0.0)


# Roots that are taken for granted until the end of a pass, as on an accelerator.


def unchecked(rows):
    rows.checks_roots = False
    return rows


@pytest.fixture
def no_unchecked_roots(monkeypatch):
    """Every root that is taken for granted does not exist."""

    def root_of(rows, failures=None):
        if failures is None:
            return gram_root(rows)
        failures.append(torch.tensor(True))
        return torch.full((*rows.shape[:-1], rows.shape[-2]), torch.nan, dtype=rows.dtype)

    monkeypatch.setattr("skvae.models.matrix_covariances.gram_root", root_of)


@over_families
def test_unchecked_roots_give_the_same_sums(family, x_missing):
    mixture = random_mixture(family, d=3)
    checked, rows = (PatternRows(WeightedRows(x_missing.clone()), family, 0.0) for _ in range(2))
    one, two = checked.e_step_sums([mixture])[0], unchecked(rows).e_step_sums([mixture])[0]
    assert one.n_failed == two.n_failed == 0
    assert_close(one.log_likelihood, two.log_likelihood)
    for mine, theirs in zip(one.moments, two.moments, strict=True):
        assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def test_failed_roots_are_counted():
    noise = 2.0**-40  # so that nothing but the rounding of the products counts
    factor = torch.tensor([[1.0, -1 / noise, 0.3], [0, 1 / noise, 0.2], [0, 0, 1.0]], dtype=torch.float64)[None]
    mixture = Mixture(torch.zeros(1).double(), torch.zeros(1, 3).double(), FULL.covariances(factor), factor)
    x = randn(60, 3)
    x[:20, :2], x[20:30, 2] = torch.nan, torch.nan
    rows = PatternRows(WeightedRows(x), FULL, 0.0)
    assert unchecked(rows).e_step_sums([mixture])[0].n_failed == 1
    rows.check_roots()
    assert rows.e_step_sums([mixture])[0].n_failed == 0


@pytest.mark.parametrize("acceleration", [None, "squarem"])
def test_e_step_is_repeated_after_a_failed_root(x_missing, acceleration, no_unchecked_roots):
    settings = {"tol": 0.0, "max_iter": 8, "acceleration": acceleration}
    one, two = (PatternRows(WeightedRows(x_missing.clone()), FULL, 0.0) for _ in range(2))
    start = random_mixture(FULL, d=3)
    mine, theirs = (fit_mixtures(rows, [lambda rows: start] * 2, **settings) for rows in (one, unchecked(two)))
    assert two.checks_roots
    for found, expected in zip(mine, theirs, strict=True):
        assert found.lower_bounds == expected.lower_bounds
        assert_same_mixture(found.mixture, expected.mixture, rtol=0, atol=0)


def test_initialization_is_repeated_after_a_failed_root(x_missing, no_unchecked_roots):
    resp = random_resp(len(x_missing))
    one, two = (PatternRows(WeightedRows(x_missing.clone()), FULL, 0.0) for _ in range(2))
    mine, theirs = (mixture_from_resp(rows, lambda chunk: resp[chunk], K) for rows in (one, unchecked(two)))
    assert two.checks_roots
    assert_same_mixture(mine, theirs, rtol=0, atol=0)


def test_batch_step_is_repeated_after_a_failed_root(x_missing, no_unchecked_roots):
    start = random_mixture(FULL, d=3)
    one, two = (PatternRows(WeightedRows(x_missing.clone()), FULL, 0.0) for _ in range(2))
    mine, theirs = (step_mixture(rows, start, 60.0, 0.7) for rows in (one, unchecked(two)))
    assert two.checks_roots
    assert_same_mixture(mine.mixture, theirs.mixture, rtol=0, atol=0)


def test_an_em_step_of_ppca_is_repeated_if_a_root_does_not_exist(no_unchecked_roots):
    x = hide(low_rank())
    one, two = ppca_rows(x), unchecked(ppca_rows(x))
    mine, theirs = (fit_ppca_em(rows, 2, FLOOR, tol=0.0, max_iter=8) for rows in (one, two))
    assert two.checks_roots
    assert mine.lower_bounds == theirs.lower_bounds
    assert_close(mine.model.axes, theirs.model.axes, rtol=0, atol=0)


@pytest.mark.parametrize("n_components", [2, 6])
def test_unchecked_roots_give_the_same_ppca(n_components):
    x, settings = hide(low_rank()), {"tol": 1e-8, "max_iter": 500}
    one, two = ppca_rows(x), unchecked(ppca_rows(x))
    mine, theirs = (fit_ppca_em(rows, n_components, FLOOR, **settings) for rows in (one, two))
    assert not two.checks_roots
    assert mine.lower_bounds[-1] == pytest.approx(theirs.lower_bounds[-1], abs=1e-6)
    assert_close(covariance_of(mine.model), covariance_of(theirs.model), rtol=1e-8, atol=1e-8)


# PPCA.


def ppca_rows(x, weight=None):
    return PatternRows(
        WeightedRows(x.clone(), weight), FULL, 0.0, covariance=torch.eye(x.shape[1], dtype=torch.float64)[None]
    )


def low_rank(n_rows=150, d=6, q=2, noise=0.3, seed=0):
    return randn(n_rows, q, seed=seed) @ randn(q, d, seed=seed + 1) + noise * randn(n_rows, d, seed=seed + 2)


def covariance_of(model):
    return model.as_mixture().covariances[0]


@pytest.mark.parametrize("n_components", [1, 3, 5, 6])
def test_density_of_ppca_as_a_mixture(n_components):
    x = low_rank()
    model, _ = fit_ppca(scatter_spectrum(x.mT @ x), len(x), n_components, FLOOR)
    mixture = model.as_mixture()
    assert_close(FULL.log_prob(x, mixture.means, mixture.factor)[:, 0], model.log_prob(x))
    assert_close(FULL.covariances(mixture.factor), mixture.covariances)
    assert_close(mixture.factor, mixture.factor.triu())


@pytest.mark.parametrize("n_components", [1, 3, 6])
@pytest.mark.parametrize("far", [False, True])
def test_em_solves_complete_data_in_one_step(n_components, far):
    x = low_rank()
    x = x - x.mean(0)
    expected, total = fit_ppca(scatter_spectrum(x.mT @ x), len(x), n_components, FLOOR)
    start = PPCA(randn(6), torch.eye(2, 6).double(), torch.tensor([9.0, 4.0]).double(), torch.tensor(0.1).double())
    settings = {"tol": 1e-12, "max_iter": 1, "init": start if far else None}
    found = fit_ppca_em(ppca_rows(x), n_components, FLOOR, **settings)
    for mine, theirs in zip(found.model, expected, strict=True):
        assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
    assert_close(found.total_variance, total)


@pytest.mark.parametrize("n_components", [1, 2, 4])
def test_ppca_converges_to_a_stationary_point(n_components):
    """With variances over the number of samples, the gradient of the log-likelihood of the observed values is zero."""
    x = hide(low_rank())
    fitted = fit_ppca_em(ppca_rows(x), n_components, FLOOR, tol=1e-14, max_iter=5000)
    assert fitted.converged
    assert (torch.tensor(fitted.lower_bounds).double().diff() > -1e-12).all()
    share = (len(x) - 1) / len(x)
    model = fitted.model._replace(
        variances=share * fitted.model.variances, noise_variance=share * fitted.model.noise_variance
    )
    parts = model.mean, model.loadings, model.noise_variance
    mean, loadings, noise = (part.clone().requires_grad_() for part in parts)

    def log_likelihood(mean):
        covariance = loadings.mT @ loadings + noise * torch.eye(6).double()
        zero = torch.zeros(1, dtype=torch.float64)
        return torch.cat([marginal_log_probs(row, zero, mean[None], covariance[None]) for row in x]).mean()

    value = log_likelihood(mean)
    assert value.item() == pytest.approx(fitted.lower_bounds[-1], abs=1e-9)
    for gradient in torch.autograd.grad(value, (mean, loadings, noise)):
        assert gradient.abs().max() < 1e-5
    moved = torch.autograd.grad(log_likelihood(mean + 0.1), mean)[0]
    assert moved.abs().max() > 1e-2


def test_ppca_converges_to_the_same_optimum_from_other_inits():
    x, settings = hide(low_rank()), {"tol": 1e-13, "max_iter": 5000}
    start = PPCA(randn(6), torch.eye(2, 6).double(), torch.tensor([9.0, 4.0]).double(), torch.tensor(0.1).double())
    one, two = (fit_ppca_em(ppca_rows(x), 2, FLOOR, init=at, **settings) for at in (None, start))
    assert_close(covariance_of(one.model), covariance_of(two.model), rtol=1e-5, atol=1e-5)
    assert_close(one.model.mean, two.model.mean, rtol=1e-5, atol=1e-5)


def test_ppca_with_all_components_is_one_gaussian(x_missing):
    model = fit_ppca_em(ppca_rows(x_missing), 3, FLOOR, tol=1e-13, max_iter=5000).model
    one = fit(x_missing, FULL, torch.ones(len(x_missing), 1).double(), max_iter=5000, tol=1e-13).mixture
    share = (len(x_missing) - 1) / len(x_missing)
    assert_close(share * covariance_of(model), one.covariances[0], rtol=1e-5, atol=1e-5)
    assert_close(model.mean, one.means[0], rtol=1e-5, atol=1e-5)


def test_share_of_the_variance_determines_the_number_of_components():
    x = hide(low_rank(n_rows=400, noise=0.05), share=0.2)
    fit = fit_ppca_em(ppca_rows(x), 0.95, FLOOR, tol=1e-6, max_iter=1000)
    assert len(fit.model.variances) == 2
    assert fit.n_iter > len(fit.lower_bounds)
