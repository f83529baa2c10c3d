"""From arrays to likelihoods: names, objects of the user's, units and supports."""

import copy
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_digits, load_wine
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning

from skvae import AutoencoderEmbedder, VaDEClusterer, VAEEmbedder
from skvae.data.columns import Columns
from skvae.data.messages import shown
from skvae.estimators._likelihood_choice import (
    build_likelihood,
    check_support,
    choose_likelihood,
    likelihood_name,
    stored_rows,
)
from skvae.models import LIKELIHOODS, Bernoulli, FixedGaussian, Gaussian, Support
from skvae.models.likelihoods import Standardized


@pytest.fixture
def X():
    return np.random.default_rng(0).random((40, 3))


def rows_for(name):
    """Rows that a likelihood can produce."""
    X = np.random.default_rng(0).random((40, 3))
    return np.floor(5 * X) if LIKELIHOODS[name].support.integers else X


class Laplace(torch.nn.Module):
    """A likelihood of a user's own, with a unit scale."""

    support = (-10.0, 10.0)

    def __init__(self, center):
        super().__init__()
        self.register_buffer("center", center)

    @classmethod
    def from_data(cls, summary):
        return cls(summary.mean)

    def n_inputs(self, n_features):
        return n_features

    def n_outputs(self, n_features):
        return n_features

    def standardize(self, x):
        return x - self.center

    def inputs(self, u):
        return u

    def log_prob(self, u, params):
        return -(u - params).abs().sum(-1) - u.shape[-1] * np.log(2)

    def mean(self, params):
        return params + self.center

    def sample(self, params, generator):
        exponential = torch.empty(2, *params.shape).exponential_(generator=generator)
        return self.mean(params) + exponential[0] - exponential[1]


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_name_is_built_from_the_data(name, dtype):
    X = rows_for(name).astype(dtype)
    assert choose_likelihood(name, Columns(X)) == name
    assert check_support(name, X) is X
    likelihood = build_likelihood(name, X)
    assert type(likelihood) is LIKELIHOODS[name]
    assert likelihood_name(likelihood) == name
    assert check_support(likelihood, X) is X
    rows = stored_rows(likelihood, X, torch.device("cpu"))
    assert rows.dtype == torch.float32
    assert likelihood.inputs(rows).shape == (40, likelihood.n_inputs(3))
    assert torch.isfinite(likelihood.log_prob(rows, torch.zeros(40, likelihood.n_outputs(3)))).all()


def test_auto_looks_at_the_data(X):
    assert choose_likelihood("auto", Columns(X)) == "bernoulli"
    assert choose_likelihood("auto", Columns(X + 8 * np.finfo(float).eps)) == "bernoulli"
    assert choose_likelihood("auto", Columns(2 * X)) == "gaussian"
    assert choose_likelihood("auto", Columns(-X)) == "gaussian"
    assert choose_likelihood("auto", Columns(rows_for("poisson"))) == "gaussian"


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_constant_features_are_finite(name):
    X = rows_for(name)
    X[:, 1] = X[0, 1]
    X[:, 2] = 0.0
    likelihood = build_likelihood(name, X)
    rows = stored_rows(likelihood, X, torch.device("cpu"))
    params = torch.zeros(40, likelihood.n_outputs(3))
    found = (likelihood.inputs(rows), likelihood.log_prob(rows, params), likelihood.mean(params))
    assert all(torch.isfinite(part).all() for part in found)


def test_rounding_is_clipped_and_integers_are_not(X):
    X[0] = 1 + 2 * np.finfo(float).eps
    clipped = check_support("continuous_bernoulli", X)
    assert clipped.max() == 1.0
    assert_array_equal(clipped[1:], X[1:])
    assert X[0, 0] > 1
    assert check_support("bernoulli", X.astype(np.float32)).dtype == np.float32
    with pytest.raises(ValueError, match="needs whole numbers, but X has 1e-12"):
        check_support("poisson", np.array([[0.0], [1e-12]]))


