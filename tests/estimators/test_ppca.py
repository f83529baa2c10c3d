"""TorchPPCA compared with scikit-learn's PCA and with its own model."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.decomposition import PCA

from skvae import TorchGMM, TorchPPCA

DATASETS = {"iris": load_iris, "wine": load_wine, "breast_cancer": load_breast_cancer, "digits": load_digits}


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("n_components", [1, 2, 3])
def test_equal_to_scikit_learn(dataset, n_components):
    X = DATASETS[dataset]().data
    ours, theirs = TorchPPCA(n_components).fit(X), PCA(n_components, svd_solver="covariance_eigh").fit(X)
    assert_allclose(ours.score_samples(X), theirs.score_samples(X), rtol=1e-8)
    for name in ("explained_variance_", "explained_variance_ratio_", "noise_variance_", "mean_"):
        assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-8, err_msg=name)
    assert_allclose(np.abs(ours.components_ @ theirs.components_.T), np.eye(n_components), atol=1e-8)


@pytest.mark.parametrize("noise", [0.1, 1e-4, 0.0])
@pytest.mark.parametrize("n_components", [1, 10, 40])
def test_few_axes_of_many_features(n_components, noise):
    """With few components of many features, the other axes are not computed."""
    rng = np.random.default_rng(0)
    X = 5 + rng.normal(size=(700, 10)) @ rng.normal(size=(10, 320)) + noise * rng.normal(size=(700, 320))
    ours, theirs = TorchPPCA(n_components).fit(X), PCA(n_components, svd_solver="full").fit(X)
    rounding, q = 1e-14 * theirs.explained_variance_[0], min(n_components, 10)
    assert_allclose(ours.explained_variance_, theirs.explained_variance_, rtol=1e-12, atol=rounding)
    assert_allclose(ours.explained_variance_ratio_, theirs.explained_variance_ratio_, atol=1e-14)
    assert_allclose(ours.noise_variance_, theirs.noise_variance_, rtol=1e-10, atol=rounding)
    assert_allclose(np.abs(ours.components_[:q] @ theirs.components_[:q].T), np.eye(q), atol=1e-10)
    assert_allclose(ours.components_ @ ours.components_.T, np.eye(n_components), atol=1e-12)


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinite_values_are_named(value):
    X = np.random.default_rng(0).normal(size=(50, 4))
    X[3, 2] = value
    with pytest.raises(ValueError, match=r"infinity.*\[2\] of X hold infinite values"):
        TorchPPCA(2).fit(X)


def test_all_components_are_one_gaussian():
    X = load_iris().data
    ours = TorchPPCA().fit(X)
    assert ours.n_components_ == 4
    assert ours.noise_variance_ == 0
    assert_allclose(ours.score_samples(X), PCA().fit(X).score_samples(X), rtol=1e-8)
    assert_allclose(ours.inverse_transform(ours.transform(X)), X)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("dataset", DATASETS)
def test_share_of_variance_as_in_scikit_learn(dataset, share):
    X = DATASETS[dataset]().data
    assert TorchPPCA(share).fit(X).n_components_ == PCA(share, svd_solver="full").fit(X).n_components_


@pytest.mark.parametrize("dataset", ["iris", "wine", "breast_cancer"])
def test_minkas_choice_as_in_scikit_learn(dataset):
    X = DATASETS[dataset]().data
    X = (X - X.mean(0)) / X.std(0)
    assert TorchPPCA("mle").fit(X).n_components_ == PCA("mle").fit(X).n_components_


def test_minkas_choice_finds_the_dimension():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(500, 3)) @ rng.normal(size=(3, 10)) + 0.1 * rng.normal(size=(500, 10))
    assert TorchPPCA("mle").fit(X).n_components_ == 3


def test_float32_variances_are_accurate():
    """At least a hundred times closer to float64 than scikit-learn's in float32, on pixels with an offset."""
    X = load_digits().data + 100
    exact = PCA(10, svd_solver="covariance_eigh").fit(X).explained_variance_
    single = X.astype(np.float32)
    theirs = PCA(10, svd_solver="covariance_eigh").fit(single).explained_variance_
    ours = TorchPPCA(10).fit(single).explained_variance_
    assert ours.dtype == np.float32
    assert np.abs(ours / exact - 1).max() < 2e-7
    assert np.abs(ours / exact - 1).max() < np.abs(theirs / exact - 1).max() / 100


def test_integer_weights_are_repeated_samples():
    X, counts = load_wine().data, np.arange(178) % 4
    weighted, repeated = TorchPPCA(3).fit(X, sample_weight=counts), TorchPPCA(3).fit(np.repeat(X, counts, axis=0))
    assert_allclose(weighted.score_samples(X), repeated.score_samples(X), rtol=1e-9)
    assert_allclose(weighted.transform(X), repeated.transform(X), atol=1e-8)


@pytest.mark.parametrize("chunk_size", [1, 7, 1000])
def test_results_do_not_depend_on_chunk_size(chunk_size):
    X = load_wine().data
    one, two = TorchPPCA(3).fit(X), TorchPPCA(3, chunk_size=chunk_size).fit(X)
    assert_allclose(one.components_, two.components_, atol=1e-10)
    assert_allclose(one.transform(X), two.transform(X), atol=1e-10)


