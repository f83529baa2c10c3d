"""Forms of input: for every estimator, each gives the results of an array of NumPy."""

import warnings
from contextlib import contextmanager

import array_api_strict
import numpy as np
import pandas as pd
import pytest
import scipy
import torch
from helpers import ALL_METHODS, QUICK, assert_same, outputs, over_estimators, read_only, some_classes
from numpy.testing import assert_array_equal
from scipy import sparse
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags
from sklearn.utils.fixes import parse_version

from skvae import ClusterLabelClassifier, TorchGMM, TorchMiniBatchKMeans, TorchPPCA, VAEEmbedder

NAMES = list("abcd")
CLOSE = {"rtol": 1e-6, "atol": 1e-6}
LOOSE = {"rtol": 1e-2, "atol": 1e-2}
pytestmark = [
    pytest.mark.usefixtures("short_embedding"),
    pytest.mark.filterwarnings("ignore:EM did not converge:sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:Clusters overlap"),  # after so short a training
    pytest.mark.filterwarnings("ignore:Clusters .* have almost no samples"),
]


@contextmanager
def dispatching(on=True):
    """Let scikit-learn work on tensors, which it does from SciPy 1.14 on."""
    if on and parse_version(scipy.__version__) < parse_version("1.14"):
        pytest.skip("scikit-learn does not work on tensors with this SciPy")
    with config_context(array_api_dispatch=on):
        yield


@pytest.fixture
def X(blobs):
    """Integers from 0 to 255, which every dtype can hold."""
    rows = blobs[0][::3]
    return np.round(255 * (rows - rows.min()) / np.ptp(rows))


def polars_frame(X, dtype="Float64"):
    polars = pytest.importorskip("polars")
    return polars.DataFrame({name: X[:, i].tolist() for i, name in enumerate(NAMES)}).cast(getattr(polars, dtype))


EXACT = {
    "int64": lambda X: X.astype(np.int64),
    "int16": lambda X: X.astype(np.int16),
    "uint16": lambda X: X.astype(np.uint16),
    "float16": lambda X: X.astype(np.float16),
    "long double": lambda X: X.astype(np.longdouble),
    "big-endian": lambda X: X.astype(">f8"),
    "big-endian int": lambda X: X.astype(">i4"),
    "objects": lambda X: X.astype(object),
    "fortran": np.asfortranarray,
    "negative strides": lambda X: X[::-1].copy()[::-1],
    "every other column": lambda X: np.repeat(X, 2, axis=1)[:, ::2],
    "read-only": read_only,
    "list": lambda X: X.tolist(),
    "tuples": lambda X: tuple(map(tuple, X.tolist())),
    "matrix rows": lambda X: [np.asarray(row) for row in X],
    "pandas": lambda X: pd.DataFrame(X, columns=NAMES),
    "pandas reversed": lambda X: pd.DataFrame(X[::-1], columns=NAMES).iloc[::-1],
    "pandas int": lambda X: pd.DataFrame(X.astype(int), columns=NAMES),
    "pandas mixed": lambda X: pd.DataFrame(X, columns=NAMES).astype({"a": np.int8 if X.max() < 128 else int}),
    "pandas Int64": lambda X: pd.DataFrame(X, columns=NAMES).astype("Int64"),
    "pandas Float64": lambda X: pd.DataFrame(X, columns=NAMES).astype("Float64"),
    "pandas categories of numbers": lambda X: pd.DataFrame(X, columns=NAMES).astype({"b": "category"}),
    "pandas sparse": lambda X: pd.DataFrame(X, columns=NAMES).astype(pd.SparseDtype("float", 0)),
    "polars": polars_frame,
    "polars int": lambda X: polars_frame(X, "Int32"),
    "polars float32": lambda X: polars_frame(X, "Float32"),  # its dtypes are not NumPy's, so that it is not kept
    "csr array": sparse.csr_array,
    "csr matrix": sparse.csr_matrix,
    "csr int": lambda X: sparse.csr_array(X.astype(np.int32)),
    "csc": sparse.csc_array,
    "coo": sparse.coo_array,
    "tensor": torch.from_numpy,
    "tensor that requires grad": lambda X: torch.from_numpy(X).requires_grad_(),
    "tensor float16": lambda X: torch.from_numpy(X).half().requires_grad_(),
    "tensor bfloat16": lambda X: torch.from_numpy(X).bfloat16().requires_grad_(),
    "tensor int": lambda X: torch.from_numpy(X).int(),
    "tensor transposed": lambda X: torch.from_numpy(X.T.copy()).T,
    "array API": array_api_strict.asarray,
}
SINGLE = {
    "float32": lambda X: X.astype(np.float32),
    "pandas float32": lambda X: pd.DataFrame(X, columns=NAMES).astype(np.float32),
    "csr float32": lambda X: sparse.csr_array(X.astype(np.float32)),
    "tensor float32": lambda X: torch.from_numpy(X).float(),
}


