"""Identities over the registry of covariance types."""

import pytest
import torch
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

from skvae.models import COVARIANCES, Mixture, Moments
from skvae.models.covariances import MatrixCovariance

K, D, N = 3, 4, 200
over_families = pytest.mark.parametrize("family", COVARIANCES.values(), ids=COVARIANCES)


@pytest.fixture
def x(generator):
    return torch.randn(N, D, dtype=torch.float64, generator=generator) @ torch.rand(
        D, D, dtype=torch.float64, generator=generator
    )


@pytest.fixture
def resp(generator):
    return torch.rand(N, K, dtype=torch.float64, generator=generator).softmax(1)


@pytest.fixture
def means(generator):
    return torch.randn(K, D, dtype=torch.float64, generator=generator)


def matrices(family, covariances):
    """Covariance matrices (K, D, D) from the package's own shape."""
    if isinstance(family, MatrixCovariance):
        return covariances.expand(K, D, D)
    return covariances.expand(K, D).diag_embed()


@over_families
def test_log_prob_is_that_of_the_multivariate_normal(family, x, resp, means):
    covariances = family.estimate(family.moments(x, resp, means), regularization=0.0)
    factor, positive = family.factor(covariances)
    assert positive.all()
    twin = MultivariateNormal(means, matrices(family, covariances))
    assert_close(family.log_prob(x, means, factor), twin.log_prob(x[:, None]))


@over_families
def test_factors_of_covariances_and_precisions_agree(family, x, resp, means):
    covariances = family.estimate(family.moments(x, resp, means), regularization=0.0)
    factor, _ = family.factor(covariances)
    assert_close(family.covariances(factor), covariances)
    from_precisions, positive = family.factor_from_precisions(family.precisions(factor))
    assert positive.all()
    assert_close(from_precisions, factor)
    noise = torch.eye(D, dtype=torch.float64)
    root = family.color(noise, factor.expand(K, *factor.shape[1:])[0])
    assert_close(root.T @ root, matrices(family, covariances)[0])


@over_families
def test_merged_moments_are_those_of_concatenated_rows(family, x, resp, means):
    whole = family.moments(x, resp, means)
    parts = family.moments(x[:70], resp[:70], means).merge(family.moments(x[70:], resp[70:], means))
    assert isinstance(parts, Moments)
    for one, two in zip(whole, parts, strict=True):
        assert_close(one, two)


@over_families
def test_estimate_does_not_depend_on_the_reference(family, x, resp, means):
    one, two = (family.estimate(family.moments(x, resp, m), regularization=0.0) for m in (means, means + 1))
    assert_close(one, two)


@over_families
def test_integer_weights_are_repeated_rows(family, x, resp, means):
    counts = torch.arange(N) % 3
    repeated = family.moments(x.repeat_interleave(counts, 0), resp.repeat_interleave(counts, 0), means)
    for one, two in zip(family.moments(x, resp * counts[:, None], means), repeated, strict=True):
        assert_close(one, two)


@over_families
def test_expand_inverts_compact(family, x, resp, means):
    covariances = family.estimate(family.moments(x, resp, means), regularization=0.0)
    compact = family.compact(covariances)
    assert tuple(compact.shape) == family.compact_shape(K, D)
    assert_close(family.expand(compact), covariances)


@pytest.mark.parametrize(("each", "tied"), [("full", "tied"), ("diag", "tied_diag"), ("spherical", "tied_spherical")])
def test_tied_is_the_weighted_mean(each, tied, x, resp, means):
    moments = COVARIANCES[each].moments(x, resp, means)
    covariances = COVARIANCES[each].estimate(moments, 0.0)
    weights = moments.weight.reshape(-1, *[1] * (covariances.ndim - 1))
    pooled = COVARIANCES[tied].estimate(COVARIANCES[tied].moments(x, resp, means), 0.0)
    assert_close((weights * covariances).sum(0, keepdim=True) / weights.sum(), pooled)


def fitted(family, x, resp, means):
    """A mixture with unequal weights."""
    covariances = family.estimate(family.moments(x, resp, means), 0.0)
    log_weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    return Mixture(log_weights, means, covariances, family.factor(covariances)[0])


@over_families
def test_linear_form_is_the_residual_form(family, x, resp, means):
    mixture, weight = fitted(family, x, resp, means), torch.ones(N, dtype=torch.float64)
    features = x.new_empty(family.n_linear_features(D), N)
    features[1 : D + 1] = x.T
    family.write_features(features, D)
    parts = family.split_features(x)
    assert parts is None or torch.equal(torch.cat(parts), features)
    scatter = family.scatter(x)
    assert_close(scatter, family.scatter(x, weight))
    joint = mixture.log_weights + family.log_prob(x, means, mixture.factor)
    # What "tied" leaves out is the same for all components of a row.
    difference = joint - (family.natural(mixture) @ features).T
    assert_close(difference, difference[:, :1].expand(N, K))
    assert_close(difference[:, 0].sum(), torch.as_tensor(family.common(mixture, scatter)).to(x), atol=1e-8, rtol=1e-8)
    moments = family.moments_of(resp.T @ features.T, D, scatter)
    for one, two in zip(moments, family.moments(x, resp, torch.zeros_like(means)), strict=True):
        assert_close(one, two)


