"""Data sets for examples and benchmarks: images of one channel, 28 x 28 pixels, in ten classes."""

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


class ImageSet(NamedTuple):
    """Where a set is found, how it is recognised, and what it is."""

    title: str
    npz_names: tuple
    folders: tuple
    openml_name: str
    sha256: str  # of all pixels, then all labels, a byte each, in the original order
    target_names: tuple
    description: str


MNIST = ImageSet(
    title="MNIST",
    npz_names=("mnist.npz",),
    folders=("mnist", "MNIST/raw"),
    openml_name="mnist_784",
    sha256="c2069063c1105f2bf96266aef1ff68c6e13bdda7a54e37bf19c16f1db24efc83",
    target_names=tuple("0123456789"),
    description="""MNIST: handwritten digits

60,000 images for training, and 10,000 for tests, by other writers. Digits are scaled to fit into 20 x 20 pixels, and
moved so that their centre of mass is the centre of 28 x 28. Pixels go from 0 (background) to 255. Classes are the
digits 0 to 9, of about equal size.

Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, Gradient-based learning applied to document recognition, 1998.
""",
)
FASHION_MNIST = ImageSet(
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
    description="""Fashion-MNIST: pictures of clothes

60,000 images for training and 10,000 for tests, made from the product photographs of a shop. The form is that of MNIST,
28 x 28 pixels from 0 (background) to 255, but the classes are harder to tell apart. There are ten, of equal size.

H. Xiao, K. Rasul and R. Vollgraf, Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms,
2017.
""",
)


