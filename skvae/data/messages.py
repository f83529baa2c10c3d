"""Parts of messages: numbers that can be told apart, and names that a typo may have meant."""

from difflib import get_close_matches


def shown(value, *bounds, digits=6):
    """A number in a few digits, or in as many as tell it from the bounds that a message compares it with.

    Parameters
    ----------
    value : float
        Of its own dtype, in whose digits it is shown.
    *bounds : float
    digits : int, default=6
        Significant ones, where they are enough.

    Examples
    --------
    >>> import numpy as np
    >>> from skvae.estimators._messages import shown
    >>> shown(np.float32(6.0000005), 6), shown(1 / 3, 6)
    ('6.0000005', '0.333333')
    """
    text = f"{value:.{digits}g}"
    if any(value != bound and f"{bound:.{digits}g}" == text for bound in bounds):
        text = str(value).removesuffix(".0")
    return text


def one_of(names):
    """Names in sorted order, in the words of a message."""
    return f"{{{', '.join(map(repr, sorted(names)))}}}"


def meant(name, names):
    """A sentence that asks for the name that was meant, if one of the names is close; else nothing."""
    found = get_close_matches(name.lower(), [known.lower() for known in names], n=1) if isinstance(name, str) else []
    close = [known for known in names if known.lower() in found]
    return f" Did you mean {close[0]!r}?" if close else ""
