import gzip
import hashlib
import struct
import sys

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_array_equal

from skvae import datasets
from skvae.datasets import fetch_fashion_mnist, fetch_mnist

N_TRAIN, N_TEST = 6, 2
LABELS = [0, 1, 2, 3, 4, 5, 0, 1]
DATASETS = {"MNIST": fetch_mnist, "FASHION_MNIST": fetch_fashion_mnist}


def images_of(seed):
    """Return a few random images."""
    return np.random.default_rng(seed).integers(256, size=(N_TRAIN + N_TEST, 28, 28), dtype=np.uint8)


IMAGES = {"MNIST": images_of(0), "FASHION_MNIST": images_of(1)}


@pytest.fixture(autouse=True)
def small_datasets(tmp_path, monkeypatch):
    """Replace the datasets by eight images each, without files or downloads."""
    monkeypatch.setitem(datasets.SUBSETS, "train", slice(None, N_TRAIN))
    monkeypatch.setitem(datasets.SUBSETS, "test", slice(N_TRAIN, None))
    for name, images in IMAGES.items():
        digest = hashlib.sha256(images.tobytes() + bytes(LABELS)).hexdigest()
        monkeypatch.setattr(datasets, name, getattr(datasets, name)._replace(sha256=digest))
    monkeypatch.delenv("SKVAE_DATA_HOME", raising=False)
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path / "scikit_learn_data"))
    monkeypatch.setattr(datasets, "fetch_openml", unreachable)


def unreachable(*args, **kwargs):
    raise ConnectionError


def arrays_of(name):
    images, labels = IMAGES[name], np.array(LABELS, dtype=np.uint8)
    return {
        "X_train": images[:N_TRAIN],
        "y_train": labels[:N_TRAIN],
        "X_test": images[N_TRAIN:],
        "y_test": labels[N_TRAIN:],
    }


