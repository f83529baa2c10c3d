"""Identities of EM."""

import pytest
import torch
from helpers import assert_same_mixture
from torch.testing import assert_close

from skvae.fitting import whitened_rows
from skvae.fitting.devices import read_numbers
from skvae.fitting.em import fit_mixtures, step_mixture
from skvae.fitting.em_steps import e_step
from skvae.fitting.mixture_init import mixture_from_resp
from skvae.fitting.rows import row_chunks
from skvae.fitting.squarem import ACCELERATIONS
from skvae.fitting.weighted_rows import WeightedRows
from skvae.fitting.whitened_rows import WhitenedRows
from skvae.models import COVARIANCES
from skvae.models.gaussians import copy_to_device

K = 3
over_families = pytest.mark.parametrize("family", COVARIANCES.values(), ids=COVARIANCES)


@pytest.fixture
def x(correlated):
    x = torch.tensor(correlated)
    return x - x.mean(0)


def random_resp(x):
    resp = torch.rand(len(x), K, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(x)
    return resp / resp.sum(1, keepdim=True)


def fit(x, family, max_iter=30, reg_covar=0.0, tol=0.0, resp=None, weight=None, **settings):
    resp = random_resp(x) if resp is None else resp
    rows = WhitenedRows(WeightedRows(x.clone(), weight), family, reg_covar, **settings)
    mixture = mixture_from_resp(rows, lambda chunk: resp[chunk], resp.shape[1])
    return fit_mixtures(rows, [lambda rows: mixture], tol=tol, max_iter=max_iter)[0]


@over_families
def test_lower_bound_never_decreases(family, x):
    bounds = torch.tensor(fit(x, family, max_iter=100).lower_bounds)
    assert (bounds.diff() > -1e-12).all()
    assert bounds[-1] > bounds[0]


@over_families
@pytest.mark.parametrize("chunk_size", [17, 250, 599, 600, 10_000])
def test_chunk_size_does_not_change_the_mixture(family, x, chunk_size):
    assert_same_mixture(fit(x, family).mixture, fit(x, family, chunk_size=chunk_size).mixture, rtol=1e-10, atol=1e-10)


@over_families
def test_order_of_samples_does_not_change_the_mixture(family, x):
    order, resp = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)), random_resp(x)
    one, two = fit(x, family, resp=resp), fit(x[order], family, resp=resp[order])
    assert_same_mixture(one.mixture, two.mixture, rtol=1e-9, atol=1e-9)


@over_families
def test_integer_weights_are_repeated_samples(family, x):
    counts, resp = torch.arange(len(x)) % 3, random_resp(x)
    settings = {"reg_covar": 1e-2, "max_iter": 20}
    repeated = fit(x.repeat_interleave(counts, 0), family, resp=resp.repeat_interleave(counts, 0), **settings)
    weighted = fit(x, family, resp=resp, weight=counts.to(x), **settings)
    assert_same_mixture(weighted.mixture, repeated.mixture, rtol=1e-9, atol=1e-9)
    assert weighted.lower_bounds == pytest.approx(repeated.lower_bounds)


@over_families
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_linear_and_residual_form_agree(family, x, dtype, monkeypatch):
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-3, "atol": 1e-3}
    linear = fit(x.to(dtype), family, max_iter=10)
    monkeypatch.setattr(whitened_rows, "MAX_LINEAR_CONDITION", {torch.float32: -1.0, torch.float64: -1.0})
    residual = fit(x.to(dtype), family, max_iter=10)
    assert_same_mixture(linear.mixture, residual.mixture, **tolerance)
    monkeypatch.setattr(type(family), "prefers_linear", lambda self, n_features: False)
    assert_same_mixture(linear.mixture, fit(x.to(dtype), family, max_iter=10).mixture, **tolerance)


@over_families
def test_mixture_is_equivariant_to_units(family, x):
    """EM is the same in any coordinates that the covariance type allows."""
    units = torch.tensor([1e-6, 1.0, 1e5]).to(x) if 1 not in family.pooled else torch.tensor(1e5).to(x)
    one, two = fit(x, family).mixture, fit(x * units, family).mixture
    assert_close(one.log_weights, two.log_weights)
    assert_close(one.means * units, two.means, rtol=1e-7, atol=0)


