"""The graph of nearest neighbours of samples: its weights, the pairs that training draws, and its embedding."""

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.linalg import ArpackError, eigsh
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from ..fitting.batches import standardized, subsample
from ..fitting.neighbors import NeighborPairs, embed_neighbors
from ..models import Categorical, MaskedLikelihood, MixedLikelihood

MAX_FEATURES = 50  # principal components in which neighbours are searched
MIN_PCA_ROWS, MAX_PCA_ROWS, MAX_PCA_VALUES = 1_000, 10_000, 2**26  # rows that components are of, and their values
MAX_REFERENCES = 10_000  # rows among which neighbours are searched
MAX_EDGES = 4  # neighbours of a row from which pairs are drawn, as a multiple of those that were searched
EMBEDDING_DIM = 10
MAX_WEIGHT_ROWS, N_WEIGHT_NEIGHBORS = 1_000, 15  # rows and neighbours from which the weight of categories is chosen
N_HALVINGS = 12  # of squared distances between categories, at most


class NeighborGraph(NamedTuple):
    """A symmetric graph of distinct rows, in which neighbours have weights."""

    weights: csr_array  # (m, m)
    first: np.ndarray  # (m,), index of the first of equal rows
    inverse: np.ndarray  # (n,), index of each row among the distinct ones
    n_neighbors: int  # that were searched


