"""Covariates of decoders, and size factors that are given."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_matrix
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import mean_squared_error
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import Pipeline

import skvae
from skvae import TorchGMM, VaDEClusterer, VAEEmbedder
from skvae.callbacks import EpochScores, LatentSnapshots
from skvae.models import LIKELIHOODS, CovariateInputs

N = 200
SETTINGS = {"likelihood": "negative_binomial", "hidden_layer_sizes": (16,), "max_epochs": 3, "random_state": 0}


@pytest.fixture(scope="module")
def counts():
    """Counts of two kinds of samples."""
    rng = np.random.default_rng(0)
    return rng.poisson(np.where(rng.integers(2, size=N)[:, None] == 1, 2, np.arange(8)))


@pytest.fixture(scope="module")
def covariates():
    """A covariate with two levels, a number and integers that are levels."""
    rng = np.random.default_rng(1)
    return pd.DataFrame(
        {"batch": rng.choice(["a", "b"], N), "age": rng.normal(40, 9, N), "donor": rng.integers(1, 4, size=N)}
    )


@pytest.fixture(scope="module")
def sizes():
    """Size factors."""
    return np.random.default_rng(2).uniform(0.5, 2, N)


@pytest.fixture(scope="module")
def fitted(counts, covariates, sizes):
    """A model with covariates and size factors."""
    return VAEEmbedder(2, **SETTINGS).fit(counts, covariates=covariates, size_factors=sizes)


def test_covariates_of_one_level_change_nothing(counts):
    plain = VAEEmbedder(2, **SETTINGS).fit(counts)
    constant = pd.DataFrame({"batch": ["a"] * N, "age": np.full(N, 0.1)})
    conditional = VAEEmbedder(2, **SETTINGS).fit(counts, covariates=constant)
    assert conditional.module_.covariates is None
    assert_array_equal(conditional.transform(counts), plain.transform(counts))
    assert_array_equal(conditional.score_samples(counts, constant), plain.score_samples(counts))
    with pytest.raises(ValueError, match=r"\['b'\]; it has 'a'"):
        conditional.score_samples(counts, {"batch": "b", "age": 0.1})


def test_equal_size_factors_change_nothing(counts):
    plain = VAEEmbedder(2, **SETTINGS).fit(counts)
    sized = VAEEmbedder(2, **SETTINGS).fit(counts, size_factors=np.full(N, 3))
    assert_allclose(sized.transform(counts, size_factors=np.full(N, 3)), plain.transform(counts), rtol=1e-5, atol=1e-6)
    scores = sized.score_samples(counts, size_factors=np.full(N, 3))
    assert_allclose(scores, plain.score_samples(counts), rtol=1e-5)


@pytest.mark.parametrize("name", ["poisson", "negative_binomial", "zero_inflated_negative_binomial"])
def test_totals_that_are_given_are_those_that_are_computed(counts, name):
    x = torch.tensor(counts, dtype=torch.float64)
    total, given = (LIKELIHOODS[name](x.mean(0), x.std(0)) for _ in range(2))
    total.size_factors, given.size_factors = "total", "given"
    sums = x.sum(1, keepdim=True).clamp(min=1)
    rows = torch.cat([x, (sums / x.mean(0).sum()).log()], 1)
    params = torch.randn(N, total.n_outputs(8), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert_allclose(given.inputs(rows), total.inputs(x), rtol=1e-9, atol=1e-12)
    assert_allclose(given.log_prob(rows, params).detach(), total.log_prob(x, params).detach(), rtol=1e-9)
    assert_array_equal(given.mean(params), total.mean(params))


def test_size_factors_scale_expected_counts(counts, fitted, covariates, sizes):
    likelihood, u = fitted.module_.likelihood, torch.zeros(1, 9)
    log_rate = likelihood.log_rate(torch.zeros(1, 8))
    assert_allclose(
        likelihood.log_rate(torch.zeros(1, 8), torch.tensor([[np.log(2.0)]])) - log_rate, np.log(2), rtol=1e-5
    )
    assert likelihood.sized(u)[0].shape == (1, 8)
    doubled = fitted.transform(2 * counts, size_factors=2 * sizes)
    assert_allclose(doubled, fitted.transform(counts, size_factors=sizes), rtol=1e-4, atol=1e-5)


def test_order_of_samples_and_columns_changes_nothing(counts, covariates, sizes, fitted):
    order = np.random.default_rng(3).permutation(N)
    again = VAEEmbedder(2, **SETTINGS).fit(counts[order], covariates=covariates.iloc[order], size_factors=sizes[order])
    scores = fitted.score_samples(counts, covariates, sizes)
    assert_allclose(again.score_samples(counts, covariates, sizes), scores, rtol=1e-5)
    assert_array_equal(fitted.score_samples(counts, covariates[["donor", "age", "batch"]], sizes), scores)


def test_weights_are_repetitions(counts, covariates, sizes):
    weight = np.random.default_rng(4).integers(3, size=N)
    repeated = np.repeat(np.arange(N), weight)
    weighted = VAEEmbedder(2, **SETTINGS).fit(counts, None, weight, covariates=covariates, size_factors=sizes)
    expected = VAEEmbedder(2, **SETTINGS).fit(
        counts[repeated], covariates=covariates.iloc[repeated], size_factors=sizes[repeated]
    )
    scores = expected.score_samples(counts, covariates, sizes)
    assert_allclose(weighted.score_samples(counts, covariates, sizes), scores, rtol=1e-5)
    mean = weighted.score(counts, sample_weight=weight, covariates=covariates, size_factors=sizes)
    assert mean == pytest.approx(np.average(scores, weights=weight), rel=1e-5)


@pytest.mark.parametrize("make", [csr_matrix, pd.DataFrame, torch.tensor, lambda X: X.astype(np.float32)])
def test_forms_of_samples(counts, covariates, sizes, fitted, make):
    X = make(counts.astype(float))
    again = clone(fitted).fit(X, covariates=covariates, size_factors=sizes)
    scores = fitted.score_samples(counts, covariates, sizes)
    assert_allclose(again.score_samples(X, covariates, sizes), scores, rtol=1e-4)
    assert_allclose(again.reconstruct(X, covariates, sizes), fitted.reconstruct(counts, covariates, sizes), rtol=1e-3)


@pytest.mark.parametrize(
    "make", [list, np.array, pd.Series, pd.Categorical, lambda values: np.array(values)[:, None], torch.tensor]
)
def test_forms_of_covariates(counts, make):
    levels = np.random.default_rng(5).integers(2, size=N).tolist()
    expected = VAEEmbedder(2, **SETTINGS).fit(counts, covariates=levels).score_samples(counts, levels)
    vae = VAEEmbedder(2, **SETTINGS).fit(counts, covariates=make(levels))
    assert_array_equal(vae.score_samples(counts, make(levels)), expected)
    assert list(vae.covariate_levels_.values()) == [[0, 1]]


def test_many_integers_may_be_numbers(counts):
    ages = np.arange(N) % 30
    with pytest.warns(UserWarning, match=r"covariates\['0'\] has 30 integers, each of which is a level"):
        vae = VAEEmbedder(2, **SETTINGS).fit(counts, covariates=ages)
    assert len(vae.covariate_levels_["0"]) == 30
    assert VAEEmbedder(2, **SETTINGS).fit(counts, covariates=ages.astype(float)).covariate_levels_ == {"0": None}


def test_covariates_in_a_dict(counts, covariates, sizes, fitted):
    arrays = {name: covariates[name].to_numpy() for name in covariates}
    expected = fitted.score_samples(counts, covariates, sizes)
    assert_array_equal(fitted.score_samples(counts, arrays, sizes), expected)
    again = clone(fitted).fit(counts, covariates=arrays, size_factors=sizes)
    assert_array_equal(again.score_samples(counts, covariates, sizes), expected)
    one = fitted.reconstruct(counts, arrays | {"batch": np.array("a"), "donor": torch.tensor(2)}, sizes)
    assert_array_equal(one, fitted.reconstruct(counts, covariates.assign(batch="a", donor=2), sizes))


def test_callbacks_see_features_alone(counts, covariates, sizes):
    snapshots = LatentSnapshots(counts[:5], epochs=[1, 3])
    vae = VAEEmbedder(2, callbacks=[snapshots], **SETTINGS).fit(counts, covariates=covariates)
    taken = next(part for _, part in vae.net_.callbacks_ if isinstance(part, LatentSnapshots)).snapshots_
    assert_allclose(taken.codes[-1], vae.transform(counts[:5]), rtol=1e-4, atol=1e-6)
    scores = EpochScores({"mse": mean_squared_error}, {"train": counts[:5]})
    with pytest.raises(ValueError, match="EpochScores decodes samples"):
        VAEEmbedder(2, callbacks=[scores], **SETTINGS).fit(counts, covariates=covariates)
    with pytest.raises(ValueError, match="has no size_factors"):
        VAEEmbedder(2, callbacks=[snapshots], **SETTINGS).fit(counts, size_factors=sizes)


def test_requests_of_metadata_are_kept(tmp_path, counts, covariates):
    with config_context(enable_metadata_routing=True):
        vae = VAEEmbedder(2, **SETTINGS).set_fit_request(covariates=True).fit(counts, covariates=covariates)
    skvae.save(vae, tmp_path / "vae.skvae")
    for copied in (skvae.load(tmp_path / "vae.skvae"), pickle.loads(pickle.dumps(vae)), clone(vae)):
        assert copied.get_metadata_routing().fit.requests["covariates"] is True
        assert copied.get_metadata_routing().fit.requests["sample_weight"] is None


def test_levels_and_numbers(fitted):
    assert fitted.covariate_levels_["batch"] is not fitted.covariate_levels_["batch"]
    with pytest.raises(NotFittedError):
        _ = VAEEmbedder().covariate_levels_
    assert fitted.covariate_levels_ == {"batch": ["a", "b"], "age": None, "donor": [1, 2, 3]}
    inputs = CovariateInputs(1, [2, 0, 3])
    assert inputs.n_outputs == 6
    assert inputs(torch.tensor([[1.0, 0.5, 2.0]])).tolist() == [[0, 1, 0.5, 0, 0, 1]]


def test_codes_do_not_depend_on_covariates_but_decoded_samples_do(counts, covariates, sizes, fitted):
    codes = fitted.transform(counts, sizes)
    levels = {"batch": "a", "age": 40.0, "donor": 2}
    of_a = fitted.inverse_transform(codes, levels)
    of_b = fitted.inverse_transform(codes, levels | {"batch": "b"})
    assert not np.allclose(of_a, of_b)
    assert_allclose(fitted.reconstruct(counts, levels, sizes), of_a, rtol=1e-6)
    frame = pd.DataFrame([levels] * N)
    assert_array_equal(fitted.inverse_transform(codes, frame), of_a)
    assert fitted.sample(4, random_state=0, covariates=levels).shape == (4, 8)
    assert (fitted.sample(500, 0, levels) != fitted.sample(500, 0, levels | {"donor": 1})).any()


def test_neighbours_are_of_both_batches():
    rng = np.random.default_rng(0)
    kind, batch = rng.integers(3, size=500), rng.integers(2, size=500)
    rates = rng.gamma(1, 5, size=(3, 30))[kind] * np.where(batch[:, None] == 1, rng.gamma(2, 0.5, size=30), 1)
    X = rng.poisson(rates)

    def share_of_other_batch(vae):
        codes = vae.transform(X)
        nearest = NearestNeighbors(n_neighbors=11).fit(codes).kneighbors(codes, return_distance=False)[:, 1:]
        return (batch[nearest] != batch[:, None]).mean()

    settings = {"likelihood": "poisson", "max_epochs": 60, "random_state": 0}
    assert share_of_other_batch(VAEEmbedder(3, **settings).fit(X)) < 0.15
    assert share_of_other_batch(VAEEmbedder(3, **settings).fit(X, covariates=batch)) > 0.35


def test_scores_are_those_given_the_covariates():
    rng = np.random.default_rng(0)
    batch = rng.integers(2, size=600)
    X = rng.normal(size=(600, 4)) + 6 * batch[:, None]
    vae = VAEEmbedder(1, max_epochs=60, random_state=0).fit(X, covariates=batch)
    assert vae.score(X, covariates=batch) > vae.score(X, covariates=1 - batch) + 5
    assert_allclose(vae.sample(2_000, 0, covariates=0).mean(0), 0, atol=0.5)
    assert_allclose(vae.sample(2_000, 0, covariates=1).mean(0), 6, atol=0.5)


def test_imputation_and_frames(covariates):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(size=N), "kind": rng.choice(list("uvw"), N)}, index=np.arange(N) + 3)
    frame.loc[5, "x"], frame.loc[7, "kind"] = np.nan, None
    vae = VAEEmbedder(2, max_epochs=3, random_state=0).fit(frame, covariates=covariates["batch"])
    filled = vae.impute(frame, covariates=covariates["batch"])
    assert not filled.isna().any(axis=None)
    assert filled.index.equals(frame.index)
    assert vae.reconstruct(frame, "a").index.equals(frame.index)
    assert list(vae.sample(3, covariates="b").columns) == ["x", "kind"]
    assert len(vae.interpolate(frame[:2], frame[2:4], 3, covariates="a")) == 6
    codes = vae.set_output(transform="pandas").transform(frame)
    assert codes.index.equals(frame.index)


@pytest.mark.parametrize("architecture", ["conv", "hybrid"])
def test_images(architecture):
    rng = np.random.default_rng(0)
    X, batch = rng.integers(256, size=(60, 64), dtype=np.uint8), rng.integers(2, size=60)
    vae = VAEEmbedder(2, image_shape=(8, 8), architecture=architecture, max_epochs=2, random_state=0)
    vae.fit(X, covariates=batch)
    assert np.isfinite(vae.score(X, covariates=batch))
    assert vae.sample(2, covariates=1).shape == (2, 64)


def test_files_and_pickles(tmp_path, counts, covariates, sizes, fitted):
    scores = fitted.score_samples(counts, covariates, sizes)
    skvae.save(fitted, tmp_path / "vae.skvae")
    for copied in (skvae.load(tmp_path / "vae.skvae"), pickle.loads(pickle.dumps(fitted))):
        assert copied.covariate_levels_ == fitted.covariate_levels_
        assert_array_equal(copied.score_samples(counts, covariates, sizes), scores)


@pytest.mark.parametrize(
    "changed",
    [
        [[["batch", ["a", "b", "c"]], ["age", None, 40.0, 9.0], ["donor", [1, 2, 3]]], 1.0],
        [[["batch", ["a", "a"]], ["age", None, 40.0, 9.0], ["donor", [1, 2, 3]]], 1.0],
        [[["batch", "ab"], ["age", None, 40.0, 9.0], ["donor", [1, 2, 3]]], 1.0],
        [[["batch", ["a", None]], ["age", None, 40.0, 9.0], ["donor", [1, 2, 3]]], 1.0],
        [[["batch", ["a", "b"]], ["age", None, 40.0, -9.0], ["donor", [1, 2, 3]]], 1.0],
        [[["batch", ["a", "b"]], ["age", None, 40.0, 9.0], ["donor", [1, 2, 3]]], float("nan")],
        [[["batch", ["a", "b"]], ["age", None, 40.0, 9.0], ["donor", [1, 2, 3]]], None],
    ],
)
def test_files_that_contradict_the_model_are_refused(tmp_path, fitted, changed):
    copied = pickle.loads(pickle.dumps(fitted))
    copied._conditions = changed
    with pytest.raises(ValueError, match="could not be read back"):
        skvae.save(copied, tmp_path / "vae.skvae")


def test_training_continues_and_resumes(tmp_path, counts, covariates, sizes):
    given = {"covariates": covariates, "size_factors": sizes}
    vae = VAEEmbedder(2, warm_start=True, **SETTINGS).fit(counts, **given).fit(counts, **given)
    assert vae.n_iter_ == 6
    with pytest.raises(ValueError, match="fitted with size_factors"):
        vae.fit(counts)
    kept = VAEEmbedder(2, checkpoint=tmp_path / "state", **SETTINGS).fit(counts, **given)
    plain = VAEEmbedder(2, **SETTINGS).fit(counts, **given)
    assert_array_equal(kept.transform(counts, sizes), plain.transform(counts, sizes))
    stopped = VAEEmbedder(2, early_stopping=True, **SETTINGS).fit(counts, **given)
    assert len(stopped.history_) == 3
    assert "valid_loss" in stopped.history_[0]


def test_fit_without_covariates_forgets_them(counts, covariates):
    vae = VAEEmbedder(2, **SETTINGS).fit(counts, covariates=covariates["batch"]).fit(counts)
    assert vae.covariate_levels_ == {}
    assert_array_equal(vae.transform(counts), VAEEmbedder(2, **SETTINGS).fit_transform(counts))


def test_metadata_are_routed(counts, covariates, sizes, fitted):
    given = {"covariates": covariates, "size_factors": sizes}
    with config_context(enable_metadata_routing=True):
        vae = VAEEmbedder(2, **SETTINGS).set_fit_request(covariates=True, size_factors=True)
        vae.set_transform_request(size_factors=True).set_score_request(covariates=True, size_factors=True)
        pipeline = Pipeline([("vae", vae), ("gmm", TorchGMM(2, random_state=0))]).fit(counts, **given)
        labels = pipeline.predict(counts, size_factors=sizes)
        search = GridSearchCV(vae, {"n_components": [1, 2]}, cv=2).fit(counts, **given)
    assert_array_equal(labels, pipeline[-1].predict(fitted.transform(counts, sizes)))
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    pipeline = Pipeline([("vae", VAEEmbedder(2, **SETTINGS)), ("gmm", TorchGMM(2, random_state=0))])
    assert len(pipeline.fit(counts, vae__covariates=covariates["batch"]).predict(counts)) == N


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"covariates": ["a"] * 3}, "covariates has 3 rows for 200 samples"),
        ({"covariates": ["a"] * (N - 1) + [None]}, "missing or infinite values"),
        ({"covariates": [0.5] * (N - 1) + [np.inf]}, "missing or infinite values"),
        ({"covariates": ["a"] * (N - 1) + [1]}, "several types"),
        ({"covariates": np.zeros((N, 2, 2))}, "should be of shape"),
        ({"size_factors": np.zeros(N)}, "positive and finite"),
        ({"size_factors": np.full(N, np.nan)}, "positive and finite, but 200 are not, such as nan"),
        ({"size_factors": 1.0}, "should be 200 numbers"),
        ({"covariates": pd.DataFrame(np.ones((N, 2)), columns=["s", "s"])}, "occur twice"),
        ({"covariates": pd.DataFrame(index=range(N))}, "have no columns"),
        ({"covariates": {"batch": "a"}}, "should be of shape"),
        ({"covariates": pd.date_range("2026-01-01", periods=N)}, "type Timestamp"),
        ({"size_factors": np.ones(3)}, "should be 200 numbers"),
        ({"size_factors": "total"}, "should be 200 numbers"),
        ({"covariates": ["a"] * N, "X_val": np.ones((3, 8))}, "X_val has no covariates"),
    ],
)
def test_bad_arguments_of_fit(counts, arguments, message):
    vae = VAEEmbedder(2, **SETTINGS)
    with pytest.raises(ValueError, match=message):
        vae.fit(counts, **arguments)
    assert not hasattr(vae, "module_")
    assert not hasattr(vae, "_conditions")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "fitted with size_factors; give those"),
        ({"size_factors": np.ones(N)}, "fitted with covariates; give those.*batch 'a', 'b'; age"),
        ({"size_factors": np.ones(N), "covariates": "a"}, "give a dict with a level of each"),
        ({"size_factors": np.ones(N), "covariates": {"batch": "a"}}, "lack age, donor"),
        ({"size_factors": np.ones(N), "covariates": {"batch": "a", "age": 4.0, "donor": 1, "x": 1}}, "have x"),
        (
            {"size_factors": np.ones(N), "covariates": {"batch": "c", "age": 4.0, "donor": 1}},
            r"\['c'\]; it has 'a', 'b'",
        ),
        (
            {"size_factors": np.ones(N), "covariates": {"batch": "a", "age": "old", "donor": 1}},
            "had numbers in the training data",
        ),
        ({"size_factors": np.ones(N), "covariates": np.ones((N, 2))}, "2 columns, but had 3"),
    ],
)
def test_bad_arguments_of_scores(counts, fitted, arguments, message):
    with pytest.raises(ValueError, match=message):
        fitted.score_samples(counts, **arguments)


def test_models_without_covariates_take_none(counts, covariates, sizes):
    vae = VAEEmbedder(2, **SETTINGS).fit(counts)
    with pytest.raises(ValueError, match="fitted without them"):
        vae.score(counts, covariates=covariates)
    with pytest.raises(ValueError, match="fitted without them"):
        vae.transform(counts, size_factors=sizes)


def test_what_does_not_go_with_them(tmp_path, counts, covariates, sizes, fitted):
    with pytest.raises(ValueError, match="partial_fit has no covariates"):
        fitted.partial_fit(counts)
    with pytest.raises(ValueError, match="counts in all columns"):
        VAEEmbedder(2, max_epochs=1).fit(counts / 9, size_factors=sizes)
    with pytest.raises(ValueError, match="leave one of them out"):
        VAEEmbedder(2, size_factor="total", **SETTINGS).fit(counts, size_factors=sizes)
    with pytest.raises(ValueError, match="augment changes features alone"):
        VAEEmbedder(2, augment=lambda u, generator: u, **SETTINGS).fit(counts, covariates=covariates)
    with pytest.raises(TypeError, match="VAEEmbedder.fit takes covariates"):
        VaDEClusterer(2, latent_dim=2).fit(counts, covariates=covariates)
    with pytest.raises(ValueError, match="does not take; fit it without them"):
        VaDEClusterer(2, latent_dim=2, pretrained=fitted).fit(counts)
    with pytest.raises(TypeError, match="fitted with size_factors"):
        skvae.to_onnx(fitted, tmp_path / "vae.onnx")
    with pytest.raises(ValueError, match="interpolate takes no size_factors"):
        fitted.interpolate(counts[:2], counts[2:4], covariates={"batch": "a", "age": 1.0, "donor": 1})
    with pytest.raises(ValueError, match="impute takes no size_factors"):
        fitted.impute(counts, covariates=covariates)
    missing = counts.astype(float)
    missing[0, 0] = np.nan
    with pytest.raises(ValueError, match="Size factors need the counts of all features"):
        VAEEmbedder(2, **SETTINGS).fit(missing, size_factors=sizes)


@pytest.mark.parametrize("likelihood", ["negative_binomial", "zero_inflated_negative_binomial"])
def test_dispersions_of_levels(tmp_path, likelihood):
    rng = np.random.default_rng(0)
    batch = rng.integers(2, size=600)
    theta = np.where(batch == 1, 0.5, 20)[:, None]
    X = rng.poisson(10 * rng.gamma(theta, 1 / theta, size=(600, 6)))
    settings = SETTINGS | {"likelihood": likelihood, "max_epochs": 60, "lr": 1e-2}
    alike = VAEEmbedder(1, **settings).fit(X, covariates=batch)
    vae = VAEEmbedder(1, dispersion="covariates", **settings).fit(X, covariates=batch)
    assert vae.score(X, covariates=batch) > alike.score(X, covariates=batch) + 0.3
    shifts = vae.module_.covariates.dispersion
    assert (shifts[1] < shifts[0]).all(), "counts of the second level vary more"
    spread = [vae.sample(2_000, 0, covariates=level).var(0).mean() for level in (0, 1)]
    assert spread[1] > 3 * spread[0]
    assert_allclose(vae.inverse_transform(np.zeros((1, 1)), covariates=0), 10, rtol=0.5)
    skvae.save(vae, tmp_path / "vae.skvae")
    assert_array_equal(skvae.load(tmp_path / "vae.skvae").score_samples(X, batch), vae.score_samples(X, batch))


def test_dispersions_without_levels_or_counts(counts, covariates):
    plain = VAEEmbedder(2, **SETTINGS).fit(counts)
    alike = VAEEmbedder(2, dispersion="covariates", **SETTINGS).fit(counts, covariates=["a"] * N)
    assert_array_equal(alike.transform(counts), plain.transform(counts))
    with pytest.raises(ValueError, match="needs covariates in fit"):
        VAEEmbedder(2, dispersion="covariates", **SETTINGS).fit(counts)
    vae = VAEEmbedder(2, warm_start=True, **SETTINGS).fit(counts, covariates=covariates)
    with pytest.raises(ValueError, match="another value of dispersion"):
        vae.set_params(dispersion="covariates").fit(counts, covariates=covariates)
    with pytest.raises(ValueError, match="counts in all columns"):
        VAEEmbedder(2, dispersion="covariates", max_epochs=1).fit(counts / 9, covariates=covariates)


def test_the_parameter_and_the_argument_of_size_factors_are_told_apart(counts):
    with pytest.raises(
        TypeError, match="unexpected keyword argument 'size_factor'; size_factors is one of its arguments"
    ):
        VAEEmbedder(2).fit(counts, size_factor=counts.sum(1))