@over_families
def test_whitening_is_inverted_and_preserves_densities(family, x, resp, means):
    mixture = fitted(family, x, resp, means)
    whitener = family.whitener(family.scatter(x, torch.ones(N, dtype=torch.float64)) / N)
    white, inside = x.clone(), family.whiten_mixture(mixture, whitener)
    family.whiten(white, whitener, white)
    columns = x.new_empty(D, N)
    family.whiten(x, whitener, columns.T)
    assert_close(columns.T, white)
    assert_close(
        family.scatter(white) / N, family.expand(family.compact(family.identity(x, D)[None])), atol=1e-8, rtol=0
    )
    joint = family.log_prob(white, inside.means, inside.factor) + family.log_scale(whitener, D)
    assert_close(joint, family.log_prob(x, means, mixture.factor))
    for one, two in zip(family.unwhiten_mixture(inside, whitener), mixture, strict=True):
        assert_close(one, two)
    added = family.estimate(family.moments(white, resp, inside.means), family.regularization(0.5, whitener))
    factor, _ = family.factor(added)
    outside = family.unwhiten_mixture(inside._replace(covariances=added, factor=factor), whitener).covariances
    identity = family.regularization(1.0, family.identity(x, D))
    assert_close(outside, mixture.covariances + 0.5 * identity)


@over_families
def test_moments_from_inverts_estimate(family, x, resp, means):
    mixture, reference = fitted(family, x, resp, means), means.flip(0) + 1
    moments = family.shift(family.moments_from(mixture, 0.25), mixture.means, reference)
    assert_close(family.estimate(moments, 0.25), mixture.covariances)
    assert_close(reference + moments.first / moments.weight[:, None], mixture.means)
    assert_close(moments.weight, mixture.log_weights.exp())


@over_families
def test_shift_gives_moments_about_the_other_reference(family, x, resp, means):
    one, two = family.moments(x, resp, means), family.moments(x, resp, means + 3)
    for mine, theirs in zip(family.shift(one, means, means + 3), two, strict=True):
        assert_close(mine, theirs)


@over_families
def test_total_is_the_covariance_of_all_rows(family, x, resp):
    resp = resp / resp.sum(1, keepdim=True)
    moments = family.moments(x, resp, x[:K])
    weights = moments.weight / N
    centers = x[:K] + moments.first / moments.weight[:, None]
    covariances = family.estimate(moments, 0.0)
    mixture = Mixture(weights.log(), centers, covariances, family.factor(covariances)[0])
    assert_close(family.total(mixture), family.scatter(x - x.mean(0)) / N)


@over_families
def test_exp_factor_inverts_log_factor(family, x, resp, means):
    factor = fitted(family, x, resp, means).factor
    assert_close(family.exp_factor(family.log_factor(factor)), factor)


def test_linear_condition_number_is_the_squared_mahalanobis_distance():
    diag = COVARIANCES["diag"]
    variances = torch.tensor([[4.0, 1.0], [1.0, 1.0]])
    mixture = Mixture(torch.zeros(2), torch.tensor([[6.0, 0.0], [0.0, 2.0]]), variances, diag.factor(variances)[0])
    assert diag.linear_condition_number(mixture).item() == pytest.approx(9.0)


@pytest.mark.parametrize("n_features", [5, 60, 300])
def test_rows_of_many_features_are_whitened_in_place(n_features):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, n_features, dtype=torch.float64, generator=generator)
    full, whitener = COVARIANCES["full"], torch.randn(n_features, n_features, generator=generator).double().triu()
    expected = x @ whitener
    full.whiten(x, whitener, x)
    assert_close(x, expected)


@pytest.mark.parametrize("n_features", [5, 60, 300])
def test_triangular_products_in_blocks(n_features):
    """Wide rows are multiplied in blocks of a triangle."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, n_features, dtype=torch.float64, generator=generator)
    full, means = COVARIANCES["full"], x[:2] / 2
    resp = torch.zeros(400, 2, dtype=torch.float64)
    resp[:390, 0], resp[390:, 1] = 1, 1  # so few rows that the others are skipped
    moments = full.moments(x, resp, means)
    for c in range(2):
        residual = (x - means[c]) * resp[:, c, None]
        assert_close(moments.second[c], residual.T @ residual)
    factor, _ = full.factor(torch.eye(n_features, dtype=torch.float64)[None] + moments.second)
    twin = MultivariateNormal(means, precision_matrix=factor @ factor.mT)
    assert_close(full.log_prob(x, means, factor), twin.log_prob(x[:, None]))


def test_full_on_a_diagonal_is_diag(x, resp, means):
    full, diag = COVARIANCES["full"], COVARIANCES["diag"]
    variances = diag.estimate(diag.moments(x, resp, means), regularization=0.0)
    assert_close(full.estimate(full.moments(x, resp, means), 0.0).diagonal(dim1=1, dim2=2), variances)
    assert_close(
        full.log_prob(x, means, full.factor(variances.diag_embed())[0]),
        diag.log_prob(x, means, diag.factor(variances)[0]),
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [("full", 30), ("tied", 10), ("diag", 12), ("spherical", 3), ("tied_diag", 4), ("tied_spherical", 1)],
)
def test_number_of_parameters(name, expected):
    assert COVARIANCES[name].n_parameters(K, D) == expected


def test_one_component_and_one_feature():
    """Shapes (k,) and (d,) are not confused when they are equal, or one."""
    x = torch.randn(20, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for name, family in COVARIANCES.items():
        moments = family.moments(x, torch.ones(20, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64))
        covariances = family.estimate(moments, 0.0)
        assert_close(covariances.flatten(), x.var(0, correction=0), msg=name)
        assert tuple(family.compact(covariances).shape) == family.compact_shape(1, 1)
