"""Samples in a file larger than memory: time of EM iterations compared with scikit-learn's, and peak memory.

    python benchmarks/large_files.py --folder /tmp --threads 1 --output benchmarks/results/large_files.json

The first part fits TorchGMM to a memory map of clusters (70 million rows of 32 float32 values, 9 GB, by default), and
scikit-learn's GaussianMixture to as many of the first rows as ``--held`` says, in memory. Both start from the same
parameters and run the same iterations. Rows per second are those of one EM iteration: the median of those after the
first, each timed from line to line of what the fit prints.

The second part gives a memory map of 2 million images of 784 bytes to every estimator, fitted to a few thousand rows
before, and measures `transform` and `predict`.

Every measurement has a process of its own. Peak memory is its largest resident set, with Python and all libraries in
it; growth is what was added during the fit or the call, its result included. Maps of less than a gigabyte (as floats)
are held in memory, so that short runs (``--rows``, ``--images``) measure another thing. The files are deleted.
"""

import argparse
import contextlib
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from record import environment, write_record
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

from skvae import AutoencoderEmbedder, TorchGMM, TorchMiniBatchKMeans, TorchPPCA, VaDEClusterer, VAEEmbedder

N_FEATURES, N_COMPONENTS, ITERATIONS = 32, 10, 4
KINDS = ("full", "diag")
PIXELS, WRITTEN = 784, 100_000  # values of an image, and rows that are written at a time
NETWORK = {"hidden_layer_sizes": (256, 64), "max_epochs": 1, "random_state": 0}
ESTIMATORS = {
    "TorchGMM": lambda: TorchGMM(10, covariance_type="diag", random_state=0),
    "TorchPPCA": lambda: TorchPPCA(10),
    "TorchMiniBatchKMeans": lambda: TorchMiniBatchKMeans(10, random_state=0),
    "AutoencoderEmbedder": lambda: AutoencoderEmbedder(10, **NETWORK),
    "VAEEmbedder": lambda: VAEEmbedder(10, **NETWORK),
    "VaDEClusterer": lambda: VaDEClusterer(10, pretrain_epochs=1, **NETWORK),
}


def start_of(k, d):
    """Return the initial parameters of both fits."""
    means = np.random.default_rng(0).normal(size=(k, d)) * 3 * np.sqrt(2 / d)
    return {"weights_init": np.full(k, 1 / k), "means_init": means}


def write_clusters(path, n_rows):
    """Overlapping clusters with correlations, float32."""
    rng, means = np.random.default_rng(1), start_of(N_COMPONENTS, N_FEATURES)["means_init"]
    mixing = np.eye(N_FEATURES) + rng.normal(size=(N_COMPONENTS, N_FEATURES, N_FEATURES)) / np.sqrt(4 * N_FEATURES)
    with path.open("wb") as file:
        for first in range(0, n_rows, WRITTEN):
            labels = np.sort(rng.integers(N_COMPONENTS, size=min(WRITTEN, n_rows - first)))
            rows = rng.standard_normal((len(labels), N_FEATURES), np.float32)
            for c in range(N_COMPONENTS):
                rows[labels == c] = rows[labels == c] @ mixing[c] + means[c]
            file.write(rng.permutation(rows).astype(np.float32).tobytes())


def write_images(path, n_rows):
    """Random images with a few bright blocks, of bytes."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 200, size=(10, PIXELS), dtype=np.uint8)
    with path.open("wb") as file:
        for first in range(0, n_rows, WRITTEN):
            size = min(WRITTEN, n_rows - first)
            noise = rng.integers(0, 55, size=(size, PIXELS), dtype=np.uint8)
            file.write((patterns[rng.integers(10, size=size)] + noise).tobytes())


class Clock:
    """Stream that records the times of printed iterations."""

    def __init__(self):
        self.times = []

    def write(self, text):
        """Record the time of a line about an iteration."""
        if re.search(r"[Ii]teration \d", text):
            self.times.append(time.perf_counter())

    def flush(self):
        """Do nothing, since nothing is buffered."""


def resident_megabytes(field):
    """A field of the process status, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def fit_mixture(name, path, n_rows, kind):
    """Rows per second of an EM iteration and peak memory of a fit."""
    cls = {"skvae": TorchGMM, "scikit-learn": GaussianMixture}[name]
    cls(2, init_params="random", random_state=0).fit(np.random.default_rng(0).normal(size=(50, N_FEATURES)))
    X = np.memmap(path, dtype=np.float32, mode="r").reshape(-1, N_FEATURES)[:n_rows]
    X = X if name == "skvae" else np.array(X)
    precisions = {"full": np.stack([np.eye(N_FEATURES)] * N_COMPONENTS), "diag": np.ones((N_COMPONENTS, N_FEATURES))}
    settings = {"tol": 0.0, "max_iter": ITERATIONS, "verbose": 1, "verbose_interval": 1, "covariance_type": kind}
    start = start_of(N_COMPONENTS, N_FEATURES) | {"precisions_init": precisions[kind]}
    mixture, before = cls(N_COMPONENTS, **settings, **start), peak_counted_from_here()
    started, clock = time.perf_counter(), Clock()
    with contextlib.redirect_stdout(clock):
        mixture.fit(X)
    seconds = statistics.median(np.diff(clock.times))
    return {
        "rows": len(X),
        "gigabytes": X.nbytes / 1e9,
        "rows_per_second": len(X) / seconds,
        "fit_seconds": time.perf_counter() - started,
        "lower_bound": float(mixture.lower_bound_),
        **memory(before),
    }


