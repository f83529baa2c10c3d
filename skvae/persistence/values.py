"""Values as trees of JSON and arrays, and back.

Conventions
-----------
None, bools, integers, strings, finite floats and lists are themselves. Everything else is an object with the name of
its kind under ``"$"``. Arrays are kept apart under names, and each is referred to once. What a value is, is decided by
its exact type, so that nothing comes back as another type than it went.
"""

import math

import numpy as np
import torch
from sklearn.frozen import FrozenEstimator
from torch import nn

from ..models.serialize import foreign_part, module_from_dict, module_to_dict
from .container import CorruptFile

TAG = "$"
MAX_TEXT = 2**25  # characters for which an array of strings has room
MAX_DEPTH = 64  # of values within values
NUMBERS = "biuf"  # kinds of dtype that go into files
ITSELF = (type(None), bool, int, str)
HASHABLE = (*ITSELF, float)


class Writer:
    """Turns values into trees, and collects their arrays.

    Parameters
    ----------
    estimator : callable, (estimator, Writer, where) -> dict
        Gives the fields of an estimator; it raises TypeError for one that does not go into files.
    """

    def __init__(self, estimator):
        self.arrays, self._estimator, self._depth = {}, estimator, 0

    def tree(self, value, where):
        """The tree of a value.

        Parameters
        ----------
        value : object
        where : str
            What it is called in messages.

        Raises
        ------
        TypeError
            If values of its type do not go into files.
        ValueError
            If there are too many values within values.
        """
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ValueError(f"{where} holds values within values too deep; make it flatter.")
        try:
            return self._tree(value, where)
        finally:
            self._depth -= 1

    def _tree(self, value, where):
        kind = type(value)
        if kind in ITSELF or (kind is float and math.isfinite(value)):
            return value
        if kind is float:
            return {TAG: "float", "value": repr(value)}
        if kind is list:
            return self._all(value, where)
        if kind is tuple:
            return {TAG: "tuple", "items": self._all(value, where)}
        if kind is dict:
            return {
                TAG: "dict",
                "items": [[self.tree(k, where), self.tree(v, f"{where}[{k!r:.40}]")] for k, v in value.items()],
            }
        if isinstance(value, np.generic) and value.dtype.name in DTYPE_NAMES:
            return {TAG: "scalar", "dtype": value.dtype.name, "value": self.tree(value.item(), where)}
        if kind is np.str_:
            return {TAG: "text", "value": str(value)}
        if kind in (np.ndarray, np.memmap):
            return self._array(value, where)
        return self._object(value, where)

    def _all(self, values, where):
        return [self.tree(value, where) for value in values]

    def _array(self, array, where):
        if array.dtype.kind in NUMBERS and array.dtype.itemsize <= 8:
            fortran = array.flags.f_contiguous and not array.flags.c_contiguous
            array = np.require(array.T if fortran else array, array.dtype.newbyteorder("="), "C")
            name = str(len(self.arrays))
            self.arrays[name] = array
            return {TAG: "array", "name": name, "fortran": fortran}
        if array.dtype.kind in "UO":
            values = self._all(array.ravel().tolist(), where)
            return {TAG: "objects", "text": array.dtype.kind == "U", "shape": list(array.shape), "items": values}
        raise TypeError(unwritable(where, f"an array of {array.dtype}", "give numbers or strings"))

    def _object(self, value, where):
        if isinstance(value, np.dtype) and value.kind in NUMBERS:
            return {TAG: "dtype", "value": value.newbyteorder("=").name}
        if isinstance(value, type) and issubclass(value, np.number) and np.dtype(value).name in DTYPE_NAMES:
            return {TAG: "type", "value": np.dtype(value).name}
        if type(value) is torch.device:
            return {TAG: "device", "value": str(value)}
        if type(value) is np.random.RandomState:
            state = value.get_state(legacy=False)
            if state["bit_generator"] == "MT19937":
                return {TAG: "RandomState", "state": self.tree(state, where)}
        if type(value) is FrozenEstimator:
            return {TAG: "frozen", "estimator": self.tree(value.estimator, where)}
        if isinstance(value, nn.Module):
            foreign = foreign_part(value)
            if foreign is None:
                return {TAG: "module", "description": self.tree(module_to_dict(value), where)}
            raise TypeError(
                unwritable(where, f"a module of your own ({foreign})", "use the parameters of the estimator")
            )
        if hasattr(value, "get_params") and not isinstance(value, type):
            return {TAG: "estimator", **self._estimator(value, self, where)}
        raise TypeError(unwritable(where, f"{value!r:.100}", "use a name, a number or an array"))


def unwritable(where, what, instead):
    """What to say of a value that does not go into a file."""
    return (
        f"{where} is {what}, which a file without code can not hold; {instead}, or write it with skops.io.dump "
        "(if it holds estimators of scikit-learn) or joblib.dump (if it holds code of your own)."
    )