@pytest.mark.parametrize("name", ["poisson", "negative_binomial", "categorical"])
def test_whole_numbers_only(name):
    with pytest.raises(ValueError, match=f"likelihood='{name}' needs whole numbers, but X has 0.5"):
        check_support(name, np.array([[1.0, 0.5]]))
    with pytest.raises(ValueError, match=f"likelihood='{name}' needs whole numbers from 0, but X has -3"):
        check_support(name, np.array([[1.0, -3.0]]))
    assert check_support(name, np.array([[1.0, 1e5]])).shape == (1, 2)


def test_codes_beyond_the_training_data():
    X = np.array([[0.0, 2.0], [1.0, 0.0], [0.0, 1.0]])
    likelihood = build_likelihood("categorical", X)
    assert check_support(likelihood, X[:1]) is not None
    with pytest.raises(ValueError, match="up to 1 in feature 0, but X has 2 there"):
        check_support(likelihood, np.array([[2.0, 2.0]]))
    with pytest.raises(ValueError, match="up to 2 in feature 1, but X has 3 there"):
        check_support(likelihood, np.array([[1.0, 3.0]]))


def test_features_are_called_by_their_names():
    X = pd.DataFrame({"colour": [0.0, 1.0, 2.0], "size": [1.0, 0.0, 1.0]})
    vae = VAEEmbedder(1, likelihood="categorical", hidden_layer_sizes=(4,), max_epochs=1, random_state=0).fit(X)
    with pytest.raises(ValueError, match="up to 1 in feature 'size', but X has 2 there"):
        vae.score(X.assign(size=2.0))
    with pytest.raises(ValueError, match=r"All values of feature\(s\) \['size'\] of X are missing"):
        clone(vae).fit(X.assign(size=np.nan))


OUTSIDE_SAMPLES = {  # a likelihood, rows to fit, and new ones of which two are outside its support
    "bernoulli": ([0.0, 0.5, 1.0, 0.2], [1.5, -0.1, np.nan, 1 + 1e-16], r"values in \[0, 1\]"),
    "poisson": ([0.0, 5.0, 1.0, 2.0], [2.5, -1.0, 90.0, np.nan], "whole numbers from 0, and the"),
    "categorical": ([0.0, 1.0, 2.0, np.nan], [3.0, 0.5, 2.0, np.nan], "whole numbers from 0 to the largest"),
}


@pytest.mark.parametrize(("name", "rows"), OUTSIDE_SAMPLES.items(), ids=OUTSIDE_SAMPLES)
def test_encoders_warn_of_samples_outside_the_support(name, rows):
    seen, new = (np.column_stack([part, [1.0, 0.0, 1.0, 0.0]]) for part in rows[:2])
    seen[0, 1] = np.nan  # so that the networks know missing values
    settings = {"hidden_layer_sizes": (4,), "likelihood": name, "max_epochs": 1, "random_state": 0}
    vae = VAEEmbedder(1, **settings).fit(seen)
    for verb in (vae.transform, vae.reconstruct, vae.posterior_variance):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            verb(seen)
        with pytest.warns(UserWarning, match=f"2 of 4 samples of X have values outside .*'{name}'.*{rows[2]}") as found:
            assert np.isfinite(verb(new)).all()
        assert len(found) == 1
        assert found[0].filename == __file__, verb
    with pytest.warns(UserWarning, match="2 of 4 samples") as found:
        vae.interpolate(new, seen)
    assert [warning.filename for warning in found] == [__file__]


def test_clusterers_warn_of_rows_that_were_not_scaled(X):
    settings = {"hidden_layer_sizes": (8,), "pretrain_epochs": 1, "max_epochs": 1, "random_state": 0}
    vade = VaDEClusterer(2, latent_dim=2, **settings).fit(X / X.max())
    for verb in (vade.predict, vade.predict_proba, vade.transform):
        with pytest.warns(UserWarning, match=f"{len(X)} of {len(X)} samples of X have values outside"):
            verb(2 + X)