def fetch_mnist(*, data_home=None, subset="all", as_images=False, as_frame=False, return_X_y=False):
    """Load the MNIST digits: 60,000 training images, then 10,000 test images, in their original order.

    Files are looked for in ``data_home``; without it, in the folder that the environment variable ``SKVAE_DATA_HOME``
    names, then in scikit-learn's data folder. They are ``mnist.npz`` with the arrays ``x_train``, ``y_train``,
    ``x_test`` and ``y_test``, or the four original files ``train-images-idx3-ubyte`` and so on, compressed (``.gz``)
    or not, in the folder or in its subfolders ``mnist`` or ``MNIST/raw``. Without any, the data come from OpenML,
    which needs the network once. What was read is compared with the checksum of MNIST.

    Parameters
    ----------
    data_home : str or path-like, default=None
        Folder of the files; the network is then not used.
    subset : {"all", "train", "test"}, default="all"
        Which images.
    as_images : bool, default=False
        Images of shape (28, 28), not rows of 784 pixels.
    as_frame : bool, default=False
        A pandas DataFrame and Series, not arrays.
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
        If ``data_home`` is given and has no such files, or a folder has some of the original files but not all.
    ValueError
        If a file can not be read or is not MNIST, or for other values of ``subset``.
    OSError
        If there is no file and OpenML can not be reached.
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

    Files are looked for as for `fetch_mnist`; their names are ``fashion_mnist.npz`` or ``fashion-mnist.npz``, or those
    of the original files, and subfolders are ``fashion-mnist``, ``fashion_mnist`` and ``FashionMNIST/raw``.

    Parameters
    ----------
    data_home : str or path-like, default=None
        Folder of the files; the network is then not used.
    subset : {"all", "train", "test"}, default="all"
        Which images.
    as_images : bool, default=False
        Images of shape (28, 28), not rows of 784 pixels.
    as_frame : bool, default=False
        A pandas DataFrame and Series, not arrays.
    return_X_y : bool, default=False
        Return ``(data, target)`` instead of a bunch.

    Returns
    -------
    fashion_mnist : Bunch
        As that of `fetch_mnist`.

    Raises
    ------
    FileNotFoundError, ValueError, OSError, ImportError
        As for `fetch_mnist`.

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


def _fetch(image_set, data_home, subset, as_images, as_frame, return_X_y):
    if subset not in SUBSETS:
        raise ValueError(f"subset={subset!r} should be one of {list(SUBSETS)}.")
    if as_images and as_frame:
        raise ValueError("as_images and as_frame exclude each other: a data frame has a column for each pixel.")
    source = _find(image_set, data_home)
    images, labels = _download(image_set) if source is None else _read(source)
    images, labels = _verified(image_set, source or "OpenML", images, labels)
    images, labels = images[SUBSETS[subset]], labels[SUBSETS[subset]]

    names = [f"pixel_{row}_{column}" for row in range(SIDE) for column in range(SIDE)]
    data = images if as_images else images.reshape(len(images), -1)
    data, target, frame = _framed(data, labels, names) if as_frame else (data, labels, None)
    if return_X_y:
        return data, target
    return Bunch(
        data=data,
        target=target,
        frame=frame,
        feature_names=names,
        target_names=np.array(image_set.target_names),
        DESCR=image_set.description,
    )


def _find(image_set, data_home):
    """Path of an .npz file or of a folder of original files; None if there is neither."""
    homes = [data_home] if data_home is not None else [os.environ.get("SKVAE_DATA_HOME"), get_data_home()]
    for home in (Path(home).expanduser() for home in homes if home):
        # The original files of both sets have the same names: those in a folder of their own come first.
        folders = [*(home / folder for folder in image_set.folders), home]
        files = [folder / name for folder in folders for name in image_set.npz_names]
        found = [path for path in files if path.is_file()]
        found += [folder for folder in folders if any(_idx_paths(folder).values())]
        if found:
            return found[0]
    if data_home is not None:
        raise FileNotFoundError(
            f"There is no file {image_set.npz_names[0]} in {data_home}; data_home should be a folder that holds it, or "
            f"{IDX_FILES[0]} and its three companions, there or in a subfolder {image_set.folders[0]}."
        )
    return None


def _idx_paths(folder):
    """Paths of the original files in a folder, None for those that are not there."""
    paths = {name: [folder / name, folder / f"{name}.gz"] for name in IDX_FILES}
    return {name: next((path for path in both if path.is_file()), None) for name, both in paths.items()}


def _read(source):
    """Images and labels of all rows, training first."""
    if source.is_file():
        arrays = _read_npz(source)
    else:
        paths = _idx_paths(source)
        missing = [name for name, path in paths.items() if path is None]
        if missing:
            raise FileNotFoundError(f"{source} should hold all four of {list(IDX_FILES)}, but {missing} are not there.")
        arrays = [_read_idx(path) for path in paths.values()]
    return np.concatenate(arrays[::2]), np.concatenate(arrays[1::2])


def _read_npz(path):
    try:
        with path.open("rb") as stream, np.load(stream) as file:  # np.load alone leaves a damaged file open
            arrays = {name.lower(): file[name] for name in file.files}
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is no file of arrays that NumPy can read; get it again.") from error
    if set(ARRAYS) - set(arrays):
        raise ValueError(f"{path} should hold {', '.join(ARRAYS)}, but it holds {sorted(arrays)}.")
    return [arrays[name] for name in ARRAYS]


def _read_idx(path):
    """Array of bytes of an original file: two zeros, the kind 8, the number of axes, their lengths, the values."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged and can not be decompressed; get it again.") from error
    n_axes = content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else 0
    start = 4 + 4 * n_axes
    shape = struct.unpack(f">{n_axes}I", content[4:start]) if len(content) >= start > 4 else ()
    if not shape or len(content) - start != np.prod(shape, dtype=np.int64):
        raise ValueError(f"{path} is damaged: it is no IDX file of bytes whose header fits its length; get it again.")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _download(image_set):
    try:
        return fetch_openml(image_set.openml_name, version=1, as_frame=False, parser="liac-arff", return_X_y=True)
    except OSError as error:
        raise OSError(
            f"{image_set.title} is not on this machine and OpenML can not be reached; put {image_set.npz_names[0]}, or "
            "the original files, into a folder and name the folder in data_home or SKVAE_DATA_HOME."
        ) from error


def _verified(image_set, source, images, labels):
    """Images (n, 28, 28) as bytes and int64 labels (n,), if they are those of the set."""
    images, labels = images.astype(np.uint8), labels.astype(np.uint8)
    digest = hashlib.sha256(images.tobytes())
    digest.update(labels.tobytes())
    if digest.hexdigest() != image_set.sha256:
        raise ValueError(
            f"{source} does not hold {image_set.title} in its original order: the sha256 of its pixels and labels is "
            f"{digest.hexdigest()}, not {image_set.sha256}; replace it, or move it elsewhere."
        )
    return images.reshape(-1, SIDE, SIDE), labels.astype(np.int64)


def _framed(data, target, names):
    """Data frame of the pixels, series of the labels, and both in a data frame."""
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError("as_frame=True needs pandas; install it with 'pip install pandas'.") from error
    data, target = pd.DataFrame(data, columns=names), pd.Series(target, name="label")
    return data, target, pd.concat([data, target], axis=1)