class Reader:
    """Turns trees back into values.

    Parameters
    ----------
    arrays : dict of str to ndarray
    estimator : callable, (fields, Reader) -> estimator
    """

    def __init__(self, arrays, estimator):
        self.arrays, self._estimator, self._depth = dict(arrays), estimator, 0

    def value(self, tree):
        """The value of a tree.

        Raises
        ------
        CorruptFile
            If it is none that `Writer` makes.
        """
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise CorruptFile("it holds values within values too deep")
        try:
            if isinstance(tree, list):
                return [self.value(part) for part in tree]
            return self._tagged(dict(tree)) if isinstance(tree, dict) else tree
        finally:
            self._depth -= 1

    def finish(self):
        """Raise if there are arrays that nothing refers to."""
        if self.arrays:
            raise CorruptFile(f"nothing refers to its arrays {sorted(self.arrays)[:3]}")

    def _tagged(self, fields):
        tag = fields.pop(TAG, None)
        if tag == "estimator":
            return self._estimator(fields, self)
        names, read = READERS.get(tag, ((), None)) if isinstance(tag, str) else ((), None)
        if read is None or set(fields) != set(names):
            raise CorruptFile(f"it holds a value of the unknown kind {tag!r:.40}, with {sorted(fields)!r:.80}")
        return read(self, **fields)

    def _float(self, value):
        if value not in ("nan", "inf", "-inf"):
            raise CorruptFile(f"{value!r:.40} is no number")
        return float(value)

    def _tuple(self, items):
        return tuple(self.values(items))

    def _dict(self, items):
        pairs = [self.values(pair) for pair in expect(items, list)]
        if any(len(pair) != 2 or type(pair[0]) not in HASHABLE for pair in pairs):
            raise CorruptFile("a dict does not map names or numbers to values")
        found = dict(pairs)
        if len(found) < len(pairs):
            raise CorruptFile("a dict has a key twice")
        return found

    def _array(self, name, fortran):
        if not isinstance(name, str) or name not in self.arrays:
            raise CorruptFile(f"the array {name!r:.40} is missing, or is referred to twice")
        array = self.arrays.pop(name)
        return array.T if expect(fortran, bool) else array

    def _objects(self, text, shape, items):
        values, text = self.values(items), expect(text, bool)
        if any(type(value) not in ((str,) if text else HASHABLE) for value in values):
            raise CorruptFile("an array of objects holds others than names or numbers")
        longest = max(map(len, values), default=0) if text else 0
        if longest * len(values) > MAX_TEXT:
            raise CorruptFile(
                f"an array holds {len(values)} strings of up to {longest} characters, for each of which it has room"
            )
        array = (
            np.array(values, dtype=str) if text and values else np.empty(len(values), dtype="U1" if text else object)
        )
        array[:] = values
        shape = expect(shape, list)
        if any(type(n) is not int or n < 0 for n in shape) or len(shape) > 32 or math.prod(shape) != len(values):
            raise CorruptFile(f"{len(values)} objects do not fill an array of shape {shape!r:.80}")
        return array.reshape(shape)

    def _scalar(self, dtype, value):
        dtype, value = self._dtype(dtype), self.value(value)
        if type(value) is not {"b": bool, "f": float}.get(dtype.kind, int):
            raise CorruptFile(f"{value!r:.40} is no {dtype}")
        try:
            return dtype.type(value)
        except OverflowError as error:
            raise CorruptFile(f"{value!r:.40} is too large for {dtype}") from error

    def _text(self, value):
        return np.str_(expect(value, str))

    def _dtype(self, value):
        if not isinstance(value, str) or value not in DTYPE_NAMES:
            raise CorruptFile(f"{value!r:.40} is no type of numbers")
        return np.dtype(value)

    def _type(self, value):
        return self._dtype(value).type

    def _device(self, value):
        try:
            return torch.device(expect(value, str))
        except RuntimeError as error:
            raise CorruptFile(f"{value!r:.40} is no device") from error

    def _random_state(self, state):
        random_state = np.random.RandomState()
        try:
            random_state.set_state(self.value(state))
        except Exception as error:
            raise CorruptFile("a random state is not one") from error
        return random_state

    def _frozen(self, estimator):
        frozen = self.value(estimator)
        if not hasattr(frozen, "get_params"):
            raise CorruptFile("what is frozen is no estimator")
        return FrozenEstimator(frozen)

    def _module(self, description):
        try:
            return module_from_dict(self.value(description))
        except CorruptFile:
            raise
        except Exception as error:
            raise CorruptFile(f"a module does not follow its description ({str(error)[:200]})") from error

    def values(self, trees):
        """The values of a list of trees."""
        return [self.value(tree) for tree in expect(trees, list)]


def expect(value, kind):
    """The value, if it is of this type."""
    if type(value) is not kind:
        raise CorruptFile(f"{value!r:.40} stands where a {kind.__name__} should")
    return value


DTYPE_NAMES = {np.dtype(code).name for code in "?bBhHiIlLqQefd"}
READERS = {  # fields of an object, and what reads them
    "float": (("value",), Reader._float),
    "tuple": (("items",), Reader._tuple),
    "dict": (("items",), Reader._dict),
    "array": (("name", "fortran"), Reader._array),
    "objects": (("text", "shape", "items"), Reader._objects),
    "scalar": (("dtype", "value"), Reader._scalar),
    "text": (("value",), Reader._text),
    "dtype": (("value",), Reader._dtype),
    "type": (("value",), Reader._type),
    "device": (("value",), Reader._device),
    "RandomState": (("state",), Reader._random_state),
    "frozen": (("estimator",), Reader._frozen),
    "module": (("description",), Reader._module),
}