@pytest.mark.parametrize("name", ["bernoulli", "continuous_bernoulli"])
def test_values_outside_an_interval(name, X):
    with pytest.raises(ValueError, match=rf"{name}' needs values in \[0, 1\], but X has values from .* to 3"):
        check_support(name, 3 * X / X.max())
    with pytest.raises(ValueError, match=r"needs values in \[0, 1\]"):
        check_support(build_likelihood(name, X), X - 0.5)


def test_a_module_of_the_users_is_copied(X):
    own = Laplace(torch.full((3,), 0.5, dtype=torch.float64))
    before = copy.deepcopy(own.state_dict())
    assert choose_likelihood(own, Columns(X)) is own
    built = build_likelihood(own, X)
    assert built is not own
    built.center += 1
    assert torch.equal(own.center, before["center"])
    assert likelihood_name(built) == "Laplace"
    with pytest.raises(ValueError, match=r"likelihood='Laplace' needs values in \[-10, 10\]"):
        check_support(own, 100 * X)


def test_a_class_of_the_users_is_given_the_summary(X):
    assert choose_likelihood(Laplace, Columns(X)) is Laplace
    built = build_likelihood(Laplace, X)
    assert_allclose(built.center.numpy(), X.mean(0))
    fixed = FixedGaussian(torch.zeros(3), torch.ones(3), noise_scale=0.1)
    assert build_likelihood(choose_likelihood(fixed, Columns(X)), X).noise_scale == 0.1
    assert likelihood_name(Gaussian) == "gaussian"


def test_a_support_that_only_instances_know(X):
    class Bounded(Laplace):
        def __init__(self, center):
            super().__init__(center)
            self.support = Support(tuple(X.min(0)), (1.0, 1.0, 0.1))

    del_support = type("Late", (Bounded,), {})
    with pytest.raises(ValueError, match="needs values in the support of each feature"):
        build_likelihood(del_support, X)


@pytest.mark.parametrize("verb", ["n_inputs", "n_outputs", "standardize", "inputs", "log_prob", "mean", "sample"])
def test_a_missing_verb_is_named(verb, X):
    parts = {name: part for name, part in vars(Laplace).items() if name not in (verb, "__init__")}
    broken = type("Broken", (torch.nn.Module,), {**parts, "from_data": classmethod(lambda cls, summary: cls())})
    with pytest.raises(TypeError, match=f"likelihood=Broken lacks {verb}; add"):
        choose_likelihood(broken(), X)
    with pytest.raises(TypeError, match=f"likelihood=Broken lacks {verb}; add"):
        build_likelihood(choose_likelihood(broken, Columns(X)), X)


def test_what_is_no_likelihood(X):
    with pytest.raises(TypeError, match="likelihood=Linear lacks support, n_inputs"):
        choose_likelihood(torch.nn.Linear(2, 2), X)
    with pytest.raises(TypeError, match="likelihood=int lacks from_data"):
        choose_likelihood(int, Columns(X))
    with pytest.raises(TypeError, match="likelihood=3 should be 'auto', one of"):
        choose_likelihood(3, Columns(X))
    with pytest.raises(ValueError, match="likelihood='normal' is unknown; use 'auto' or one of"):
        choose_likelihood("normal", Columns(X))
    plain = type("Plain", (), {"from_data": classmethod(lambda cls, summary: "rows")})
    with pytest.raises(TypeError, match=r"Plain.from_data should make a torch.nn.Module, but made 'rows'"):
        build_likelihood(plain, X)
    with pytest.raises(TypeError, match="Bernoulli.from_data"):
        build_likelihood(type("Bernoulli", (Bernoulli,), {"from_data": classmethod(lambda cls, summary: None)}), X)


