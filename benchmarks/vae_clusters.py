"""Clusters and evidence lower bound of VAEEmbedder with its defaults and other settings, by a mixture on the codes.

    python benchmarks/vae_clusters.py --data FOLDER --sets penbased texture --seeds 0 1 2
    python benchmarks/vae_clusters.py --choose --data FOLDER --sets digits segment --seeds 100 101
    python benchmarks/vae_clusters.py --table

FOLDER has a file for each data set, with arrays X_train, X_test, y_train and y_test; integers are divided by the
largest of X_train. Networks and mixtures are fitted to X_train without labels; labels of X_test only score. V-measures
are those of ``TorchGMM(k)`` ("gmm"), of ``TorchGMM(k, n_init=10, reg_covar=1e-2)`` ("steady") and of scikit-learn's
k-means with ten initializations ("kmeans"), each on the samples, on principal components and on latent codes. "elbo" is
the score of X_test in nats, "units" the number of latent dimensions in use, "seconds" those of the network's fit.

``--choose`` runs the settings from which the defaults were chosen: on the development sets digits, satellite, segment
and pbmc alone, with seeds from 100 on. Other sets, and seeds below 100, decided nothing.
"""

import argparse
import json
import statistics
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from record import RESULTS, environment, read_runs, write_run
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import v_measure_score
from threadpoolctl import threadpool_limits

from skvae import AutoencoderEmbedder, TorchGMM, VAEEmbedder

BEFORE = {"kl_warmup_epochs": 0, "latent_norm_epochs": 0}
STEADY = {"n_init": 10, "reg_covar": 1e-2}
REPORTED = {
    "data": None,
    "PCA 10": 10,
    "PCA 20": 20,
    "VAE, no warm-up": BEFORE,
    "VAE": {},
    "VAE, beta 0.1": {"beta": 0.1},
}
CHOICES = {
    "batch norm": {"batch_norm": True, **BEFORE},
    "layer norm": {"layer_norm": True, **BEFORE},
    "dropout 0.1": {"dropout": 0.1, **BEFORE},
    "weight decay": {"optimizer": "adamw", "weight_decay": 0.05, **BEFORE},
    "widths 128, 64": {"hidden_layer_sizes": (128, 64), **BEFORE},
    "width 256": {"hidden_layer_sizes": (256,), **BEFORE},
    "width 256, warm-up 30": {"hidden_layer_sizes": (256,), "kl_warmup_epochs": 30, "latent_norm_epochs": 0},
    "cosine, lr 2e-3": {"lr_schedule": "cosine", "lr": 2e-3, **BEFORE},
    "batch norm, cosine, lr 2e-3": {"batch_norm": True, "lr_schedule": "cosine", "lr": 2e-3, **BEFORE},
    "20 components": {"n_components": 20, **BEFORE},
    "gaussian": {"likelihood": "gaussian", **BEFORE},
    "gaussian_fixed": {"likelihood": "gaussian_fixed", **BEFORE},
    "gaussian_features": {"likelihood": "gaussian_features", **BEFORE},
    "continuous_bernoulli": {"likelihood": "continuous_bernoulli", **BEFORE},
    "warm-up 30": {"kl_warmup_epochs": 30, "latent_norm_epochs": 0},
    "normalized, warm-up 10": {"kl_warmup_epochs": 10, "latent_norm_epochs": 10},
    "70 epochs": {"max_epochs": 70},
    "VAE, beta 0.1, batch norm": {"beta": 0.1, "batch_norm": True},
    "autoencoder, batch norm": {"batch_norm": True},
}
DEVELOPMENT = ("digits", "satellite", "segment", "pbmc")


def load(folder, name):
    """Return X_train, X_test, y_train and y_test of a data set."""
    with np.load(folder / f"{name}.npz") as file:
        X_train, X_test, y_train, y_test = (file[part] for part in ("X_train", "X_test", "y_train", "y_test"))
    if X_train.dtype.kind in "iu":
        X_train, X_test = ((X / X_train.max()).astype(np.float32) for X in (X_train, X_test))
    return X_train, X_test, y_train, y_test