@over_families
def test_float32_is_close_to_float64(family, x):
    double, single = fit(x, family, max_iter=10), fit(x.float(), family, max_iter=10)
    assert single.mixture.means.dtype == torch.float64
    assert double.lower_bounds[-1] == pytest.approx(single.lower_bounds[-1], abs=1e-4)


@over_families
def test_responsibilities_sum_to_one(family, x):
    log_likelihoods, log_resp = e_step(x, fit(x, family).mixture, family)
    assert_close(log_resp.exp().sum(1), torch.ones(len(x), dtype=torch.float64))
    far = torch.full((1, x.shape[1]), 1e6, dtype=torch.float64)
    log_likelihoods, log_resp = e_step(far, fit(x, family).mixture, family)
    assert torch.isfinite(log_likelihoods).all()
    assert_close(log_resp.exp().sum(1), torch.ones(1, dtype=torch.float64))


@over_families
def test_dead_component_is_reseeded(family, x):
    resp = torch.zeros(len(x), K, dtype=torch.float64)
    resp[:300, 0], resp[300:, 1] = 1, 1
    result = fit(x, family, resp=resp, reg_covar=1e-6, max_iter=300, tol=1e-8)
    assert all(torch.isfinite(part).all() for part in result.mixture)
    two = fit(x, family, resp=resp[:, :2], reg_covar=1e-6, max_iter=300, tol=1e-8)
    assert result.lower_bounds[-1] > two.lower_bounds[-1] + 1e-3, "the third component was not used"


@over_families
def test_singular_covariance_is_regularized_and_reported(family):
    x = torch.zeros(20, 2, dtype=torch.float64)
    x[:10] = torch.linspace(1, 2, 10)[:, None]
    x -= x.mean(0)
    resp = torch.zeros(20, 2, dtype=torch.float64)
    resp[:10, 0], resp[10:, 1] = 1, 1
    result = fit(x, family, resp=resp, max_iter=3)
    assert all(torch.isfinite(part).all() for part in result.mixture)
    assert (1 in result.regularized) == (not family.tied)  # ten equal rows
    assert fit(x, family, resp=resp, max_iter=3, reg_covar=1e-3).regularized == frozenset()


