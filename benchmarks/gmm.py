"""TorchGMM compared with scikit-learn's GaussianMixture: time for equal work, equality of the result, peak memory.

    python benchmarks/gmm.py --threads 1 --output benchmarks/results/gmm.json

Both run the same iterations from the same initialization on the same data, in turns (one of each a repeat), in one
process with one number of threads. A ratio is scikit-learn's time over ours in a repeat; the median over repeats is
shown. The time of a fit includes validation, initialization, iterations and attributes. "ll" is the difference of the
final lower bounds. Peak memory is the growth of the resident set during one fit, in a process of its own.

    python benchmarks/gmm.py --busy --output benchmarks/results/gmm_busy.json

is the comparison on a busy machine: as many threads as cores, and other processes that keep all cores but one busy.
Next to it are the rows of a quiet machine with the same threads.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
import warnings
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from record import environment, write_record
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

from skvae import TorchGMM

SHAPES = {  # (n, d, k): iterations
    (70_000, 2, 10): 20,
    (70_000, 10, 10): 20,
    (70_000, 10, 100): 10,
    (200_000, 32, 20): 5,
    (20_000, 128, 16): 5,
    (10_000, 784, 10): 3,
}
TIED_ITERATIONS = 20  # its iterations are short: fewer would measure what is done once
WORK = [
    *[(shape, "full", "float64") for shape in SHAPES],
    *[(shape, "full", "float32") for shape in SHAPES],
    *[(shape, kind, "float64") for kind in ("tied", "diag", "spherical") for shape in SHAPES if shape[0] != 200_000],
]
WHOLE = [((70_000, 10, 10), 1), ((70_000, 10, 100), 1), ((5_000, 10, 10), 10)]  # and number of starts
BUSY = [((70_000, 2, 10), "full"), ((70_000, 10, 10), "full"), ((70_000, 10, 10), "diag")]
CLASSES = {"skvae": TorchGMM, "scikit-learn": GaussianMixture}


def make_data(n, d, k, dtype):
    """Return overlapping clusters with correlations, and initial means."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(k, d)) * 3 * np.sqrt(2 / d)
    labels, X = rng.integers(k, size=n), np.empty((n, d), dtype)
    for c in range(k):
        rows = labels == c
        mixing = np.eye(d) + rng.normal(size=(d, d)) / (2 * np.sqrt(d))
        X[rows] = rng.normal(size=(rows.sum(), d)) @ mixing + means[c]
    return X, means


def settings(shape, kind, means):
    """Return parameters with which both run the same iterations from the same initialization."""
    _, d, k = shape
    precisions = {
        "full": np.stack([np.eye(d)] * k),
        "tied": np.eye(d),
        "diag": np.ones((k, d)),
        "spherical": np.ones(k),
    }[kind]
    start = {"weights_init": np.full(k, 1 / k), "means_init": means, "precisions_init": precisions}
    return {"n_components": k, "covariance_type": kind, "tol": 0.0, "max_iter": iterations_of(shape, kind), **start}


def iterations_of(shape, kind):
    """Iterations of a fit."""
    return TIED_ITERATIONS if kind == "tied" else SHAPES[shape]


def fit_seconds(estimator, X):
    """Fit once; the seconds and the fitted estimator."""
    started = time.perf_counter()
    estimator.fit(X)
    return time.perf_counter() - started, estimator


def compare(shape, kind, dtype, repeats):
    """Times of equal work, interleaved. scikit-learn works in float64 whatever the dtype of ours."""
    X, means = make_data(*shape, np.float64)
    inputs, parameters = {"skvae": X.astype(dtype), "scikit-learn": X}, settings(shape, kind, means)
    TorchGMM(**{**parameters, "max_iter": 1}).fit(inputs["skvae"])  # warm up
    times, bounds = {name: [] for name in CLASSES}, {}
    for _ in range(repeats):
        for name, cls in CLASSES.items():
            seconds, fitted = fit_seconds(cls(**parameters), inputs[name])
            times[name].append(seconds)
            bounds[name] = fitted.lower_bound_
    return summary(times) | {"ll": abs(bounds["skvae"] - bounds["scikit-learn"])}


