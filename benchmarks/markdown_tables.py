"""Markdown tables and their cells."""

import statistics


def table(head, rows):
    """Return the lines of a Markdown table."""
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in (head, ["--"] * len(head), *rows))


def deviation(values, digits=3):
    """Return the mean and, if there are several values, the standard deviation."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ({statistics.stdev(values):.{digits}f})" if len(values) > 1 else mean


def worst(values):
    """Return the mean, the standard deviation and the lowest value."""
    return f"{deviation(values)}, {min(values):.3f}" if len(values) > 1 else deviation(values)