def idx_content(array):
    """Return the content of an IDX file."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx_files(folder, name, compressed):
    folder.mkdir(parents=True, exist_ok=True)
    for file, array in zip(datasets.IDX_FILES, arrays_of(name).values(), strict=True):
        content = idx_content(array)
        path = folder / (f"{file}.gz" if compressed else file)
        path.write_bytes(gzip.compress(content) if compressed else content)


@pytest.fixture
def home(tmp_path):
    """Return a folder with .npz files of both datasets."""
    folder = tmp_path / "home"
    folder.mkdir()
    np.savez(folder / "mnist.npz", **arrays_of("MNIST"))
    np.savez(folder / "fashion_mnist.npz", **arrays_of("FASHION_MNIST"))
    return folder


over_datasets = pytest.mark.parametrize(("name", "fetch"), DATASETS.items(), ids=list(DATASETS))


@over_datasets
def test_npz_files(name, fetch, home, monkeypatch):
    X, y = fetch(data_home=home, return_X_y=True)
    assert X.dtype == np.uint8
    assert y.dtype == np.int64
    assert_array_equal(X, IMAGES[name].reshape(-1, 784))
    assert_array_equal(y, LABELS)
    monkeypatch.setenv("SKVAE_DATA_HOME", str(home))
    bunch = fetch()
    assert_array_equal(bunch.data, X)
    assert_array_equal(bunch.target, y)


@over_datasets
@pytest.mark.parametrize("compressed", [True, False], ids=["gz", "plain"])
def test_idx_files(name, fetch, compressed, tmp_path):
    for folder in ("", *getattr(datasets, name).folders):
        here = tmp_path / str(len(folder))
        write_idx_files(here / folder, name, compressed)
        assert_array_equal(fetch(data_home=here, as_images=True).data, IMAGES[name])


def test_both_datasets_in_one_folder(tmp_path):
    """Their original files have the same names."""
    write_idx_files(tmp_path, "MNIST", False)
    write_idx_files(tmp_path / "fashion-mnist", "FASHION_MNIST", True)
    assert_array_equal(fetch_mnist(data_home=tmp_path).data, IMAGES["MNIST"].reshape(-1, 784))
    assert_array_equal(fetch_fashion_mnist(data_home=tmp_path).data, IMAGES["FASHION_MNIST"].reshape(-1, 784))


@over_datasets
def test_data_home_of_scikit_learn(name, fetch, tmp_path):
    write_idx_files(tmp_path / "scikit_learn_data", name, True)
    assert_array_equal(fetch(return_X_y=True)[0], IMAGES[name].reshape(-1, 784))


@over_datasets
def test_bunch(name, fetch, home):
    bunch = fetch(data_home=home)
    assert bunch.frame is None
    assert bunch.feature_names[29] == "pixel_1_1"
    assert len(bunch.feature_names) == 784
    assert bunch.target_names.shape == (10,)
    assert bunch.target_names[5] == {"MNIST": "5", "FASHION_MNIST": "Sandal"}[name]
    assert bunch.DESCR.startswith({"MNIST": "MNIST", "FASHION_MNIST": "Fashion-MNIST"}[name])


@over_datasets
def test_subsets_and_shapes(name, fetch, home):
    for subset, indices in {"train": slice(6), "test": slice(6, 8), "all": slice(None)}.items():
        X, y = fetch(data_home=home, subset=subset, as_images=True, return_X_y=True)
        assert_array_equal(X, IMAGES[name][indices])
        assert_array_equal(y, LABELS[indices])
    with pytest.raises(ValueError, match=r"subset='validation' should be one of \['all', 'train', 'test'\]"):
        fetch(data_home=home, subset="validation")


def test_sizes_of_the_real_datasets():
    assert datasets.N_TRAIN == 60_000
    assert [len(datasets.MNIST.target_names), len(datasets.FASHION_MNIST.target_names)] == [10, 10]


@over_datasets
def test_frames(name, fetch, home, monkeypatch):
    bunch = fetch(data_home=home, subset="test", as_frame=True)
    assert isinstance(bunch.data, pd.DataFrame)
    assert bunch.data.columns.tolist() == bunch.feature_names
    assert_array_equal(bunch.data, IMAGES[name][6:].reshape(2, 784))
    assert bunch.target.name == "label"
    assert_array_equal(bunch.frame["label"], [0, 1])
    assert bunch.frame.shape == (2, 785)
    X, y = fetch(data_home=home, as_frame=True, return_X_y=True)
    assert (type(X), type(y)) == (pd.DataFrame, pd.Series)
    with pytest.raises(ValueError, match="as_images and as_frame exclude each other"):
        fetch(data_home=home, as_frame=True, as_images=True)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="as_frame=True needs pandas"):
        fetch(data_home=home, as_frame=True)


def test_other_names_of_npz_files_and_arrays(home, tmp_path):
    lower = {name.lower(): array for name, array in arrays_of("FASHION_MNIST").items()}
    np.savez_compressed(tmp_path / "fashion-mnist.npz", **lower)
    assert_array_equal(fetch_fashion_mnist(data_home=tmp_path).target, LABELS)
    flat = {name: array.reshape(len(array), -1).squeeze() for name, array in arrays_of("MNIST").items()}
    np.savez(home / "mnist.npz", **{name: array.astype(float) for name, array in flat.items()})
    assert_array_equal(fetch_mnist(data_home=home, as_images=True).data, IMAGES["MNIST"])


@pytest.mark.parametrize("change", ["order", "pixel", "label", "scale", "other dataset", "short"])
def test_checksum_detects_other_data(change, home):
    arrays = {name: array.copy() for name, array in arrays_of("MNIST").items()}
    if change == "order":
        arrays = {name: array[::-1] for name, array in arrays.items()}
    elif change == "pixel":
        arrays["X_test"][1, 3, 4] ^= 1
    elif change == "label":
        arrays["y_test"][1] = 7
    elif change == "scale":
        arrays["X_train"] = arrays["X_train"] / 255
    elif change == "other dataset":
        arrays = arrays_of("FASHION_MNIST")
    else:
        arrays["X_test"], arrays["y_test"] = arrays["X_test"][:1], arrays["y_test"][:1]
    np.savez(home / "mnist.npz", **arrays)
    with pytest.raises(
        ValueError, match=r"mnist\.npz does not contain MNIST in its original order: the sha256 .* move it"
    ):
        fetch_mnist(data_home=home)


def test_damaged_npz_files(home):
    np.savez(home / "mnist.npz", images=IMAGES["MNIST"])
    with pytest.raises(ValueError, match=r"should contain x_train, .*, but it contains \['images'\]"):
        fetch_mnist(data_home=home)
    content = (home / "fashion_mnist.npz").read_bytes()
    np.save(home / "one.npy", IMAGES["MNIST"])
    one_array = (home / "one.npy").read_bytes()
    for damaged in (content[: len(content) // 2], b"no arrays", b"", one_array):
        (home / "mnist.npz").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"mnist\.npz is not a valid .npz file"):
            fetch_mnist(data_home=home)


def test_damaged_idx_files(tmp_path):
    write_idx_files(tmp_path, "MNIST", True)
    path = tmp_path / f"{datasets.IDX_FILES[2]}.gz"
    content = path.read_bytes()
    for damaged in (content[:-30], b"not compressed", content[:40] + b"\0\0\0" + content[43:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte\.gz is damaged and cannot be decompressed"):
            fetch_mnist(data_home=tmp_path)
    path.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"should contain all of .*, but \['t10k-images-idx3-ubyte'\] are missing"
    ):
        fetch_mnist(data_home=tmp_path)
    whole = idx_content(IMAGES["MNIST"][N_TRAIN:])
    for damaged in (whole[:-1], whole[:9], whole[:3], b"", b"\0\0\x0d" + whole[3:], b"P5 " + whole, whole[:3] + b"\0"):
        (tmp_path / datasets.IDX_FILES[2]).write_bytes(damaged)
        with pytest.raises(ValueError, match="t10k-images-idx3-ubyte is damaged: it is not an IDX file"):
            fetch_mnist(data_home=tmp_path)


@over_datasets
def test_missing_files(name, fetch, tmp_path):
    with pytest.raises(FileNotFoundError, match="data_home should be a folder that contains it, or train-images-idx3"):
        fetch(data_home=tmp_path)
    with pytest.raises(FileNotFoundError, match="There is no file"):
        fetch(data_home=tmp_path / "nowhere")


@over_datasets
def test_offline(name, fetch):
    with pytest.raises(OSError, match=r"OpenML cannot be reached; put (fashion_)?mnist\.npz, or the original files"):
        fetch()


@over_datasets
def test_from_openml(name, fetch, monkeypatch):
    def fetch_openml(dataset, *, version, as_frame, parser, return_X_y):
        expected = {"MNIST": "mnist_784", "FASHION_MNIST": "Fashion-MNIST"}[name]
        assert (dataset, version, as_frame, return_X_y) == (expected, 1, False, True)
        return IMAGES[name].reshape(-1, 784).astype(float), np.array([str(label) for label in LABELS], dtype=object)

    monkeypatch.setattr(datasets, "fetch_openml", fetch_openml)
    X, y = fetch(return_X_y=True)
    assert X.dtype == np.uint8
    assert_array_equal(X, IMAGES[name].reshape(-1, 784))
    assert_array_equal(y, LABELS)
    monkeypatch.setitem(IMAGES, name, IMAGES[name][::-1])
    with pytest.raises(ValueError, match="OpenML does not contain .* in its original order"):
        fetch()