def log_and_back(X):
    """Counts after expm1(log1p(X)) in float32, which are not whole any more."""
    return np.expm1(np.log1p(X.astype(np.float32)))


@pytest.mark.parametrize("name", ["poisson", "negative_binomial", "categorical"])
@pytest.mark.parametrize(
    "convert", [np.asarray, sparse.csr_array, torch.from_numpy, pd.DataFrame], ids=lambda f: f.__name__
)
def test_messages_show_the_digits_that_tell_counts_apart(name, convert):
    """How far expm1(log1p(X)) is from whole numbers hangs on the processor, so that the numbers are given."""
    X = np.float32([[0, 1, 2], [3, 6.0000005, 2], [1, 1, 41.000015]])
    settings = {"hidden_layer_sizes": (4,), "max_epochs": 1, "random_state": 0, "likelihood": name}
    with pytest.raises(
        ValueError, match=r"but X has (6\.0000005|41\.000015), and values up to 1\.5e-05 away .* \(np\.rint\)"
    ):
        VAEEmbedder(2, **settings).fit(convert(X))
    vae = VAEEmbedder(2, **settings).fit(convert(np.rint(X)))
    with pytest.warns(
        UserWarning, match=r"2 of 3 samples .* such as 6\.0000005: its support is .* np\.rint makes counts"
    ):
        vae.transform(convert(X))
    with pytest.raises(ValueError, match=r"X has 6\.0000005, and values up to 1\.5e-05 away .*; round X"):
        vae.score(convert(X))
    counts = np.random.default_rng(0).poisson(20, size=(50, 4))
    if (log_and_back(counts) != counts).any():
        with pytest.raises(ValueError, match=r"but X has \d+\.\d{4,}, and values"):
            check_support(name, log_and_back(counts))


def test_messages_show_how_far_values_are_beyond_an_interval():
    X = np.float32([[0.5, 1.000002], [0.00274616, 0.3]])
    with pytest.raises(ValueError, match=r"values from 0\.00274616 to 1\.000002; .* clip X .* if 2e-06 beyond"):
        check_support("bernoulli", X)
    with pytest.raises(ValueError, match=r"values from -1e-06 to 0\.997254; .* clip X"):
        check_support("bernoulli", 1 - X.astype(float).clip(1e-6, 1 + 1e-6))
    with pytest.raises(ValueError, match=r"values from 0\.00274616 to 2; scale X \(.*\), or use"):
        check_support("bernoulli", np.where(X > 1, 2, X))
    with pytest.raises(ValueError, match="but X has -1e-09, and values up to 1e-09 away from whole numbers; round X"):
        check_support("poisson", np.array([[1.0, -1e-9]]))
    with pytest.raises(ValueError, match="up to 1234567 in feature 0, but X has 1234568 there"):
        check_support(ManyCategories(), np.array([[1234568.0]]))


class ManyCategories(torch.nn.Module):
    """Codes of many categories."""

    support = Support(0.0, (1234567.0,), integers=True)


def test_numbers_are_short_where_nothing_is_hidden():
    assert shown(0.123456789, 0, 1) == "0.123457"
    assert shown(np.float32(1.0000001), 0, 1) == "1.0000001"
    assert shown(1.0000001, 1) == "1.0000001"
    assert shown(np.float32(1), 1) == "1"
    assert shown(-1e-12, 0) == "-1e-12"
    assert shown(1234568.0, 1234567.0) == "1234568"
    assert shown(np.uint8(7), 6) == "7"


