"""Clustering by VaDEClusterer on images: V-measure and accuracy on held-out rows.

    python benchmarks/vade.py --rows "mnist" --seeds 5 --output benchmarks/results/vade.jsonl

Every row fits the clusterer to training images without labels, once for each seed; labels only score the test images.
Accuracy is that of the best match of clusters and classes. "bound" is the evidence lower bound of 2,000 test images in
nats, "weight" the weight of consistency that was used (with "auto", held-out training rows choose), "min"
the minutes of the processor in a fit. A second table has the V-measures and the held-out scores of both weights that
"auto" tried. Each run is recorded as a line of a ``.jsonl`` file, so that runs can be added later, and the table shows
all recorded runs.

MNIST is read from the folder that the environment variable SKVAE_DATA_HOME names, Fashion-MNIST from
``fashion_mnist.npz`` in the same folder, with arrays of the same names, and the letters A to J from ``letters.npz``,
which `letters.py` makes of the fonts of a machine. Digits are those of scikit-learn, a quarter of them for the test.
"""

import argparse
import copy
import os
import statistics
import time
import warnings
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
STUDY = {"max_epochs": 25, "augment": None}
PARTS = ("X_train", "X_test")
FILES = {"mnist": "mnist.npz", "fashion": "fashion_mnist.npz", "letters": "letters.npz"}
# Data, training images (None: all) and settings.
ROWS = {
    "mnist, defaults": ("mnist", None, IMAGES),
    "mnist, plain": ("mnist", None, IMAGES | {"consistency": 0.0}),
    "mnist, views": ("mnist", None, IMAGES | {"consistency": 313.6}),
    "mnist 20k, defaults": ("mnist", 20_000, IMAGES),
    "mnist, 14 clusters": ("mnist", None, IMAGES | {"n_clusters": 14}),
    "mnist, conv, no views, 25 epochs": (
        "mnist",
        None,
        IMAGES | STUDY | {"architecture": "conv", "channels": (16, 32)},
    ),
    "mnist, conv, no views, 25 epochs, 14 clusters": (
        "mnist",
        None,
        IMAGES | STUDY | {"architecture": "conv", "channels": (16, 32), "n_clusters": 14},
    ),
    "mnist, conv, no views, 100 epochs": (
        "mnist",
        None,
        IMAGES | STUDY | {"architecture": "conv", "channels": (16, 32), "max_epochs": 100},
    ),
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


class BothArms(VaDEClusterer):
    """VaDEClusterer that keeps the models of both weights, also of the worse one."""

    def _train_jointly(self, model, task, views, consistency):
        result = super()._train_jointly(model, task, views, consistency)
        self.arms_ = getattr(self, "arms_", {}) | {consistency: copy.deepcopy(model)}
        return result

    def arm(self, weight):
        """Return the clusterer as if this weight had been chosen."""
        chosen = copy.copy(self)
        chosen.module_ = self.arms_[weight]
        return chosen


def run(data, n_images, settings, seed):
    """Fit once; return scores, bound and minutes."""
    X_train, X_test, y_train, y_test = load(data, n_images)
    started = time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        vade = BothArms(**{"n_clusters": 10} | settings, random_state=seed).fit(X_train)
    minutes = (time.process_time() - started) / 60
    arms = [[weight, scores(vade.arm(weight), X_test, y_test)] for weight in vade.arms_]
    mixture = TorchGMM(vade.n_clusters, n_init=5, reg_covar=1e-3, random_state=seed).fit(vade.transform(X_train))
    return scores(vade, X_test, y_test) | {
        "v_measure_train": v_measure_score(y_train, vade.predict(X_train)),
        "arms": arms,
        "mixture_on_codes": v_measure_score(y_test, mixture.predict(vade.transform(X_test))),
        "bound": vade.score(X_test[:2000]),
        "weight": vade.consistency_,
        "held_out_scores": list(vade.held_out_scores_.items()),
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
    if "weight" in runs[0]:
        weights = sorted({round(run["weight"], 1) for run in runs})
        counts = ", ".join(f"{weight:g} x{sum(round(r['weight'], 1) == weight for r in runs)}" for weight in weights)
        cells.append(f"{statistics.mean(run['bound'] for run in runs):9.2f}  {counts}")
    return "".join(cells)


def arms_line(name, runs):
    """Format, for each weight, how often it was chosen, its V-measure and its held-out bound."""
    cells = [f"{name:36}"]
    for weight, _ in runs[0]["arms"]:
        results = [dict(map(tuple, run["arms"]))[weight]["v_measure"] for run in runs]
        bounds = [dict(map(tuple, run["held_out_scores"]))[weight] for run in runs]
        n_chosen = sum(run["weight"] == weight for run in runs)
        cells.append(f"{weight:9g}{n_chosen:3}/{len(runs)}")
        cells.append(f"{statistics.mean(results):9.4f}{min(results):9.4f}{statistics.mean(bounds):9.2f}")
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
    print(f"\n{'row':36}{'seeds':>6}{columns}{'min':>7}{'bound':>9}  weight")
    rows = {name: [*runs.values()] for name, runs in read_runs(args.output).items()}
    for name in (name for name in work if name in rows):
        print(line(name, rows[name]))
    columns = f"{'weight':>9}{'chosen':>6}{'V':>8}{'worst':>9}{'held out':>9}"
    print(f"\n{'both weights of auto':36}{columns * 2}")
    for name in work:
        runs = [run for run in rows.get(name, ()) if len(run.get("held_out_scores", ())) > 1]
        if runs and all("arms" in run for run in runs):
            print(arms_line(name, runs))


if __name__ == "__main__":
    main()
