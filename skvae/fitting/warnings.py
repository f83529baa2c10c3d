"""Warnings that point at the line of the caller of the package."""

import sys
import warnings


def warn(message, category=UserWarning):
    """Emit a warning at the first frame outside of the package.

    Frames of scikit-learn that wrap a method, or that are methods which it gives to estimators, belong to the package.
    """
    frame, level = sys._getframe(1), 2
    while frame.f_back and _is_inside(frame.f_globals.get("__name__", "")):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def _is_inside(module):
    """Return whether frames of a module are passed over."""
    own = __name__.partition(".")[0]
    wrappers = ("sklearn.base", "sklearn.utils._set_output", "sklearn.callback")
    return module.partition(".")[0] == own or module.startswith(wrappers)
