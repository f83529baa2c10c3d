"""Fitted attributes of estimators: collected for a file, and checked when they are loaded.

Conventions
-----------
Classes declare their fitted attributes in ``_fitted_schema``, a dict of names to types or to the axes of arrays; the
declarations of base classes are inherited. A type is ``int`` (at least 0), ``float``, ``bool``, ``str``, ``list``,
``dict`` or ``np.dtype``. The axes are a string with a letter for each, and arrays of one estimator agree about the
length of a letter: d features, q latent dimensions, k components or clusters, m the dimensions of their means, c
classes, n samples; "..." stands for any shape, which all such arrays have in common. Arrays hold floats, or with a pair
``(axes, kinds)`` these kinds of dtype. Everything is optional, and other attributes are not checked.
"""

import copy
import warnings
from numbers import Integral, Real

import numpy as np
from sklearn.utils.validation import check_is_fitted

from ..models.networks import row_width
from .container import CorruptFile

MAX_FEATURES = 2**24
MAX_ROW_WIDTH = 2**26  # values that a layer may hold for one sample
SKLEARN_SCHEMA = {"n_features_in_": int, "feature_names_in_": ("d", "O")}  # set by scikit-learn
TYPES = {int: Integral, float: Real, bool: bool | np.bool_}


def fitted_schema(cls):
    """Return the types, and the axes and kinds of arrays, that a class and its bases declare."""
    schema = dict(SKLEARN_SCHEMA)
    for base in reversed(cls.__mro__):
        schema |= vars(base).get("_fitted_schema", {})
    types = {name: entry for name, entry in schema.items() if isinstance(entry, type)}
    arrays = {name: (entry, "f") if isinstance(entry, str) else entry for name, entry in schema.items()}
    return types, {name: entry for name, entry in arrays.items() if name not in types}


def fitted_state(estimator):
    """Return the attributes of an estimator besides its parameters; a network is described by a dict."""
    params = estimator.get_params(deep=False)
    return {name: value for name, value in estimator.__getstate__().items() if name not in params}


def restore_fitted(estimator, state):
    """Set the attributes of an estimator besides its parameters.

    Raises
    ------
    CorruptFile
        If they are not those of a fit, contradict each other, or if methods of the estimator fail.
    """
    types, arrays = fitted_schema(type(estimator))
    check_types(estimator, state, types, arrays)
    check_shapes(state, arrays)
    try:
        if state:
            estimator.__setstate__(state)
        if "module_" in state:
            check_widths(estimator)
            if hasattr(estimator, "_check_conditions"):
                estimator._check_conditions()
        if "device" in estimator.get_params(deep=False) and is_fitted(estimator):
            smoke_test(estimator)
    except CorruptFile:
        raise
    except Exception as error:
        raise CorruptFile(
            f"its fitted attributes are inconsistent ({type(error).__name__}: {str(error)[:300]})"
        ) from error


def check_types(estimator, state, types, arrays):
    """Raise if attributes have names that no fit sets, or other types than their class declares."""
    name, params = type(estimator).__name__, estimator.get_params(deep=False)
    for key, value in state.items():
        # Attributes of the class, its methods above all, cannot be replaced.
        if not key.isidentifier() or key.startswith("__") or key in params or hasattr(type(estimator), key):
            raise CorruptFile(f"a fitted {name} has no attribute {key!r:.80}")
        expected = np.ndarray if key in arrays else types.get(key, object)
        if not isinstance(value, TYPES.get(expected, expected)):
            raise CorruptFile(f"{key} of its {name} is a {type(value).__name__}")
        if expected is int and not 0 <= value < 2**63:
            raise CorruptFile(f"{key} of its {name} is {value!r:.40}")
        if expected is np.ndarray and arrays[key][0] != "..." and value.dtype.kind not in arrays[key][1]:
            raise CorruptFile(f"{key} of its {name} is an array of {value.dtype}")
    if not 0 < state.get("n_features_in_", 1) <= MAX_FEATURES:
        raise CorruptFile(f"its {name} has {state['n_features_in_']} features")


def check_shapes(state, arrays):
    """Raise if arrays have shapes that contradict each other."""
    lengths = {"d": state.get("n_features_in_"), "q": state.get("_n_features_out")}
    lengths = {letter: length for letter, length in lengths.items() if length is not None}
    any_shape = {}
    for name in arrays.keys() & state.keys():
        axes, shape = arrays[name][0], state[name].shape
        if axes == "...":
            any_shape[name] = shape
        elif len(shape) != len(axes) or any(lengths.setdefault(a, n) != n for a, n in zip(axes, shape, strict=True)):
            raise CorruptFile(f"{name} has the shape {shape}, which contradicts other arrays")
    if len(set(any_shape.values())) > 1:
        raise CorruptFile(f"{', '.join(sorted(any_shape))} have different shapes")


def check_widths(estimator):
    """Raise if a sample takes more memory in the networks than the file says; modules on meta need none to find out."""
    model = copy.deepcopy(estimator.module_).to("meta")
    inputs = model.n_inputs(estimator.n_features_in_, estimator._n_features_out)
    widest = max(row_width(network, n) for network, n in zip((model.encoder, model.decoder), inputs, strict=True))
    if not widest <= estimator._widest <= MAX_ROW_WIDTH:
        raise CorruptFile(f"its networks hold {widest} values for a sample, but the file says {estimator._widest}")


def is_fitted(estimator):
    """Return whether an estimator is fitted."""
    try:
        check_is_fitted(estimator)
    except Exception:  # NotFittedError, and errors of attributes that it reads
        return False
    return True


def smoke_test(estimator):
    """Call the methods of a fitted estimator for a sample of zeros, on the CPU; their errors propagate."""
    x, device = np.zeros((1, estimator.n_features_in_)), estimator.device
    given = estimator._example_conditions() if hasattr(estimator, "_conditions") else {}
    estimator.device = "cpu"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for method in ("predict", "transform", "score_samples"):
                if hasattr(estimator, method):
                    getattr(estimator, method)(x, **given.get(method, {}))
            if hasattr(estimator, "sample"):
                estimator.sample(1, random_state=0, **given.get("sample", {}))
    finally:
        estimator.device = device
