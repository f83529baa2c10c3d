"""Quality of a VAE that reads a file in shuffled runs of neighbours, compared with a full shuffle.

    SKVAE_DATA_HOME=... python benchmarks/shuffled_runs.py --output benchmarks/results/shuffled_runs.json

The 60,000 training images of MNIST are sorted by class, the worst order for a shuffle of neighbours, and written to a
memory map. Networks read it in runs of 41 rows (128 kB): runs are shuffled among the whole file, and rows among the
runs that are read together (32 MB). "runs of 1 row" is a full shuffle of the same file. Longer runs show what is
measured if rows are mixed less: those of 6,000 rows keep a class together. A perceptron with 10 latent dimensions and
Bernoulli pixels is trained with batches of 128; scores are evidence lower bounds of the 10,000 test images, in nats.
Every way of reading is trained with the same seeds; differences are those from a full shuffle.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from record import environment, read_record, write_record

from skvae import VAEEmbedder
from skvae.datasets import fetch_mnist

FULL = "runs of 1 row"
RUNS = {FULL: 1, "runs of 41 rows": 41, "runs of 256 rows": 256, "runs of 6,000 rows": 6000}
SETTINGS = {"hidden_layer_sizes": (512, 256), "likelihood": "bernoulli", "batch_size": 128}


class Slices:
    """A memory map that is read a chunk at a time, although it is small."""

    def __init__(self, rows):
        self._rows, self.shape, self.dtype = rows, rows.shape, rows.dtype

    def __getitem__(self, rows):
        return self._rows[rows]


def sorted_by_class(folder):
    """Training images of one class after another, in a file, and test images."""
    train, test = fetch_mnist(subset="train"), fetch_mnist(subset="test")
    order = np.argsort(train.target.astype(int), kind="stable")
    np.save(folder / "images.npy", train.data[order].astype(np.float32) / 255)
    return Slices(np.load(folder / "images.npy", mmap_mode="r")), test.data.astype(np.float32) / 255


def measure(X, X_test, run_length, epochs, seed):
    """Return the ELBO of the test images, and the seconds of the fit."""
    started = time.perf_counter()
    lengths = {"MAX_RUN": run_length, "MAX_RUN_BYTES": run_length * 4 * X.shape[1]}
    with mock.patch.multiple("skvae.data.samples", **lengths):
        vae = VAEEmbedder(
            10, **SETTINGS, kl_warmup_epochs=0, latent_norm_epochs=0, max_epochs=epochs, random_state=seed
        ).fit(X)
    return {"elbo": vae.score(X_test), "seconds": time.perf_counter() - started}


def summary(runs, reference):
    """Means and standard deviations, and differences from the reference with their standard error; runs by seed."""
    scores = [run["elbo"] for run in runs.values()]
    less = [run["elbo"] - reference[seed]["elbo"] for seed, run in runs.items() if seed in reference]
    error = statistics.stdev(less) / len(less) ** 0.5 if len(less) > 1 else 0.0
    spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
    results = {"elbo": statistics.mean(scores), "sd": spread, "difference": statistics.mean(less), "error": error}
    return results | {"seconds": statistics.median(run["seconds"] for run in runs.values()), "runs": runs}


def main():
    """Train with all ways of reading in turn, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0, help="other seeds in the output are kept")
    parser.add_argument("--readings", nargs="*", default=[*RUNS], choices=[*RUNS], help="others are kept, too")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    record = environment(args.threads) | {"epochs": args.epochs, "settings": SETTINGS}
    kept = read_record(args.output).get("rows", {})
    runs = {name: kept.get(name, {"runs": {}})["runs"] for name in RUNS}
    with tempfile.TemporaryDirectory() as folder:
        X, X_test = sorted_by_class(Path(folder))
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            for name in args.readings:
                runs[name][str(seed)] = measure(X, X_test, RUNS[name], args.epochs, seed)
                print(f"seed {seed}, {name}: {runs[name][str(seed)]['elbo']:.2f}", flush=True)
            rows = {name: summary(part, runs[FULL]) for name, part in runs.items() if part}
            write_record(args.output, record | {"rows": rows})
    print(f"{'reading':22}{'seeds':>6}{'ELBO (sd)':>18}{'difference (its error)':>26}")
    for name, row in rows.items():
        elbo, less = "{elbo:.2f} ({sd:.2f})".format(**row), "{difference:+.2f} ({error:.2f})".format(**row)
        print(f"{name:22}{len(row['runs']):>6}{elbo:>18}{less:>26}")


if __name__ == "__main__":
    main()