RNG = np.random.default_rng(0)
COUNTS = {
    "negative binomial": RNG.negative_binomial(2, 0.1, (60, 5)),
    "sparse": RNG.poisson(RNG.gamma(0.3, 3, (300, 20)) * RNG.lognormal(0, 1, 20)),
    "topics": RNG.poisson(RNG.dirichlet(np.full(20, 0.3), 4)[RNG.integers(4, size=800)] * 40),
    "one column": RNG.negative_binomial(1, 0.05, (300, 1)),
}
NO_COUNTS = {
    "truth values": RNG.integers(0, 2, (50, 4)),
    "pixels": load_digits().data,
    "bytes": RNG.integers(0, 256, (100, 16)),
    "pixels of one byte": RNG.poisson(1, (300, 10)).astype(np.uint8),
    "ratings": RNG.integers(1, 6, (200, 8)),
    "ratings, most of them absent": RNG.integers(1, 6, (200, 8)) * (RNG.uniform(size=(200, 8)) < 0.2),
    "skewed ratings": np.clip(RNG.poisson(0.7, (300, 8)) + 1, 1, 5),
    "codes": RNG.integers(0, 40, (200, 4)),
    "genotypes": RNG.binomial(2, 0.1, (200, 30)),
    "age, income": np.column_stack([RNG.integers(18, 90, 300), RNG.lognormal(10, 1, 300).round()]),
    "incomes": RNG.lognormal(10.5, 0.6, (1000, 2)).round(),
    "gains, mostly none": RNG.lognormal(8, 1, (500, 2)).round() * (RNG.uniform(size=(500, 2)) < 0.1),
    "prices in thousands": (RNG.lognormal(12.5, 0.5, (500, 1)) / 1000).round() * 1000,
    "negative": RNG.poisson(1, (300, 10)) - 1,
    "rounded measurements": load_wine().data.round(),
    "constant": np.full((20, 3), 7),
}


def with_gaps(X):
    """Values that are missing at random."""
    return np.where(np.random.default_rng(1).uniform(size=X.shape) < 0.1, np.nan, X)


