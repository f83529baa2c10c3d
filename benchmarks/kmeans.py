"""TorchMiniBatchKMeans and our k-means beside scikit-learn's: time of a fit from defaults, and its inertia.

    python benchmarks/kmeans.py --threads 1 --output benchmarks/results/kmeans.json

The fits are made in turns (one of each a repeat, with the same seed), in one process with one number of threads. A
ratio is scikit-learn's time over ours in a repeat; the median over repeats is shown. The starts differ, so the inertias
do, and their means over the repeats are compared. Images are MNIST where there is a file of it (see
`skvae.datasets.fetch_mnist`; SKVAE_DATA_HOME names the folder), else synthetic ones of the same size.
"""

import argparse
import statistics
import time
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from record import environment, write_record
from sklearn.cluster import KMeans, MiniBatchKMeans
from threadpoolctl import threadpool_limits

from skvae import TorchMiniBatchKMeans
from skvae.datasets import fetch_mnist
from skvae.fitting.lloyd import kmeans
from skvae.fitting.nearest import squared_residuals
from skvae.fitting.weighted_rows import WeightedRows

IMAGES = (60_000, 784)
MINI_BATCH = [10, 100]  # clusters
FULL = [(70_000, 10, 10), (70_000, 10, 100)]  # rows, features, clusters


@cache
def images():
    """Images as float32 rows between 0 and 1, and where they come from."""
    try:
        return fetch_mnist().data[: IMAGES[0]].astype(np.float32) / 255, "MNIST"
    except OSError:  # no file, no network
        rng = np.random.default_rng(0)
        templates = rng.uniform(size=(10, IMAGES[1])) ** 4
        X = templates[rng.integers(10, size=IMAGES[0])] + 0.2 * rng.normal(size=IMAGES)
        return X.clip(0, 1).astype(np.float32), "synthetic"


def clusters(n, d, k):
    """Overlapping clusters with correlations."""
    rng = np.random.default_rng(0)
    means, labels, X = rng.normal(size=(k, d)) * 3 * np.sqrt(2 / d), rng.integers(k, size=n), np.empty((n, d))
    for c in range(k):
        rows = labels == c
        X[rows] = rng.normal(size=(rows.sum(), d)) @ (np.eye(d) + rng.normal(size=(d, d)) / (2 * np.sqrt(d))) + means[c]
    return X


def our_kmeans(X, n_clusters, seed):
    """Centre the rows, run k-means and measure the inertia."""
    rows = WeightedRows(torch.from_numpy(X - X.mean(axis=0)))
    centers, labels = kmeans(rows, n_clusters, torch.Generator().manual_seed(seed))
    return float(squared_residuals(rows.x, centers, labels).sum())


def mini_batch_fits(k):
    """Data and fits, (X, seed) -> inertia, of mini-batch k-means."""
    X, _ = images()
    return X, {
        "skvae": lambda X, seed: TorchMiniBatchKMeans(k, random_state=seed).fit(X).inertia_,
        "scikit-learn": lambda X, seed: MiniBatchKMeans(k, random_state=seed).fit(X).inertia_,
    }


def full_fits(shape):
    """Data and fits, (X, seed) -> inertia, of k-means on all rows."""
    return clusters(*shape), {
        "skvae": lambda X, seed: our_kmeans(X, shape[2], seed),
        "scikit-learn": lambda X, seed: KMeans(shape[2], n_init=1, random_state=seed).fit(X).inertia_,
    }


def compare(make, repeats):
    """Times and inertias of fits made in turns."""
    X, fits = make()
    times, inertias = {name: [] for name in fits}, {name: [] for name in fits}
    for fit in fits.values():
        fit(X[:2000], 0)  # warm up
    for seed in range(repeats):
        for name, fit in fits.items():
            started = time.perf_counter()
            inertia = fit(X, seed)
            times[name].append(time.perf_counter() - started)
            inertias[name].append(inertia / len(X))
    ratios = sorted(theirs / ours for ours, theirs in zip(times["skvae"], times["scikit-learn"], strict=True))
    return {
        "seconds": {name: statistics.median(values) for name, values in times.items()},
        "ratio": statistics.median(ratios),
        "lowest": ratios[0],
        "highest": ratios[-1],
        "mean_inertia": {name: statistics.mean(values) for name, values in inertias.items()},
        "inertias": inertias,
    }


def main():
    """Run the comparison and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    source, shape = images()[1], images()[0].shape
    rows = {f"mini-batch float32 {source} {(*shape, k)}": partial(mini_batch_fits, k) for k in MINI_BATCH}
    rows |= {f"k-means float64 {shape}": partial(full_fits, shape) for shape in FULL}
    record = environment(args.threads) | {"repeats": args.repeats, "rows": {}}
    print(f"{'work':42}{'ours ms':>9}{'theirs ms':>11}{'ratio':>7}{'range':>11}{'inertia of a row':>22}")
    with threadpool_limits(args.threads):
        for name, make in rows.items():
            record["rows"][name] = row = compare(make, args.repeats)
            ours, theirs = (1e3 * seconds for seconds in row["seconds"].values())
            spread = f"{row['lowest']:.1f}-{row['highest']:.1f}"
            inertia = "{skvae:.4f} / {scikit-learn:.4f}".format(**row["mean_inertia"])
            print(f"{name:42}{ours:9.0f}{theirs:11.0f}{row['ratio']:7.2f}{spread:>11}{inertia:>22}", flush=True)
            write_record(args.output, record)


if __name__ == "__main__":
    main()
