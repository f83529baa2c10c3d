"""Peak memory of fits to n, 10 n and 100 n rows that are read a chunk at a time.

    python benchmarks/memory.py --output benchmarks/results/memory.json

Rows of 32 float32 values are made when they are asked for, so that no file and no memory is needed for them: 100 n are
10 million rows, 1.28 GB. The source has slices and no more, and is read a chunk at a time whatever its size. Every fit
has a process of its own. Growth is the peak of the resident set during the fit less the resident set before it, after a
fit to a few rows that loads all libraries. k-means does not label the rows, which would be a result with n numbers.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from large_files import memory, peak_counted_from_here
from record import environment, write_record

from skvae import AutoencoderEmbedder, TorchGMM, TorchMiniBatchKMeans, TorchPPCA, VaDEClusterer, VAEEmbedder

N_FEATURES, PERIOD = 32, 50_021  # rows after which the same come again; a prime, so that chunks differ
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
NETWORK = {"hidden_layer_sizes": (64,), "max_epochs": 1, "batch_size": 1024, "random_state": 0}
ESTIMATORS = {
    "TorchGMM": lambda: TorchGMM(10, max_iter=1, random_state=0),
    "TorchMiniBatchKMeans": lambda: TorchMiniBatchKMeans(
        10, batch_size=4096, max_iter=1, compute_labels=False, random_state=0
    ),
    "TorchPPCA": lambda: TorchPPCA(8),
    "VAEEmbedder": lambda: VAEEmbedder(8, **NETWORK),
    "AutoencoderEmbedder": lambda: AutoencoderEmbedder(8, **NETWORK),
    "VaDEClusterer": lambda: VaDEClusterer(10, latent_dim=8, pretrain_epochs=1, **NETWORK),
}


class MadeRows:
    """A dataset whose rows are made when it is sliced.

    Parameters
    ----------
    n_rows : int
    """

    def __init__(self, n_rows):
        rng = np.random.default_rng(0)
        means = 3 * rng.normal(size=(10, N_FEATURES))
        rows = rng.normal(size=(PERIOD, N_FEATURES)) + means[rng.integers(10, size=PERIOD)]
        self._rows, self.shape, self.dtype = rows.astype(np.float32), (n_rows, N_FEATURES), np.dtype(np.float32)

    def __getitem__(self, rows):
        return self._rows[np.arange(rows.start, rows.stop) % PERIOD]


def child(name, n_rows):
    """Fit, and print seconds and memory."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    ESTIMATORS[name]().fit(np.array(MadeRows(2000)[0:2000]))
    X, estimator = MadeRows(n_rows), ESTIMATORS[name]()
    before, started = peak_counted_from_here(), time.perf_counter()
    estimator.fit(X)
    print(json.dumps({"seconds": time.perf_counter() - started, **memory(before)}))


def measured(name, n_rows):
    """Return the result of a child process."""
    command = [sys.executable, __file__, "--child", name, str(n_rows)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=ONE_THREAD)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    """Measure all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="n")
    parser.add_argument("--times", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--estimators", nargs="*", default=[*ESTIMATORS], choices=[*ESTIMATORS])
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args.child[0], int(args.child[1]))
    record = environment(1) | {"n_features": N_FEATURES, "fits": {}}
    print(f"{'growth, MB':24}" + "".join(f"{times * args.rows:>14,}" for times in args.times))
    for name in args.estimators:
        results = record["fits"][name] = {times * args.rows: measured(name, times * args.rows) for times in args.times}
        print(f"{name:24}" + "".join(f"{row['growth_mb']:>14.0f}" for row in results.values()), flush=True)
        write_record(args.output, record)
    return None


if __name__ == "__main__":
    main()
