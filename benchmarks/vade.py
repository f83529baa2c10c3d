"""Clustering by VaDEClusterer on images: V-measure and accuracy on held-out rows.

    python benchmarks/vade.py --rows "mnist" --seeds 5 --output benchmarks/results/vade.jsonl

Every row fits the clusterer to training images without labels, once for each seed; labels only score the test images.
Accuracy is that of the best match of clusters and classes. "ELBO" is the evidence lower bound of 2,000 test images in
nats, "init" the initializations that held-out samples chose, "min" the minutes of the processor in a fit. Each run is
recorded as a line of a ``.jsonl`` file, so that runs can be added later, and the table shows all recorded runs.

MNIST is read from the folder that the environment variable SKVAE_DATA_HOME names, Fashion-MNIST from
``fashion_mnist.npz`` in the same folder, with arrays of the same names, and the letters A to J from ``letters.npz``,
which `letters.py` makes of the fonts of a machine. Digits are those of scikit-learn, a quarter of them for the test.
"""

import argparse
import os
import statistics
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from record import environment, read_runs, write_run
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.metrics import v_measure_score
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits

from skvae import TorchGMM, VaDEClusterer
from skvae.metrics import clustering_accuracy_score

IMAGES, DIGITS = {"image_shape": (28, 28)}, {"image_shape": (8, 8), "augment": None}
NEIGHBORS = {"max_epochs": 25, "augment": None}
STUDY = NEIGHBORS | {"consistency": 0.0}
CONV = {"architecture": "conv", "channels": (16, 32)}
PARTS = ("X_train", "X_test")
FILES = {"mnist": "mnist.npz", "fashion": "fashion_mnist.npz", "letters": "letters.npz"}
# Data, training images (None: all) and settings.
ROWS = {
    "mnist, defaults": ("mnist", None, IMAGES),
    "mnist, plain": ("mnist", None, IMAGES | {"consistency": 0.0}),
    "mnist, views": ("mnist", None, IMAGES | {"consistency": 313.6}),
    "mnist 20k, defaults": ("mnist", 20_000, IMAGES),
    "mnist, 14 clusters": ("mnist", None, IMAGES | {"n_clusters": 14}),
    "mnist, conv, no views, 25 epochs": ("mnist", None, IMAGES | STUDY | CONV),
    "mnist, conv, no views, 25 epochs, 14 clusters": ("mnist", None, IMAGES | STUDY | CONV | {"n_clusters": 14}),
    "mnist, conv, no views, 100 epochs": ("mnist", None, IMAGES | STUDY | CONV | {"max_epochs": 100}),
    "mnist, conv, neighbours, 25 epochs": ("mnist", None, IMAGES | NEIGHBORS | CONV),
    "mnist, conv, neighbours, 14 clusters": ("mnist", None, IMAGES | NEIGHBORS | CONV | {"n_clusters": 14}),
    "mnist, conv, neighbours, 100 epochs": ("mnist", None, IMAGES | NEIGHBORS | CONV | {"max_epochs": 100}),
    "mnist, mlp, plain bound, 25 epochs": ("mnist", None, STUDY),
    "mnist, mlp, plain bound, 300 epochs": ("mnist", None, STUDY | {"max_epochs": 300}),
    "fashion, defaults": ("fashion", None, IMAGES),
    "fashion, plain": ("fashion", None, IMAGES | {"consistency": 0.0}),
    "fashion, views": ("fashion", None, IMAGES | {"consistency": 313.6}),
    "letters, defaults": ("letters", None, IMAGES),
    "digits, no views": ("digits", None, DIGITS),
    "digits, views, defaults": ("digits", None, {"image_shape": (8, 8)}),
    "digits, mlp": ("digits", None, {}),
}
PEERS = {
    "k-means": lambda seed: KMeans(10, n_init=10, random_state=seed),
    "full mixture": lambda seed: GaussianMixture(10, reg_covar=1e-3, n_init=3, random_state=seed),
}


