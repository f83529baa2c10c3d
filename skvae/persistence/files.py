"""Saving and loading of estimators."""

import os

import numpy as np
import sklearn
import torch
from skorch.callbacks import Callback

from .._version import __version__
from ..estimators import ESTIMATORS
from . import container
from .container import CorruptFile
from .fitted import fitted_state, restore_fitted
from .values import Reader, Writer, expect, unwritable

FORMAT_VERSION = 1
FIELDS = {"sha256", "format_version", "versions", "estimator"}
TRUSTED_TYPES = (
    *(f"{estimator.__module__}.{estimator.__name__}" for estimator in ESTIMATORS.values()),
    "numpy.dtype",
    "torch.device",
)
"""Names of the types that `skops.io.load` has to trust for a file with estimators of this package."""


def save(estimator, path):
    """Write an estimator, fitted or not, into one file.

    The file is in the safetensors format: arrays, and text that says what they are, with a checksum over everything.
    There is no code in it, and `load` runs none. It is read back before it takes the place of an older file, and takes
    it in one step.

    Parameters
    ----------
    estimator : estimator of this package
        Parameters may be numbers, strings, arrays, lists, tuples, dicts, `numpy.random.RandomState`, networks of
        torch's and this package's layers, and other estimators of this package, also in a
        `sklearn.frozen.FrozenEstimator`.
    path : str or path-like
        Where to write.

    Raises
    ------
    TypeError
        If it is no estimator of this package, or if it holds what only code can make again: functions, classes,
        callbacks, networks with layers of your own, other estimators.
    ValueError
        If parameters are not valid, or what was fitted does not belong together.

    See Also
    --------
    load : Read it back.

    Notes
    -----
    What trained the networks (``net_``, with the state of the optimizer) is left out, as in pickles.

    Examples
    --------
    >>> import os, tempfile
    >>> import skvae
    >>> gmm = skvae.TorchGMM(2, random_state=0).fit([[0.0], [0.1], [5.0], [5.1]])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "gmm.skvae")
    ...     skvae.save(gmm, path)
    ...     other = skvae.load(path)
    >>> bool((other.means_ == gmm.means_).all())
    True
    """
    if isinstance(estimator, type):
        raise TypeError(
            f"What is to be saved is the class {estimator.__name__} itself; give an estimator that it makes."
        )
    if type(estimator) not in ESTIMATORS.values():
        raise TypeError(
            unwritable(
                "What is to be saved", f"of the class {type(estimator).__name__}", f"give one of {sorted(ESTIMATORS)}"
            )
        )
    writer = Writer(fields_of)
    tree = writer.tree(estimator, type(estimator).__name__)
    data = container.pack({"format_version": FORMAT_VERSION, "versions": versions(), "estimator": tree}, writer.arrays)
    try:
        restore(data)
    except CorruptFile as error:
        raise ValueError(f"This {type(estimator).__name__} could not be read back from a file: {error}.") from error
    container.write(path, data)


def load(path):
    """Read an estimator from a file that `save` wrote.

    The result is an estimator that was saved, or an error. Files from people whom you do not trust can not run code;
    they can hold any numbers.

    Parameters
    ----------
    path : str or path-like
        Where it is.

    Returns
    -------
    estimator : object
        Equal to the one that was saved. Its arrays are on the CPU, and its ``device`` parameter is what it was.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is of another kind or of a newer format, cut off, or not what was written.

    See Also
    --------
    save : Write it.
    """
    try:
        return restore(container.read(os.fspath(path)))
    except CorruptFile as error:
        raise ValueError(f"{os.fspath(path)!r} is no estimator that skvae.save wrote: {error}.") from error


def restore(data):
    """The estimator in the bytes of a file."""
    tree, arrays = container.unpack(data)
    version = tree.get("format_version") if isinstance(tree, dict) else None
    if type(version) is not int or version != FORMAT_VERSION:
        wrote = tree.get("versions") if isinstance(tree, dict) else None
        raise CorruptFile(
            f"its format has the version {version!r:.40}, and {FORMAT_VERSION} is what this skvae reads; it was "
            f"written by {wrote!r:.200}"
        )
    if set(tree) != FIELDS:
        raise CorruptFile(f"it has the fields {sorted(tree)!r:.200}")
    reader = Reader(arrays, build)
    try:
        estimator = reader.value(tree["estimator"])
    except RecursionError as error:
        raise CorruptFile("it holds values within values too deep") from error
    if type(estimator) not in ESTIMATORS.values():
        raise CorruptFile("what it holds is no estimator")
    reader.finish()
    return estimator


def fields_of(estimator, writer, where):
    """What a file holds of an estimator."""
    name = type(estimator).__name__
    if ESTIMATORS.get(name) is not type(estimator):
        callback = isinstance(estimator, Callback)
        instead = "call set_params(callbacks=None) after the fit" if callback else f"use one of {sorted(ESTIMATORS)}"
        raise TypeError(unwritable(where, f"of the class {name}", instead))
    estimator._validate_params()
    params, state = estimator.get_params(deep=False), fitted_state(estimator)
    return {
        "class": name,
        "params": {key: writer.tree(value, f"{name}.{key}") for key, value in params.items()},
        "fitted": {key: writer.tree(value, f"{name}.{key}") for key, value in state.items()},
    }


def build(fields, reader):
    """The estimator of which a file holds these fields."""
    if set(fields) != {"class", "params", "fitted"} or not isinstance(fields["class"], str):
        raise CorruptFile(f"an estimator has the fields {sorted(fields)!r:.200}")
    cls = ESTIMATORS.get(fields["class"])
    if cls is None:
        raise CorruptFile(f"the estimator {fields['class']!r:.80} is unknown to this skvae")
    params, state = ({k: reader.value(v) for k, v in expect(fields[f], dict).items()} for f in ("params", "fitted"))
    unknown = set(params) - set(cls._get_param_names())
    if unknown:
        raise CorruptFile(f"{cls.__name__} has no parameters {sorted(unknown)!r:.200} in this skvae")
    try:
        estimator = cls(**params)
        estimator._validate_params()
    except Exception as error:
        raise CorruptFile(f"the parameters of its {cls.__name__} are not valid ({str(error)[:300]})") from error
    restore_fitted(estimator, state)
    return estimator


def versions():
    """What wrote a file, for messages."""
    found = {"numpy": np.__version__, "scikit-learn": sklearn.__version__, "torch": torch.__version__}
    return {"skvae": __version__} | found
