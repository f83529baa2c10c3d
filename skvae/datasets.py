"""Data sets for examples and benchmarks."""

import os
from pathlib import Path

import numpy as np
from sklearn.datasets import fetch_openml, get_data_home
from sklearn.utils import Bunch

__all__ = ["fetch_mnist"]

FILE_NAME = "mnist.npz"
N_TRAIN = 60_000


def fetch_mnist(*, data_home=None, return_X_y=False):
    """Load the MNIST digits: 60,000 training images, then 10,000 test images, in their original order.

    A file ``mnist.npz`` with the arrays ``X_train``, ``y_train``, ``X_test`` and ``y_test`` is looked for in
    ``data_home``, then in the folder that the environment variable ``SKVAE_DATA_HOME`` names, then in scikit-learn's
    data folder. Without one, the data come from OpenML, which needs the network once.

    Parameters
    ----------
    data_home : str or path-like, default=None
        Folder of the file.
    return_X_y : bool, default=False
        Return ``(X, y)`` instead of a bunch.

    Returns
    -------
    mnist : Bunch
        ``data``: uint8 ndarray of shape (70000, 784), pixels from 0 to 255. ``target``: int64 ndarray of shape
        (70000,).

    Raises
    ------
    FileNotFoundError
        If ``data_home`` is given and has no such file.
    ValueError
        If the file does not hold these arrays.
    OSError
        If there is no file and OpenML can not be reached.

    References
    ----------
    Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, Gradient-based learning applied to document recognition, 1998.

    Examples
    --------
    >>> from skvae.datasets import fetch_mnist
    >>> X, y = fetch_mnist(return_X_y=True)  # doctest: +SKIP
    >>> X.shape  # doctest: +SKIP
    (70000, 784)
    """
    path = _find(data_home)
    X, y = _read(path) if path is not None else _download()
    return (X, y) if return_X_y else Bunch(data=X, target=y)


def _find(data_home):
    """Path of the file, None if there is none."""
    if data_home is not None:
        path = Path(data_home).expanduser() / FILE_NAME
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {path}; data_home should be a folder that holds {FILE_NAME}.")
        return path
    homes = [os.environ.get("SKVAE_DATA_HOME"), get_data_home()]
    paths = [Path(home).expanduser() / FILE_NAME for home in homes if home]
    return next((path for path in paths if path.is_file()), None)


def _read(path):
    with np.load(path) as file:
        arrays = {name.lower(): file[name] for name in file.files}
    missing = {"x_train", "y_train", "x_test", "y_test"} - set(arrays)
    if missing:
        raise ValueError(f"{path} should hold X_train, y_train, X_test and y_test, but it holds {sorted(arrays)}.")
    images = np.concatenate([arrays["x_train"], arrays["x_test"]])
    return images.reshape(len(images), -1), np.concatenate([arrays["y_train"], arrays["y_test"]]).astype(np.int64)


def _download():
    try:
        X, y = fetch_openml("mnist_784", version=1, as_frame=False, parser="liac-arff", return_X_y=True)
    except OSError as error:
        raise OSError(
            f"MNIST is not on this machine and OpenML can not be reached; put {FILE_NAME} into a folder and name the "
            "folder in data_home or SKVAE_DATA_HOME."
        ) from error
    return X.astype(np.uint8), y.astype(np.int64)
