"""Posteriors and evidence lower bounds of many rows, and the points at which expectations over codes are taken."""

import math

import torch

from ..models.priors import Posterior
from .batches import standardized
from .distributed import SINGLE_PROCESS

MIN_PAIRS, MAX_PAIRS = 16, 128  # pairs of points for an expectation


def normal_points(n_points, n_components):
    """Return quasi-random standard normal points in pairs z and -z: scrambled Sobol points, fixed seed, float64."""
    sobol = torch.quasirandom.SobolEngine(n_components, scramble=True, seed=0)
    half = torch.special.ndtri(sobol.draw(n_points // 2, dtype=torch.float64).clamp(1e-12, 1 - 1e-12))
    return torch.cat([half, -half])


def balanced_points(n_components):
    """Return standard normal points in pairs z and -z whose covariance is the identity (m, k), float64.

    Means of polynomials up to the third degree over them are exact. They are `normal_points` after the smallest change
    that makes them so: 32 of them, or two for each dimension. With more than 128 dimensions there are 256, orthogonal
    but for the pairs.
    """
    n_pairs = min(max(MIN_PAIRS, n_components), MAX_PAIRS)
    left, _, right = torch.linalg.svd(normal_points(2 * n_pairs, n_components)[:n_pairs], full_matrices=False)
    half = math.sqrt(max(n_pairs, n_components)) * left @ right
    return torch.cat([half, -half])


def posterior_of(model, rows, device, batch_size):
    """Return q(z | x) of rows, a tensor or lazy rows, computed a batch at a time."""
    with torch.inference_mode():
        parts = [model.posterior(standardized(model, part.to(device))) for part in rows.split(batch_size)]
        return Posterior(*map(torch.cat, zip(*parts, strict=True)))


def mean_elbo(model, rows, device, n_points=8, batch_size=1_024, group=SINGLE_PROCESS):
    """Return the mean ELBO of the rows of all processes, with the expectation over codes at fixed points."""
    model.eval()
    total = 0.0
    with torch.inference_mode():
        for stored in rows.split(batch_size):
            u = standardized(model, stored.to(device))
            q = model.posterior(u)
            points = normal_points(n_points, q.mean.shape[1]).to(u)
            total += model.elbo(u, q, points.expand(len(u), *points.shape)).value.cpu().double().sum().item()
    total, n_rows = group.all_reduce_sum(total, len(rows))
    return total / n_rows
