"""Counts of blood cells with VAEEmbedder, and with scvi-tools' SCVI: likelihood, clusters, depth and batches.

    python benchmarks/cells.py --seeds 0 1 2 3 4

700 cells of ten types with 765 genes, from the file of scanpy (see `sets.py`): it has logs of counts per 10,000 and the
total of each cell, from which the counts follow up to rounding. A quarter of the cells is held out, drawn by the seed.
"batches" makes two batches of the same cells: in half of them, drawn by the seed, each gene keeps a share of its counts
of its own, which is drawn from a beta distribution with mean 0.4.

"log-likelihood" is the importance-weighted bound of held-out cells with 100 draws, in nats per cell, given the totals
where a method uses them; those without are of another scale. "V" is the V-measure of the types of held-out cells and
the clusters of a mixture of ten Gaussians that was fitted to the codes of the others. "depth" is the largest
correlation of a dimension of the codes with the log of the total; "within types" is the same after the means of each
type are taken off both, since depth differs between types. "mixing" is the share of the 15 nearest neighbours that are
of the other batch, by what is expected at random: 1 is best.

SCVI has the latent dimensions and epochs of ours, and its own defaults in all else, with "its epochs" also those. The
principal components are of log-counts, scaled to the median total.
"""

import argparse
import json
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from record import RESULTS, append_run, environment, read_runs
from scipy.sparse import csr_matrix
from sets import find
from sklearn.decomposition import PCA
from sklearn.metrics import v_measure_score
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from skvae import TorchGMM, VAEEmbedder

N_TYPES, N_COMPONENTS, EPOCHS, N_DRAWS = 10, 10, 100, 100
METHODS = {
    "PCA of log-counts": {},
    "VAEEmbedder": {"size_factor": None},
    "VAEEmbedder, size factors": {"size_factor": "total"},
    "VAEEmbedder, size factors and covariates": {"size_factor": "total", "covariates": True},
    "VAEEmbedder, zero-inflated, size factors and covariates": {
        "size_factor": "total",
        "covariates": True,
        "likelihood": "zero_inflated_negative_binomial",
    },
    "SCVI": {"epochs": EPOCHS},
    "SCVI, batches": {"epochs": EPOCHS, "covariates": True},
    "SCVI, batches, its epochs": {"epochs": None, "covariates": True},
}


def load_cells(packages):
    """Return counts (700, 765) and types."""
    import h5py

    with h5py.File(find(packages, "scanpy/datasets/10x_pbmc68k_reduced.h5ad")) as file:
        raw, total = file["raw.X"], file["obs"]["n_counts"]
        logs = csr_matrix(
            (raw["data"][:], raw["indices"][:], raw["indptr"][:]), shape=(len(total), len(file["raw.var"]))
        )
        types = np.unique(file["obs"]["bulk_labels"], return_inverse=True)[1]
    return np.rint(np.expm1(logs.toarray()) * total[:, None] / 1e4).astype(np.int64), types


def make_batches(counts, seed):
    """Return counts of cells of two batches, and the batch of each."""
    rng = np.random.default_rng(seed)
    batch = rng.integers(2, size=len(counts))
    shares = np.where(batch[:, None] == 1, 0.8 * rng.beta(2, 2, size=counts.shape[1]), 1.0)
    return rng.binomial(counts, shares), batch


def log_counts(counts, median):
    """Return logs of counts that are scaled to the same total."""
    return np.log1p(counts / counts.sum(1, keepdims=True) * median)


def fit_pca(train, test, seed, **settings):
    """Return codes of cells, and no likelihood."""
    median = np.median(train[0].sum(1))
    pca = PCA(N_COMPONENTS, random_state=seed).fit(log_counts(train[0], median))
    return *(pca.transform(log_counts(part[0], median)) for part in (train, test)), None


def fit_vae(train, test, seed, size_factor, covariates=False, likelihood="negative_binomial"):
    """Return codes of cells, and the held-out log-likelihood."""
    vae = VAEEmbedder(
        N_COMPONENTS, likelihood=likelihood, size_factor=size_factor, max_epochs=EPOCHS, random_state=seed
    )
    vae.fit(train[0], covariates=train[1] if covariates else None)
    scores = vae.log_likelihood(test[0], N_DRAWS, covariates=test[1] if covariates else None)
    return vae.transform(train[0]), vae.transform(test[0]), float(scores.mean())