@over_estimators
def test_every_form_of_input_gives_the_results_of_an_array(estimator, X):
    """All forms in one test for each estimator, because fits take the time."""
    X, y = X.clip(0, 250), some_classes(X)
    fitted = clone(estimator).fit(X, y)
    expected = outputs(fitted, X)
    for form, convert in EXACT.items():
        if "categories" in form and hasattr(estimator, "likelihood"):
            continue  # categories are no numbers for networks
        rows = convert(X)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "X (has|does not have valid) feature names")
            try:
                assert_same(outputs(fitted, rows), expected, **CLOSE)
                assert_same(outputs(clone(estimator).fit(rows, y), rows), expected, **CLOSE)
            except Exception as error:
                error.add_note(f"The form of input was: {form}.")
                raise


@over_estimators
@pytest.mark.parametrize("convert", SINGLE.values(), ids=SINGLE)
def test_single_precision(estimator, convert, X):
    y, rows = some_classes(X), convert(X)
    expected = outputs(clone(estimator).fit(X, y), X)
    results = outputs(clone(estimator).fit(rows, y), rows)
    assert_same(results, expected, **LOOSE)
    assert {value.dtype for name, value in results.items() if name != "predict"} == {np.dtype(np.float32)}


@over_estimators
@pytest.mark.parametrize("dtype", [np.uint8, bool])
@pytest.mark.parametrize("convert", [np.asarray, sparse.csr_array, torch.from_numpy, pd.DataFrame])
def test_bytes_and_booleans(estimator, dtype, convert, X):
    """Networks keep bytes as they are and standardise them in another order of operations, hence the tolerance."""
    X = (X > 100 if dtype is bool else X).astype(dtype)
    y, rows = some_classes(X), convert(X)
    expected = outputs(clone(estimator).fit(X.astype(np.float64), y), X.astype(np.float64))
    assert_same(outputs(clone(estimator).fit(rows, y), rows), expected, **LOOSE)


def in_file(X, folder):
    np.save(folder / "rows.npy", X)
    return np.load(folder / "rows.npy", mmap_mode="r")


LARGE = {
    "sparse": lambda X, folder: sparse.csr_array(X),
    "sparse int": lambda X, folder: sparse.csr_matrix(X.astype(np.int32)),
    "memory map": in_file,
}


@over_estimators
@pytest.mark.parametrize("convert", LARGE.values(), ids=LARGE)
def test_large_inputs_are_read_a_chunk_at_a_time(estimator, convert, X, tmp_path, monkeypatch):
    y, rows = some_classes(X), convert(X, tmp_path)
    fitted = clone(estimator).fit(X, y)
    monkeypatch.setattr("skvae.data.inputs.MAX_HELD_BYTES", 0)
    monkeypatch.setattr("skvae.data.inputs.MAX_DENSE_BYTES", 0)
    assert_same(outputs(fitted, rows), outputs(fitted, X), **CLOSE)
    streamed = clone(estimator).fit(rows, y)
    if sparse.issparse(rows) or not hasattr(estimator, "max_epochs"):  # networks see those of files in another order
        assert_same(outputs(streamed, rows), outputs(fitted, X), **CLOSE)
    assert all(np.isfinite(value).all() for value in outputs(streamed, rows).values())


@over_estimators
def test_labels_and_weights_in_every_form(estimator, X):
    y, weight = some_classes(X), np.arange(len(X)) % 3
    expected = outputs(clone(estimator).fit(X, y, sample_weight=weight.astype(float)), X)
    for convert in (list, pd.Series, torch.from_numpy, lambda values: torch.from_numpy(values).bfloat16()):
        for dispatch in (False, True):
            with dispatching(dispatch):
                fitted = clone(estimator).fit(torch.from_numpy(X), y, sample_weight=convert(weight))
            assert_same(outputs(fitted, X), expected, **CLOSE)
    assert_same(outputs(clone(estimator).fit(X, torch.from_numpy(y), sample_weight=weight), X), expected, **CLOSE)