def embed(name, settings, X, X_test, seed):
    """Return embeddings of the training and test samples, and records of the fit."""
    if settings is None:
        return X, X_test, {}
    if isinstance(settings, int):
        pca = PCA(min(settings, *X.shape), random_state=seed).fit(X)
        return pca.transform(X), pca.transform(X_test), {}
    cls = AutoencoderEmbedder if name.startswith("autoencoder") else VAEEmbedder
    started = time.perf_counter()
    embedder = cls(**settings, random_state=seed).fit(X)
    record = {"seconds": time.perf_counter() - started, "elbo": float(embedder.score(X_test))}
    record |= {"train_elbo": float(embedder.score(X)), "units": getattr(embedder, "active_units_", None)}
    return embedder.transform(X), embedder.transform(X_test), record


def measure(name, settings, data, seed):
    """Return V-measures of held-out samples, and the records of the fit."""
    X, X_test, y, y_test = data
    n_clusters = len(np.unique(y))
    Z, Z_test, record = embed(name, settings, X, X_test, seed)
    clusterers = {
        "gmm": TorchGMM(n_clusters, random_state=seed),
        "steady": TorchGMM(n_clusters, **STEADY, random_state=seed),
        "kmeans": KMeans(n_clusters, n_init=10, random_state=seed),
    }
    return {
        key: float(v_measure_score(y_test, each.fit(Z).predict(Z_test))) for key, each in clusterers.items()
    } | record


def show(path):
    """Print a Markdown table of the means over seeds, for each data set and setting; seeds that chose are apart."""
    columns = ("gmm", "steady", "kmeans", "elbo", "units", "seconds")
    print("| data set | embedding | seeds | " + " | ".join(columns) + " |\n" + "|--" * (3 + len(columns)) + "|")
    rows = read_runs(path).items()
    chosen = [(row, [runs[seed] for seed in runs if seed >= 100]) for row, runs in rows]
    reported = [(row, [runs[seed] for seed in runs if seed < 100]) for row, runs in rows]
    for row, runs in [*reported, *((f"{row} (choice)", runs) for row, runs in chosen)]:
        if not runs:
            continue
        cells = []
        for column in columns:
            values = [run[column] for run in runs if run.get(column) is not None]
            digits = 3 if column in ("gmm", "steady", "kmeans") else 1
            cells.append(f"{statistics.mean(values):.{digits}f}" if values else "")
        print(f"| {' | '.join([*row.split(': '), str(len(runs)), *cells])} |")


def main():
    """Run the settings on the data sets, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--sets", nargs="+", default=DEVELOPMENT)
    parser.add_argument("--seeds", nargs="+", type=int, default=range(5))
    parser.add_argument("--settings", nargs="+", help="only these")
    parser.add_argument("--choose", action="store_true", help="the settings from which the defaults were chosen")
    parser.add_argument("--table", action="store_true", help="print the results")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS / "vae_clusters.jsonl")
    args = parser.parse_args()
    if args.table:
        show(args.output)
        return
    if args.choose and not (set(args.sets) <= set(DEVELOPMENT) and min(args.seeds) >= 100):
        parser.error(f"--choose is for {', '.join(DEVELOPMENT)}, and for seeds from 100 on.")
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    settings = REPORTED | CHOICES if args.choose else REPORTED
    with threadpool_limits(args.threads):
        for seed in args.seeds:
            for name in args.sets:
                for setting in args.settings or settings:
                    row = f"{name}: {setting}"
                    if seed in read_runs(args.output).get(row, {}):
                        continue
                    run = {"row": row, "seed": seed, "set": name, "setting": setting}
                    run |= {"settings": settings[setting]} | environment(args.threads)
                    run |= measure(setting, settings[setting], load(args.data, name), seed)
                    write_run(args.output, run)
                    print(json.dumps({key: run[key] for key in ("row", "seed", "gmm", "steady", "kmeans")}), flush=True)


if __name__ == "__main__":
    main()
