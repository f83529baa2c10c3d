"""Estimators of scikit-learn as files of skops, of which only parts that call nothing are read."""

import functools
import inspect
import io
import json
import zipfile

import numpy as np
from sklearn.base import BaseEstimator

from ..estimators import ESTIMATORS
from .container import CorruptFile
from .values import cannot_store

MAX_NAMED = 10  # types in an error
TRUSTED_TYPES = (
    *(f"{estimator.__module__}.{estimator.__name__}" for estimator in ESTIMATORS.values()),
    "numpy.dtype",
    "torch.device",
)
"""Names of the types that `skops.io.load` has to trust for a file with estimators of this package."""

# Parts of searches that skops does not trust, by exact names: by a prefix, a file could name what a module imports.
SPLITTERS = (
    *("GroupKFold", "GroupShuffleSplit", "KFold", "LeaveOneGroupOut", "LeaveOneOut", "LeavePGroupsOut", "LeavePOut"),
    *("PredefinedSplit", "RepeatedKFold", "RepeatedStratifiedKFold", "ShuffleSplit", "StratifiedGroupKFold"),
    *("StratifiedKFold", "StratifiedShuffleSplit", "TimeSeriesSplit"),
)
SCORERS = ("_MultimetricScorer", "_PassthroughScorer", "_Scorer")
TRUSTED_CLASSES = {
    *TRUSTED_TYPES,
    *(f"sklearn.model_selection._split.{name}" for name in SPLITTERS),
    *(f"sklearn.metrics._scorer.{name}" for name in SCORERS),
}
# Kinds of nodes that hold values, or name a type or a function. Others call something, or get attributes, when read.
LOADERS = {
    *("BytearrayNode", "BytesNode", "CachedNode", "DTypeNode", "DefaultDictNode", "DictNode", "FunctionNode"),
    *("JsonNode", "ListNode", "MaskedArrayNode", "NdArrayNode", "ObjectNode", "RandomGeneratorNode"),
    *("RandomStateNode", "SetNode", "SliceNode", "SparseMatrixNode", "TupleNode", "TypeNode"),
}


def to_skops(estimator):
    """Return an estimator of scikit-learn as the bytes of a file of skops (n,), uint8.

    Raises
    ------
    TypeError
        If it holds what would not be read again.
    """
    name = type(estimator).__name__
    try:
        data = import_skops().dumps(estimator)
    except RecursionError as error:
        raise TypeError(
            cannot_store(
                f"The {name}", "a step with metadata requests, which skops cannot store", "set them after loading"
            )
        ) from error
    try:
        check(data)
    except CorruptFile as error:
        advice = "use other steps"
        raise TypeError(cannot_store(f"The {name}", f"an estimator of which {error}", advice)) from error
    return np.frombuffer(data, dtype=np.uint8)


def from_skops(data):
    """Return the estimator in the bytes of a file of skops.

    Raises
    ------
    CorruptFile
        If it is none, or if it holds what is not trusted.
    """
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 1:
        raise CorruptFile("its pipeline is no file of skops")
    skops, data = import_skops(), data.tobytes()
    try:
        estimator = skops.loads(data, trusted=check(data))
    except CorruptFile:
        raise
    except Exception as error:
        raise CorruptFile(f"its pipeline cannot be read ({type(error).__name__}: {str(error)[:300]})") from error
    if not isinstance(estimator, BaseEstimator):
        raise CorruptFile("its value is not an estimator")
    return estimator


def check(data):
    """Return the types in the bytes of a file of skops that reading it has to trust.

    Raises
    ------
    CorruptFile
        If it is no such file, is compressed, has nodes that call something, or names types that are not trusted.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise CorruptFile("its pipeline is compressed")
            if sum(entry.file_size for entry in entries) > len(data):
                raise CorruptFile("its pipeline has parts that are larger than the file")
            nodes = list(nodes_of(json.loads(archive.read("schema.json"))))
        foreign = sorted({str(node["__loader__"]) for node in nodes} - LOADERS)
        if foreign:
            raise CorruptFile(f"its parts need code ({', '.join(foreign[:MAX_NAMED])})")
        functions = {name_of(node) for node in nodes if node["__loader__"] == "FunctionNode"}
        types = {name_of(node) for node in nodes if node["__loader__"] != "FunctionNode"}
        asked = set(import_skops().get_untrusted_types(data=data))
    except CorruptFile:
        raise
    except Exception as error:
        raise CorruptFile(f"its pipeline cannot be read ({type(error).__name__}: {str(error)[:300]})") from error
    trusted = (TRUSTED_CLASSES - functions) | (metric_functions() - types)
    if not asked <= trusted:
        raise CorruptFile(f"it holds {', '.join(sorted(asked - trusted)[:MAX_NAMED])}")
    return sorted(asked)


@functools.cache
def metric_functions():
    """Return the names of the metrics of scikit-learn, which scorers hold."""
    import sklearn.metrics

    metrics = [getattr(sklearn.metrics, name) for name in sklearn.metrics.__all__]
    return {f"{each.__module__}.{each.__name__}" for each in metrics if inspect.isfunction(each)}


def nodes_of(tree):
    """Yield the nodes of a description, dicts with the name of their loader."""
    stack = [tree]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            if "__loader__" in value:
                yield value
            stack.extend(value.values())
        elif isinstance(value, list):
            stack.extend(value)


def name_of(node):
    """Return the name of the type or function of a node."""
    return f"{node.get('__module__')}.{node.get('__class__')}"


def import_skops():
    """Return skops.io.

    Raises
    ------
    ImportError
        If it is not installed.
    """
    try:
        import skops.io
    except ImportError as error:
        raise ImportError(
            "Files with estimators of scikit-learn need skops, which is not installed: pip install skvae[skops]."
        ) from error
    return skops.io