WEIGHTS = {
    "list": list,
    "pandas": pd.Series,
    "polars": lambda values: pytest.importorskip("polars").Series(values.tolist()),
    "float32": lambda values: values.astype(np.float32),
    "tensor": torch.from_numpy,
    "tensor bfloat16": lambda values: torch.from_numpy(values).bfloat16(),
    "tensor that requires grad": lambda values: torch.from_numpy(values).double().requires_grad_(),
}


@over_estimators
def test_weights_in_every_form_in_scores(estimator, X):
    y, weight = some_classes(X), np.arange(len(X)) % 3
    fitted, counted = clone(estimator).fit(X, y), weight > 0
    rows = {"array": X, "tensor": torch.from_numpy(X).requires_grad_(), "sparse": sparse.csr_array(X)}
    for name in ("score", "bic", "aic", "icl"):
        if not hasattr(fitted, name):
            continue
        labels = [y] if name == "score" else []
        judge = getattr(fitted, name)
        expected = judge(X[counted], *[y[counted] for _ in labels], sample_weight=weight[counted])
        for form, convert in WEIGHTS.items():
            for of_rows, values in rows.items():
                for dispatch in {False, of_rows == "tensor"}:
                    with dispatching(dispatch):
                        results = judge(values, *labels, sample_weight=convert(weight))
                    assert results == pytest.approx(expected, rel=1e-9), f"{name} of {of_rows}, weights as {form}"


@over_estimators
@pytest.mark.parametrize("convert", LARGE.values(), ids=LARGE)
def test_weights_in_scores_of_large_inputs(estimator, convert, X, tmp_path, monkeypatch):
    y, weight = some_classes(X), np.arange(len(X)) % 3
    fitted = clone(estimator).fit(X, y)
    rows, expected = convert(X, tmp_path), fitted.score(X, y, sample_weight=weight)
    monkeypatch.setattr("skvae.data.inputs.MAX_HELD_BYTES", 0)
    monkeypatch.setattr("skvae.data.inputs.MAX_DENSE_BYTES", 0)
    assert fitted.score(rows, y, sample_weight=weight) == pytest.approx(expected, rel=1e-9)


# Missing values


MISSING = {
    "Int64": lambda X: pd.DataFrame(X, columns=NAMES).astype("Int64"),
    "Float64": lambda X: pd.DataFrame(X, columns=NAMES).astype("Float64"),
    "None": lambda X: np.where(np.isnan(X), None, X),
    "polars": lambda X: polars_frame(X).fill_nan(None),
    "tensor": torch.from_numpy,
    "sparse": sparse.csr_array,
}


@over_estimators
@pytest.mark.parametrize("convert", MISSING.values(), ids=MISSING)
def test_missing_values_in_every_form(estimator, convert, X):
    X = np.where(np.random.default_rng(0).uniform(size=X.shape) < 0.1, np.nan, X)
    y = some_classes(X)
    if not get_tags(estimator).input_tags.allow_nan:
        with pytest.raises(ValueError, match="contains NaN"):
            clone(estimator).fit(convert(X), y)
        return
    fitted = clone(estimator).fit(convert(X), y)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "X does not have valid feature names")
        assert_same(outputs(fitted, X), outputs(clone(estimator).fit(X, y), X), **CLOSE)


ALLOW_NAN = [estimator for estimator in QUICK if get_tags(estimator).input_tags.allow_nan]


@pytest.mark.parametrize("estimator", ALLOW_NAN, ids=lambda estimator: type(estimator).__name__)
@pytest.mark.parametrize("form", ["memory map", "sparse"])
def test_missing_values_of_samples_with_weight_zero(estimator, form, X, tmp_path, monkeypatch):
    """A score does not read them."""
    weight, y = np.arange(len(X)) % 3, some_classes(X)
    fitted = clone(estimator).fit(X, y)
    rows, expected = X.copy(), fitted.score(X, y, sample_weight=weight)
    rows[weight == 0] = np.nan
    rows = LARGE[form](rows, tmp_path)
    monkeypatch.setattr("skvae.data.inputs.MAX_DENSE_BYTES", 0)
    if form == "memory map":
        monkeypatch.setattr("skvae.data.inputs.MAX_HELD_BYTES", 0)
    assert fitted.score(rows, y, sample_weight=weight) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("estimator", ALLOW_NAN, ids=lambda estimator: type(estimator).__name__)
