import numpy as np
import pytest
from numpy.testing import assert_array_equal

from skvae import datasets
from skvae.datasets import fetch_mnist


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a small file of the right form, and no other source."""
    rng = np.random.default_rng(0)
    arrays = {
        "X_train": rng.integers(256, size=(6, 28, 28), dtype=np.uint8),
        "y_train": np.arange(6, dtype=np.uint8),
        "X_test": rng.integers(256, size=(2, 28, 28), dtype=np.uint8),
        "y_test": np.arange(2, dtype=np.uint8),
    }
    (tmp_path / "home").mkdir()
    np.savez(tmp_path / "home" / "mnist.npz", **arrays)
    monkeypatch.delenv("SKVAE_DATA_HOME", raising=False)
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path / "empty"))
    return tmp_path / "home", arrays


def test_from_a_folder(folder, monkeypatch):
    home, arrays = folder
    X, y = fetch_mnist(data_home=home, return_X_y=True)
    assert X.dtype == np.uint8
    assert_array_equal(X[:6], arrays["X_train"].reshape(6, 784))
    assert_array_equal(y, [0, 1, 2, 3, 4, 5, 0, 1])
    monkeypatch.setenv("SKVAE_DATA_HOME", str(home))
    bunch = fetch_mnist()
    assert_array_equal(bunch.data, X)
    assert_array_equal(bunch.target, y)


def test_other_spellings_and_other_files(folder):
    home, arrays = folder
    np.savez(home / "mnist.npz", **{name.lower(): array for name, array in arrays.items()})
    assert_array_equal(fetch_mnist(data_home=home).target, [0, 1, 2, 3, 4, 5, 0, 1])
    np.savez(home / "mnist.npz", images=arrays["X_train"])
    with pytest.raises(ValueError, match=r"should hold X_train, .*, but it holds \['images'\]"):
        fetch_mnist(data_home=home)


def test_missing_file(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="should be a folder that holds"):
        fetch_mnist(data_home=tmp_path)


def test_offline(folder, monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError

    monkeypatch.setattr(datasets, "fetch_openml", unreachable)
    with pytest.raises(OSError, match="OpenML can not be reached; put mnist.npz into a folder"):
        fetch_mnist()


def test_from_openml(folder, monkeypatch):
    def fetch(name, *, version, as_frame, parser, return_X_y):
        assert (name, version, as_frame, return_X_y) == ("mnist_784", 1, False, True)
        return np.array([[0.0, 255.0]]), np.array(["7"], dtype=object)

    monkeypatch.setattr(datasets, "fetch_openml", fetch)
    X, y = fetch_mnist(return_X_y=True)
    assert X.dtype == np.uint8
    assert_array_equal(y, [7])
