"""Datasets for examples and benchmarks: grayscale images of 28 x 28 pixels in ten classes."""

import gzip
import hashlib
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.datasets import fetch_openml, get_data_home
from sklearn.utils import Bunch

__all__ = ["fetch_fashion_mnist", "fetch_mnist"]

SIDE = 28
N_TRAIN = 60_000
IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
ARRAYS = ("x_train", "y_train", "x_test", "y_test")
SUBSETS = {"all": slice(None), "train": slice(None, N_TRAIN), "test": slice(N_TRAIN, None)}


class ImageDataset(NamedTuple):
    """Files, checksum and description of a dataset."""

    title: str
    npz_names: tuple
    folders: tuple
    openml_name: str
    sha256: str  # of all pixels, then all labels, one byte each, in the original order
    target_names: tuple
    description: str


MNIST = ImageDataset(
    title="MNIST",
    npz_names=("mnist.npz",),
    folders=("mnist", "MNIST/raw"),
    openml_name="mnist_784",
    sha256="c2069063c1105f2bf96266aef1ff68c6e13bdda7a54e37bf19c16f1db24efc83",
    target_names=tuple("0123456789"),
    description="""MNIST: handwritten digits

60,000 images for training and 10,000 for tests, by other writers. Digits are scaled to fit into 20 x 20 pixels and
centered in 28 x 28 pixels by their center of mass. Pixels range from 0 (background) to 255. Classes are the digits 0 to
9, of about equal size.

Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, Gradient-based learning applied to document recognition, 1998.
""",
)
FASHION_MNIST = ImageDataset(
    title="Fashion-MNIST",
    npz_names=("fashion_mnist.npz", "fashion-mnist.npz"),
    folders=("fashion-mnist", "fashion_mnist", "FashionMNIST/raw"),
    openml_name="Fashion-MNIST",
    sha256="2cbc59191665e1ba3f2494648f17edac5974f748ab89fb2ae05597d658161f54",
    target_names=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    description="""Fashion-MNIST: images of clothes

60,000 images for training and 10,000 for tests, made from the product photographs of a shop. The format is that of
MNIST, 28 x 28 pixels from 0 (background) to 255, but the ten classes, of equal size, are harder to distinguish.

H. Xiao, K. Rasul and R. Vollgraf, Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms,
2017.
""",
)


