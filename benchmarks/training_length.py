"""Epochs and widths of `VAEEmbedder` on small tables: the evidence lower bound of held-out samples.

    python benchmarks/training_length.py --output benchmarks/results/training_length.json

A quarter of the samples of each table is held out. "default" chooses the number of epochs by a share of the training
samples; "all epochs" makes as many as the number of samples says; early stopping holds out a tenth of the training
samples; "narrow" and "wide" have hidden layers of (64, 32) and (512, 256) units instead of (256, 128). The tables are
those of scikit-learn and, if they were made, of `sets.py`.
"""

import argparse
import statistics
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from record import environment, write_record
from sets import load
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits

from skvae import VAEEmbedder
from skvae.estimators._training_length import choose_epochs

OF_SKLEARN = {"wine": load_wine, "breast cancer": load_breast_cancer, "diabetes": load_diabetes}
OF_SETS = ("tissues", "olive", "vowel", "pbmc")
BATCH_SIZE = 128


def table(name, folder):
    """Return the samples of a table, and classes in whose shares they are split, or None."""
    if name in OF_SKLEARN:
        X, y = OF_SKLEARN[name](return_X_y=True)
        return X, y if name != "diabetes" else None
    X_train, X_test, y_train, y_test = load(name, folder)
    return np.vstack([X_train, X_test]), np.concatenate([y_train, y_test])


def settings(n_samples):
    """Return the settings to compare, by name."""
    return {
        "default": {},
        "all epochs": {"max_epochs": choose_epochs("auto", n_samples, BATCH_SIZE)},
        "early stopping": {"early_stopping": True},
        "narrow": {"hidden_layer_sizes": (64, 32)},
        "wide": {"hidden_layer_sizes": (512, 256)},
    }


def measure(X, y, seeds):
    """Return the bounds, epochs and seconds of each setting, a list with an entry for each seed."""
    rows = {}
    for seed in range(seeds):
        X_train, X_test = train_test_split(X, random_state=seed, stratify=y)
        for name, chosen in settings(len(X_train)).items():
            started = time.process_time()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                vae = VAEEmbedder(min(10, X.shape[1]), batch_size=BATCH_SIZE, random_state=seed, **chosen).fit(X_train)
            seconds = time.process_time() - started
            row = rows.setdefault(name, {"bounds": [], "epochs": [], "seconds": []})
            for key, value in (("bounds", vae.score(X_test)), ("epochs", vae.n_iter_), ("seconds", seconds)):
                row[key].append(value)
    return rows


def main():
    """Compare the settings, table by table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", default=[*OF_SKLEARN, *OF_SETS], choices=[*OF_SKLEARN, *OF_SETS])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", type=Path, help='folder of the sets; by default "sets" below SKVAE_DATA_HOME')
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    record = environment(args.threads) | {"seeds": args.seeds, "rows": {}}
    with threadpool_limits(args.threads):
        for name in args.tables:
            X, y = table(name, args.data)
            record["rows"][name] = {"shape": X.shape, "settings": measure(X, y, args.seeds)}
            for setting, row in record["rows"][name]["settings"].items():
                epochs = f"{min(row['epochs'])} to {max(row['epochs'])} epochs"
                print(f"{name}, {setting}: bound {statistics.mean(row['bounds']):.2f}, {epochs}", flush=True)
            write_record(args.output, record)


if __name__ == "__main__":
    main()
