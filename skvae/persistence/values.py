"""Encoding of values as trees of JSON and arrays, and decoding.

Conventions
-----------
None, bools, integers, strings, finite floats and lists are encoded as they are. Everything else is an object with the
name of its type under ``"$"``. Arrays are stored apart under names, and each is referred to once. The encoding depends
on the exact type of a value, so that decoded values have the same type.
"""

import math

import numpy as np
import torch
from sklearn.frozen import FrozenEstimator
from torch import nn

from ..models.serialize import foreign_part, module_from_dict, module_to_dict
from .container import MAX_AXES, CorruptFile

TYPE = "$"  # key of the type of an encoded value
MAX_TEXT = 2**25  # characters that the items of an array of strings may have together, each as long as the longest
MAX_DEPTH = 64  # of nested values
NUMBERS = "biuf"  # kinds of dtypes that files can store
JSON_TYPES = (type(None), bool, int, str)
HASHABLE = (*JSON_TYPES, float)
TOO_DEEP = "values are nested too deep"


class ValueEncoder:
    """Encodes values as trees, and collects their arrays.

    Parameters
    ----------
    encode_estimator : callable, (estimator, ValueEncoder, where) -> dict
        Returns the fields of an estimator, or raises TypeError for one that files cannot store.
    """

    def __init__(self, encode_estimator):
        self.arrays, self._encode_estimator, self._depth = {}, encode_estimator, 0

    def encode(self, value, where):
        """Return the tree of a value.

        Parameters
        ----------
        value : object
        where : str
            Its name in messages.

        Raises
        ------
        TypeError
            If files cannot store values of its type.
        ValueError
            If values are nested too deep.
        """
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ValueError(f"{where}: {TOO_DEEP}; make it flatter.")
        try:
            return self._encode(value, where)
        finally:
            self._depth -= 1

    def _encode(self, value, where):
        cls = type(value)
        if cls in JSON_TYPES or (cls is float and math.isfinite(value)):
            return value
        if cls is float:
            return {TYPE: "float", "value": repr(value)}
        if cls is list:
            return self._items(value, where)
        if cls is tuple:
            return {TYPE: "tuple", "items": self._items(value, where)}
        if cls is dict:
            pairs = [[self.encode(k, where), self.encode(v, f"{where}[{k!r:.40}]")] for k, v in value.items()]
            return {TYPE: "dict", "items": pairs}
        if isinstance(value, np.generic) and value.dtype.name in DTYPE_NAMES:
            return {TYPE: "scalar", "dtype": value.dtype.name, "value": self.encode(value.item(), where)}
        if cls is np.str_:
            return {TYPE: "text", "value": str(value)}
        if cls in (np.ndarray, np.memmap):
            return self._array(value, where)
        return self._object(value, where)

    def _items(self, values, where):
        return [self.encode(value, where) for value in values]

    def _array(self, array, where):
        if array.dtype.kind in NUMBERS and array.dtype.itemsize <= 8:
            fortran = array.flags.f_contiguous and not array.flags.c_contiguous
            array = np.require(array.T if fortran else array, array.dtype.newbyteorder("="), "C")
            name = str(len(self.arrays))
            self.arrays[name] = array
            return {TYPE: "array", "name": name, "fortran": fortran}
        if array.dtype.kind in "UO":
            items = self._items(array.ravel().tolist(), where)
            return {TYPE: "objects", "text": array.dtype.kind == "U", "shape": list(array.shape), "items": items}
        raise TypeError(cannot_store(where, f"an array of {array.dtype}", "use numbers or strings"))

    def _object(self, value, where):
        if isinstance(value, np.dtype) and value.kind in NUMBERS:
            return {TYPE: "dtype", "value": value.newbyteorder("=").name}
        if isinstance(value, type) and issubclass(value, np.number) and np.dtype(value).name in DTYPE_NAMES:
            return {TYPE: "type", "value": np.dtype(value).name}
        if type(value) is torch.device:
            return {TYPE: "device", "value": str(value)}
        if type(value) is np.random.RandomState:
            state = value.get_state(legacy=False)
            if state["bit_generator"] == "MT19937":
                return {TYPE: "RandomState", "state": self.encode(state, where)}
        if type(value) is FrozenEstimator:
            return {TYPE: "frozen", "estimator": self.encode(value.estimator, where)}
        if isinstance(value, nn.Module):
            foreign = foreign_part(value)
            if foreign is None:
                return {TYPE: "module", "description": self.encode(module_to_dict(value), where)}
            alternative = "use the parameters of the estimator"
            raise TypeError(cannot_store(where, f"a module of your own ({foreign})", alternative))
        if hasattr(value, "get_params") and not isinstance(value, type):
            return {TYPE: "estimator", **self._encode_estimator(value, self, where)}
        raise TypeError(cannot_store(where, f"{value!r:.100}", "use a name, a number or an array"))


def cannot_store(where, what, alternative):
    """Return the message about a value that files cannot store."""
    return (
        f"{where} is {what}, which skvae.save cannot store without code; {alternative}, or write it with "
        "skops.io.dump (if it holds estimators of scikit-learn) or joblib.dump (if it holds code of your own)."
    )


