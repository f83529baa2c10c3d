"""Points at which expectations over codes are taken."""

import math

import torch

MIN_PAIRS, MAX_PAIRS = 16, 128  # of points at which a score is taken


def normal_points(n_points, n_components):
    """Quasi-random standard normal points in pairs z and -z: scrambled Sobol points with a fixed seed, float64."""
    sobol = torch.quasirandom.SobolEngine(n_components, scramble=True, seed=0)
    half = torch.special.ndtri(sobol.draw(n_points // 2, dtype=torch.float64).clamp(1e-12, 1 - 1e-12))
    return torch.cat([half, -half])


def balanced_points(n_components):
    """Standard normal points in pairs z and -z whose covariance is the identity (m, k), float64.

    Means of polynomials up to the third degree over them are exact. They are `normal_points` after the smallest change
    that makes them so: 32 of them, or two for each dimension. With more than 128 dimensions they are 256, which are
    orthogonal but for the pairs.
    """
    n_pairs = min(max(MIN_PAIRS, n_components), MAX_PAIRS)
    left, _, right = torch.linalg.svd(normal_points(2 * n_pairs, n_components)[:n_pairs], full_matrices=False)
    half = math.sqrt(max(n_pairs, n_components)) * left @ right
    return torch.cat([half, -half])
