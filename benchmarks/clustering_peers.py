"""Other clusterers on the data of `vade.py`, and on a table of sensors: scores on held-out rows.

    python benchmarks/clustering_peers.py --data digits satellite --seeds 10

Every method is fitted to the training rows without labels, once for each seed, and then predicts the test rows, as in
`vade.py`: new rows go through the same principal components, `UMAP.transform` or encoder. Accuracy is that of the best
match of clusters and classes. Settings were fixed before the runs: as many clusters as classes, 20 neighbours, a
minimal distance of 0 and ten dimensions for UMAP (those of the paper that proposed it after an autoencoder), defaults
elsewhere. "min" are minutes of the processor in the fit. Each run is recorded as a line of a ``.jsonl`` file and not
repeated, so that runs can be added later, and the table shows all recorded runs.

Digits are those of scikit-learn; MNIST and Fashion-MNIST are found as `vade.py` finds them, in the folder that the
environment variable SKVAE_DATA_HOME names, and ``satellite.npz``, which `satellite.py` makes, in the same folder.
Images have values in [0, 1]; the features of satellite images are standardised, but for ClustPy, which wants [0, 1].
UMAP and ClustPy are best installed into an environment of their own: ``pip install umap-learn clustpy``. A method that
is not installed is named, and left out.
"""

import argparse
import os
import statistics
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from record import environment, read_runs, write_run
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import v_measure_score
from sklearn.mixture import GaussianMixture
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from threadpoolctl import threadpool_limits
from vade import load as load_images
from vade import score_cells

from skvae import AutoencoderEmbedder, TorchGMM, VaDEClusterer, VAEEmbedder
from skvae.metrics import clustering_accuracy_score

DATA = ("digits", "satellite", "mnist", "fashion")
LARGE = ("mnist", "fashion")
EPOCHS = {
    "digits": 100,
    "satellite": 30,
    "mnist": 8,
    "fashion": 8,
}  # of the autoencoder before UMAP: 1,000 steps or more


def load(name):
    """Training and test rows, and their labels."""
    if name != "satellite":
        return load_images(name, None)
    with np.load(Path(os.environ["SKVAE_DATA_HOME"]) / "satellite.npz") as file:
        X_train, X_test = (file[part].astype(float) for part in ("X_train", "X_test"))
        labels = file["y_train"].astype(int), file["y_test"].astype(int)
    scaler = StandardScaler().fit(X_train)
    return scaler.transform(X_train), scaler.transform(X_test), *labels


def umap(seed):
    """UMAP as in the paper "N2D"; a seed makes it use one thread."""
    from umap import UMAP

    return UMAP(n_neighbors=20, min_dist=0.0, n_components=10, n_jobs=1, random_state=seed)


def mixture(k, seed):
    """Mixture of latent codes, full covariances."""
    return GaussianMixture(k, n_init=3, random_state=seed)


def autoencoder(data, seed):
    """Autoencoder with the layers of "N2D", but far fewer epochs than the 1,000 of that paper."""
    return AutoencoderEmbedder(10, hidden_layer_sizes=(500, 500, 2000), max_epochs=EPOCHS[data], random_state=seed)


def clustpy_vade(k, seed):
    """ClustPy's VaDE with its defaults; its loss asks for values in [0, 1]."""
    from clustpy.deep import VaDE

    return make_pipeline(MinMaxScaler(), VaDE(k, random_state=seed))