@pytest.mark.parametrize("unit", [1, 255], ids=["numbers", "shares"])  # shares make the likelihood "bernoulli"
def test_samples_with_missing_values_one_at_a_time(estimator, unit, X):
    """Samples for which a feature, or all features, are missing."""
    X = np.where(np.random.default_rng(0).uniform(size=X.shape) < 0.1, np.nan, X / unit)
    X[3] = np.nan
    fitted = clone(estimator).fit(np.delete(X, 3, axis=0), some_classes(X)[1:])
    some = [3, *np.flatnonzero(np.isnan(X).any(axis=1))[:3]]
    together = outputs(fitted, X)
    for row in some:
        alone = outputs(fitted, X[[row]])
        for name in alone.keys() - {"sample"}:
            np.testing.assert_allclose(alone[name][0], together[name][row], err_msg=name, **CLOSE)


# Frames


@over_estimators
def test_polars_names(estimator, X):
    polars = pytest.importorskip("polars")
    if not hasattr(StandardScaler().fit(polars_frame(X)), "feature_names_in_"):
        pytest.skip("this scikit-learn finds no names in frames of this polars")
    fitted = clone(estimator).fit(polars_frame(X), some_classes(X))
    assert_array_equal(fitted.feature_names_in_, NAMES)
    with pytest.raises(ValueError, match="feature names"):
        fitted.predict(polars_frame(X)[NAMES[::-1]]) if hasattr(fitted, "predict") else fitted.transform(
            polars_frame(X)[NAMES[::-1]]
        )
    if hasattr(fitted, "transform"):
        frame = fitted.set_output(transform="polars").transform(polars_frame(X))
        assert isinstance(frame, polars.DataFrame)
        assert frame.columns == fitted.get_feature_names_out().tolist()


NOT_NUMBERS = {
    "text": (lambda: pd.DataFrame({"a": ["x", "y"] * 10}), ValueError, "could not convert string to float"),
    "categories": (
        lambda: pd.DataFrame({"a": pd.Categorical(["x", "y"] * 10)}),
        ValueError,
        "could not convert string to float",
    ),
    "polars text": (
        lambda: pytest.importorskip("polars").DataFrame({"a": ["x", "y"] * 10}),
        ValueError,
        "could not convert string to float",
    ),
    "sparse tensor": (
        lambda: torch.eye(10).to_sparse(),
        TypeError,
        r"Got a tensor of layout torch.sparse_coo; give tensor.to_dense\(\), or a CSR matrix of scipy.sparse",
    ),
    "complex tensor": (lambda: torch.ones(10, 2, dtype=torch.complex64), ValueError, "Complex data not supported"),
    "one dimension": (lambda: torch.ones(10), ValueError, "Expected 2D array, got 1D array"),
    "three dimensions": (
        lambda: torch.ones(10, 2, 3),
        ValueError,
        r"Found array with dim 3[.,] (?s:.*)If they are images, give .*rows: X.reshape\(10, 6\)",
    ),
    "infinity": (lambda: torch.full((10, 2), torch.inf), ValueError, "contains infinity"),
    "no rows": (lambda: torch.ones(0, 2), ValueError, r"0 sample\(s\)"),
}


def some_columns(**columns):
    return pd.DataFrame({"a": np.arange(20.0), **columns})


WRONG_COLUMNS = {  # input, class of the error, and its message
    "text": (
        lambda: some_columns(species=["x", "y"] * 10, b=1.0, island=["u"] * 20),
        ValueError,
        r"could not convert string to float: 'x'\. Column\(s\) \['species', 'island'\] of X hold no numbers; encode",
    ),
    "dates": (
        lambda: some_columns(day=pd.date_range("2020", periods=20)),
        TypeError,
        r"\['day'\] of X hold no numbers",
    ),
    "lists": (lambda: some_columns(b=[[1.0]] * 20), (ValueError, TypeError), r"\['b'\] of X hold no numbers"),
    "text of an array": (
        lambda: some_columns(b=["x"] * 20).to_numpy(),
        ValueError,
        r"\(s\) \[1\] of X hold no numbers",
    ),
    "infinity": (lambda: some_columns(b=-np.inf), ValueError, r"\['b'\] of X hold infinite values; replace them"),
    "many": (
        lambda: np.c_[np.full((20, 12), np.inf), np.ones(20)],
        ValueError,
        r"\[0, 1, .* 9\] and 2 more of X hold infinite values",
    ),
    "infinity among objects": (
        lambda: some_columns(b=np.array([np.inf, *range(19)], dtype=object)),
        ValueError,
        r"\['b'\] of X hold infinite values",
    ),
    "the same name": (lambda: some_columns(b=["x"] * 20).set_axis(["a", "a"], axis=1), ValueError, "the same name"),
}


