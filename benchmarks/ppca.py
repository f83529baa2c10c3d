"""TorchPPCA and scikit-learn's PCA(svd_solver="covariance_eigh"): time of a fit, accuracy of float32 variances.

    python benchmarks/ppca.py --output benchmarks/results/ppca.json

The fits take turns on the same rows with the same number of threads. A ratio above one says that TorchPPCA is faster.
The errors are the largest relative differences of the float32 variances to those of a fit in float64.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from record import environment, write_record
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits

from skvae import TorchPPCA

SHAPE = (60_000, 784)


def make_images(n_rows, n_features):
    """Rows in [0, 1] with a steep spectrum, many features being nearly constant, as in pictures of digits."""
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(n_rows, 40)) * np.geomspace(3, 0.1, 40)
    scale = np.geomspace(1, 1e-3, n_features)
    X = latent @ rng.normal(size=(40, n_features)) * scale + 0.1 * rng.normal(size=(n_rows, n_features)) * scale
    return 1 / (1 + np.exp(-X))


def measure(estimator, X):
    """Seconds of a fit, and its variances."""
    started = time.perf_counter()
    estimator.fit(X)
    return time.perf_counter() - started, estimator.explained_variance_.astype(np.float64)


def compare(X, q, dtype, repeats):
    """Median seconds, ratios and errors for q components."""
    rows = X.astype(dtype)
    makers = {"skvae": lambda: TorchPPCA(q), "scikit-learn": lambda: PCA(q, svd_solver="covariance_eigh")}
    exact = measure(PCA(q, svd_solver="covariance_eigh"), X)[1]
    times, errors = {name: [] for name in makers}, {}
    for _ in range(repeats):
        for name, make in makers.items():
            seconds, variances = measure(make(), rows)
            times[name].append(seconds)
            errors[name] = float(np.abs(variances / exact - 1).max())
    ratios = [theirs / ours for ours, theirs in zip(times["skvae"], times["scikit-learn"], strict=True)]
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    spread = {"ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}
    return {"seconds": medians, "errors": errors, **spread}


def main():
    """Run the comparison and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    X, record = make_images(*SHAPE), environment(args.threads) | {"shape": SHAPE, "rows": {}}
    print(f"{'work':24}{'ours s':>9}{'theirs s':>10}{'ratio':>7}{'range':>12}{'error':>10}{'theirs':>10}")
    with threadpool_limits(args.threads):
        for dtype in ("float64", "float32"):
            for q in (2, 10, 50):
                row = record["rows"][f"{dtype} q={q}"] = compare(X, q, dtype, args.repeats)
                ours, theirs = (row["seconds"][name] for name in ("skvae", "scikit-learn"))
                spread = f"{row['lowest']:.2f}-{row['highest']:.2f}"
                numbers = f"{ours:9.2f}{theirs:10.2f}{row['ratio']:7.2f}{spread:>12}"
                print(f"{dtype} q={q:<14}{numbers}" + "".join(f"{value:10.0e}" for value in row["errors"].values()))
    write_record(args.output, record)


if __name__ == "__main__":
    main()