def fit_scvi(train, test, seed, epochs, covariates=False):
    """Return codes of cells, and the held-out log-likelihood."""
    import anndata
    import scvi

    scvi.settings.seed, scvi.settings.verbosity = seed, 40
    parts = []
    for counts, batch in (train, test):
        data = anndata.AnnData(counts.astype(np.float32))
        data.obs["batch"] = batch.astype(str)
        parts.append(data)
    key = {"batch_key": "batch"} if covariates else {}
    scvi.model.SCVI.setup_anndata(parts[0], **key)
    model = scvi.model.SCVI(parts[0], n_latent=N_COMPONENTS)
    model.train(max_epochs=epochs, accelerator="cpu", enable_progress_bar=False, logger=False)
    score = model.get_marginal_ll(parts[1], n_mc_samples=N_DRAWS)
    return *(model.get_latent_representation(data) for data in parts), float(score)


def correlation(codes, depth):
    """Return the largest absolute correlation of a dimension with the depth."""
    return float(max(abs(np.corrcoef(code, depth)[0, 1]) for code in codes.T))


def without_means(values, types):
    """Return values less the mean of their type."""
    means = np.stack([values[types == each].mean(0) for each in range(N_TYPES)])
    return values - means[types]


def mixing(codes, batch):
    """Return the share of neighbours of the other batch, by that expected at random."""
    nearest = NearestNeighbors(n_neighbors=16).fit(codes).kneighbors(codes, return_distance=False)[:, 1:]
    return float((batch[nearest] != batch[:, None]).mean() / (2 * batch.mean() * (1 - batch.mean())))


def run(cells, name, method, seed):
    """Fit a method to a quarter of the cells left out, and return its figures."""
    counts, types = cells
    counts, batch = make_batches(counts, seed) if name == "batches" else (counts, np.zeros(len(counts), np.int64))
    order = np.random.default_rng(seed).permutation(len(counts))
    test, train = order[: len(order) // 4], order[len(order) // 4 :]
    fit = fit_pca if method.startswith("PCA") else fit_vae if method.startswith("VAE") else fit_scvi
    started = time.perf_counter()
    parts = [(counts[rows], batch[rows]) for rows in (train, test)]
    codes, new_codes, score = fit(*parts, seed=seed, **METHODS[method])
    seconds = time.perf_counter() - started
    mixture = TorchGMM(N_TYPES, reg_covar=1e-2, n_init=10, random_state=seed).fit(codes)
    depth, own = np.log(counts[train].sum(1)), types[train]
    return {
        "log_likelihood": score,
        "v_measure": v_measure_score(types[test], mixture.predict(new_codes)),
        "depth": correlation(codes, depth),
        "depth_within_types": correlation(without_means(codes, own), without_means(depth, own)),
        "mixing": mixing(codes, batch[train]) if name == "batches" else None,
        "seconds": seconds,
    }


def run_missing(args):
    """Make the missing runs."""
    cells, done = load_cells(args.packages), read_runs(args.output)
    for seed in args.seeds:
        for name in ("cells", "batches"):
            for method in args.methods:
                row = f"{name}, {method}"
                needs_batches = METHODS[method].get("covariates", False)
                if seed in done.get(row, {}) or (needs_batches and name == "cells"):
                    continue
                record = run(cells, name, method, seed)
                head = environment(args.threads, "scvi-tools") | {
                    "row": row,
                    "seed": seed,
                    "set": name,
                    "method": method,
                }
                append_run(args.output, head | record)
                print(row, seed, json.dumps(record), flush=True)


def main():
    """Run or print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[*range(5)])
    parser.add_argument("--methods", nargs="+", default=[*METHODS], choices=[*METHODS], metavar="NAME")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--packages", type=Path, default=Path("packages"), help="folder of scanpy, as of sets.py")
    parser.add_argument("--output", type=Path, default=RESULTS / "cells.jsonl")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with threadpool_limits(args.threads), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run_missing(args)


if __name__ == "__main__":
    main()