METHODS = {  # (data, number of clusters, seed) -> clusterer, and the data for which it is run
    "k-means": (lambda data, k, seed: KMeans(k, n_init=10, random_state=seed), DATA),
    "GaussianMixture": (
        # An iteration with 784 pixels takes half a minute, so that there is one start.
        lambda data, k, seed: GaussianMixture(k, reg_covar=1e-3, n_init=1 if data in LARGE else 3, random_state=seed),
        DATA,
    ),
    "PCA + GaussianMixture": (
        lambda data, k, seed: make_pipeline(PCA(20 if data in LARGE else 10, random_state=seed), mixture(k, seed)),
        DATA,
    ),
    "UMAP + GaussianMixture": (lambda data, k, seed: make_pipeline(umap(seed), mixture(k, seed)), DATA),
    "autoencoder + UMAP + GaussianMixture": (
        lambda data, k, seed: make_pipeline(autoencoder(data, seed), umap(seed), mixture(k, seed)),
        DATA,
    ),
    "ClustPy VaDE": (lambda data, k, seed: clustpy_vade(k, seed), ("digits", "satellite")),
    "TorchGMM": (
        lambda data, k, seed: TorchGMM(k, reg_covar=1e-3, n_init=3, random_state=seed),
        ("digits", "satellite"),
    ),
    "VAEEmbedder + TorchGMM": (
        lambda data, k, seed: make_pipeline(
            VAEEmbedder(10, random_state=seed), TorchGMM(k, n_init=3, random_state=seed)
        ),
        ("digits", "satellite"),
    ),
    "VaDEClusterer": (lambda data, k, seed: VaDEClusterer(k, random_state=seed), ("satellite",)),
}


def run(make, data, seed):
    """Fit once and predict the test rows; return scores, minutes and warnings."""
    X_train, X_test, y_train, y_test = load(data)
    clusterer = make(data, len(np.unique(y_train)), seed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        started = time.process_time()
        clusterer.fit(X_train)
        fitted = time.process_time()
        labels = clusterer.predict(X_test)
        predicted = time.process_time()
    return {
        "v_measure": v_measure_score(y_test, labels),
        "accuracy": clustering_accuracy_score(y_test, labels),
        "minutes": (fitted - started) / 60,
        "minutes_to_predict": (predicted - fitted) / 60,
        "warnings": sorted({str(warning.message).splitlines()[0] for warning in caught}),
    }


def line(name, runs):
    """Format the scores and minutes of the runs of a row."""
    return f"{name:48}{len(runs):6}{score_cells(runs)}{statistics.mean(run['minutes'] for run in runs):8.2f}"


def missing_package(make):
    """Return the name of a missing package that a method needs, or None."""
    try:
        make("digits", 10, 0)
    except ModuleNotFoundError as error:
        return error.name
    return None


def arguments():
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="*", default=[*DATA], choices=[*DATA], help="all by default")
    parser.add_argument("--methods", nargs="*", default=[*METHODS], choices=[*METHODS], help="all by default")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="also runs that have a record")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/clustering_peers.jsonl"))
    return parser.parse_args()


def work(args):
    """Yield row, data, method and seed of each requested run, all methods of a seed before the next seed."""
    missing = {name: missing_package(METHODS[name][0]) for name in args.methods}
    for name, package in missing.items():
        if package:
            print(f"{name}: the package {package} is not installed", flush=True)
    methods = {name: METHODS[name] for name, package in missing.items() if not package}
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for data in args.data:
            for name in (name for name, (_, where) in methods.items() if data in where):
                row = f"{data}, {name}"
                if args.again or seed not in read_runs(args.output).get(row, {}):
                    yield {"row": row, "data": data, "method": name, "seed": seed}


def main():
    """Make the requested runs, and print the table of all recorded runs."""
    args = arguments()
    torch.set_num_threads(args.threads)
    with threadpool_limits(args.threads):
        for task in work(args):
            result = run(METHODS[task["method"]][0], task["data"], task["seed"])
            record = environment(args.threads, "umap-learn", "clustpy") | task | result
            write_run(args.output, record)
            print(line(task["row"], [record]), flush=True)
    columns = "".join(f"{score:>9}{'sd':>8}{'worst':>8}" for score in ("V", "accuracy"))
    print(f"\n{'row':48}{'seeds':>6}{columns}{'min':>8}")
    for name, runs in read_runs(args.output).items():
        print(line(name, [*runs.values()]))


if __name__ == "__main__":
    main()
