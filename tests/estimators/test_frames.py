"""Data frames with columns of different types, and likelihoods by column."""

import pickle
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from pandas.testing import assert_frame_equal
from sklearn.base import clone
from sklearn.compose import make_column_selector
from sklearn.metrics import v_measure_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from skorch.callbacks import Callback

import skvae
from skvae import AutoencoderEmbedder, TorchGMM, VaDEClusterer, VAEEmbedder
from skvae.data.frames import FrameCodec, categories_of, make_codec, merge_codecs
from skvae.metrics import reconstruction_error
from skvae.models import Categorical

N = 300
SHORT = {"max_epochs": 3, "random_state": 0}
ESTIMATORS = {
    "VAEEmbedder": VAEEmbedder(2, **SHORT),
    "AutoencoderEmbedder": AutoencoderEmbedder(2, **SHORT),
    "VaDEClusterer": VaDEClusterer(3, latent_dim=2, pretrain_epochs=3, **SHORT),
}
over_estimators = pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
LIKELIHOODS = {
    "age": "gaussian_features",
    "city": "categorical",
    "visits": "negative_binomial",
    "member": "bernoulli",
    "share": "continuous_bernoulli",
    "tier": "categorical",
    "flag": "bernoulli",
}
# Of fits that are short, and of the column of counts; `test_counts_are_hinted_at` expects the hint.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Column.*whole numbers with a long tail", "ignore::sklearn.exceptions.ConvergenceWarning"
)


def make_table(n=N, seed=0):
    """Customers of three groups."""
    rng = np.random.default_rng(seed)
    group = rng.integers(3, size=n)
    table = pd.DataFrame(
        {
            "age": rng.normal(30 + 15 * group, 3),
            "city": np.array(["Rome", "Oslo", "Kiev"], dtype=object)[np.where(rng.random(n) < 0.8, group, 1)],
            "visits": rng.negative_binomial(1, 0.2, size=n),
            "member": rng.random(n) < 0.1 + 0.4 * group,
            "share": rng.beta(2 + 3 * group, 4),
            "tier": pd.Categorical(
                np.array(["low", "mid", "high"])[group], ["low", "mid", "high", "top"], ordered=True
            ),
            "flag": (rng.random(n) < 0.5).astype(float),
        }
    )
    return table, group


@pytest.fixture(scope="module")
def table():
    return make_table()[0]


@pytest.fixture(scope="module")
def gaps(table):
    gaps = table.copy()
    gaps.loc[::7, "city"] = None
    gaps.loc[::5, "age"] = np.nan
    gaps.loc[3::11, "tier"] = None
    return gaps


@pytest.fixture(scope="module")
def vae(table):
    return clone(ESTIMATORS["VAEEmbedder"]).fit(table)


def polars_of(table):
    columns = {name: table[name].astype(object).where(table[name].notna(), None).tolist() for name in table}
    return pl.DataFrame(columns).with_columns(pl.col("tier").cast(pl.Enum(["low", "mid", "high", "top"])))


def assert_same_types(frame, table):
    assert list(frame.columns) == list(table.columns)
    assert frame.dtypes.tolist() == table.dtypes.tolist()


@over_estimators
def test_frames_in_and_frames_out(estimator, table):
    fitted = clone(estimator).fit(table)
    assert fitted.likelihood_ == "mixed"
    assert fitted.column_likelihoods_ == LIKELIHOODS
    assert fitted.n_features_in_ == 7
    drawn = fitted.sample(5, random_state=0)
    drawn = drawn[0] if isinstance(drawn, tuple) else drawn
    assert_same_types(drawn, table)
    assert drawn["visits"].min() >= 0
    codes = fitted.transform(table)
    for frame in (fitted.reconstruct(table), fitted.inverse_transform(codes)):
        assert_same_types(frame.drop(columns="visits"), table.drop(columns="visits"))
        assert frame["visits"].dtype == np.float64, "expected counts are no integers"
        assert len(frame) == N
    assert_frame_equal(fitted.reconstruct(table), fitted.inverse_transform(codes), rtol=1e-4)
    assert np.isfinite(fitted.score(table))
    again = clone(estimator).fit(table)
    assert_array_equal(again.transform(table), codes)


