"""Files that are replaced as a whole."""

import os
import secrets
from contextlib import contextmanager, suppress


@contextmanager
def atomic_write(path):
    """Open a temporary binary file, which replaces the file at a path on success, and is removed after an error."""
    temporary = f"{os.fspath(path)}.{secrets.token_hex(8)}.part"
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