class ValueDecoder:
    """Decodes trees into values.

    Parameters
    ----------
    arrays : dict of str to ndarray
    decode_estimator : callable, (fields, ValueDecoder) -> estimator
    """

    def __init__(self, arrays, decode_estimator):
        self.arrays, self._decode_estimator, self._depth = dict(arrays), decode_estimator, 0

    def decode(self, tree):
        """Return the value of a tree.

        Raises
        ------
        CorruptFile
            If `ValueEncoder` does not make such a tree.
        """
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise CorruptFile(TOO_DEEP)
        try:
            if isinstance(tree, list):
                return [self.decode(part) for part in tree]
            return self._object(dict(tree)) if isinstance(tree, dict) else tree
        finally:
            self._depth -= 1

    def check_all_used(self):
        """Raise if there are arrays that nothing refers to."""
        if self.arrays:
            raise CorruptFile(f"nothing refers to its arrays {sorted(self.arrays)[:3]}")

    def _object(self, fields):
        name = fields.pop(TYPE, None)
        if name == "estimator":
            return self._decode_estimator(fields, self)
        names, decode = DECODERS.get(name, ((), None)) if isinstance(name, str) else ((), None)
        if decode is None or set(fields) != set(names):
            raise CorruptFile(f"it holds a value of the unknown type {name!r:.40}, with {sorted(fields)!r:.80}")
        return decode(self, **fields)

    def _items(self, trees):
        return [self.decode(tree) for tree in expect(trees, list)]

    def _float(self, value):
        if value not in ("nan", "inf", "-inf"):
            raise CorruptFile(f"{value!r:.40} is not a number")
        return float(value)

    def _tuple(self, items):
        return tuple(self._items(items))

    def _dict(self, items):
        pairs = [self._items(pair) for pair in expect(items, list)]
        if any(len(pair) != 2 or type(pair[0]) not in HASHABLE for pair in pairs):
            raise CorruptFile("a dict does not map names or numbers to values")
        result = dict(pairs)
        if len(result) < len(pairs):
            raise CorruptFile("a dict has a key twice")
        return result

    def _array(self, name, fortran):
        if not isinstance(name, str) or name not in self.arrays:
            raise CorruptFile(f"the array {name!r:.40} is missing, or is referred to twice")
        array = self.arrays.pop(name)
        return array.T if expect(fortran, bool) else array

    def _objects(self, text, shape, items):
        values, text = self._items(items), expect(text, bool)
        if any(type(value) not in ((str,) if text else HASHABLE) for value in values):
            raise CorruptFile("an array of objects holds others than names or numbers")
        longest = max(map(len, values), default=0) if text else 0
        if longest * len(values) > MAX_TEXT:
            raise CorruptFile(f"an array holds {len(values)} strings of up to {longest} characters, which is too large")
        array = np.empty(len(values), dtype=f"U{max(longest, 1)}" if text else object)
        array[:] = values
        shape = expect(shape, list)
        if any(type(n) is not int or n < 0 for n in shape) or len(shape) > MAX_AXES or math.prod(shape) != len(values):
            raise CorruptFile(f"{len(values)} objects do not fill an array of shape {shape!r:.80}")
        return array.reshape(shape)

    def _scalar(self, dtype, value):
        dtype, value = self._dtype(dtype), self.decode(value)
        if type(value) is not {"b": bool, "f": float}.get(dtype.kind, int):
            raise CorruptFile(f"{value!r:.40} is not a {dtype}")
        try:
            return dtype.type(value)
        except OverflowError as error:
            raise CorruptFile(f"{value!r:.40} is too large for {dtype}") from error

    def _text(self, value):
        return np.str_(expect(value, str))

    def _dtype(self, value):
        if not isinstance(value, str) or value not in DTYPE_NAMES:
            raise CorruptFile(f"{value!r:.40} is not a dtype of numbers")
        return np.dtype(value)

    def _type(self, value):
        return self._dtype(value).type

    def _device(self, value):
        try:
            return torch.device(expect(value, str))
        except RuntimeError as error:
            raise CorruptFile(f"{value!r:.40} is not a device") from error

    def _random_state(self, state):
        random_state = np.random.RandomState()
        try:
            random_state.set_state(self.decode(state))
        except Exception as error:
            raise CorruptFile("a random state is invalid") from error
        return random_state

    def _frozen(self, estimator):
        frozen = self.decode(estimator)
        if not hasattr(frozen, "get_params"):
            raise CorruptFile("a frozen value is not an estimator")
        return FrozenEstimator(frozen)

    def _module(self, description):
        try:
            return module_from_dict(self.decode(description))
        except CorruptFile:
            raise
        except Exception as error:
            raise CorruptFile(f"a module contradicts its description ({str(error)[:200]})") from error


def expect(value, cls):
    """Return a value of a type, or raise."""
    if type(value) is not cls:
        raise CorruptFile(f"{value!r:.40} should be a {cls.__name__}")
    return value


DTYPE_NAMES = {np.dtype(code).name for code in "?bBhHiIlLqQefd"}
DECODERS = {  # fields of an encoded value, and the method that decodes them
    "float": (("value",), ValueDecoder._float),
    "tuple": (("items",), ValueDecoder._tuple),
    "dict": (("items",), ValueDecoder._dict),
    "array": (("name", "fortran"), ValueDecoder._array),
    "objects": (("text", "shape", "items"), ValueDecoder._objects),
    "scalar": (("dtype", "value"), ValueDecoder._scalar),
    "text": (("value",), ValueDecoder._text),
    "dtype": (("value",), ValueDecoder._dtype),
    "type": (("value",), ValueDecoder._type),
    "device": (("value",), ValueDecoder._device),
    "RandomState": (("state",), ValueDecoder._random_state),
    "frozen": (("estimator",), ValueDecoder._frozen),
    "module": (("description",), ValueDecoder._module),
}