@pytest.mark.parametrize(("make", "error", "match"), WRONG_COLUMNS.values(), ids=WRONG_COLUMNS)
def test_errors_name_wrong_columns(make, error, match):
    with pytest.raises(error, match=match):
        TorchGMM(2).fit(make())


def test_missing_values_of_pandas_are_not_text():
    X = pd.DataFrame(
        {"a": pd.array([True, None, False] * 4, dtype="boolean"), "b": pd.array([1, 2, None] * 4, "Int64")}
    )
    with pytest.raises(ValueError, match="Input X contains NaN") as results:
        TorchMiniBatchKMeans(2).fit(X)
    assert "Column(s)" not in str(results.value)
    text = X.assign(b=["x", None, "y"] * 4)
    with pytest.raises(ValueError, match=r"Column\(s\) \['b'\] of X hold no numbers"):
        TorchMiniBatchKMeans(2).fit(text)


@over_estimators
@pytest.mark.parametrize(("make", "error", "match"), NOT_NUMBERS.values(), ids=NOT_NUMBERS)
def test_input_that_is_not_a_matrix_of_numbers(estimator, make, error, match):
    rows, estimator = make(), clone(estimator)
    if hasattr(estimator, "likelihood"):
        estimator.set_params(likelihood="gaussian")  # "auto" takes categories
    for dispatch in (False, True):
        with dispatching(dispatch), pytest.raises(error, match=match):
            clone(estimator).fit(rows, some_classes(rows))


# Tensors in, tensors out


@over_estimators
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_tensors_give_tensors(estimator, dtype, X):
    check_tensors_give_tensors(estimator, "cpu", dtype, X)


@over_estimators
def test_tensors_on_a_device_give_such_tensors(estimator, device, X):
    check_tensors_give_tensors(estimator, device, torch.float32, X)


def check_tensors_give_tensors(estimator, device, dtype, X):
    X = torch.from_numpy(X).to(dtype)
    y = some_classes(X)
    fitted = clone(estimator).fit(X.numpy(), y)
    expected = outputs(fitted, X.numpy(), ALL_METHODS)
    x = X.to(device).clone().requires_grad_()
    with dispatching():
        results = outputs(fitted, x, ALL_METHODS)
        again = clone(estimator).fit(x, torch.from_numpy(y).to(device))
    assert results.keys() == expected.keys()
    for name, value in results.items():
        assert isinstance(value, torch.Tensor), name
        assert value.device == x.device, name
        assert value.dtype == (torch.int64 if name == "predict" else dtype), name
        assert not value.is_inference(), name
        np.testing.assert_allclose(value.cpu(), expected[name], **(CLOSE if dtype == torch.float64 else LOOSE))
    assert not [name for name, value in vars(again).items() if isinstance(value, torch.Tensor)]
    assert_array_equal(x.detach().cpu(), X)
    for name, value in outputs(fitted, x, ALL_METHODS).items():  # as scikit-learn has it without the setting
        assert isinstance(value, np.ndarray), name


@over_estimators
def test_samples_of_tensors_stay_on_their_device(estimator, X, monkeypatch):
    """No tensor with a value for each sample becomes an array on the way."""
    fitted = clone(estimator).fit(X, some_classes(X))
    x, sizes = torch.from_numpy(np.repeat(X, 3, axis=0)), []
    numpy, to_host = torch.Tensor.numpy, torch.Tensor.cpu

    def recorded(method):
        def record(tensor, *args, **kwargs):
            sizes.append(tensor.numel())
            return method(tensor, *args, **kwargs)

        return record

    with dispatching():
        monkeypatch.setattr(torch.Tensor, "numpy", recorded(numpy))
        monkeypatch.setattr(torch.Tensor, "cpu", recorded(to_host))
        outputs(fitted, x, ALL_METHODS)
    networks = getattr(fitted, "module_", torch.nn.Module()).state_dict()
    weights = max([0, *(value.numel() for value in networks.values())])
    assert [size for size in sizes if size >= len(x) and size > weights] == []