@over_families
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_outlier_in_a_component_of_its_own(family, dtype):
    """A cluster narrow for the total variance: the lower bound increases and is that of the result."""
    x = torch.randn(450, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.cat([x, torch.full((1, 2), 1e6, dtype=torch.float64)]).to(dtype)
    x = x - x.mean(0)
    resp = torch.zeros(len(x), 2, dtype=dtype)
    resp[:450, 0], resp[450:, 1] = 1, 1
    result = fit(x, family, resp=resp, reg_covar=1e-6, max_iter=30)
    assert (torch.tensor(result.lower_bounds).diff() > -1e-3).all()
    assert result.regularized == frozenset()
    assert family.tied or result.mixture.covariances.amin() < 1e-5, "the component of the outlier is not narrow"
    if dtype == torch.float64:  # in float32 the outlier itself is accurate to 0.06 only
        log_likelihoods, _ = e_step(x, result.mixture, family)
        assert result.lower_bounds[-1] == pytest.approx(log_likelihoods.mean().item(), abs=1e-2)


@pytest.mark.parametrize("n_rows", [1, 2, 255, 256, 257, 1000])
@pytest.mark.parametrize("chunk_size", [None, 1, 7, 256, 5000])
def test_row_chunks_cover_the_rows(n_rows, chunk_size):
    rows = torch.arange(n_rows)
    assert_close(torch.cat([rows[chunk] for chunk in row_chunks(n_rows, 10, chunk_size)]), rows)


# Reads of an accelerator.


def test_read_numbers():
    result = read_numbers(torch.tensor(2.5, dtype=torch.float64), None, torch.tensor([[True, False]]), torch.ones(0))
    assert result == [[2.5], [], [1.0, 0.0], []]


def test_tensors_are_copied_in_one_piece(x, monkeypatch):
    mixture = fit(x, COVARIANCES["full"], max_iter=1).mixture
    assert copy_to_device(mixture, "cpu")[2] is mixture.covariances
    for most in (2**20, 0):
        monkeypatch.setattr("skvae.models.gaussians.MAX_STACKED", most)
        there = copy_to_device(mixture, "meta")
        assert [part.shape for part in there] == [part.shape for part in mixture]
        assert {part.device.type for part in there} == {"meta"}


@over_families
def test_runs_in_shared_passes_equal_separate_runs(family, x):
    """Runs that share their passes over the data do not affect each other."""
    rows = WhitenedRows(WeightedRows(x.clone()), family, 1e-6)
    initials = []
    for seed in range(3):
        resp = torch.rand(len(x), K, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        resp = resp / resp.sum(1, keepdim=True)
        initials.append(mixture_from_resp(rows, lambda chunk, resp=resp: resp[chunk], K))
    for acceleration in (None, "squarem"):
        settings = {"tol": 1e-6, "max_iter": 60, "acceleration": acceleration}
        together = fit_mixtures(rows, [lambda rows, initial=initial: initial for initial in initials], **settings)
        alone = [fit_mixtures(rows, [lambda rows, initial=initial: initial], **settings)[0] for initial in initials]
        for mine, theirs in zip(together, alone, strict=True):
            assert mine.lower_bounds[:10] == pytest.approx(theirs.lower_bounds[:10], abs=1e-8)


def test_extrapolation_does_not_change_state_before_it_is_proposed(x):
    family = COVARIANCES["full"]
    path = [fit(x, family, max_iter=n).mixture for n in (1, 2, 3)]
    squarem = ACCELERATIONS["squarem"](family)
    assert squarem.extrapolate(path[0], path[1]) is None
    assert squarem.propose(path[0], path[1], None) is path[1]
    (leap, is_finite), (again, _) = squarem.extrapolate(*path[1:]), squarem.extrapolate(*path[1:])
    assert is_finite
    assert_same_mixture(leap, again, rtol=0, atol=0)
    assert not squarem.is_extrapolated
    assert squarem.propose(*path[1:], leap) is leap
    assert squarem.is_extrapolated
    assert squarem.extrapolate(leap, path[0]) is None
    assert squarem.reject() is path[2]


def test_extrapolation_from_a_fixed_point_is_not_finite(x):
    mixture, squarem = fit(x, COVARIANCES["full"]).mixture, ACCELERATIONS["squarem"](COVARIANCES["full"])
    squarem.propose(mixture, mixture, None)
    _, is_finite = squarem.extrapolate(mixture, mixture)
    assert not is_finite
    assert squarem.propose(mixture, mixture, None) is mixture
    assert not squarem.is_extrapolated


@over_families
def test_singular_covariances_are_regularized_with_squarem(family):
    """EM continues from the regularized mixture."""
    x = torch.zeros(20, 2, dtype=torch.float64)
    x[:10] = torch.linspace(1, 2, 10)[:, None]
    x -= x.mean(0)
    resp = torch.zeros(20, 2, dtype=torch.float64)
    resp[:10, 0], resp[10:, 1] = 1, 1
    result = fit(x, family, resp=resp, max_iter=12)
    rows = WhitenedRows(WeightedRows(x.clone()), family, 0.0)
    initial = mixture_from_resp(rows, lambda chunk: resp[chunk], 2)
    fast = fit_mixtures(rows, [lambda rows: initial], tol=0.0, max_iter=12, acceleration="squarem")[0]
    assert all(torch.isfinite(part).all() for part in fast.mixture)
    assert fast.regularized == result.regularized


@over_families
def test_step_with_all_samples_is_an_em_iteration(family, x):
    """Earlier samples have no weight."""
    rows, resp = WhitenedRows(WeightedRows(x.clone()), family, 0.0), random_resp(x)
    initial = mixture_from_resp(rows, lambda chunk: resp[chunk], K)
    one = fit_mixtures(rows, [lambda rows: initial], tol=0.0, max_iter=1)[0]
    two = step_mixture(rows, initial, 0.0, 0.7)
    assert one.lower_bounds == pytest.approx(two.lower_bounds)
    assert_same_mixture(one.mixture, two.mixture, rtol=1e-9, atol=1e-9)
