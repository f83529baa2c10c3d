"""Initial mixtures of VaDE, by name: of the latent codes, of the samples, or of the graph of their neighbours."""

import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors

from ..fitting.distributed import ProcessGroup
from ..fitting.neighbors import NeighborPairs
from ..fitting.rows import select_rows
from ..fitting.vade import HeldOut, hold_out_indices, partition_mixture, soft_mixtures
from ..models import COVARIANCES, Mixture
from ._neighbors import (
    MAX_REFERENCES,
    NeighborGraph,
    embed_graph,
    neighbor_features,
    neighbor_graph,
    pairs_with_references,
)
from .gmm import TorchGMM

REG_COVAR = 1e-3  # of a mixture over latent codes of unit variance
N_PARTITIONS = 10  # initializations of k-means, or of EM, for a partition
EMBEDDING_REG_COVAR = 1e-2  # of a mixture in the embedding of the graph, whose spread is some units
HELD_OUT_NEIGHBORS = 5  # of a held-out sample


class Neighborhood(NamedTuple):
    """Training samples as features, and the neighbours of each among references, at most 10,000 of them."""

    features: np.ndarray  # (n, p)
    references: np.ndarray  # (m,), indices
    graph: NeighborGraph  # of the references
    pairs: NeighborPairs


class References(NamedTuple):
    """Samples among which neighbours are searched, of all processes."""

    features: np.ndarray  # (m, p)
    indices: np.ndarray  # those of this process, among its samples
    graph: NeighborGraph  # of all


def neighborhood(model, data, n_neighbors, holds_out):
    """Search the neighbours of training samples.

    Parameters
    ----------
    model : LatentModel
        Its likelihood has the units of the features.
    data : TrainingData
    n_neighbors : int
    holds_out : bool
        Whether to hold out samples.

    Returns
    -------
    data : TrainingData
        Without the samples held out.
    neighborhood : Neighborhood
        Of its samples.
    held_out : HeldOut or None
    """
    features = neighbor_features(model, data)
    held_out = None
    if holds_out:
        train, rest = hold_out_indices(len(data.rows), data.seed)
        held_out_features, features = features[rest.numpy()], features[train.numpy()]
        near = train[torch.from_numpy(nearest_of_others(features, held_out_features, HELD_OUT_NEIGHBORS).flatten())]
        held_out = HeldOut(select_rows(data.rows, rest), select_rows(data.rows, near))
        data = replace(data, rows=select_rows(data.rows, train))
    references = np.arange(len(features))
    if len(features) > MAX_REFERENCES:
        rng = np.random.default_rng(data.seed)
        references = np.sort(rng.permutation(len(features))[:MAX_REFERENCES])
    graph = neighbor_graph(features[references], n_neighbors)
    pairs = pairs_with_references(features, references, graph)
    return data, Neighborhood(features, references, graph, pairs), held_out


def nearest_of_others(features, others, n_neighbors):
    """Return the indices of the nearest of the distinct rows (m, n_neighbors), but for equal ones.

    Repeated samples may be on both sides.
    """
    distinct, first = np.unique(features, axis=0, return_index=True)
    n_neighbors = min(n_neighbors, len(first))
    n_searched = min(n_neighbors + 1, len(first))
    indices = NearestNeighbors(n_neighbors=n_searched).fit(distinct).kneighbors(others, return_distance=False)
    is_equal = (distinct[indices[:, 0]] == others).all(1, keepdims=True)
    return first[np.where(is_equal, indices[:, -n_neighbors:], indices[:, :n_neighbors])]


@dataclass
class Initialization:
    """Data of which initial mixtures are made; `make` makes them by name."""

    n_clusters: int
    covariance_type: str
    n_init: int
    z: torch.Tensor  # (n, d), latent codes of unit variance
    seed: int
    group: ProcessGroup  # the processes that have shards of the samples
    neighborhood: Neighborhood | None = None

    def make(self, name):
        """Return the mixtures of an initialization, an entry of `INITS`."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # it is an initialization
            return INITS[name](self)

    def gmm(self):
        """Fit a mixture to the latent codes by EM."""
        z = self.z
        device = "cpu" if z.device.type == "mps" else z.device  # which has no float64
        settings = {"covariance_type": self.covariance_type, "n_init": self.n_init, "reg_covar": REG_COVAR}
        gmm = TorchGMM(self.n_clusters, **settings, device=device, random_state=self.seed).fit(z.cpu().numpy())
        parts = (np.log(gmm.weights_), gmm.means_, gmm.covariances_, gmm.precisions_cholesky_)
        return [Mixture(*(torch.as_tensor(part, dtype=z.dtype, device=z.device) for part in parts))]

    def random(self):
        """Return mixtures with means at random codes, and the covariance of all."""
        generator, family = torch.Generator().manual_seed(self.seed), COVARIANCES[self.covariance_type]
        return soft_mixtures(self.z, self.n_init, self.n_clusters, family, generator, REG_COVAR, self.group)

    def kmeans(self):
        """Partition the samples by k-means."""
        return self._of_partition(self._kmeans(self.references.features))

    def neighbor_kmeans(self):
        """Partition the embedding of the graph of neighbours by k-means."""
        return self._of_partition(self._kmeans(self._embedding))

    def neighbor_gmm(self):
        """Partition the embedding of the graph of neighbours by a Gaussian mixture."""
        settings = {"n_init": N_PARTITIONS, "reg_covar": EMBEDDING_REG_COVAR, "random_state": self.seed}
        return self._of_partition(GaussianMixture(self.n_clusters, **settings).fit_predict(self._embedding))

    def _kmeans(self, x):
        return KMeans(self.n_clusters, n_init=N_PARTITIONS, random_state=self.seed).fit_predict(x)

    @cached_property
    def references(self):
        """The samples of which partitions are made."""
        features, references, graph, _ = self.neighborhood
        if self.group.size == 1:
            return References(features[references], references, graph)
        references = references[:: self.group.size]  # as many as of one process
        features = self.group.all_gather(torch.from_numpy(features[references])).numpy()
        return References(features, references, neighbor_graph(features, graph.n_neighbors))

    @cached_property
    def _embedding(self):
        return embed_graph(self.references.graph, self.seed)

    def _of_partition(self, labels):
        """Return the mixture of a partition of the references; of several processes, that of the first."""
        z = self.group.all_gather(self.z[torch.from_numpy(self.references.indices).to(self.z.device)])
        labels = self.group.broadcast(torch.from_numpy(labels).long().to(z.device))
        return [partition_mixture(z, labels, self.n_clusters, COVARIANCES[self.covariance_type])]


INITS = {
    "gmm": Initialization.gmm,
    "kmeans": Initialization.kmeans,
    "neighbor_kmeans": Initialization.neighbor_kmeans,
    "neighbor_gmm": Initialization.neighbor_gmm,
    "random": Initialization.random,
}