@over_estimators
def test_scores_of_tensors_are_numbers(estimator, X):
    X, y = X.astype(np.float64), some_classes(X)
    fitted = clone(estimator).fit(X, y)
    methods = [name for name in ("score", "bic", "aic", "icl") if hasattr(fitted, name)]
    args = (X, y) if isinstance(estimator, ClusterLabelClassifier) else (X,)
    with dispatching():
        results = {
            name: getattr(fitted, name)(*map(torch.from_numpy, args[: 1 + (name == "score")])) for name in methods
        }
    for name, value in results.items():
        assert isinstance(value, float)
        np.testing.assert_allclose(value, getattr(fitted, name)(*args[: 1 + (name == "score")]), rtol=1e-9)


@over_estimators
def test_fit_predict_and_fit_transform_of_tensors(estimator, X):
    x, y = torch.from_numpy(X), some_classes(X)
    for name in ("fit_predict", "fit_transform"):
        if hasattr(estimator, name):
            expected = getattr(clone(estimator), name)(X, y)
            assert isinstance(getattr(clone(estimator), name)(x, y), np.ndarray)
            with dispatching():
                results = getattr(clone(estimator), name)(x, y)
            assert isinstance(results, torch.Tensor)
            np.testing.assert_allclose(results, expected, **CLOSE)


INTERPOLATING = [estimator for estimator in QUICK if hasattr(estimator, "interpolate")]


@pytest.mark.parametrize("estimator", INTERPOLATING, ids=lambda estimator: type(estimator).__name__)
def test_interpolations_of_tensors_are_arrays(estimator, X):
    fitted, x = clone(estimator).fit(X), torch.from_numpy(X)
    with dispatching():
        results = fitted.interpolate(x[:5], x[5:10], n_steps=3)
    np.testing.assert_allclose(results, fitted.interpolate(X[:5], X[5:10], n_steps=3))


@over_estimators
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int32, torch.uint8, torch.bool])
def test_tensors_of_other_dtypes_give_float64(estimator, dtype, X):
    X = X.clip(0, 1) if dtype == torch.bool else X
    fitted = clone(estimator).fit(X, some_classes(X))
    x = torch.from_numpy(X).to(dtype)
    with dispatching():
        results = outputs(fitted, x, ALL_METHODS)
    expected = outputs(fitted, x.double().numpy(), ALL_METHODS)
    for name, value in results.items():
        assert value.dtype == (torch.int64 if name == "predict" else torch.float64)
        np.testing.assert_allclose(value, expected[name], **CLOSE)


@over_estimators
def test_tensors_are_checked(estimator, X):
    fitted = clone(estimator).fit(X, some_classes(X))
    method = fitted.predict if hasattr(fitted, "predict") else fitted.transform
    x = torch.from_numpy(X)
    with dispatching():
        with pytest.raises(ValueError, match="X has 3 features, but .* is expecting 4 features"):
            method(x[:, :3])
        with pytest.raises(ValueError, match="contains infinity"):
            method(x + torch.inf)
        with pytest.raises(ValueError, match="only real numbers can be used"):
            method(x + 0j)
        with pytest.raises(TypeError, match="Got a tensor of layout torch.sparse_coo"):
            method(x.to_sparse())
        if not isinstance(estimator, TorchGMM | TorchPPCA | ClusterLabelClassifier):
            with pytest.raises(ValueError, match="contains NaN"):
                method(x * torch.nan)
        if hasattr(fitted, "inverse_transform"):
            with pytest.raises(ValueError, match="Z has 3 features, but .* is expecting 2 latent features"):
                fitted.inverse_transform(x[:, :3])
        with pytest.raises(NotFittedError):
            getattr(clone(estimator), method.__name__)(x)


def test_tensors_of_images():
    images = torch.rand(30, 8, 8, generator=torch.Generator().manual_seed(0))
    vae = VAEEmbedder(2, image_shape=(8, 8), architecture="mlp", hidden_layer_sizes=(8,), max_epochs=2, random_state=0)
    vae.fit(images)
    with dispatching():
        results = vae.transform(images)
        assert vae.score_samples(images * (1 + 1e-7)).shape == (30,)  # clipped to the support on the way
        with pytest.raises(ValueError, match=r"likelihood='bernoulli' needs values in \[0, 1\]"):
            vae.score_samples(images + 1)
        with pytest.raises(ValueError, match="X has images of shape"):
            vae.transform(images[:, :4])
    np.testing.assert_allclose(results, vae.transform(images.numpy().reshape(30, -1)), atol=1e-6)