@pytest.mark.parametrize("X", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("convert", [np.float64, np.int64, with_gaps])
def test_counts_are_told_from_measurements(X, convert):
    assert Columns(convert(X)).look_like_counts()


@pytest.mark.parametrize("X", NO_COUNTS.values(), ids=NO_COUNTS)
def test_whole_numbers_that_are_no_counts(X):
    assert not Columns(X if X.dtype == np.uint8 else X.astype(float)).look_like_counts()
    assert not Columns(0.5 + X).look_like_counts()


SMALL = {"hidden_layer_sizes": (4,), "max_epochs": 1, "random_state": 0}


@pytest.mark.parametrize(
    "estimator",
    [
        VAEEmbedder(2, **SMALL),
        AutoencoderEmbedder(2, **SMALL),
        VaDEClusterer(2, latent_dim=2, pretrain_epochs=1, n_init=1, **SMALL),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_auto_hints_at_likelihoods_of_counts(estimator, method):
    X = COUNTS["sparse"]
    for rows in (X, sparse.csr_array(X), torch.from_numpy(X)):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always", UserWarning)
            getattr(clone(estimator), method)(rows)
        hints = [warning for warning in found if "X holds counts" in str(warning.message)]
        assert [hint.filename for hint in hints] == [__file__]
        assert "likelihood='negative_binomial' (or 'poisson')" in str(hints[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("ignore", ConvergenceWarning)
        for name in ("gaussian", "poisson"):
            getattr(clone(estimator).set_params(likelihood=name), method)(X)


def test_subclass_without_a_density_is_refused(X):
    class Incomplete(Standardized):
        def mean(self, params):
            return params

        def sample(self, params, generator):
            return params

    with pytest.raises(TypeError, match="likelihood=Incomplete lacks log_prob; add what is missing"):
        VAEEmbedder(2, likelihood=Incomplete, max_epochs=1).fit(X)


def correlated_rows(n_rows=400):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n_rows, 4)) @ rng.normal(size=(4, 6)) + 0.1 * rng.normal(size=(n_rows, 6))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_principal_components_keep_their_relative_scales(dtype):
    X = PCA().fit_transform(correlated_rows()).astype(dtype)
    scale = Columns(X).scale
    assert_allclose(scale, np.sqrt(X.var(0, dtype=float).mean()), rtol=1e-6)
    likelihood = build_likelihood("gaussian", X)
    u = likelihood.standardize(torch.from_numpy(X))
    assert_allclose(u.square().mean(), 1, rtol=1e-5)
    assert u.std(0)[0] > 5 * u.std(0)[-1]


def test_constant_features_and_gaps_do_not_change_the_common_scale():
    X = PCA().fit_transform(correlated_rows())
    expected = Columns(X).scale[0]
    scale = Columns(np.column_stack([X, np.full(len(X), 1e-3), np.zeros(len(X))])).scale
    assert_allclose(scale, [*[expected] * 6, 1, 1])
    gaps = np.where(np.random.default_rng(1).random(X.shape) < 0.05, np.nan, X)
    assert_allclose(Columns(gaps).scale, [float(Columns(gaps).scale[0])] * 6)
    assert float(Columns(gaps).scale[0]) == pytest.approx(float(expected), rel=0.1)


@pytest.mark.parametrize(
    "change",
    [
        lambda X: X + 3 * X.std(0),
        lambda X: X / X.std(0),
        lambda X: np.column_stack([X, 1e4 + 1e3 * X[:, :1]]),
        lambda X: np.column_stack([X, X[:, :2] + 10]),
        lambda X: np.column_stack([X, 3 * X[:, :1] + X[:, 1:2]]),
        lambda X: correlated_rows() - correlated_rows().mean(0),
    ],
    ids=["means", "scaled", "an amount", "a quarter with means", "a sum", "correlated"],
)
def test_features_with_units_of_their_own_are_scaled_apart(change):
    X = change(PCA().fit_transform(correlated_rows()))
    assert_allclose(Columns(X).scale, X.std(0))


def test_one_feature_in_ten_may_have_a_mean():
    """As the first direction of word counts."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(500, 12)) * np.linspace(1, 5, 12)
    X[:, 3] += 100
    assert len(set(Columns(X).scale.tolist())) == 1
    assert_allclose(Columns(X + 100 * np.eye(12)[11]).scale, X.std(0))


def test_correlations_of_many_features_are_estimated():
    rng = np.random.default_rng(0)
    scales = np.linspace(1, 5, 300)
    apart, together = rng.normal(size=(200, 300)), rng.normal(size=(200, 10)) @ rng.normal(size=(10, 300))
    assert len(set(Columns((apart - apart.mean(0)) * scales).scale.tolist())) == 1
    assert_allclose(Columns((together - together.mean(0)) * scales).scale, together.std(0) * scales)
    exact = (np.corrcoef(together.T) ** 2)[~np.eye(300, dtype=bool)].mean()
    assert Columns(together)._squared_correlation(np.ones(300, bool)) == pytest.approx(exact, rel=0.1)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_gaps_do_not_hide_correlations(share):
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(5_000, 4)) + 0.5 * rng.normal(size=(5_000, 1))) * [1, 2, 3, 5]
    exact = (np.corrcoef(X.T) ** 2)[~np.eye(4, dtype=bool)].mean()
    X = np.where(rng.random(X.shape) < share, np.nan, X)
    assert Columns(X)._squared_correlation(np.ones(4, bool)) == pytest.approx(exact, rel=0.25)
    assert_allclose(Columns(X).scale, np.nanstd(X, 0))


@pytest.mark.parametrize("n_rows", [60, 200, 1_000])
def test_components_of_other_samples_are_found_too(n_rows):
    """Means and correlations of a part of the samples are not exactly zero."""
    pca = PCA().fit(correlated_rows(5_000))
    found = [
        len(set(Columns(pca.transform(correlated_rows(5_000)[start : start + n_rows])).scale.tolist())) == 1
        for start in range(0, 4_000, 200)
    ]
    assert np.mean(found) > 0.8
