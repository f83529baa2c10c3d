"""The bytes of a file: arrays in the safetensors format, a tree of JSON in its metadata, and a checksum over all.

Conventions
-----------
The checksum is the SHA-256 of the whole file with zeros in the place of its own digits, so that no byte is left out. It
detects damage, not forgery: whoever changes a file on purpose can write a checksum that fits. The rest is therefore
read as strictly: one way to write each value, unique names, and sizes that are bounded by the length of the file.
"""

import errno
import hashlib
import json
import math
import os
import stat

import safetensors.numpy
from safetensors import SafetensorError

from ..fitting.files import atomic_write

KEY = "skvae"  # of the metadata of safetensors, which maps strings to strings
MARKER = b'\\"sha256\\":\\"'  # the digits come after it, in JSON within JSON
N_DIGITS = 64
PREFIX = 8  # bytes with the length of the header
MAX_HEADER = 2**25  # bytes of text, which take many times their length when they are parsed
DTYPES = {"BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "F16", "F32", "F64"}
MAX_AXES = 32


class CorruptFile(ValueError):
    """The content of a file is not what `save` writes."""


def pack(tree, arrays):
    """Return the bytes of a file.

    Parameters
    ----------
    tree : dict
        Of strings, finite numbers, bools, None, lists and dicts with strings as keys.
    arrays : dict of str to ndarray
        Contiguous arrays of numbers or bools.

    Raises
    ------
    ValueError
        If the text is longer than 32 MiB.
    """
    text = json.dumps({"sha256": "0" * N_DIGITS, **tree}, allow_nan=False, separators=(",", ":"))
    data = bytearray(safetensors.numpy.save(arrays, {KEY: text}))
    size = int.from_bytes(data[:PREFIX], "little")
    if size > MAX_HEADER:
        raise ValueError(
            f"Everything but arrays takes {size} bytes of text, and the maximum is {MAX_HEADER}; shorten long values, "
            "such as lists of names or histories."
        )
    begin = data.index(MARKER) + len(MARKER)
    data[begin : begin + N_DIGITS] = hashlib.sha256(data).hexdigest().encode()
    return bytes(data)


def unpack(data):
    """Return the tree and the arrays in the bytes of a file.

    Parameters
    ----------
    data : bytes
        Made by `pack`.

    Raises
    ------
    CorruptFile
        If the bytes differ from those that `pack` made, or do not follow the format.
    """
    header = data[PREFIX : PREFIX + header_size(data[:PREFIX], len(data))]
    check_digest(data, header)
    text, n_arrays = check_header(parse_json(header))
    try:
        arrays = safetensors.numpy.load(data)
    except SafetensorError as error:
        raise CorruptFile(f"its arrays do not follow the safetensors format ({error})") from error
    if len(arrays) != n_arrays:
        raise CorruptFile("some of its arrays are missing")
    return parse_json(text), arrays


def read(path):
    """Return the bytes of a file; of other formats, only the beginning is read.

    Raises
    ------
    FileNotFoundError
        If there is no file.
    CorruptFile
        If `pack` could not have made it.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise CorruptFile("it is not a file but a folder or a device")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        prefix = file.read(PREFIX)
        header = prefix + file.read(header_size(prefix, size))
        if MARKER not in header:
            raise CorruptFile("it has another format")
        return header + file.read()


def write(path, data):
    """Write bytes into a file, which is replaced as a whole."""
    path = os.path.realpath(os.fspath(path))  # a link stays a link
    folder = os.path.dirname(path)
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, "This is a folder; name a file in it", path)
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, "There is no such folder to write a file into; make it first", folder)
    with atomic_write(path) as file:
        file.write(data)


def header_size(prefix, size):
    """Return the length of the header, from the bytes before it and the size of the file."""
    if size < PREFIX:
        raise CorruptFile(f"it has {size} bytes, too few for any estimator")
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER or length > size - PREFIX:
        raise CorruptFile("it has another format, or was cut off")
    return length


def check_digest(data, header):
    """Raise if the checksum is wrong."""
    place = header.find(MARKER)
    if place < 0:
        raise CorruptFile("it has another format")
    begin = PREFIX + place + len(MARKER)
    view, digest = memoryview(data), hashlib.sha256()
    for part in (view[:begin], b"0" * N_DIGITS, view[begin + N_DIGITS :]):
        digest.update(part)
    if digest.hexdigest().encode() != data[begin : begin + N_DIGITS]:
        raise CorruptFile("it was cut off, damaged or changed: its checksum is wrong")


def check_header(header):
    """Return the text in the metadata and the number of arrays; check what safetensors does not."""
    metadata = header.pop("__metadata__", None) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or set(metadata) != {KEY} or not isinstance(metadata[KEY], str):
        raise CorruptFile("its header is not that of an estimator")
    for name, entry in header.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise CorruptFile(f"the entry of its array {name!r} is malformed")
        shape = entry["shape"]
        if entry["dtype"] not in DTYPES or not is_shape(shape):
            raise CorruptFile(f"its array {name!r} has the type {entry['dtype']!r} and the shape {shape!r:.80}")
    return metadata[KEY], len(header)


def is_shape(shape):
    """Return whether a shape is a short list of lengths; of empty arrays, which take no bytes, of bounded ones."""
    if not isinstance(shape, list) or len(shape) > MAX_AXES or any(type(n) is not int or n < 0 for n in shape):
        return False
    return 0 not in shape or math.prod(n for n in shape if n) <= MAX_HEADER


def parse_json(text):
    """Parse strict JSON.

    Raises
    ------
    CorruptFile
        If it is not JSON, if a name occurs twice in an object, or if a number is not finite.
    """
    try:
        return json.loads(text, object_pairs_hook=unique_dict, parse_constant=finite_float, parse_float=finite_float)
    except (ValueError, RecursionError) as error:  # bytes that are not text are a ValueError too
        raise CorruptFile(f"its text is not strict JSON ({str(error)[:200]})") from error


def unique_dict(pairs):
    """Return a dict of pairs with unique names."""
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a name occurs twice")
    return result


def finite_float(digits):
    """Return a finite number; NaN and infinity are no JSON."""
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits[:40]} is not finite")
    return number