@pytest.mark.parametrize("likelihood", ["poisson", "negative_binomial"])
def test_tensors_of_counts(likelihood, X):
    vae = VAEEmbedder(2, likelihood=likelihood, hidden_layer_sizes=(8,), max_epochs=2, random_state=0).fit(X)
    with dispatching():
        for dtype in (torch.float64, torch.int32, torch.uint8):
            results = vae.score_samples(torch.from_numpy(X).to(dtype))
            np.testing.assert_allclose(results, vae.score_samples(X), rtol=1e-6)
        with pytest.raises(ValueError, match="needs whole numbers, but X has 141.5"):
            vae.score_samples(torch.from_numpy(X) + 0.5)


@pytest.mark.parametrize("estimator", [TorchGMM(2, random_state=0), TorchPPCA(2)], ids=str)
def test_missing_values_of_tensors(estimator, X):
    X = np.where(np.random.default_rng(0).uniform(size=X.shape) < 0.1, np.nan, X)
    fitted = estimator.fit(X)
    with dispatching():
        results = outputs(fitted, torch.from_numpy(X), ALL_METHODS)
    assert_same({name: value.numpy() for name, value in results.items()}, outputs(fitted, X, ALL_METHODS), **CLOSE)


def test_missing_values_of_tensors_that_the_model_does_not_take(X):
    vae = VAEEmbedder(2, hidden_layer_sizes=(8,), max_epochs=2, random_state=0).fit(X)
    x = torch.from_numpy(X.copy())
    x[3, 1] = torch.nan
    with (
        dispatching(),
        pytest.raises(ValueError, match="was fitted to rows without missing values"),
    ):
        vae.transform(x)


def test_classes_of_strings_are_arrays(X):
    classifier = ClusterLabelClassifier(TorchGMM(2, random_state=0)).fit(X, np.array(["one", "two"])[some_classes(X)])
    with dispatching():
        results = classifier.predict(torch.from_numpy(X))
    assert isinstance(results, np.ndarray)
    assert_array_equal(results, classifier.predict(X))


@over_estimators
def test_other_array_api_arrays_become_numpy_arrays(estimator, X):
    fitted = clone(estimator).fit(X, some_classes(X))
    with dispatching():
        results = outputs(fitted, array_api_strict.asarray(X), ALL_METHODS)
        again = clone(estimator).fit(array_api_strict.asarray(X), some_classes(X))
    assert_same(results, outputs(fitted, X, ALL_METHODS))
    assert_same(outputs(again, X), outputs(fitted, X))


class AnnotatedData:
    """Stand-in for annotated matrices of single cells."""

    def __init__(self, X):
        self.X, self.shape, self.obs, self.var = X, X.shape, {}, {}
        self.layers, self.obsm = {"counts": X}, {}

    def __len__(self):
        return len(self.X)


class AnnotatedDatasets(AnnotatedData):
    def __init__(self, X):
        super().__init__(X)
        self.mod = {"rna": AnnotatedData(X)}


@over_estimators
def test_containers_of_matrices(estimator, X):
    y = some_classes(X)
    with pytest.raises(TypeError, match=r"X is of type AnnotatedData, .*; give one of them: adata\.X, adata\.layers"):
        clone(estimator).fit(AnnotatedData(X), y)
    with pytest.raises(TypeError, match=r"X is of type AnnotatedDatasets, .*; give one matrix .* mdata\.mod"):
        clone(estimator).fit(AnnotatedDatasets(X), y)
    fitted = clone(estimator).fit(AnnotatedData(X).X, y)
    with pytest.raises(TypeError, match="X is of type AnnotatedData, which holds several matrices"):
        fitted.predict(AnnotatedData(X)) if hasattr(fitted, "predict") else fitted.transform(AnnotatedData(X))


def test_columns_of_a_frame_may_have_the_names_of_a_container(X):
    frame = pd.DataFrame(X, columns=["X", "obs", "layers", "mod"])
    assert_array_equal(TorchPPCA(1).fit(frame).components_, TorchPPCA(1).fit(X).components_)
