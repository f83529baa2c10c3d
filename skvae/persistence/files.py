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
from .skops_files import from_skops, to_skops
from .values import TOO_DEEP, ValueDecoder, ValueEncoder, cannot_store, expect

FORMAT_VERSION = 1
FIELDS = {"sha256", "format_version", "versions", "estimator"}
SKOPS_FIELDS = {"sha256", "format_version", "versions", "skops"}  # of a file with estimators of scikit-learn


def save(estimator, path):
    """Write an estimator, fitted or not, into one file.

    The file is in the safetensors format: arrays, and text that describes them, with a checksum over everything.
    There is no code in it, and `load` runs none. It is read back before it replaces an older file, in one step. A
    pipeline, a search or another estimator of scikit-learn, which may hold estimators of this package, is described by
    skops (``pip install skvae[skops]``); what only code can make again is refused, such as trees and functions.

    Parameters
    ----------
    estimator : estimator of this package or of scikit-learn
        Parameters of ours may be numbers, strings, arrays, lists, tuples, dicts, `numpy.random.RandomState`, networks
        of torch's and this package's layers, and other estimators of this package, also in a
        `sklearn.frozen.FrozenEstimator`.
    path : str or path-like
        Where to write.

    Raises
    ------
    TypeError
        If it is not an estimator, or if it holds values that only code can make again: functions, classes, callbacks,
        networks with layers of your own, estimators of other packages.
    ImportError
        If it is an estimator of scikit-learn, and skops is not installed.
    ValueError
        If parameters are not valid, or fitted attributes are inconsistent.

    See Also
    --------
    load : Read it back.

    Notes
    -----
    The trainer of networks (``net_``, with the state of the optimizer) is left out, as in pickles.

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
        raise TypeError(f"skvae.save stores instances, but got the class {estimator.__name__} itself.")
    name = type(estimator).__name__
    is_ours, encoder = type(estimator) in ESTIMATORS.values(), ValueEncoder(encode_estimator)
    if not is_ours and type(estimator).__module__.partition(".")[0] != "sklearn":
        raise TypeError(cannot_store("The estimator", f"a {name}", f"save one of {sorted(ESTIMATORS)}, or a Pipeline"))
    field, value = ("estimator", estimator) if is_ours else ("skops", to_skops(estimator))
    tree = {"format_version": FORMAT_VERSION, "versions": versions(), field: encoder.encode(value, name)}
    data = container.pack(tree, encoder.arrays)
    try:
        restore(data)
    except CorruptFile as error:
        raise ValueError(f"This {name} could not be read back from a file: {error}.") from error
    container.write(path, data)


def load(path):
    """Read an estimator from a file that `save` wrote.

    The result is the estimator that was saved, or an error. Files from people whom you do not trust cannot run code,
    but they can hold any numbers.

    Parameters
    ----------
    path : str or path-like
        Its location.

    Returns
    -------
    estimator : object
        Equal to the one that was saved. Its arrays are on the CPU, and its ``device`` parameter is unchanged.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file has another or a newer format, or if it was cut off, damaged or changed.

    See Also
    --------
    save : Write it.
    """
    try:
        return restore(container.read(os.fspath(path)))
    except CorruptFile as error:
        raise ValueError(f"{os.fspath(path)!r} is not an estimator that skvae.save wrote: {error}.") from error


def restore(data):
    """Return the estimator in the bytes of a file."""
    tree, arrays = container.unpack(data)
    version = tree.get("format_version") if isinstance(tree, dict) else None
    if type(version) is not int or version != FORMAT_VERSION:
        writer = tree.get("versions") if isinstance(tree, dict) else None
        raise CorruptFile(
            f"its format has the version {version!r:.40}, but this skvae reads version {FORMAT_VERSION}; it was "
            f"written by {writer!r:.200}"
        )
    if set(tree) not in (FIELDS, SKOPS_FIELDS):
        raise CorruptFile(f"it has the fields {sorted(tree)!r:.200}")
    decoder, is_ours = ValueDecoder(arrays, decode_estimator), set(tree) == FIELDS
    try:
        estimator = decoder.decode(tree["estimator" if is_ours else "skops"])
    except RecursionError as error:
        raise CorruptFile(TOO_DEEP) from error
    if not is_ours:
        decoder.check_all_used()
        return from_skops(estimator)
    if type(estimator) not in ESTIMATORS.values():
        raise CorruptFile("its value is not an estimator")
    decoder.check_all_used()
    return estimator


def encode_estimator(estimator, encoder, where):
    """Return the fields of an estimator in a file."""
    name = type(estimator).__name__
    if ESTIMATORS.get(name) is not type(estimator):
        is_callback = isinstance(estimator, Callback)
        advice = "call set_params(callbacks=None) after the fit" if is_callback else f"use one of {sorted(ESTIMATORS)}"
        raise TypeError(cannot_store(where, f"a {name}", advice))
    estimator._validate_params()
    params, state = estimator.get_params(deep=False), fitted_state(estimator)
    return {
        "class": name,
        "params": {key: encoder.encode(value, f"{name}.{key}") for key, value in params.items()},
        "fitted": {key: encoder.encode(value, f"{name}.{key}") for key, value in state.items()},
    }


def decode_estimator(fields, decoder):
    """Return the estimator with these fields."""
    if set(fields) != {"class", "params", "fitted"} or not isinstance(fields["class"], str):
        raise CorruptFile(f"an estimator has the fields {sorted(fields)!r:.200}")
    cls = ESTIMATORS.get(fields["class"])
    if cls is None:
        raise CorruptFile(f"the estimator {fields['class']!r:.80} is unknown to this skvae")
    params, state = ({k: decoder.decode(v) for k, v in expect(fields[f], dict).items()} for f in ("params", "fitted"))
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
    """Return the versions of the writing packages, for messages."""
    libraries = {"numpy": np.__version__, "scikit-learn": sklearn.__version__, "torch": torch.__version__}
    return {"skvae": __version__} | libraries
