"""Where TorchGMM gains least, or loses: small tables, single rows, narrow clusters, and the import.

    python benchmarks/gmm_edges.py --output benchmarks/results/gmm_edges.json

Ours and scikit-learn's GaussianMixture take turns on one thread; a ratio is scikit-learn's time of the processor over
ours in a repeat. Narrow clusters have covariance I and means that are farther and farther apart: there ours changes, at
some distance, from products with features of the rows to residuals, which keeps the digits and costs time. "float32" is
the distance of the lower bound of our fit to float32 rows from the one in float64. The import is a process that imports
the class and ends.
"""

import argparse
import os
import statistics
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from gmm import CLASSES, make_data, settings
from record import environment, write_record
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from skvae import TorchGMM

SHAPE = (70_000, 10, 10)
DISTANCES = (1, 30, 1000)  # of the means, in units of those of gmm.py
N_CALLS = 50
MODULES = {"skvae": "from skvae import TorchGMM", "scikit-learn": "from sklearn.mixture import GaussianMixture"}


def compare(work, repeats):
    """Seconds of the processor, ours and theirs in turns, and their ratios; `work` has a function for each."""
    for call in work.values():
        call()  # warm up
    seconds = {name: [] for name in work}
    for _ in range(repeats):
        for name, call in work.items():
            started = time.process_time()
            call()
            seconds[name].append(time.process_time() - started)
    ratios = [theirs / ours for ours, theirs in zip(seconds["skvae"], seconds["scikit-learn"], strict=True)]
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {"seconds": medians, "ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}


def small_fit(repeats):
    """A fit to 150 rows from defaults."""
    X = load_iris().data
    return compare({name: lambda cls=cls: cls(3, random_state=0).fit(X) for name, cls in CLASSES.items()}, repeats)


def single_rows(repeats):
    """Calls of `predict` for one row."""
    X = load_iris().data
    fitted = {name: cls(3, random_state=0).fit(X) for name, cls in CLASSES.items()}
    row = compare(
        {name: lambda gmm=gmm: [gmm.predict(X[:1]) for _ in range(N_CALLS)] for name, gmm in fitted.items()}, repeats
    )
    row["seconds"] = {name: seconds / N_CALLS for name, seconds in row["seconds"].items()}
    return row


def narrow_clusters(distance, repeats):
    """Iterations from a common initialization, with the differences of the final lower bounds."""
    means = make_data(*SHAPE, np.float64)[1] * distance
    rng = np.random.default_rng(0)
    X = means[rng.integers(SHAPE[2], size=SHAPE[0])] + rng.normal(size=SHAPE[:2])
    parameters = settings(SHAPE, "full", means)
    bounds = {name: cls(**parameters).fit(X).lower_bound_ for name, cls in CLASSES.items()}
    single = TorchGMM(**parameters).fit(X.astype(np.float32)).lower_bound_
    row = compare({name: lambda cls=cls: cls(**parameters).fit(X) for name, cls in CLASSES.items()}, repeats)
    differences = {"ll": bounds["skvae"] - bounds["scikit-learn"], "float32": single - bounds["scikit-learn"]}
    return row | {name: abs(float(difference)) for name, difference in differences.items()}


def imports(repeats):
    """Seconds of processes that import a class."""
    results = {name: [] for name in MODULES}
    for _ in range(repeats):
        for name, line in MODULES.items():
            child = os.posix_spawn(sys.executable, [sys.executable, "-c", line], os.environ)
            usage = os.wait4(child, 0)[2]
            results[name].append(usage.ru_utime + usage.ru_stime)
    medians = {name: statistics.median(seconds) for name, seconds in results.items()}
    return {"seconds": medians, "ratio": medians["scikit-learn"] / medians["skvae"]}


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    torch.set_num_threads(1)
    work = {"fit (150, 4, 3)": small_fit, "predict one row": single_rows}
    work |= {
        f"full {SHAPE}, means x {distance}": lambda repeats, distance=distance: narrow_clusters(distance, repeats)
        for distance in DISTANCES
    }
    record = environment(1) | {"repeats": args.repeats, "rows": {}}
    with threadpool_limits(1):
        for name, measure in (work | {"import": imports}).items():
            row = record["rows"][name] = measure(args.repeats)
            seconds = "".join(f"{1e3 * value:12.2f}" for value in row["seconds"].values())
            ends = "".join(f"{row[end]:10.0e}" for end in ("ll", "float32") if end in row)
            print(f"{name:36}{seconds}{row['ratio']:8.2f}{ends}", flush=True)
    write_record(args.output, record)


if __name__ == "__main__":
    main()