def neighbor_features(model, data):
    """Return the features in which neighbours are searched: inputs of the encoder, or their principal components.

    Where there are numbers and categories, inputs of categories have the weight of `input_weights`.

    Parameters
    ----------
    model : LatentModel
    data : TrainingData
        Its seed is that of the principal components, which are those of the rows of all processes.

    Returns
    -------
    features : ndarray of shape (n, min(d, 50)), float32
    """

    def inputs(stored):
        return _encoder_inputs(model.likelihood, standardized(model, stored.to(data.device))).cpu().numpy()

    with torch.inference_mode():
        n_rows = max(MIN_PCA_ROWS, min(MAX_PCA_ROWS, MAX_PCA_VALUES // data.rows.shape[1])) // data.group.size
        part = [inputs(rows) for rows in subsample(data.rows, max(1, n_rows)).split(data.inference_batch_size)]
        sample = data.group.all_gather(torch.from_numpy(np.concatenate(part))).numpy()
        weight, project = input_weights(sample, categorical_inputs(model.likelihood, sample.shape[1])), np.asarray
        if sample.shape[1] > MAX_FEATURES and len(sample) > MAX_FEATURES:
            project = PCA(MAX_FEATURES, random_state=data.seed).fit(weight * sample).transform
        parts = [project(weight * inputs(part)) for part in data.rows.split(data.inference_batch_size)]
    return np.concatenate(parts).astype(np.float32, copy=False)


def neighbor_graph(features, n_neighbors):
    """Return the graph of neighbours with the weights of UMAP (McInnes et al. 2018, section 3.1).

    An edge from a row has the weight ``exp(-(distance - smallest distance) / s)``, with s such that the weights of its
    edges sum to ``log2(n_neighbors + 1)``; of the edges of a pair, in both directions, the probabilistic union counts.
    Equal rows count once.

    Parameters
    ----------
    features : ndarray of shape (n, d)
    n_neighbors : int

    Returns
    -------
    graph : NeighborGraph
    """
    _, first, inverse = np.unique(features, axis=0, return_index=True, return_inverse=True)
    inverse, n_distinct = inverse.reshape(-1), len(first)
    n_neighbors = min(n_neighbors, n_distinct - 1)
    if n_neighbors < 1:
        return NeighborGraph(csr_array((n_distinct, n_distinct)), first, inverse, 0)
    distances, indices = nearest_neighbors(features[first], n_neighbors)
    weights = fuzzy_weights(distances)
    edges = np.repeat(np.arange(n_distinct), n_neighbors), indices.ravel()
    directed = csr_array((weights.ravel(), edges), shape=(n_distinct, n_distinct))
    return NeighborGraph(csr_array(directed + directed.T - directed * directed.T), first, inverse, n_neighbors)


def nearest_neighbors(features, n_neighbors):
    """Return distances and indices of the nearest neighbours of each row (n, n_neighbors), without the row itself."""
    distances, indices = NearestNeighbors(n_neighbors=n_neighbors + 1).fit(features).kneighbors(features)
    # The row itself is the nearest one, or nearly so where rounding has it elsewhere.
    is_self = indices == np.arange(len(features))[:, None]
    is_self[~is_self.any(1), -1] = True
    shape = (len(features), n_neighbors)
    return distances[~is_self].reshape(shape).astype(np.float64), indices[~is_self].reshape(shape)


def fuzzy_weights(distances, n_steps=64):
    """Return the weights of the edges (n, m) from ascending distances of the neighbours of each row, by bisection."""
    excess = distances - distances[:, :1]
    target = math.log2(distances.shape[1] + 1)
    low, high = np.zeros(len(distances)), np.full(len(distances), np.inf)
    scale = np.maximum(excess.mean(1), 1e-12)
    for _ in range(n_steps):
        is_large = np.exp(-excess / scale[:, None]).sum(1) > target
        high, low = np.where(is_large, scale, high), np.where(is_large, low, scale)
        scale = np.where(np.isinf(high), 2 * scale, (low + np.where(np.isinf(high), 0.0, high)) / 2)
        scale = np.maximum(scale, 1e-3 * distances.mean(1) + 1e-12)
    return np.exp(-excess / scale[:, None])


def neighbor_pairs(graph, max_edges=None):
    """Return the `NeighborPairs` of a graph: for each row the edges with the largest weights.

    A row without a neighbour is paired with itself.

    Parameters
    ----------
    graph : NeighborGraph
    max_edges : int, optional
        Largest number of edges of a row; without it, four times the neighbours that were searched.
    """
    weights, first, inverse, n_neighbors = graph
    max_edges = max_edges or MAX_EDGES * max(1, n_neighbors)
    n_distinct, degrees = weights.shape[0], np.diff(weights.indptr)
    width = max(1, min(int(degrees.max(initial=0)), max_edges))
    owner = np.repeat(np.arange(n_distinct), degrees)
    order = np.lexsort((-weights.data, owner))
    place = np.arange(len(order)) - weights.indptr[owner]
    order, owner, place = order[place < width], owner[place < width], place[place < width]
    neighbors, shares = np.tile(np.arange(n_distinct)[:, None], (1, width)), np.zeros((n_distinct, width))
    neighbors[owner, place], shares[owner, place] = weights.indices[order], weights.data[order]
    shares[degrees == 0, 0] = 1.0
    cumulative = shares.cumsum(1) / shares.sum(1, keepdims=True)
    return NeighborPairs(
        torch.from_numpy(first[neighbors][inverse].astype(np.int64)),
        torch.from_numpy(cumulative[inverse].astype(np.float32)),
    )


def pairs_with_references(features, references, graph):
    """Return the `NeighborPairs` of all rows, whose neighbours are references.

    Parameters
    ----------
    features : ndarray of shape (n, p)
    references : ndarray of shape (m,)
        Indices of the rows among which neighbours are searched, in ascending order.
    graph : NeighborGraph
        That of the references.

    Returns
    -------
    pairs : NeighborPairs
    """
    own = neighbor_pairs(graph)
    others = np.setdiff1d(np.arange(len(features)), references, assume_unique=True)
    if not len(others):
        return own
    n_neighbors = min(max(1, graph.n_neighbors), len(references))
    search = NearestNeighbors(n_neighbors=n_neighbors).fit(features[references])
    distances, nearest = search.kneighbors(features[others])
    weights = fuzzy_weights(distances.astype(np.float64))
    is_equal = [(features[references[column]] == features[others]).all(1) for column in nearest.T]
    is_equal = np.stack(is_equal, 1)
    weights[is_equal & ~is_equal.all(1, keepdims=True)] = 0.0  # an equal row says nothing about clusters
    width = max(n_neighbors, own.indices.shape[1])
    indices, cumulative = np.zeros((len(features), width), np.int64), np.ones((len(features), width), np.float32)
    indices[references, : own.indices.shape[1]] = references[own.indices.numpy()]
    cumulative[references, : own.indices.shape[1]] = own.cumulative.numpy()
    indices[others, :n_neighbors] = references[nearest]
    cumulative[others, :n_neighbors] = weights.cumsum(1) / weights.sum(1, keepdims=True)
    cumulative[others, n_neighbors - 1] = 1.0  # not less by rounding, which would draw from the padding
    return NeighborPairs(torch.from_numpy(indices), torch.from_numpy(cumulative))


def embed_graph(graph, seed):
    """Return an embedding of the rows of a graph in which neighbours are close, from eigenvectors of the graph.

    Parameters
    ----------
    graph : NeighborGraph
    seed : int

    Returns
    -------
    z : ndarray of shape (n, 10), float64
        Of fewer columns if there are no more than ten distinct rows.
    """
    distinct = graph._replace(first=np.arange(len(graph.first)), inverse=np.arange(len(graph.first)))
    generator = torch.Generator().manual_seed(seed)
    z = torch.from_numpy(_eigenvectors(graph.weights, seed)).float()
    z = 10 * z / z.abs().max().clamp(min=1e-12)
    z = z + 0.01 * torch.randn(z.shape, generator=generator)
    degrees = torch.from_numpy(graph.weights.sum(1)).float()
    pairs = neighbor_pairs(distinct, len(graph.first))
    return embed_neighbors(z, pairs, degrees, generator).double().numpy()[graph.inverse]


def input_weights(sample, is_categorical):
    """Return the weight of each input in distances, one for numbers, and at most one for categories.

    Neighbours by all inputs should be no closer in the categories than they are in the numbers, both relative to other
    pairs: with a few categories and many samples, all neighbours of a sample would have all its categories, and
    clusters could only be combinations of them.

    Parameters
    ----------
    sample : ndarray of shape (n, p)
        Inputs of some rows.
    is_categorical : ndarray of bool of shape (p,)
        Inputs that are one for a category, else zero.

    Returns
    -------
    weight : ndarray of shape (p,), float32
    """
    weight = np.ones(len(is_categorical), np.float32)
    rows = sample[:: max(1, -(-len(sample) // MAX_WEIGHT_ROWS))]
    spread = rows.var(0)
    if min(spread[is_categorical].sum(), spread[~is_categorical].sum()) <= 0 or len(rows) < 2:
        return weight
    for exponent in range(N_HALVINGS + 1):
        weight[is_categorical] = 2 ** (-exponent / 2)
        _, nearest = nearest_neighbors(weight * rows, min(N_WEIGHT_NEIGHBORS, len(rows) - 1))
        squares = np.square(rows[nearest] - rows[:, None]).mean((0, 1))
        numbers, categories = (squares[part].sum() / spread[part].sum() for part in (~is_categorical, is_categorical))
        if categories >= numbers:
            break
    return weight


def categorical_inputs(likelihood, n_inputs):
    """Return a mask of the inputs of the encoder that are ones and zeros for categories (n_inputs,)."""
    likelihood = likelihood.likelihood if isinstance(likelihood, MaskedLikelihood) else likelihood
    if not isinstance(likelihood, MixedLikelihood):
        return np.full(n_inputs, isinstance(likelihood, Categorical))
    parts = zip(likelihood.likelihoods, likelihood.features, strict=True)
    return np.concatenate([np.full(each.n_inputs(len(part)), isinstance(each, Categorical)) for each, part in parts])


def _encoder_inputs(likelihood, u):
    """Return the inputs of the encoder, without a mask of missing values, which are zeros."""
    inputs = likelihood.inputs(u)
    if isinstance(likelihood, MaskedLikelihood):
        inputs = inputs[:, : likelihood.likelihood.n_inputs(u.shape[1])]
    return inputs


def _eigenvectors(weights, seed):
    """Return the eigenvectors of the random walk on a graph with the largest eigenvalues, but for the constant one."""
    n_rows = weights.shape[0]
    roots = np.sqrt(np.maximum(weights.sum(1), 1e-9))
    normalized = csr_array(weights.multiply(1 / roots[:, None]).multiply(1 / roots[None, :]))
    rng = np.random.default_rng(seed)
    if n_rows <= EMBEDDING_DIM + 2:  # too few for the iterative solver
        vectors = np.linalg.eigh(normalized.toarray())[1]
    else:
        try:
            vectors = eigsh(normalized, k=EMBEDDING_DIM + 1, which="LA", v0=rng.normal(size=n_rows))[1]
        except ArpackError:  # no convergence: a random start takes longer to arrange, but arranges
            vectors = rng.normal(size=(n_rows, EMBEDDING_DIM + 1))
    vectors = vectors[:, ::-1][:, min(1, n_rows - 1) :] / roots[:, None]
    return vectors / np.maximum(vectors.std(0), 1e-12)
