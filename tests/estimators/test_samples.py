"""Lazy samples and samples of tensors: they give the results of the whole array."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from scipy import sparse
from sklearn.base import clone

from skvae import TorchGMM, TorchMiniBatchKMeans, TorchPPCA, VAEEmbedder
from skvae.data.inputs import result_dtype, should_stream
from skvae.data.samples import MAX_RUN, LazySamples, TensorSamples, select_samples

FLOATS = (np.float64, np.float32)
N, D = 700, 3


class SlicesOnly:
    """File of a library that has nothing but slices forwards, without steps and negative ends."""

    def __init__(self, X):
        self.X, self.shape, self.dtype, self.read = X, X.shape, X.dtype, []

    def __getitem__(self, rows):
        if rows.step not in (None, 1) or min(rows.start, rows.stop) < 0 or rows.stop > len(self.X):
            raise NotImplementedError(rows)
        self.read.append((rows.start, rows.stop))
        return self.X[rows]


@pytest.fixture
def X():
    return np.random.default_rng(0).integers(-9, 9, size=(N, D)).astype(np.float64)


def in_hdf5(X, folder):
    h5py = pytest.importorskip("h5py")
    name = f"rows{len(list(folder.iterdir()))}.h5"
    return h5py.File(folder / name, "w").create_dataset("X", data=X, chunks=(10, *X.shape[1:]))


def in_zarr(X, folder):
    zarr = pytest.importorskip("zarr")
    name = f"rows{len(list(folder.iterdir()))}.zarr"
    rows = zarr.create_array(str(folder / name), shape=X.shape, dtype=X.dtype, chunks=(10, *X.shape[1:]))
    rows[:] = X
    return rows


def in_memmap(X, folder):
    np.save(folder / "rows.npy", X)
    return np.load(folder / "rows.npy", mmap_mode="r")


ON_DISK = {"hdf5": in_hdf5, "zarr": in_zarr, "memmap": in_memmap}
SPARSE = {
    f"{name}_{container}": getattr(sparse, f"{name}_{container}")
    for name in ("csr", "csc", "coo", "bsr", "lil", "dok", "dia")
    for container in ("array", "matrix")
}
SOURCES = ON_DISK | {
    "slices": lambda X, folder: SlicesOnly(X),
    "csr_array": lambda X, folder: sparse.csr_array(X),
    "csr_matrix": lambda X, folder: sparse.csr_matrix(X),
    "array": lambda X, folder: X,
}
over_sources = pytest.mark.parametrize("source", SOURCES)
over_files = pytest.mark.parametrize("source", ON_DISK)


@pytest.fixture
def no_memory(monkeypatch):
    """Stream everything, as if no input were small enough to be held."""
    monkeypatch.setattr("skvae.data.inputs.MAX_HELD_BYTES", 0)
    monkeypatch.setattr("skvae.data.inputs.MAX_DENSE_BYTES", 0)


ROWS = {
    "slice": slice(10, 20),
    "open slice": slice(None),
    "negative slice": slice(-30, -10),
    "long slice": slice(690, 900),
    "empty slice": slice(20, 10),
    "steps": slice(5, 600, 7),
    "backwards": slice(None, None, -3),
    "indices": np.array([5, 3, 3, 699, 0]),
    "negative indices": np.array([-1, -700, 2]),
    "no indices": [],
    "mask": np.arange(N) % 5 == 0,
    "empty mask": np.zeros(N, bool),
}


@over_sources
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_parts_are_those_of_the_array(source, rows, X, tmp_path):
    lazy = LazySamples(SOURCES[source](X, tmp_path), np.float32)
    wanted = X[rows] if len(np.atleast_1d(rows)) else X[:0]
    part = lazy[rows]
    assert part.dtype == np.float32
    assert part.flags.c_contiguous
    assert_array_equal(part, wanted)


@over_sources
def test_selected_samples(source, X, tmp_path):
    lazy = LazySamples(SOURCES[source](X, tmp_path), np.float64)
    order = np.random.default_rng(0).permutation(N)[:50]
    some = lazy.select(order)
    assert some.shape == (50, D)
    assert len(some) == 50
    assert_array_equal(some[10:20], X[order][10:20])
    assert_array_equal(some[::-4], X[order][::-4])
    assert_array_equal(some.select(np.arange(50) % 2 == 0)[:], X[order][::2])
    assert_array_equal(some.select(slice(5, 9)).select([3, 0])[:], X[order][[8, 5]])
    assert_array_equal(select_samples(lazy, order)[:], select_samples(X, order))


@over_sources
def test_clipped_values(source, X, tmp_path):
    lazy = LazySamples(SOURCES[source](X, tmp_path), np.float64)
    high = np.array([1.0, 2.0, 3.0])
    assert_array_equal(lazy.clip(-1, high)[:], X.clip(-1, high))
    assert_array_equal(lazy.clip(-1, high).select([4, 2])[:], X[[4, 2]].clip(-1, high))
    assert_array_equal(lazy[:], X)
    assert_array_equal(X, np.rint(X))


@over_sources
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_values(source, bad, X, tmp_path):
    X[600, 1] = bad
    lazy = LazySamples(SOURCES[source](X, tmp_path), np.float64)
    assert_array_equal(lazy[:600], X[:600])
    with pytest.raises(ValueError, match="Input X contains (NaN|infinity)"):
        lazy[590:]
    finite = lazy.select(np.flatnonzero(np.isfinite(X).all(axis=1)))
    assert np.isfinite(finite[:]).all()
    tolerant = LazySamples(SOURCES[source](X, tmp_path), np.float64, allow_nan=True)
    if np.isnan(bad):
        assert_array_equal(tolerant[590:], X[590:])
    else:
        with pytest.raises(ValueError, match="Input X contains infinity"):
            tolerant[590:]


def test_input_is_not_changed(X):
    source = X.copy()
    lazy = LazySamples(source, np.float64)
    lazy[:10][:] = 0
    lazy.clip(0, 1)[:]
    assert_array_equal(source, X)


def test_neighbours_are_read_together(X):
    source = SlicesOnly(X)
    assert_array_equal(LazySamples(source, np.float64)[[500, 3, 4, 5, 501, 3]], X[[500, 3, 4, 5, 501, 3]])
    assert source.read == [(3, 6), (500, 502)]
    assert LazySamples(source, np.float64).run_length == MAX_RUN
    assert LazySamples(SlicesOnly(np.zeros((9, 4, 1024), np.float32)), np.float64).run_length == 8  # 128 kB
    assert LazySamples(SlicesOnly(np.zeros((1, 2**15))), np.float64).run_length == 1
    assert LazySamples(sparse.csr_array(X), np.float64).run_length == 1


@over_sources
def test_images_are_flattened(source, X, tmp_path):
    if source.startswith("csr"):
        pytest.skip("sparse matrices have two dimensions")
    images = X[:690].reshape(-1, 5, 6)
    lazy = LazySamples(SOURCES[source](images, tmp_path), np.float64)
    assert lazy.shape == (69, 30)
    assert_array_equal(lazy[3:60:2], images[3:60:2].reshape(-1, 30))
    assert lazy[:0].shape == (0, 30)


# Inputs that are read a chunk at a time


@over_files
def test_files_are_read_a_chunk_at_a_time_if_they_are_large(source, X, tmp_path, monkeypatch):
    file = ON_DISK[source](X, tmp_path)
    assert not should_stream(file, FLOATS)
    monkeypatch.setattr("skvae.data.inputs.MAX_HELD_BYTES", X.nbytes - 1)
    assert should_stream(file, FLOATS)
    monkeypatch.setattr("skvae.data.inputs.MAX_HELD_BYTES", X.nbytes)
    assert not should_stream(file, FLOATS)


@over_files
def test_size_is_that_after_conversion(source, X, tmp_path, monkeypatch):
    """Integers of one byte would become floats of eight."""
    file = ON_DISK[source](X.astype(np.uint8), tmp_path)
    monkeypatch.setattr("skvae.data.inputs.MAX_HELD_BYTES", X.size)
    assert should_stream(file, FLOATS)
    assert not should_stream(file, (*FLOATS, np.uint8))


def test_arrays_in_memory_are_not_streamed(X, tmp_path, no_memory):
    pd = pytest.importorskip("pandas")
    inputs = [X, X.tolist(), pd.DataFrame(X), sparse.csr_array(X), in_memmap(X, tmp_path).copy(), 3.0, None, "text"]
    assert not any(should_stream(rows, FLOATS) for rows in inputs)
    assert should_stream(SlicesOnly(X), FLOATS)
    assert should_stream(LazySamples(X, np.float64), FLOATS)


def test_data_frames_are_not_streamed(no_memory):
    pl = pytest.importorskip("polars")
    assert not should_stream(pl.DataFrame({"a": [1.0, 2.0]}), FLOATS)
    assert not should_stream(pl.Series([1.0, 2.0]), FLOATS)


def test_result_dtypes():
    dtypes = [np.float64, np.float32, np.float16, ">f8", np.int8, bool]
    assert [result_dtype(dtype, FLOATS) for dtype in dtypes] == [np.dtype(char) for char in "df"] + [np.dtype("d")] * 4
    assert result_dtype(np.uint8, (*FLOATS, np.uint8)) == np.uint8


# Estimators


ESTIMATORS = [
    TorchGMM(2, max_iter=500, random_state=0),
    TorchPPCA(2),
    TorchMiniBatchKMeans(2, random_state=0),
    VAEEmbedder(2, hidden_layer_sizes=(8,), max_epochs=2, random_state=0),
]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda estimator: type(estimator).__name__)
@pytest.mark.parametrize("source", [*ON_DISK, "slices"])
def test_estimators_read_files(estimator, source, X, tmp_path, no_memory):
    X = X + 20 * (np.arange(N) % 2)[:, None]
    file = SOURCES[source](X, tmp_path)
    held, streamed = clone(estimator).fit(X), clone(estimator).fit(file)
    if isinstance(estimator, VAEEmbedder):  # which is trained on samples of files in another order
        assert np.isfinite(streamed.transform(X)).all()
        streamed = held
    np.testing.assert_allclose(streamed.transform(file), held.transform(X), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(streamed.score(file), held.score(X), rtol=1e-6)


@pytest.mark.parametrize("source", [*ON_DISK, "slices"])
def test_images_in_files(source, X, tmp_path, no_memory):
    images = np.abs(X[:640]).reshape(-1, 8, 8) / 9
    file = SOURCES[source](images[:24], tmp_path)
    vae = VAEEmbedder(2, image_shape=(8, 8), architecture="mlp", hidden_layer_sizes=(8,), max_epochs=2, random_state=0)
    Z = vae.fit(file).transform(file)
    np.testing.assert_allclose(Z, vae.transform(images[:24].reshape(24, -1)), rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="Found array with dim 3"):
        TorchPPCA(2).fit(file)


def test_memory_maps_that_were_copied(X, tmp_path, no_memory):
    """They are of the class of memory maps, but have no file."""
    rows = in_memmap(X, tmp_path) * 2.0
    np.testing.assert_allclose(TorchPPCA(2).fit(rows).mean_, 2 * X.mean(axis=0))
    rows = in_memmap(X, tmp_path).copy()
    np.testing.assert_allclose(TorchPPCA(2).fit(rows).mean_, X.mean(axis=0))


@pytest.mark.filterwarnings("ignore:Constructing a DIA matrix")
@pytest.mark.parametrize("make", SPARSE.values(), ids=SPARSE)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int32, np.uint8])
@pytest.mark.parametrize("one_chunk", [0, 2**23])
def test_sparse_formats(make, dtype, one_chunk, X, monkeypatch):
    monkeypatch.setattr("skvae.data.inputs.MAX_DENSE_BYTES", one_chunk)
    X = np.abs(X).astype(dtype)
    tolerance = 1e-4 if dtype == np.float32 else 1e-9
    held = TorchPPCA(2).fit(X)
    rows = make(X)
    ppca = TorchPPCA(2).fit(rows)
    assert ppca.mean_.dtype == held.mean_.dtype
    np.testing.assert_allclose(ppca.transform(rows), held.transform(X), atol=tolerance)


def test_files_that_are_not_matrices_of_numbers(tmp_path, no_memory):
    with pytest.raises(ValueError, match="could not convert string to float"):
        TorchPPCA(1).fit(SlicesOnly(np.array([["a", "b"]] * 5)))
    with pytest.raises(ValueError, match="Expected 2D array, got 1D array"):
        TorchPPCA(1).fit(SlicesOnly(np.arange(5.0)))
    with pytest.raises(ValueError, match="Complex data not supported"):
        TorchPPCA(1).fit(SlicesOnly(np.ones((5, 2), complex)))
    with pytest.raises(ValueError, match="0 sample"):
        TorchPPCA(1).fit(SlicesOnly(np.ones((0, 2))))


# Samples of tensors


def test_samples_of_tensors(X):
    x = torch.from_numpy(X)
    rows = TensorSamples(x)
    assert rows.shape == X.shape
    assert rows.dtype == np.float64
    assert rows[10:20].data_ptr() == x[10:].data_ptr()
    clipped = rows.clip(-1.0, np.array([1.0, 2.0, 3.0]))
    assert_array_equal(clipped[:].numpy(), X.clip(-1, [1, 2, 3]))
    assert_array_equal(x.numpy(), X)
    assert TensorSamples(x.to(torch.uint8)).dtype == np.uint8
