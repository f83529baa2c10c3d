"""
Clustering single cells of two batches
======================================

Single cells differ in sequencing depth and batch, and both affect an embedding unless they are modelled. With size
factors and covariates, clusters correspond to cell types. The counts are simulated; with an AnnData object, ``X`` is
``adata.layers["counts"]`` and the batch is a column of ``adata.obs``.
"""

# %%
# Data
# ----
# The data are counts of 120 genes in 1,500 cells of four types, as a sparse matrix. In the second batch, each gene has
# another capture efficiency.

import argparse
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix, load_npz, save_npz
from sklearn.decomposition import PCA
from sklearn.metrics import v_measure_score
from sklearn.neighbors import NearestNeighbors

import skvae
from skvae import TorchGMM, VAEEmbedder

parser = argparse.ArgumentParser(description="Cluster cells of two batches.")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--output", default="cells.png", help="where to save the figure")
args, _ = parser.parse_known_args()

rng = np.random.default_rng(args.seed)
shares = rng.gamma(0.6, size=120) * rng.lognormal(sigma=0.6, size=(4, 120))
kind, batch = rng.integers(4, size=1_500), rng.choice(["spring", "autumn"], 1_500)
rates = 400 * rng.lognormal(sigma=0.6, size=(1_500, 1)) * (shares / shares.sum(1, keepdims=True))[kind]
rates = rates * np.where(batch[:, None] == "autumn", rng.gamma(2, 0.5, size=120), 1.0)

folder = Path(tempfile.mkdtemp())
save_npz(folder / "counts.npz", csr_matrix(rng.poisson(rates * rng.gamma(5, 0.2, size=rates.shape))))
pd.Series(batch, name="batch").to_csv(folder / "cells.csv", index=False)
X, batch = load_npz(folder / "counts.npz").tocsr(), pd.read_csv(folder / "cells.csv")["batch"]

# %%
# Embeddings
# ----------
# Batch mixing is the share of nearest neighbours from the other batch, divided by its expectation for random labels: 1
# is best.


def mixing(Z):
    """Return the batch mixing of an embedding."""
    labels = batch.to_numpy()
    nearest = NearestNeighbors(n_neighbors=16).fit(Z).kneighbors(Z, return_distance=False)[:, 1:]
    shares = batch.value_counts(normalize=True)
    return np.mean(labels[nearest] != labels[:, None]) / (1 - np.sum(shares**2))


def depth(Z):
    """Return the largest absolute correlation of a dimension with the logarithm of the depth."""
    totals = np.log(np.asarray(X.sum(1)).ravel())
    return max(abs(np.corrcoef(z, totals)[0, 1]) for z in Z.T)


def clusters(Z):
    """Return clusters of latent codes."""
    return TorchGMM(4, reg_covar=1e-2, n_init=10, random_state=args.seed).fit_predict(Z)


dense = X.toarray()
logs = np.log1p(dense / dense.sum(1, keepdims=True) * np.median(dense.sum(1)))
settings = {"likelihood": "negative_binomial", "max_epochs": 60, "random_state": args.seed}
plain = VAEEmbedder(6, **settings).fit(X)
sized = VAEEmbedder(6, size_factor="total", **settings).fit(X)
joint = VAEEmbedder(6, size_factor="total", **settings).fit(X, covariates=batch)
codes = {
    "principal components of log-counts": PCA(6, random_state=args.seed).fit_transform(logs),
    "VAE": plain.transform(X),
    "VAE, size factors": sized.transform(X),
    "VAE, size factors, batches": joint.transform(X),
}
print(f"{'':38}{'V-measure':>10}{'mixing':>8}{'depth':>8}")
for name, Z in codes.items():
    print(f"{name:38}{v_measure_score(kind, clusters(Z)):10.2f}{mixing(Z):8.2f}{depth(Z):8.2f}")

# %%
# The figure shows the first two principal components of the latent codes, coloured by batch and by cluster.

fig, axes = plt.subplots(2, 2, figsize=(10, 8), layout="constrained")
for row, name in zip(axes, ("VAE", "VAE, size factors, batches"), strict=True):
    plane = PCA(2).fit_transform(codes[name])
    row[0].scatter(*plane.T, c=(batch == "spring"), s=4, cmap="coolwarm")
    row[1].scatter(*plane.T, c=clusters(codes[name]), s=4, cmap="tab10")
    row[0].set(title=f"{name}: batch", xticks=[], yticks=[])
    row[1].set(title=f"{name}: cluster", xticks=[], yticks=[])
fig.savefig(args.output, dpi=110)
plt.show()

# %%
# Marker genes of clusters
# ------------------------
# Reconstructions with one level of the covariate are expected counts of all cells for the same batch and depth. Marker
# genes of a cluster are those with the largest log-expression relative to the mean of all cells.

labels = clusters(codes["VAE, size factors, batches"])
expected = np.log1p(joint.reconstruct(X, covariates="spring"))
for cluster in range(4):
    excess = expected[labels == cluster].mean(0) - expected.mean(0)
    genes = ", ".join(f"gene {gene}" for gene in np.argsort(-excess)[:4])
    print(f"cluster {cluster}, {np.sum(labels == cluster)} cells: {genes}")

# %%
# Save, load and sample
# ---------------------

skvae.save(joint, folder / "cells.skvae")
loaded = skvae.load(folder / "cells.skvae")
print(loaded.covariate_levels_, loaded.sample(2, covariates="autumn", random_state=args.seed)[:, :12])