def fetch_mnist(*, data_home=None, subset="all", as_images=False, as_frame=False, return_X_y=False):
    """Load the MNIST digits: 60,000 training images, then 10,000 test images, in their original order.

    Files are looked for in ``data_home``; without it, in the folder of the environment variable ``SKVAE_DATA_HOME``,
    then in scikit-learn's data folder. They are ``mnist.npz`` with the arrays ``x_train``, ``y_train``, ``x_test`` and
    ``y_test``, or the four original files ``train-images-idx3-ubyte`` and so on, compressed (``.gz``) or not, in the
    folder or in its subfolders ``mnist`` or ``MNIST/raw``. Without such files, the data are downloaded once from
    OpenML. The data are verified by a checksum.

    Parameters
    ----------
    data_home : str or path-like, default=None
        Folder of the files; nothing is downloaded then.
    subset : {"all", "train", "test"}, default="all"
        Images to return.
    as_images : bool, default=False
        Return images of shape (28, 28) instead of (784,).
    as_frame : bool, default=False
        Return a pandas DataFrame and Series instead of arrays.
    return_X_y : bool, default=False
        Return ``(data, target)`` instead of a bunch.

    Returns
    -------
    mnist : Bunch
        ``data``: uint8 array of shape (n_samples, 784) or (n_samples, 28, 28), pixels from 0 to 255. ``target``: int64
        array of shape (n_samples,), 0 to 9. ``frame``: both in a DataFrame if ``as_frame``, else None.
        ``feature_names``: pixels by row and column. ``target_names``: names of the classes. ``DESCR``: description.

    Raises
    ------
    FileNotFoundError
        If ``data_home`` has no such files, or a folder has some of the original files but not all.
    ValueError
        If a file cannot be read or is not MNIST, or ``subset`` is invalid.
    OSError
        If there is no file and OpenML cannot be reached.
    ImportError
        If ``as_frame`` and pandas is not installed.

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
    return _fetch(MNIST, data_home, subset, as_images, as_frame, return_X_y)


def fetch_fashion_mnist(*, data_home=None, subset="all", as_images=False, as_frame=False, return_X_y=False):
    """Load Fashion-MNIST: 60,000 training images of clothes, then 10,000 test images, in their original order.

    Files are looked for as by `fetch_mnist`; their names are ``fashion_mnist.npz`` or ``fashion-mnist.npz``, or those
    of the original files, and subfolders are ``fashion-mnist``, ``fashion_mnist`` and ``FashionMNIST/raw``.

    Parameters
    ----------
    data_home : str or path-like, default=None
        Folder of the files; nothing is downloaded then.
    subset : {"all", "train", "test"}, default="all"
        Images to return.
    as_images : bool, default=False
        Return images of shape (28, 28) instead of (784,).
    as_frame : bool, default=False
        Return a pandas DataFrame and Series instead of arrays.
    return_X_y : bool, default=False
        Return ``(data, target)`` instead of a bunch.

    Returns
    -------
    fashion_mnist : Bunch
        See `fetch_mnist`.

    Raises
    ------
    FileNotFoundError, ValueError, OSError, ImportError
        See `fetch_mnist`.

    References
    ----------
    H. Xiao, K. Rasul and R. Vollgraf, Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
    Algorithms, 2017.

    Examples
    --------
    >>> from skvae.datasets import fetch_fashion_mnist
    >>> fashion = fetch_fashion_mnist(subset="test", as_images=True)  # doctest: +SKIP
    >>> fashion.data.shape, fashion.target_names[fashion.target[0]]  # doctest: +SKIP
    ((10000, 28, 28), 'Ankle boot')
    """
    return _fetch(FASHION_MNIST, data_home, subset, as_images, as_frame, return_X_y)


def _fetch(dataset, data_home, subset, as_images, as_frame, return_X_y):
    if subset not in SUBSETS:
        raise ValueError(f"subset={subset!r} should be one of {list(SUBSETS)}.")
    if as_images and as_frame:
        raise ValueError("as_images and as_frame exclude each other: a DataFrame has a column for each pixel.")
    source = _find_files(dataset, data_home)
    images, labels = _download(dataset) if source is None else _read(source)
    images, labels = _verify(dataset, source or "OpenML", images, labels)
    images, labels = images[SUBSETS[subset]], labels[SUBSETS[subset]]

    names = [f"pixel_{row}_{column}" for row in range(SIDE) for column in range(SIDE)]
    data = images if as_images else images.reshape(len(images), -1)
    data, target, frame = _to_frame(data, labels, names) if as_frame else (data, labels, None)
    if return_X_y:
        return data, target
    return Bunch(
        data=data,
        target=target,
        frame=frame,
        feature_names=names,
        target_names=np.array(dataset.target_names),
        DESCR=dataset.description,
    )


def _find_files(dataset, data_home):
    """Return the path of an .npz file or of a folder of original files, or None if there is neither."""
    homes = [data_home] if data_home is not None else [os.environ.get("SKVAE_DATA_HOME"), get_data_home()]
    for home in (Path(home).expanduser() for home in homes if home):
        # The original files of both datasets have the same names, so that subfolders come first.
        folders = [*(home / folder for folder in dataset.folders), home]
        files = [folder / name for folder in folders for name in dataset.npz_names]
        paths = [path for path in files if path.is_file()]
        paths += [folder for folder in folders if any(_idx_paths(folder).values())]
        if paths:
            return paths[0]
    if data_home is not None:
        raise FileNotFoundError(
            f"There is no file {dataset.npz_names[0]} in {data_home}; data_home should be a folder that contains it, "
            f"or {IDX_FILES[0]} and the three other original files, there or in a subfolder {dataset.folders[0]}."
        )
    return None


def _idx_paths(folder):
    """Return the paths of the original files in a folder, None for missing ones."""
    paths = {name: [folder / name, folder / f"{name}.gz"] for name in IDX_FILES}
    return {name: next((path for path in options if path.is_file()), None) for name, options in paths.items()}


def _read(source):
    """Return all images and labels, those for training first."""
    if source.is_file():
        arrays = _read_npz(source)
    else:
        paths = _idx_paths(source)
        missing = [name for name, path in paths.items() if path is None]
        if missing:
            raise FileNotFoundError(f"{source} should contain all of {list(IDX_FILES)}, but {missing} are missing.")
        arrays = [_read_idx(path) for path in paths.values()]
    return np.concatenate(arrays[::2]), np.concatenate(arrays[1::2])


def _read_npz(path):
    try:
        with path.open("rb") as stream, np.load(stream) as file:  # np.load does not close a damaged file
            arrays = {name.lower(): file[name] for name in file.files}
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is not a valid .npz file; download it again.") from error
    if set(ARRAYS) - set(arrays):
        raise ValueError(f"{path} should contain {', '.join(ARRAYS)}, but it contains {sorted(arrays)}.")
    return [arrays[name] for name in ARRAYS]


def _read_idx(path):
    """Return the array of an IDX file: two zeros, 8 for uint8, the number of axes, their lengths, the values."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged and cannot be decompressed; download it again.") from error
    n_axes = content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else 0
    start = 4 + 4 * n_axes
    shape = struct.unpack(f">{n_axes}I", content[4:start]) if len(content) >= start > 4 else ()
    if not shape or len(content) - start != np.prod(shape, dtype=np.int64):
        raise ValueError(f"{path} is damaged: it is not an IDX file of the length in its header; download it again.")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _download(dataset):
    try:
        return fetch_openml(dataset.openml_name, version=1, as_frame=False, parser="liac-arff", return_X_y=True)
    except OSError as error:
        raise OSError(
            f"There are no files of {dataset.title}, and OpenML cannot be reached; put {dataset.npz_names[0]}, or the "
            "original files, into a folder and set data_home or SKVAE_DATA_HOME to it."
        ) from error


def _verify(dataset, source, images, labels):
    """Return uint8 images (n, 28, 28) and int64 labels (n,); raise unless their checksum is that of the dataset."""
    images, labels = images.astype(np.uint8), labels.astype(np.uint8)
    digest = hashlib.sha256(images.tobytes())
    digest.update(labels.tobytes())
    if digest.hexdigest() != dataset.sha256:
        raise ValueError(
            f"{source} does not contain {dataset.title} in its original order: the sha256 of its pixels and labels is "
            f"{digest.hexdigest()}, not {dataset.sha256}; replace it, or move it elsewhere."
        )
    return images.reshape(-1, SIDE, SIDE), labels.astype(np.int64)


def _to_frame(data, target, names):
    """Return a DataFrame of the pixels, a Series of the labels, and both in one DataFrame."""
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError("as_frame=True needs pandas; install it with 'pip install pandas'.") from error
    data, target = pd.DataFrame(data, columns=names), pd.Series(target, name="label")
    return data, target, pd.concat([data, target], axis=1)
