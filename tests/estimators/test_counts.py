"""Counts of samples of different depth: size factors, and zeros of their own."""

import pickle

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.metrics import v_measure_score

import skvae
from skvae import AutoencoderEmbedder, VaDEClusterer, VAEEmbedder

COUNTS = ("poisson", "negative_binomial", "zero_inflated_negative_binomial")
SHORT = {"max_epochs": 5, "random_state": 0}


def make_cells(n=600, d=60, seed=0, spread=0.7):
    """Cells of three types, with depths that differ by a factor of ten; also return types and depths."""
    rng = np.random.default_rng(seed)
    shares = rng.gamma(0.5, size=(3, d))
    kind, depth = rng.integers(3, size=n), 500 * rng.lognormal(sigma=spread, size=n)
    rate = depth[:, None] * (shares / shares.sum(1, keepdims=True))[kind]
    return rng.poisson(rate * rng.gamma(5, 1 / 5, size=(n, d))).astype(np.float32), kind, depth


@pytest.fixture(scope="module")
def cells():
    return make_cells()


def depth_in_codes(codes, depth):
    """Return the largest correlation of a latent dimension with the depth."""
    return max(abs(np.corrcoef(code, np.log(depth))[0, 1]) for code in codes.T)


@pytest.mark.parametrize("likelihood", COUNTS)
def test_codes_do_not_follow_the_depth(likelihood, cells):
    X, kind, depth = cells
    settings = {"likelihood": likelihood, "max_epochs": 40, "random_state": 0}
    plain = VAEEmbedder(3, **settings).fit_transform(X)
    vae = VAEEmbedder(3, size_factor="total", **settings).fit(X)
    codes = vae.transform(X)
    assert depth_in_codes(plain, depth) > 0.5
    # Within a type, because types have different depths by chance.
    within = [depth_in_codes(codes[kind == each], depth[kind == each]) for each in range(3)]
    assert np.mean(within) < 0.3
    thin = np.random.default_rng(0).binomial(X.astype(int), 0.5).astype(np.float32)
    others = [np.linalg.norm(vae.transform(rows) - codes, axis=1).mean() for rows in (thin, X[::-1])]
    assert others[0] < 0.3 * others[1], "a cell of half the depth is at nearly the same place"


def test_types_are_clustered(cells):
    X, kind, _ = cells
    vade = VaDEClusterer(3, latent_dim=3, likelihood="negative_binomial", size_factor="total", random_state=0).fit(X)
    assert v_measure_score(kind, vade.labels_) > 0.9


def test_equal_totals_change_nothing():
    rng = np.random.default_rng(0)
    X = rng.multinomial(100, rng.dirichlet(np.ones(8)), size=90).astype(np.float64)
    one, two = (VAEEmbedder(2, likelihood="poisson", size_factor=each, **SHORT).fit(X) for each in (None, "total"))
    assert_allclose(one.transform(X), two.transform(X), rtol=1e-3, atol=1e-4)
    assert_allclose(one.score(X), two.score(X), rtol=1e-4)


def test_scores_are_given_the_totals(cells):
    X, _, _ = cells
    settings = {"likelihood": "negative_binomial", "max_epochs": 30, "random_state": 0}
    plain, sized = (VAEEmbedder(3, size_factor=each, **settings).fit(X) for each in (None, "total"))
    assert sized.score(X) > plain.score(X)
    assert_allclose(sized.inverse_transform(sized.transform(X)).sum(1).mean(), X.sum(1).mean(), rtol=0.2)
    assert_allclose(sized.sample(500).sum(1).mean(), X.sum(1).mean(), rtol=0.2)


@pytest.mark.parametrize("likelihood", COUNTS)
def test_copies_files_and_sparse_counts(likelihood, cells, tmp_path):
    X = cells[0][:100]
    vae = VAEEmbedder(2, likelihood=likelihood, size_factor="total", **SHORT).fit(X)
    skvae.save(vae, tmp_path / "cells.skvae")
    for other in (pickle.loads(pickle.dumps(vae)), skvae.load(tmp_path / "cells.skvae")):
        assert other.size_factor == "total"
        assert_array_equal(other.score_samples(X), vae.score_samples(X))
    of_sparse = VAEEmbedder(2, likelihood=likelihood, size_factor="total", **SHORT).fit(sparse.csr_array(X))
    assert_allclose(of_sparse.transform(sparse.csr_array(X)), vae.transform(X), rtol=1e-4, atol=1e-5)


def test_counts_beside_other_columns(cells):
    X = np.column_stack([np.random.default_rng(0).normal(size=600), cells[0]])
    likelihood = [("age", "gaussian_features", [0]), ("genes", "negative_binomial", slice(1, None))]
    vae = VAEEmbedder(2, likelihood=likelihood, size_factor="total", **SHORT).fit(X)
    assert [getattr(each, "size_factors", None) for each in vae.module_.likelihood.likelihoods] == [None, "total"]


def test_counts_are_not_missing_later_either(cells):
    """Another column has gaps, so that there is a mask."""
    X = np.column_stack([cells[0][:80], np.random.default_rng(0).normal(size=80)]).astype(float)
    X[::3, -1] = np.nan
    likelihood = [("genes", "negative_binomial", slice(0, -1))]
    vae = VAEEmbedder(2, likelihood=likelihood, size_factor="total", **SHORT).fit(X)
    assert np.isfinite(vae.impute(X)).all()
    gaps = X.copy()
    gaps[0, 3] = np.nan
    calls = (
        vae.transform,
        vae.impute,
        vae.score_samples,
        vae.partial_fit,
        lambda X: vae.score(X, sample_weight=np.ones(80)),
    )
    for call in calls:
        with pytest.raises(ValueError, match="missing values among them"):
            call(gaps)
    with pytest.raises(ValueError, match="missing values among them"):
        VaDEClusterer(2, latent_dim=2, pretrained=vae, max_epochs=1).fit(gaps)
    with pytest.raises(ValueError, match="missing values among them"):
        VAEEmbedder(2, likelihood=likelihood, size_factor="total", **SHORT).fit(X, X_val=gaps)
    with pytest.raises(ValueError, match="missing values among them"):
        vae.set_params(warm_start=True).fit(gaps)


def test_size_factors_of_earlier_networks(cells):
    X = cells[0][:80]
    plain = VAEEmbedder(2, likelihood="poisson", **SHORT).fit(X)
    sized = VAEEmbedder(2, likelihood="poisson", size_factor="total", **SHORT).fit(X)
    settings = {"latent_dim": 2, "max_epochs": 1, "random_state": 0}
    with pytest.raises(ValueError, match="pretrained was fitted without size factors"):
        VaDEClusterer(2, pretrained=plain, size_factor="total", **settings).fit(X)
    with pytest.raises(ValueError, match="continue from were fitted without size factors"):
        plain.set_params(size_factor="total", warm_start=True).fit(X)
    vade = VaDEClusterer(2, pretrained=sized, **settings).fit(X)
    assert vade.module_.likelihood.size_factors == "total"


def test_errors(cells):
    X = cells[0][:50].copy()
    with pytest.raises(ValueError, match="is for counts, but likelihood='gaussian'"):
        VAEEmbedder(2, likelihood="gaussian", size_factor="total", **SHORT).fit(X)
    with pytest.raises(ValueError, match="'size_factor' parameter"):
        VAEEmbedder(2, likelihood="poisson", size_factor="mean", **SHORT).fit(X)
    X[0, 0] = np.nan
    with pytest.raises(ValueError, match="missing values among them"):
        AutoencoderEmbedder(2, likelihood="poisson", size_factor="total", **SHORT).fit(X)