def test_samples_follow_the_table(table):
    vae = VAEEmbedder(4, max_epochs=60, random_state=0).fit(table)
    drawn = vae.sample(2_000, random_state=0)
    shares = drawn["city"].value_counts(normalize=True)
    expected = table["city"].value_counts(normalize=True)
    assert_allclose(shares[expected.index], expected, atol=0.12)
    assert drawn["tier"].cat.categories.tolist() == ["low", "mid", "high", "top"]
    assert (drawn["tier"] == "top").mean() < 0.05
    assert drawn["age"].mean() == pytest.approx(table["age"].mean(), rel=0.1)
    age_of_tier = drawn.groupby("tier", observed=True)["age"].mean()
    assert age_of_tier["low"] + 10 < age_of_tier["high"]


def test_groups_are_found():
    table, group = make_table(600, seed=1)
    labels = VaDEClusterer(3, latent_dim=3, random_state=0).fit_predict(table)
    assert v_measure_score(group, labels) > 0.9


def test_clusters_have_samples_as_frames(table):
    vade = clone(ESTIMATORS["VaDEClusterer"]).fit(table)
    X, labels = vade.sample(4, cluster=1)
    assert_same_types(X, table)
    assert (labels == 1).all()
    assert vade.cluster_centers_.shape == (3, 7)


@over_estimators
def test_missing_values_are_imputed(estimator, gaps):
    fitted = clone(estimator).fit(gaps)
    filled = fitted.impute(gaps)
    assert_same_types(filled, gaps)
    assert not filled.isna().any().any()
    for name in gaps:
        present = gaps[name].notna()
        assert (filled[name][present] == gaps[name][present]).all()


def test_imputed_categories_are_the_most_probable(table):
    gaps = table.copy()
    gaps.loc[::4, "tier"] = None
    filled = VAEEmbedder(3, max_epochs=80, random_state=0).fit(gaps).impute(gaps)
    assert (filled["tier"] == table["tier"])[::4].mean() > 0.8


def test_paths_are_frames(vae, table):
    path = vae.interpolate(table.head(2), table.tail(2), n_steps=3)
    assert len(path) == 6
    ends = vae.reconstruct(pd.concat([table.head(2), table.tail(2)], ignore_index=True))
    assert_frame_equal(path.iloc[[0, 3, 2, 5]].reset_index(drop=True), ends, rtol=1e-4)


def test_frames_of_polars(table, vae):
    frame = polars_of(table)
    fitted = clone(vae).fit(frame)
    assert_array_equal(fitted.transform(frame), vae.transform(table))
    drawn = fitted.sample(4, random_state=1)
    assert isinstance(drawn, pl.DataFrame)
    assert drawn.schema == frame.schema
    assert drawn["city"].to_list() == vae.sample(4, random_state=1)["city"].tolist()
    assert fitted.reconstruct(frame)["visits"].dtype == pl.Float64


def test_integers_and_booleans_with_gaps():
    table = pd.DataFrame(
        {
            "a": pd.array([1, None, 3, 40] * 20, dtype="Int64"),
            "b": pd.array([True, None, False, True] * 20, dtype="boolean"),
            "c": ["x", None, "y", "x"] * 20,
        }
    )
    vae = VAEEmbedder(1, **SHORT).fit(table)
    assert vae.impute(table).dtypes.tolist() == table.dtypes.tolist()
    assert vae.sample(3).dtypes.tolist() == table.dtypes.tolist()
    assert vae.impute(table)["a"][0] == 1


@pytest.mark.parametrize("kind", ["categories", "numbers"])
def test_frames_of_one_kind_are_as_arrays(kind):
    codes = np.random.default_rng(0).integers(3, size=(100, 4))
    if kind == "categories":
        frame = pd.DataFrame(np.array(list("abc"))[codes], columns=list("wxyz"))
        array, likelihood = codes, "categorical"
    else:
        frame = pd.DataFrame(codes - 1.5, columns=list("wxyz"))
        array, likelihood = frame.to_numpy(), "auto"
    one = VAEEmbedder(2, **SHORT).fit(frame)
    two = VAEEmbedder(2, likelihood=likelihood, **SHORT).fit(array.astype(float))
    assert_array_equal(one.transform(frame), two.transform(array.astype(float)))
    assert one.score(frame) == two.score(array.astype(float))