def test_more_features_than_samples():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 3)) @ rng.normal(size=(3, 200)) + 0.1 * rng.normal(size=(30, 200))
    ours = TorchPPCA(3).fit(X)
    covariance = np.cov(X.T)
    variances, axes = np.linalg.eigh(covariance)
    assert_allclose(ours.explained_variance_, variances[:-4:-1])
    assert_allclose(np.abs(ours.components_ @ axes[:, :-4:-1]), np.eye(3), atol=1e-8)
    assert_allclose(ours.noise_variance_, variances[:-3].sum() / 197)
    one = TorchGMM(1)
    noise = ours.noise_variance_
    rest = np.eye(200) - ours.components_.T @ ours.components_
    one.weights_, one.means_, one.n_features_in_ = np.ones(1), ours.mean_[None], 200
    one.covariances_ = ((ours.components_.T * ours.explained_variance_) @ ours.components_ + noise * rest)[None]
    reversed_root = np.linalg.cholesky(np.linalg.inv(one.covariances_)[:, ::-1, ::-1])
    one.precisions_cholesky_ = reversed_root[:, ::-1, ::-1]
    assert_allclose(ours.score_samples(X), one.score_samples(X))


def test_transform_is_the_posterior_mean():
    X = load_wine().data
    ppca = TorchPPCA(3).fit(X)
    weights = ppca.components_.T * np.sqrt(ppca.explained_variance_ - ppca.noise_variance_)
    precision = np.eye(3) + weights.T @ weights / ppca.noise_variance_
    mean = np.linalg.solve(precision, weights.T @ (X - X.mean(0)).T / ppca.noise_variance_).T
    assert_allclose(ppca.transform(X), mean, atol=1e-8)
    assert_allclose(np.linalg.inv(precision), np.diag(ppca.posterior_variance()), atol=1e-12)
    assert_allclose(ppca.inverse_transform(mean), mean @ weights.T + X.mean(0))


def test_samples_have_the_covariance():
    X = load_iris().data
    ppca = TorchPPCA(2).fit(X)
    drawn = ppca.sample(200_000, random_state=0)
    assert_allclose(np.cov(drawn.T), PCA(2).fit(X).get_covariance(), atol=0.03)
    assert_allclose(drawn.mean(0), X.mean(0), atol=0.02)


@pytest.mark.parametrize("name", ["constant", "duplicated", "huge", "tiny", "all equal"])
def test_results_are_finite_for_degenerate_data(name):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 4))
    X = {
        "constant": np.column_stack([X, np.full(60, 7.0)]),
        "duplicated": np.column_stack([X, X]),
        "huge": X * 1e30,
        "tiny": X * 1e-30,
        "all equal": np.ones((60, 4)),
    }[name]
    for n_components in (2, None, "mle"):
        ppca = TorchPPCA(n_components).fit(X)
        for result in (ppca.transform(X), ppca.score_samples(X), ppca.inverse_transform(ppca.transform(X))):
            assert np.isfinite(result).all()


@pytest.mark.parametrize("shape", [(3, 10), (10, 3)])
def test_too_many_components(shape):
    with pytest.raises(ValueError, match=r"n_components=4 is larger than the smaller of n_samples=\d+"):
        TorchPPCA(4).fit(np.random.default_rng(0).normal(size=shape))


def test_invalid_weights_and_codes():
    X = load_iris().data
    with pytest.raises(ValueError, match="zero"):
        TorchPPCA(2).fit(X, sample_weight=np.zeros(150))
    with pytest.raises(ValueError, match="Negative values"):
        TorchPPCA(2).fit(X, sample_weight=-np.ones(150))
    with pytest.raises(ValueError, match="Z has 3 features, but TorchPPCA is expecting 2"):
        TorchPPCA(2).fit(X).inverse_transform(X[:, :3])


@pytest.mark.parametrize("n_components", [None, "mle", 0.5, 0.95])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("sample", [np.ones(6), np.full(6, 0.1), 1e4 + np.arange(6.0)], ids=["ones", "0.1", "large"])
def test_equal_samples_have_one_component(n_components, dtype, sample):
    X = np.tile(sample, (9, 1)).astype(dtype)
    X_missing = X.copy()
    X_missing[np.arange(9), np.arange(9) % 6] = np.nan
    for data in [X] if n_components == "mle" else [X, X_missing]:
        ppca = TorchPPCA(n_components).fit(data)
        assert ppca.n_components_ == 1
        assert_allclose(ppca.explained_variance_ratio_, [1.0])
        assert_allclose(ppca.mean_, sample, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("n_components", [None, 0.999, 4])
def test_scores_of_a_degenerate_density_emit_a_warning(dtype, n_components):
    X, others = np.random.default_rng(0).normal(size=(2, 5, 20)).astype(dtype)
    ppca = TorchPPCA(n_components).fit(X)
    assert np.isfinite(ppca.score(X))
    for score in (ppca.score_samples, ppca.score):
        with pytest.warns(RuntimeWarning, match="noise variance is zero .* 4 components explain all of") as record:
            score(others)
        assert [warning.filename for warning in record] == [__file__]
    for fewer in (3, "mle"):
        TorchPPCA(fewer).fit(X).score(others)  # without a warning