def compare_whole(shape, n_init, repeats):
    """Times of whole fits from defaults, k-means included; initializations differ, and so do results."""
    X, _ = make_data(*shape, np.float64)
    times, bounds, iterations = {name: [] for name in CLASSES}, {}, {}
    for seed in range(repeats):
        for name, cls in CLASSES.items():
            seconds, fitted = fit_seconds(cls(shape[2], n_init=n_init, random_state=seed, max_iter=300), X)
            times[name].append(seconds)
            bounds.setdefault(name, []).append(fitted.lower_bound_)
            iterations.setdefault(name, []).append(fitted.n_iter_)
    means = {name: statistics.mean(values) for name, values in bounds.items()}
    return summary(times) | {"mean_lower_bound": means, "n_iter": iterations}


@contextmanager
def busy_cores():
    """Keep all cores but one busy."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() - 1)]
    try:
        time.sleep(0.5)
        yield
    finally:
        for other in others:
            other.kill()


def compare_busy(shape, kind, repeats):
    """Times of equal work on a busy machine."""
    with busy_cores():
        return compare(shape, kind, "float64", repeats)


def summary(times):
    """Median seconds of each, and median, lowest and highest of the ratios of a repeat."""
    ratios = sorted(theirs / ours for ours, theirs in zip(times["skvae"], times["scikit-learn"], strict=True))
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    return {"seconds": medians, "ratio": statistics.median(ratios), "lowest": ratios[0], "highest": ratios[-1]}


def peak_megabytes(name, shape, kind, threads):
    """Growth of the resident set during one fit, in a process of its own."""
    command = [sys.executable, __file__, "--child", name, *map(str, shape), kind, "--threads", str(threads)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def child(name, n, d, k, kind):
    """Fit once and print the growth of the resident set in MB."""
    shape = int(n), int(d), int(k)
    X, means = make_data(*shape, np.float64)
    CLASSES[name](2, init_params="random", max_iter=2).fit(X[:50])  # libraries are loaded before the count begins
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak is counted from here
    before = resident_kilobytes("VmRSS")
    CLASSES[name](**{**settings(shape, kind, means), "max_iter": 2}).fit(X)
    print((resident_kilobytes("VmHWM") - before) / 1024)


def resident_kilobytes(field):
    """A field of the process status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def main():
    """Run the comparison and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--busy", action="store_true", help="with other processes, and a thread for each core")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", help="only rows whose name contains this")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.busy:
        args.threads = os.cpu_count()
    warnings.simplefilter("ignore", ConvergenceWarning)
    torch.set_num_threads(args.threads)
    with threadpool_limits(args.threads):
        if args.child:
            return child(*args.child)
        record = environment(args.threads) | {"repeats": args.repeats, "rows": {}}
        print(f"{'work':38}{'ours ms':>10}{'theirs ms':>11}{'ratio':>8}{'range':>14}{'ll':>9}{'MB':>14}")
        for name, iterations, measure in rows_of_table(args):
            if args.rows and args.rows not in name:
                continue
            record["rows"][name] = measure()
            show(name, record["rows"][name], iterations)
            write_record(args.output, record)
    return None


def rows_of_table(args):
    """Name of each row, iterations that its times are divided by, and a function that measures it."""
    if args.busy:
        for shape, kind in BUSY:
            for load, measure in (("quiet", partial(compare, dtype="float64")), ("busy", compare_busy)):
                yield (
                    f"{load} {kind} {shape}",
                    iterations_of(shape, kind),
                    partial(measure, shape=shape, kind=kind, repeats=args.repeats),
                )
        return
    for shape, kind, dtype in WORK:

        def measure(shape=shape, kind=kind, dtype=dtype):
            row = compare(shape, kind, dtype, args.repeats)
            if dtype == "float64":
                row["peak_mb"] = {name: peak_megabytes(name, shape, kind, args.threads) for name in CLASSES}
            return row

        yield f"{kind} {dtype} {shape}", iterations_of(shape, kind), measure
    for shape, n_init in WHOLE:
        name = f"whole fit {shape}" + (f" {n_init} starts" if n_init > 1 else "")
        yield name, 1, partial(compare_whole, shape, n_init, args.repeats)


def show(name, row, iterations):
    """Print a row of the table; times are for one iteration, or for a whole fit."""
    ours, theirs = (1e3 * row["seconds"][name] / iterations for name in CLASSES)
    memory = "{skvae:.0f} / {scikit-learn:.0f}".format(**row["peak_mb"]) if "peak_mb" in row else ""
    ll = f"{row['ll']:.0e}" if "ll" in row else ""
    spread = f"{row['lowest']:.1f}-{row['highest']:.1f}"
    print(f"{name:38}{ours:10.1f}{theirs:11.1f}{row['ratio']:8.1f}{spread:>14}{ll:>9}{memory:>14}", flush=True)


if __name__ == "__main__":
    main()