def test_lists_of_likelihoods(table):
    likelihood = [
        ("amounts", "gaussian_features", ["visits", "age"]),
        ("words", "categorical", make_column_selector(dtype_include=["category", object, "str", bool])),
        ("rest", "auto", ["share"]),
    ]
    vae = VAEEmbedder(2, likelihood=likelihood, **SHORT).fit(table)
    assert vae.column_likelihoods_ == {**LIKELIHOODS, "visits": "gaussian_features", "member": "categorical"}
    assert [entry[0] for entry in clone(vae).likelihood] == ["amounts", "words", "rest"]
    codes = VAEEmbedder(2, likelihood=[("codes", "categorical", ["flag"])], **SHORT).fit(table)
    assert set(codes.sample(50)["flag"]) <= {0.0, 1.0}
    assert codes.column_likelihoods_["flag"] == "categorical"


def test_lists_for_arrays():
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.normal(size=(90, 2)), rng.integers(3, size=(90, 2)), rng.random(90)])
    likelihood = [("numbers", "gaussian_features", [0, 1]), ("codes", "categorical", slice(2, 4))]
    vae = VAEEmbedder(2, likelihood=likelihood, **SHORT).fit(X)
    assert list(vae.column_likelihoods_.values()) == ["gaussian_features"] * 2 + ["categorical"] * 2 + [
        "continuous_bernoulli"
    ]
    assert isinstance(vae.sample(2), np.ndarray)
    whole = VAEEmbedder(2, likelihood=[("all", "gaussian", [0, 1, 2, 3, 4])], **SHORT).fit(X)
    plain = VAEEmbedder(2, likelihood="gaussian", **SHORT).fit(X)
    assert_allclose(whole.transform(X), plain.transform(X), rtol=1e-6, atol=1e-9)


def test_columns_of_an_entry_keep_their_order():
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.integers(3, size=60), rng.integers(5, size=60), rng.normal(size=60)])
    module = Categorical([5, 3])
    vae = VAEEmbedder(1, likelihood=[("codes", module, [1, 0])], **SHORT).fit(X)
    assert vae.module_.likelihood.features == [[1, 0], [2]]
    assert vae.sample(200)[:, 1].max() > 2
    one = VAEEmbedder(1, likelihood=[("codes", Categorical([5, 3]), [1, 0])], **SHORT).fit(X[:, :2])
    assert one.sample(200)[:, 0].max() == 2


def test_entries_have_noise_scales_of_their_own():
    X = np.random.default_rng(0).normal(size=(60, 4))
    vae = VAEEmbedder(1, likelihood=[("a", "gaussian", [0, 1]), ("b", "gaussian", [2, 3])], **SHORT).fit(X)
    assert len(list(vae.module_.likelihood.parameters())) == 2


def test_forms_of_arrays_with_a_list():
    X = np.random.default_rng(0).normal(size=(40, 3))
    likelihood = [("all", "gaussian_features", slice(None))]
    expected = VAEEmbedder(1, likelihood=likelihood, **SHORT).fit(X)
    assert expected.likelihood_ == "gaussian_features"
    for form in (X.tolist(), torch.utils.data.TensorDataset(torch.from_numpy(X))):
        vae = VAEEmbedder(1, likelihood=likelihood, **SHORT).fit(form)
        assert_allclose(vae.transform(X), expected.transform(X), rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="Expected 2D array"):
        VAEEmbedder(1, likelihood=likelihood, **SHORT).fit(X[:, 0])


def test_many_columns_take_few_passes():
    class Counted:
        reads = 0

        def __init__(self, X):
            self.X, self.shape, self.dtype = X, X.shape, X.dtype

        def __getitem__(self, rows):
            Counted.reads += 1
            return self.X[rows]

    X = np.random.default_rng(0).normal(size=(200, 100))
    VAEEmbedder(1, max_epochs=1, likelihood=[("a", "gaussian_features", [0])], random_state=0).fit(Counted(X))
    assert Counted.reads < 60


