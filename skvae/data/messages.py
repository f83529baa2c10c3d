"""Parts of messages: numbers in enough digits, options, and suggestions for typos."""

from difflib import get_close_matches


def shown(value, *bounds, digits=6):
    """Format a number in a few digits, or in enough to tell it from the bounds that a message compares it with.

    Parameters
    ----------
    value : float
        Number in its own dtype, whose digits are shown.
    *bounds : float
    digits : int, default=6
        Significant digits, where they are enough.

    Examples
    --------
    >>> import numpy as np
    >>> from skvae.data.messages import shown
    >>> shown(np.float32(6.0000005), 6), shown(1 / 3, 6)
    ('6.0000005', '0.333333')
    """
    text = f"{value:.{digits}g}"
    if any(value != bound and f"{bound:.{digits}g}" == text for bound in bounds):
        text = str(value).removesuffix(".0")
    return text


def one_of(options):
    """Format options in sorted order."""
    return f"{{{', '.join(map(repr, sorted(options)))}}}"


def meant(name, options):
    """Return a sentence that suggests the option that is closest to a name, or nothing if none is close."""
    if not isinstance(name, str):
        return ""
    closest = get_close_matches(name.lower(), [option.lower() for option in options], n=1)
    similar = [option for option in options if option.lower() in closest]
    return f" Did you mean {similar[0]!r}?" if similar else ""
