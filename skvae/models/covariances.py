"""Covariance types of Gaussian components.

Conventions
-----------
Rows ``x`` are (n, d), ``means`` (k, d), responsibilities ``resp`` (n, k). Inside the package a covariance keeps all its
axes, and an axis over which it is pooled has length 1: "tied" is (1, d, d), "spherical" is (k, 1). Broadcasting then
serves every type, and `compact` gives the shapes that scikit-learn publishes. The ``factor`` of a covariance S is what
whitens a residual: the upper triangular F with ``F F' = inv(S)``, or one over the standard deviation.

Each type has its density in two forms. The residual form (`log_prob`, `moments`) subtracts the means first and is as
accurate as the data allow. The linear form writes the log-density as an inner product of ``features`` of a row with the
``natural`` parameters of a component, so that an E-step and its sums are two matrix products for all components at
once; it loses digits when clusters are narrow for their distance from the origin (see `linear_condition_number`).
"""

from .axis_covariances import AxisCovariance
from .gaussians import LOG_2PI, Covariance, Mixture, Moments
from .matrix_covariances import MatrixCovariance

__all__ = ["COVARIANCES", "LOG_2PI", "AxisCovariance", "Covariance", "MatrixCovariance", "Mixture", "Moments"]

COVARIANCES = {
    "full": MatrixCovariance(),
    "tied": MatrixCovariance(pooled=(0,)),
    "diag": AxisCovariance(),
    "spherical": AxisCovariance(pooled=(1,)),
    "tied_diag": AxisCovariance(pooled=(0,)),
    "tied_spherical": AxisCovariance(pooled=(0, 1)),
}