DTYPES = {
    "categories of numbers": lambda n: pd.Series(np.arange(n) % 4).astype("category"),
    "categories of nullable numbers": lambda n: pd.Series([None, 1, 2] * (n // 3), dtype="Int64").astype("category"),
    "text": lambda n: pd.Series(["a", None, "b"] * (n // 3), dtype="string"),
    "bytes": lambda n: pd.Series(200 + np.arange(n) % 55, dtype="uint8"),
    "signed bytes": lambda n: pd.Series(np.arange(n) % 128, dtype="int8"),
    "nullable bytes": lambda n: pd.Series([None, 255, 0] * (n // 3), dtype="UInt8"),
    "large integers": lambda n: pd.Series(np.arange(n) * 2**53, dtype="uint64"),
    "halves": lambda n: pd.Series(np.linspace(0, 1, n), dtype="float32"),
}


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_come_back(dtype):
    values = DTYPES[dtype](120)
    table = pd.DataFrame({"a": values, "b": ["x", "y", "y", "z"] * 30})
    vae = VAEEmbedder(1, **SHORT).fit(table)
    drawn = vae.sample(300, random_state=0)
    assert drawn.dtypes.astype(str).tolist() == table.dtypes.astype(str).tolist()
    assert (vae.column_likelihoods_["a"] == "categorical") == (values.dtype in ("category", "string"))
    frame = pl.DataFrame({name: [None if pd.isna(v) else v for v in table[name].tolist()] for name in table})
    assert VAEEmbedder(1, **SHORT).fit(frame).sample(300).schema == frame.schema


def test_other_dtypes_become_floats():
    table = pd.DataFrame({"a": pd.arrays.SparseArray(np.arange(40.0)), "b": list("xyxy") * 10})
    with pytest.warns(UserWarning, match="sparse columns"):
        vae = VAEEmbedder(1, **SHORT).fit(table)
    assert vae.sample(3)["a"].dtype == np.float64
    frame = pl.DataFrame({"a": pl.Series(np.arange(40.0)).cast(pl.Decimal(10, 2)), "b": list("xyxy") * 10})
    assert VAEEmbedder(1, **SHORT).fit(frame).sample(3)["a"].dtype == pl.Float64


def test_frames_of_flags_and_numbers_are_arrays(table):
    dummies = pd.get_dummies(table[["age", "city"]])
    vae = VAEEmbedder(2, **SHORT).fit(dummies)
    assert vae.likelihood_ == "gaussian"
    assert isinstance(vae.sample(2), np.ndarray)


def test_rows_keep_their_index(gaps):
    vae = VAEEmbedder(2, **SHORT).fit(gaps)
    rows = gaps.iloc[50:60].set_axis([f"r{i}" for i in range(10)])
    assert vae.impute(rows).index.equals(rows.index)
    assert vae.reconstruct(rows).index.equals(rows.index)
    whole = rows.assign(visits=rows["visits"] + 0.4)
    with pytest.raises(ValueError, match=r"Column\(s\) \['visits'\]"):
        vae.impute(whole)
    numbers = VAEEmbedder(2, likelihood=[("n", "gaussian_features", ["visits"])], **SHORT).fit(gaps)
    assert_array_equal(numbers.impute(whole)["visits"], whole["visits"])


def test_categories_of_other_dtypes_are_filled():
    table = pd.DataFrame({"n": [1.0, 2.0, 3.0] * 10, "c": pd.Categorical(["x", "y", None] * 10)})
    vae = VAEEmbedder(1, **SHORT).fit(table)
    filled = vae.impute(pd.DataFrame({"n": [1.0, 2.0, 3.0], "c": pd.Categorical(["x", "x", None])}))
    assert filled["c"].tolist()[:2] == ["x", "x"]
    assert filled["c"][2] in ("x", "y")


def test_categories_of_zero_and_one_are_no_flags():
    table = pd.DataFrame({"k": pd.Categorical([0, 1] * 20), "n": np.arange(40.0)})
    assert VAEEmbedder(1, **SHORT).fit(table).column_likelihoods_["k"] == "categorical"


def test_numbers_instead_of_a_frame(vae, table):
    encoded = np.column_stack([table["age"], np.zeros((N, 6))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert vae.transform(encoded).shape == (N, 2)
    encoded[0, 1] = 7.5
    with pytest.warns(UserWarning, match="feature names"), pytest.warns(UserWarning, match="outside the support"):
        vae.transform(encoded)


def test_subclasses_of_frames(table, vae):
    class Table(pd.DataFrame):
        pass

    assert_array_equal(clone(vae).fit(Table(table)).transform(Table(table)), vae.transform(table))


def test_reconstruction_errors_are_of_numbers(vae, table):
    with pytest.raises(TypeError, match="compare the columns"):
        reconstruction_error(vae, table)


def test_views_of_images_with_lists(table):
    X = np.random.default_rng(0).random((60, 64))
    likelihood = [("a", "gaussian_features", slice(0, 32)), ("b", "bernoulli", slice(32, 64))]
    settings_ = {"image_shape": (8, 8), "channels": (4,), "n_init": 3, "pretrain_epochs": 2, "max_epochs": 2}
    vade = VaDEClusterer(2, likelihood=likelihood, random_state=0, **settings_).fit(X)
    assert "random" in vade.held_out_scores_


def test_checkpoints_are_of_the_same_likelihoods(tmp_path):
    class Interrupts(Callback):
        def on_epoch_end(self, net, **kwargs):
            if len(net.history) == 2:
                raise KeyboardInterrupt

    X = np.random.default_rng(0).random((60, 4))
    settings_ = {"checkpoint": tmp_path / "fit", **SHORT}
    first = [("a", "bernoulli", [0, 1]), ("b", "gaussian_features", [2, 3])]
    with pytest.raises(KeyboardInterrupt):
        VAEEmbedder(1, likelihood=first, callbacks=[Interrupts()], **settings_).fit(X)
    second = [("a", "continuous_bernoulli", [0, 1]), ("b", "gaussian_features", [2, 3])]
    with pytest.raises(ValueError, match="checkpoint"):
        VAEEmbedder(1, likelihood=second, **settings_).fit(X)


def test_searches_and_pipelines(table):
    pipeline = make_pipeline(VAEEmbedder(2, **SHORT), TorchGMM(2, random_state=0))
    search = GridSearchCV(pipeline, {"vaeembedder__likelihood": ["auto"]}, cv=2, error_score="raise").fit(table)
    assert len(search.predict(table)) == N


@over_estimators
def test_copies_and_files(estimator, gaps, tmp_path):
    fitted = clone(estimator).fit(gaps)
    skvae.save(fitted, tmp_path / "model.skvae")
    for other in (pickle.loads(pickle.dumps(fitted)), skvae.load(tmp_path / "model.skvae")):
        assert_array_equal(other.transform(gaps), fitted.transform(gaps))
        assert_frame_equal(other.reconstruct(gaps), fitted.reconstruct(gaps))
        assert other.column_likelihoods_ == fitted.column_likelihoods_


def test_trainings_continue(table):
    vae = VAEEmbedder(2, warm_start=True, **SHORT).fit(table)
    vae.fit(table.head(50))
    assert vae.n_iter_ == 6
    assert_same_types(vae.sample(2), table)
    stream = VAEEmbedder(2, random_state=0)
    for start in range(0, N, 100):
        stream.partial_fit(table.iloc[start : start + 100])
    assert_same_types(stream.sample(2), table)
    stopped = VAEEmbedder(2, early_stopping=True, **SHORT).fit(table, X_val=table.tail(40))
    assert "valid_loss" in stopped.history_[0]
    weight = np.r_[np.zeros(100), np.ones(N - 100)]
    weighted = VAEEmbedder(2, **SHORT).fit(table, sample_weight=weight)
    assert np.isfinite(weighted.score(table, sample_weight=weight))
    array = np.random.default_rng(0).normal(size=(50, 3))
    assert isinstance(stopped.fit(array).sample(1), np.ndarray), "a new fit forgets the columns of the last"


def test_pretrained_on_a_frame(table, vae):
    vade = VaDEClusterer(3, latent_dim=2, pretrained=vae, max_epochs=2, random_state=0).fit(table)
    assert_same_types(vade.sample(2)[0], table)


def test_unknown_categories(table, vae):
    strange = table.head(6).copy()
    strange.loc[2, "city"] = "Paris"
    with pytest.warns(UserWarning, match=r"not in the training data, \{'city': \['Paris'\]\}") as record:
        codes = vae.transform(strange)
    assert len(record) == 1
    others = vae.transform(table.head(6).drop(index=2))
    assert_allclose(np.delete(codes, 2, 0), others, rtol=1e-9, atol=1e-12)  # products of another shape
    with pytest.warns(UserWarning, match="not in the training data"), pytest.raises(ValueError, match="feature 'city'"):
        vae.score(strange)
    beyond = table.head(3).assign(share=2.0)
    with pytest.warns(UserWarning, match="outside the support"):
        vae.transform(beyond)


FAULTS = {
    "twice": (lambda t: pd.concat([t, t[["city"]]], axis=1), ValueError, "same name.*'city'"),
    "names": (lambda t: t.rename(columns={"age": 3}), TypeError, "strings"),
    "types": (lambda t: t.assign(q=[1, "a"] * (N // 2)), ValueError, "'q'.*several types, int and str"),
    "dates": (lambda t: t.assign(q=pd.Timestamp("2020-01-01")), ValueError, "'q'.*Timestamp.*days"),
    "lists": (lambda t: t.assign(q=[[1]] * N), ValueError, "'q'.*list"),
    "gaps": (lambda t: t.assign(q=None), ValueError, r"All values of feature\(s\) \['q'\]"),
    "levels": (lambda t: t.assign(tier=pd.Categorical([None] * N, ["a"])), ValueError, r"\['tier'\]"),
    "infinity": (lambda t: t.assign(age=np.inf), ValueError, "age"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_frames(fault, table):
    change, error, match = FAULTS[fault]
    vae = VAEEmbedder(2, **SHORT)
    with pytest.raises(error, match=match):
        vae.fit(change(table))
    assert vars(vae) == vae.get_params(deep=False)


def test_other_columns(table, vae):
    with pytest.raises(ValueError, match="order"):
        vae.transform(table[table.columns[::-1]])
    with pytest.raises(ValueError, match="missing"):
        vae.transform(table.drop(columns="age"))
    with pytest.raises(ValueError, match="NaN"):
        vae.transform(table.assign(city=None))
    with pytest.raises(ValueError, match="same name"):
        vae.transform(pd.concat([table, table[["city"]]], axis=1))


BAD_LISTS = {
    "form": (["gaussian"], "(name, likelihood, columns)"),
    "name": ([("a", "gausian", ["age"])], "Did you mean 'gaussian'"),
    "twice": ([("a", "gaussian", ["age"]), ("b", "poisson", ["age"])], "'age'.*'a' and 'b'"),
    "column": ([("a", "gaussian", ["years"])], "years"),
    "support": ([("a", "poisson", ["age"])], "'age'.*whole numbers"),
    "categories": ([("a", "poisson", ["city"])], "'city'.*holds categories.*'poisson'"),
}


@pytest.mark.parametrize("case", BAD_LISTS)
def test_bad_lists(case, table):
    likelihood, match = BAD_LISTS[case]
    with pytest.raises(ValueError, match=match.replace("(name", r"\(name").replace("columns)", r"columns\)")):
        VAEEmbedder(2, likelihood=likelihood, **SHORT).fit(table)


@pytest.mark.parametrize("name", [*ESTIMATORS])
def test_onnx_graphs_are_of_numbers(name, table, tmp_path):
    fitted = clone(ESTIMATORS[name]).fit(table)
    with pytest.raises(TypeError, match="OrdinalEncoder"):
        skvae.to_onnx(fitted, tmp_path / "model.onnx")


def test_identifiers_are_hinted_at():
    table = pd.DataFrame({"id": [f"p{i}" for i in range(120)], "x": np.arange(120.0), "site": ["a", "b"] * 60})
    settings = {"hidden_layer_sizes": (4,), **SHORT}
    with pytest.warns(UserWarning, match="Column 'id' of X is text with 120 categories in 120 samples"):
        VAEEmbedder(1, **settings).fit(table)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        VAEEmbedder(1, **settings).fit(table.drop(columns="id"))
        VAEEmbedder(1, **settings, likelihood=[("id", "categorical", ["id"])]).fit(table)


def test_objects_that_are_missing_numbers():
    values = [1.0, 2, pd.NA, 3, None, 5] * 5
    numbers = pd.DataFrame({"x": values, "y": np.arange(30.0)})
    floats = np.column_stack([[1.0, 2, np.nan, 3, np.nan, 5] * 5, np.arange(30.0)])
    expected = TorchGMM(2, random_state=0).fit(floats).means_
    for X in (numbers, numbers.to_numpy()):
        assert_array_equal(TorchGMM(2, random_state=0).fit(X).means_, expected)


def test_counts_are_hinted_at(table):
    with pytest.warns(UserWarning, match="'visits'.*negative_binomial"):
        VAEEmbedder(2, **SHORT).fit(table)


def test_categories_of_processes():
    one = make_codec(pd.DataFrame({"a": ["x", "z"], "b": [1.0, 2.0]}))
    two = make_codec(pd.DataFrame({"a": ["y", None], "b": [1.0, 2.0]}))
    assert merge_codecs([one, two]).columns[0].categories == ["x", "y", "z"]
    assert merge_codecs([one, one]) is one
    other = make_codec(pd.DataFrame({"a": ["y"], "b": ["1"]}))
    with pytest.raises(ValueError, match="differ between processes"):
        merge_codecs([one, other])
    with pytest.raises(ValueError, match="differ between processes"):
        merge_codecs([one, None])


VALUES = {
    "text": st.one_of(st.none(), st.text(max_size=3)),
    "flags": st.booleans(),
    "numbers": st.one_of(st.none(), st.floats(-1e6, 1e6)),
    "integers": st.integers(-5, 5),
}


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_frames_of_any_values_come_back(data):
    n = data.draw(st.integers(1, 8))
    kinds = data.draw(st.lists(st.sampled_from(list(VALUES)), min_size=1, max_size=4))
    columns = {f"{kind}{i}": data.draw(st.lists(VALUES[kind], min_size=n, max_size=n)) for i, kind in enumerate(kinds)}
    for frame in (pd.DataFrame(columns), pl.DataFrame(columns, strict=False)):
        codec = make_codec(frame)
        if codec is None:
            continue
        encoded, unknown = codec.encode(frame)
        assert unknown == {}
        numbers = np.asarray(encoded, dtype=object).astype(float)
        back = FrameCodec.from_lists(codec.to_lists()).decode(numbers, whole=True)
        if isinstance(frame, pd.DataFrame):
            assert_array_equal(back.isna(), frame.isna())
            for name in frame:
                present = frame[name].notna()
                assert back[name][present].tolist() == frame[name][present].tolist()
        else:
            assert back.equals(frame)


def test_categories_are_in_order():
    assert categories_of("a", pd.Series(["b", "a", None])) == ["a", "b"]
    assert categories_of("a", pd.Series(pd.Categorical(["b", "a"], ["b", "a"]))) == ["b", "a"]
    assert categories_of("a", pl.Series(["b", "a"], dtype=pl.Enum(["b", "a"]))) == ["b", "a"]
    assert categories_of("a", pd.Series([True, True])) == [False, True]


def test_global_random_states_stay(table):
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        VAEEmbedder(2, **SHORT).fit(table).sample(2)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("estimator", [VAEEmbedder(2), TorchGMM(2)], ids=lambda each: type(each).__name__)
def test_names_of_numbers_occur_once(estimator):
    X = pd.DataFrame(np.zeros((9, 2)), columns=["a", "a"])
    with pytest.raises(ValueError, match="have the same name: .*a.*; rename them"):
        estimator.fit(X)
