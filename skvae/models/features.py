"""What an observation model knows about features: a summary of the training data, and the values that are possible."""

import math
from typing import NamedTuple

from torch import Tensor


class FeatureSummary(NamedTuple):
    """The training data, feature by feature."""

    mean: Tensor  # (d,), float64
    scale: Tensor  # (d,), float64: standard deviations, and one for a constant feature
    maximum: Tensor  # (d,), float64


class Support(NamedTuple):
    """Values that a likelihood can produce.

    Parameters
    ----------
    low, high : float or tuple of float
        Bounds, which are possible values themselves if they are finite; a tuple has one for each feature.
    integers : bool, default=False
        Whether values are whole numbers.
    """

    low: float | tuple = -math.inf
    high: float | tuple = math.inf
    integers: bool = False
