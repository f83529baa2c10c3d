"""The bytes of a file: arrays in the safetensors format, a tree of JSON in its metadata, and a checksum over all.

Conventions
-----------
The checksum is the SHA-256 of the whole file with zeros in the place of its own digits, so that no byte is left out. It
tells damage, not forgery: whoever changes a file on purpose can write a checksum that fits. What is behind it is
therefore read as strictly: one way to write each thing, names once, and sizes that the length of the file bounds.
"""

import errno
import hashlib
import json
import math
import os
import secrets
import stat
from contextlib import suppress

import safetensors.numpy
from safetensors import SafetensorError

KEY = "skvae"  # of the metadata of safetensors, which maps strings to strings
MARKER = b'\\"sha256\\":\\"'  # the digits come after it, in JSON within JSON
N_DIGITS = 64
PREFIX = 8  # bytes with the length of the header
MAX_HEADER = 2**25  # bytes of text, which take many times their length when they are parsed
DTYPES = {"BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "F16", "F32", "F64"}
MAX_AXES = 32


class CorruptFile(ValueError):
    """What a file holds is not what `save` writes."""


def pack(tree, arrays):
    """The bytes of a file.

    Parameters
    ----------
    tree : dict
        Of strings, finite numbers, bools, None, lists and dicts with strings as keys.
    arrays : dict of str to ndarray
        Contiguous ones of numbers or bools.

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
            f"What is not an array takes {size} bytes of text, and {MAX_HEADER} are the most; shorten what is long, "
            "such as lists of names or histories."
        )
    place = data.index(MARKER) + len(MARKER)
    data[place : place + N_DIGITS] = hashlib.sha256(data).hexdigest().encode()
    return bytes(data)


def unpack(data):
    """The tree and the arrays of a file that `pack` made.

    Parameters
    ----------
    data : bytes

    Raises
    ------
    CorruptFile
        If the bytes are others than `pack` made, or do not follow the format.
    """
    header = data[PREFIX : PREFIX + header_size(data[:PREFIX], len(data))]
    check_digest(data, header)
    text, n_arrays = check_header(parse(header))
    try:
        arrays = safetensors.numpy.load(data)
    except SafetensorError as error:
        raise CorruptFile(f"its arrays do not follow the safetensors format ({error})") from error
    if len(arrays) != n_arrays:
        raise CorruptFile("some of its arrays are missing")
    return parse(text), arrays


def read(path):
    """The bytes of a file, of which no more is read than shows that it is another kind of file.

    Raises
    ------
    FileNotFoundError
        If there is none.
    CorruptFile
        If it is not a file that `pack` could have made.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise CorruptFile("it is not a file but a folder or a device")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        prefix = file.read(PREFIX)
        start = prefix + file.read(header_size(prefix, size))
        if MARKER not in start:
            raise CorruptFile("it is of another kind")
        return start + file.read()


def write(path, data):
    """Put bytes into a file, which is whole at every moment: the old one, or the new one."""
    path = os.path.realpath(os.fspath(path))  # where a link leads, which stays a link
    folder = os.path.dirname(path)
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, "This is a folder; name a file in it", path)
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, "There is no such folder to write a file into; make it first", folder)
    temporary = f"{path}.{secrets.token_hex(8)}.part"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def header_size(prefix, size):
    """Length of the header, from the bytes before it and the size of the file."""
    if size < PREFIX:
        raise CorruptFile(f"it has {size} bytes, too few for any estimator")
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER or length > size - PREFIX:
        raise CorruptFile("it is of another kind, or cut off")
    return length


def check_digest(data, header):
    """Raise if the file is not what was written."""
    place = header.find(MARKER)
    if place < 0:
        raise CorruptFile("it is of another kind")
    start = PREFIX + place + len(MARKER)
    view, digest = memoryview(data), hashlib.sha256()
    for part in (view[:start], b"0" * N_DIGITS, view[start + N_DIGITS :]):
        digest.update(part)
    if digest.hexdigest().encode() != data[start : start + N_DIGITS]:
        raise CorruptFile("it was cut off, damaged or changed: its checksum is wrong")


def check_header(header):
    """The text in the metadata, and the number of arrays; what safetensors would not look at is checked."""
    metadata = header.pop("__metadata__", None) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or set(metadata) != {KEY} or not isinstance(metadata[KEY], str):
        raise CorruptFile("its header is not that of an estimator")
    for name, entry in header.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise CorruptFile(f"its array {name!r} is not described as one")
        shape = entry["shape"]
        if entry["dtype"] not in DTYPES or not is_shape(shape):
            raise CorruptFile(f"its array {name!r} has the type {entry['dtype']!r} and the shape {shape!r:.80}")
    return metadata[KEY], len(header)


def is_shape(shape):
    """Whether it is a list of a few lengths; where there are no values, whose bytes would bound them, of small ones."""
    if not isinstance(shape, list) or len(shape) > MAX_AXES or any(type(n) is not int or n < 0 for n in shape):
        return False
    return 0 not in shape or math.prod(n for n in shape if n) <= MAX_HEADER


def parse(text):
    """What strict JSON says.

    Raises
    ------
    CorruptFile
        If it is no JSON, if a name occurs twice in an object, or if a number is not finite.
    """
    try:
        return json.loads(text, object_pairs_hook=distinct, parse_constant=refuse, parse_float=finite)
    except (ValueError, RecursionError) as error:  # bytes that are no text are a ValueError too
        raise CorruptFile(f"its text is not the JSON that is written ({str(error)[:200]})") from error


def distinct(pairs):
    """A dict of pairs with different names."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice")
    return found


def refuse(name):
    """Raise where JSON has a word that is no number."""
    raise ValueError(f"{name} is no number")


def finite(digits):
    """The number with these digits."""
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits[:40]} is too large")
    return number