def visit_images(name, path):
    """Peak memory of transform and predict on all images."""
    X = np.memmap(path, dtype=np.uint8, mode="r").reshape(-1, PIXELS)
    estimator, results = ESTIMATORS[name]().fit(np.array(X[:3000])), {}
    for method in ("transform", "predict"):
        if hasattr(estimator, method):
            getattr(estimator, method)(X[:3000])
            before, started = peak_counted_from_here(), time.perf_counter()
            result = getattr(estimator, method)(X)
            rate = len(X) / (time.perf_counter() - started)
            results[method] = {"rows_per_second": rate, "result_mb": result.nbytes / 2**20, **memory(before)}
    return results


def peak_counted_from_here():
    """The resident set now; Linux counts its peak from here on."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident_megabytes("VmRSS")


def memory(before):
    """Peak of the resident set, and what was added to it."""
    peak = resident_megabytes("VmHWM")
    return {"peak_mb": peak, "growth_mb": peak - before}


def measured(threads, *arguments):
    """Return the result of a child process."""
    command = [sys.executable, __file__, "--threads", str(threads), "--child", *map(str, arguments)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


def child(work, path, name, *rest):
    """Measure one thing and print it."""
    path = Path(path)
    results = fit_mixture(name, path, int(rest[0]), rest[1]) if work == "fit" else visit_images(name, path)
    print(json.dumps(results))


def compare_fits(args, folder):
    """Fits of both, in turn."""
    path = folder / "clusters.float32"
    write_clusters(path, args.rows)
    print(f"{'fit':24}{'rows':>12}{'GB':>7}{'rows/s of an iteration':>24}{'peak MB':>10}{'growth MB':>11}")
    for kind in KINDS:
        for name, n_rows in (("skvae", args.rows), ("scikit-learn", min(args.held, args.rows))):
            row = measured(args.threads, "fit", path, name, n_rows, kind)
            cells = f"{row['rows']:>12}{row['gigabytes']:>7.1f}{row['rows_per_second']:>24.0f}"
            print(f"{kind + ' ' + name:24}{cells}{row['peak_mb']:>10.0f}{row['growth_mb']:>11.0f}", flush=True)
            yield f"{kind} {name}", row
    path.unlink()


def compare_visits(args, folder):
    """Methods of every estimator on all images."""
    path = folder / "images.uint8"
    write_images(path, args.images)
    print(f"{'method':34}{'rows/s':>10}{'peak MB':>10}{'growth MB':>11}{'result MB':>11}")
    for name in ESTIMATORS:
        row = measured(args.threads, "visit", path, name)
        for method, results in row.items():
            cells = f"{results['rows_per_second']:>10.0f}{results['peak_mb']:>10.0f}{results['growth_mb']:>11.0f}"
            print(f"{name + '.' + method:34}{cells}{results['result_mb']:>11.0f}", flush=True)
        yield name, row
    path.unlink()


def main():
    """Run both parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the files are written and deleted")
    parser.add_argument("--rows", type=int, default=70_000_000, help="rows of the mixture; 0: leave the part out")
    parser.add_argument("--held", type=int, default=2_000_000, help="rows that scikit-learn gets")
    parser.add_argument("--images", type=int, default=2_000_000, help="images; 0: leave the part out")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    torch.set_num_threads(args.threads)
    with threadpool_limits(args.threads):
        if args.child:
            return child(*args.child)
        record = environment(args.threads) | {"fit": {}, "visit": {}}
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            for part, rows, compare in (("fit", args.rows, compare_fits), ("visit", args.images, compare_visits)):
                for name, row in compare(args, Path(folder)) if rows else ():
                    record[part][name] = row
                    write_record(args.output, record)
    return None


if __name__ == "__main__":
    main()
