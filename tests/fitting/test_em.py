"""Identities of EM."""

import pytest
import torch
from torch.testing import assert_close

from skvae.fitting.em import e_step, fit_mixture, row_chunks, start_mixture
from skvae.models import COVARIANCES

K = 3
over_families = pytest.mark.parametrize("family", COVARIANCES.values(), ids=COVARIANCES)


@pytest.fixture
def x(correlated):
    x = torch.tensor(correlated)
    return x - x.mean(0)


def start(x, family, **settings):
    resp = torch.rand(len(x), K, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(x)
    resp /= resp.sum(1, keepdim=True)
    return start_mixture(x, lambda rows: resp[rows], K, family, reg_covar=0.0, **settings)


def fit(x, family, max_iter=30, **settings):
    return fit_mixture(x, start(x, family), family, tol=0.0, max_iter=max_iter, reg_covar=0.0, **settings)


def assert_same_mixture(one, two, **tolerance):
    for mine, theirs in zip(one, two, strict=True):
        assert_close(mine, theirs, **tolerance)


@over_families
def test_em_never_descends(family, x):
    bounds = torch.tensor(fit(x, family, max_iter=100).lower_bounds)
    assert (bounds.diff() > -1e-12).all()
    assert bounds[-1] > bounds[0]


@over_families
@pytest.mark.parametrize("chunk_size", [17, 250, 599, 600, 10_000])
def test_chunks_change_nothing(family, x, chunk_size):
    assert_same_mixture(fit(x, family).mixture, fit(x, family, chunk_size=chunk_size).mixture, rtol=1e-10, atol=1e-10)


@over_families
def test_permuted_rows_change_nothing(family, x):
    mixture = start(x, family)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    settings = {"tol": 0.0, "max_iter": 20, "reg_covar": 0.0}
    one, two = (fit_mixture(rows, mixture, family, **settings) for rows in (x, x[order]))
    assert_same_mixture(one.mixture, two.mixture, rtol=1e-9, atol=1e-9)


@over_families
def test_float32_is_close_to_float64(family, x):
    double, single = fit(x, family, max_iter=10), fit(x.float(), family, max_iter=10)
    assert single.mixture.means.dtype == torch.float64
    assert double.lower_bounds[-1] == pytest.approx(single.lower_bounds[-1], abs=1e-4)


@over_families
def test_responsibilities_are_a_distribution(family, x):
    evidence, log_resp = e_step(x, fit(x, family).mixture, family)
    assert_close(log_resp.exp().sum(1), torch.ones(len(x), dtype=torch.float64))
    far = torch.full((1, x.shape[1]), 1e6, dtype=torch.float64)
    evidence, log_resp = e_step(far, fit(x, family).mixture, family)
    assert torch.isfinite(evidence).all()
    assert_close(log_resp.exp().sum(1), torch.ones(1, dtype=torch.float64))


def test_empty_component_stays_finite(x):
    family = COVARIANCES["diag"]
    resp = torch.zeros(len(x), K, dtype=torch.float64)
    resp[:, 0] = 1
    mixture = start_mixture(x, lambda rows: resp[rows], K, family, reg_covar=1e-6)
    found = fit_mixture(x, mixture, family, tol=0.0, max_iter=5, reg_covar=1e-6).mixture
    assert all(torch.isfinite(part).all() for part in (found.means, found.covariances))


def test_singular_covariance_is_an_error_that_names_the_component():
    x = torch.zeros(20, 2, dtype=torch.float64)
    x[:10, 0] = torch.linspace(1, 2, 10)
    resp = torch.zeros(20, 2, dtype=torch.float64)
    resp[:10, 0], resp[10:, 1] = 1, 1
    with pytest.raises(ValueError, match=r"components \[0, 1\] are not positive definite.*Increase reg_covar"):
        start_mixture(x, lambda rows: resp[rows], 2, COVARIANCES["full"], reg_covar=0.0)


@pytest.mark.parametrize("n_rows", [1, 2, 255, 256, 257, 1000])
@pytest.mark.parametrize("chunk_size", [None, 1, 7, 256, 5000])
def test_row_chunks_cover_the_rows(n_rows, chunk_size):
    rows = torch.arange(n_rows)
    assert_close(torch.cat([rows[chunk] for chunk in row_chunks(n_rows, 10, chunk_size)]), rows)