def load(name, n_images):
    """Training and test images, and their labels."""
    if name == "digits":
        X, y = load_digits(return_X_y=True)
        return train_test_split(X / 16, y, random_state=0, stratify=y)
    path = Path(os.environ["SKVAE_DATA_HOME"]) / FILES[name]
    with np.load(path) as file:
        X_train, X_test = ((file[part].reshape(len(file[part]), -1) / 255).astype(np.float32) for part in PARTS)
        y_train, y_test = (file[part].astype(int) for part in ("y_train", "y_test"))
    if n_images is not None:
        chosen = np.random.default_rng(0).permutation(len(X_train))[:n_images]
        X_train, y_train = X_train[chosen], y_train[chosen]
    return X_train, X_test, y_train, y_test


def run(data, n_images, settings, seed):
    """Fit once; return scores, bound and minutes."""
    X_train, X_test, y_train, y_test = load(data, n_images)
    started = time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        vade = VaDEClusterer(**{"n_clusters": 10} | settings, random_state=seed).fit(X_train)
    minutes = (time.process_time() - started) / 60
    mixture = TorchGMM(vade.n_clusters, n_init=5, reg_covar=1e-3, random_state=seed).fit(vade.transform(X_train))
    return scores(vade, X_test, y_test) | {
        "v_measure_train": v_measure_score(y_train, vade.predict(X_train)),
        "mixture_on_codes": v_measure_score(y_test, mixture.predict(vade.transform(X_test))),
        "bound": vade.score(X_test[:2000]),
        "weight": vade.consistency_,
        "init": vade.init_,
        "held_out_scores": vade.held_out_scores_,
        "n_effective_clusters": vade.n_effective_clusters_,
        "warnings": [str(warning.message) for warning in caught],
        "minutes": minutes,
    }


def scores(clusterer, X_test, y_test):
    """V-measure and accuracy of the test rows."""
    labels = clusterer.predict(X_test)
    return {"v_measure": v_measure_score(y_test, labels), "accuracy": clustering_accuracy_score(y_test, labels)}


def run_peer(make, data, seed):
    """Return the same of a clusterer of the features."""
    X_train, X_test, _, y_test = load(data, None)
    started = time.process_time()
    clusterer = make(seed).fit(X_train)
    return {"minutes": (time.process_time() - started) / 60} | scores(clusterer, X_test, y_test)


def score_cells(runs):
    """Format mean, standard deviation and worst of the scores of runs."""
    cells = []
    for score in ("v_measure", "accuracy"):
        values = [run[score] for run in runs]
        sd = statistics.stdev(values) if len(values) > 1 else 0.0
        cells.append(f"{statistics.mean(values):9.4f}{sd:8.4f}{min(values):8.4f}")
    return "".join(cells)


def line(name, runs):
    """Format the scores, minutes, bound and weights of the runs of a row."""
    cells = [f"{name:36}{len(runs):6}{score_cells(runs)}{statistics.mean(run['minutes'] for run in runs):7.1f}"]
    if "init" in runs[0]:
        counts = Counter(run["init"] for run in runs)
        cells.append(f"{statistics.mean(run['bound'] for run in runs):9.2f}  ")
        cells.append(", ".join(f"{init} x{count}" for init, count in counts.most_common()))
    return "".join(cells)


def main():
    """Make the requested runs, and print the tables of all recorded runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="", help="only rows whose name contains this; 'none' prints the table alone")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--missing", action="store_true", help="only runs that have no record")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/vade.jsonl"), help="of the records")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    work = {name: (lambda seed, row=row: run(*row, seed)) for name, row in ROWS.items()}
    work |= {
        f"digits, {name}": (lambda seed, make=make: run_peer(make, "digits", seed)) for name, make in PEERS.items()
    }
    with threadpool_limits(args.threads):
        for name, measure in work.items():
            if args.rows not in name:
                continue
            for seed in range(args.first_seed, args.first_seed + args.seeds):
                if args.missing and seed in read_runs(args.output).get(name, {}):
                    continue
                record = environment(args.threads) | {"row": name, "seed": seed} | measure(seed)
                write_run(args.output, record)
                print(line(name, [record]), flush=True)
    columns = "".join(f"{score:>9}{'sd':>8}{'worst':>8}" for score in ("V", "accuracy"))
    print(f"\n{'row':36}{'seeds':>6}{columns}{'min':>7}{'ELBO':>9}  init")
    rows = {name: [*runs.values()] for name, runs in read_runs(args.output).items()}
    for name in (name for name in work if name in rows):
        print(line(name, rows[name]))


if __name__ == "__main__":
    main()
