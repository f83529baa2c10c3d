"""Files that are replaced as a whole."""

import os
import secrets
from contextlib import contextmanager, suppress


@contextmanager
def atomic_write(path, mode=0o666):
    """Open a temporary binary file, which replaces the file at a path on success, and is removed after an error.

    Its permissions are the mode less the umask.
    """
    temporary = f"{os.fspath(path)}.{secrets.token_hex(8)}.part"
    try:
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
