"""Pairs of neighbouring rows, which training draws, and an embedding in which neighbours are close."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

CURVE = (1.9328, 0.7905)  # a and b of similarities 1 / (1 + a r^(2b)), which are close to exp(-r)
EMBEDDING_STEPS, EMBEDDING_LR = 400, 0.2
EMBEDDING_SCALE = 0.01  # of the loss, against the epsilon of Adam
N_NEGATIVES = 5  # random rows for each neighbour, from which the embedding moves a row away


class NeighborPairs(NamedTuple):
    """Neighbours of each row, from which the second row of a pair is drawn."""

    indices: Tensor  # (n, m)
    cumulative: Tensor  # (n, m), sums of the weights of the neighbours; the last one of each row is 1

    def draw(self, rows, generator):
        """Draw a neighbour of each row by the weights.

        Parameters
        ----------
        rows : Tensor of shape (b,)
            Indices.
        generator : torch.Generator

        Returns
        -------
        neighbors : Tensor of shape (b,)
        """
        device = self.indices.device
        draws = torch.rand(len(rows), 1, generator=generator, device=generator.device).to(device)
        column = (self.cumulative[rows.to(device)] <= draws).sum(1, keepdim=True).clamp_(max=self.indices.shape[1] - 1)
        return self.indices[rows.to(device)].gather(1, column)[:, 0]

    def to(self, device):
        """Return the pairs on a device."""
        return NeighborPairs(self.indices.to(device), self.cumulative.to(device))


def embed_neighbors(z, pairs, weights, generator):
    """Move rows close to their neighbours and away from others: the objective of UMAP, without a network.

    All rows move in every step, towards a neighbour that is drawn by its weight, and away from random rows (McInnes et
    al. 2018, section 3.2).

    Parameters
    ----------
    z : Tensor of shape (n, d)
        Initial positions.
    pairs : NeighborPairs
    weights : Tensor of shape (n,)
        Weights of the rows.
    generator : torch.Generator

    Returns
    -------
    z : Tensor of shape (n, d)
    """
    rows, z = torch.arange(len(z)), z.T.clone()  # coordinates apart, along which sums are fast
    weights = EMBEDDING_SCALE * weights / weights.mean().clamp(min=1e-12)
    optimizer = torch.optim.Adam([z], lr=EMBEDDING_LR)
    for step in range(EMBEDDING_STEPS):
        optimizer.param_groups[0]["lr"] = EMBEDDING_LR * (1 - step / EMBEDDING_STEPS)
        neighbors = pairs.draw(rows, generator)
        random = [neighbors[torch.randperm(len(rows), generator=generator)] for _ in range(N_NEGATIVES)]
        z.grad = embedding_gradient(z, weights, torch.stack([neighbors, *random]))
        optimizer.step()
    z.grad = None
    return z.T.contiguous()


def embedding_gradient(z, weights, others):
    """Return the gradient of the cross-entropy of similarities to a neighbour, which is 1, and to random rows, 0.

    In closed form, which takes half the time of automatic differentiation or less.

    Parameters
    ----------
    z : Tensor of shape (d, n)
    weights : Tensor of shape (n,)
        Weights of the rows in the sum.
    others : Tensor of shape (1 + m, n)
        Index of a neighbour of each row, and of m random rows.

    Returns
    -------
    gradient : Tensor of shape (d, n)
    """
    a, b = CURVE
    difference = z[:, None] - z[:, others]  # (d, 1 + m, n)
    squares = difference.square().sum(0) + 1e-6
    slopes = torch.sigmoid(-(math.log(a) + b * squares.log()))  # of the loss, by the logit of the similarity
    slopes[0] -= 1
    pulls = difference.mul_(-2 * b * slopes * weights / squares)
    return pulls.sum(1).index_add_(1, others.flatten(), -pulls.flatten(1))
