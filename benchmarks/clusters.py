"""Clusterers on the data sets of `sets.py`: V-measure and accuracy on held-out samples, by seed.

    python benchmarks/clusters.py --tune --sets digits satellite segment pbmc
    python benchmarks/clusters.py --freeze --methods "UMAP + mixture"
    python benchmarks/clusters.py --sets digits satellite --methods k-means "UMAP + mixture" --seeds 5
    python benchmarks/clusters.py --tables
    python benchmarks/clusters.py --tuning-table

Every method is fitted to the training samples without labels and predicts the test samples: new samples go through the
same principal components, `UMAP.transform` or encoder. Every method gets the true number of clusters. V is the
V-measure, accuracy that of the best match of clusters and classes; minutes are those of the processor in `fit`.

``--tune`` runs the grid of each baseline (`GRIDS`) on "development" sets, with seeds that are not reported. The setting
with the best mean V over the sets of a group, tables or images, serves all sets of the group, once ``--freeze`` has
written it to a file. A run is a line of a ``.jsonl`` file, and only missing runs are made. Without ``--sets``, all sets
are run but those "opened last" or "unbalanced".

The data are in the subfolder "sets" of the folder that the environment variable SKVAE_DATA_HOME names, or in
``--data``. UMAP is best installed into an environment of its own: ``pip install umap-learn``.
"""

import argparse
import itertools
import json
import math
import os
import time
import warnings
from pathlib import Path

import cluster_tables
import numpy as np
import torch
from record import append_run, environment, read_record, read_runs, write_record
from sets import DEVELOPMENT, OPENED_LAST, SETS, UNBALANCED, load
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import v_measure_score
from threadpoolctl import threadpool_limits

from skvae import AutoencoderEmbedder, TorchGMM, VaDEClusterer, VAEEmbedder
from skvae.metrics import clustering_accuracy_score

TUNING_SEEDS = (100, 101)
LARGE = ("mnist10k", "fashion10k")  # development sets with the first of these seeds alone
MANY_FEATURES = 500  # from here on, mixtures with full covariances of the data take minutes and get one initialization
BATCH = 128
NARROW, WIDE = [256, 128], [500, 500, 2_000]  # layers of our autoencoders by default, and of N2D's

STEPS = {  # parts of methods, by name; a method is a sequence of them
    "k-means": ("k-means",),
    "mixture": ("mixture",),
    "PCA + mixture": ("PCA", "mixture"),
    "UMAP + k-means": ("UMAP", "k-means"),
    "UMAP + mixture": ("UMAP", "mixture"),
    "autoencoder + UMAP + mixture": ("autoencoder", "UMAP", "mixture"),
    "VAEEmbedder + TorchGMM, defaults": ("VAE", "mixture"),
    "VAEEmbedder + TorchGMM": ("VAE", "mixture"),
    "VaDEClusterer": ("VaDE",),
    **dict.fromkeys(cluster_tables.INITS, ("VaDE",)),
}
# Settings of the guide for clusters of a VAE's latent codes.
ADVISED = {"beta": 0.1, "batch_norm": True, "reg_covar": 1e-2, "n_init": 10}


def combinations(**values):
    """Return all combinations of settings."""
    return [dict(zip(values, row, strict=True)) for row in itertools.product(*values.values())]


MIXTURES = {"reg_covar": (1e-6, 1e-3, 1e-2, 1e-1), "n_init": (1, 10, 20)}
OF_DATA = MIXTURES | {"reg_covar": (*MIXTURES["reg_covar"], 3e-1)}
UMAPS = {"n_neighbors": (10, 15, 30), "n_dims": (2, 5, 10)}
GRIDS = {
    "mixture": [
        *combinations(**OF_DATA),
        *combinations(covariance_type=("tied", "diag"), reg_covar=OF_DATA["reg_covar"], n_init=(10,)),
    ],
    "PCA + mixture": combinations(n_components=(5, 10, 20, 50, 0.8, 0.9), **OF_DATA),
    "UMAP + k-means": combinations(**UMAPS),
    "UMAP + mixture": combinations(**UMAPS, **MIXTURES),
    "autoencoder + UMAP + mixture": [
        {"layers": layers, "iterations": iterations, "n_neighbors": 15, "n_dims": 10} | mixture
        for layers, iterations in ((NARROW, 1_000), (NARROW, 3_000), (WIDE, 1_000))
        for mixture in combinations(**MIXTURES)
    ],
}


def grid_of(method, name):
    """Return the settings to try on a set.

    Wide layers are left out on tables, where they take a minute and longer. On large sets, the grids lack settings that
    were far from the best on small ones: little regularization of pixels, and layouts of five dimensions, which differ
    little from ten.
    """
    grid = GRIDS.get(method, ())
    if not SETS[name].image_shape:
        return [settings for settings in grid if settings.get("layers") != WIDE]
    if name in LARGE:
        grid = [settings for settings in grid if settings.get("n_dims") != 5]
        return [settings for settings in grid if method != "mixture" or settings["reg_covar"] >= 1e-2]
    return grid


OWN_SETTINGS = {"VAEEmbedder + TorchGMM": ADVISED} | cluster_tables.INITS  # of our methods, where not the defaults


def make_umap(n_neighbors=15, n_dims=2, **rest):
    """Return UMAP without a minimal distance; with a seed it uses one thread."""
    from umap import UMAP

    return UMAP(n_neighbors=n_neighbors, min_dist=0.0, n_components=n_dims, n_jobs=1, random_state=rest["seed"])


def make_pca(n_components, **rest):
    """Return PCA, with fewer components where there are fewer features; below 1 it is a share of the variance."""
    n_components = n_components if n_components < 1 else min(n_components, rest["n_features"])
    return PCA(n_components, random_state=rest["seed"])


def make_autoencoder(layers, iterations, **rest):
    """Return an autoencoder with batch normalization, trained for about so many iterations."""
    epochs = math.ceil(iterations / math.ceil(rest["n_samples"] / BATCH))
    return AutoencoderEmbedder(
        10,
        hidden_layer_sizes=tuple(layers),
        batch_norm=True,
        batch_size=BATCH,
        max_epochs=epochs,
        random_state=rest["seed"],
    )


def make_mixture(k, seed, n_features, reg_covar=None, n_init=None, covariance_type=None, **rest):
    """Return a mixture of Gaussians; the covariances are full, if there is no other setting."""
    chosen = {"reg_covar": reg_covar, "n_init": n_init, "covariance_type": covariance_type}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    if n_features >= MANY_FEATURES and covariance_type is None and "n_init" in chosen:
        chosen["n_init"] = 1
    return TorchGMM(k, random_state=seed, **chosen)


def make_vae(seed, **rest):
    """Return our embedder, with its defaults or the settings of the guide."""
    return VAEEmbedder(random_state=seed, **{name: rest[name] for name in USED["VAE"] if name in rest})


def make_vade(k, seed, image_shape, **rest):
    """Return our clusterer with its defaults, but for the initialization where this is set."""
    init = {"init": rest["init"]} if "init" in rest else {}
    return VaDEClusterer(k, image_shape=image_shape, random_state=seed, **init)


MAKERS = {
    "k-means": lambda k, seed, **rest: KMeans(k, n_init=10, random_state=seed),
    "mixture": make_mixture,
    "PCA": make_pca,
    "UMAP": make_umap,
    "autoencoder": make_autoencoder,
    "VAE": make_vae,
    "VaDE": make_vade,
}
USED = {  # settings that a step reads
    "PCA": ("n_components",),
    "UMAP": ("n_neighbors", "n_dims"),
    "autoencoder": ("layers", "iterations"),
    "VAE": ("beta", "batch_norm"),
    "mixture": ("reg_covar", "n_init", "covariance_type"),
}


def group_of(name):
    """Return the group of sets that share settings."""
    return "images" if SETS[name].image_shape else "tables"


def reports(estimator):
    """Return the short fitted attributes by which an estimator describes its fit."""
    results = {}
    for name, value in vars(estimator).items():
        value = value.item() if isinstance(value, np.generic) else value
        public = name.endswith("_") and not name.startswith("_")
        if public and isinstance(value, bool | int | float | str | dict | list):
            text = json.dumps(value, default=repr)
            if len(text) <= 1_000:
                results[name] = json.loads(text)
    return results


class Runner:
    """Runs of methods on one set with one seed; steps that methods share are fitted once, and timed for each."""

    def __init__(self, name, seed, folder):
        self.name, self.seed = name, seed
        self.X_train, self.X_test, y_train, self.y_test = load(name, folder)
        self.k, self.image_shape = len(np.unique(y_train)), SETS[name].image_shape
        self.steps, self.results = {}, {}

    def estimator(self, step, settings, n_features):
        """Make the estimator of a step."""
        about = {"k": self.k, "seed": self.seed, "image_shape": self.image_shape}
        return MAKERS[step](**about, n_samples=len(self.X_train), n_features=n_features, **settings)

    def transformed(self, key, estimator, codes):
        """Return the codes of training and test samples, minutes, seconds and warnings of a step."""
        if key not in self.steps:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                started = time.process_time()
                train = estimator.fit(codes[0]).transform(codes[0])
                fitted = time.process_time()
                test = estimator.transform(codes[1])
                seconds = time.process_time() - fitted
            self.steps[key] = (train, test), (fitted - started) / 60, seconds, first_lines(caught)
        return self.steps[key]

    def run(self, method, settings):
        """Fit a method and predict the test samples; return scores, times, warnings and reports."""
        codes, minutes, seconds, messages, key = (self.X_train, self.X_test), 0.0, 0.0, [], ()
        *transformers, clusterer = STEPS[method]
        for step in transformers:
            key += ((step, *(str(settings.get(name)) for name in USED.get(step, ()))),)
            estimator = self.estimator(step, settings, codes[0].shape[1])
            codes, more_minutes, more_seconds, more_messages = self.transformed(key, estimator, codes)
            minutes, seconds, messages = minutes + more_minutes, seconds + more_seconds, messages + more_messages
        model = self.estimator(clusterer, settings, codes[0].shape[1])
        key += (clusterer, repr(model.get_params()))
        if key not in self.results:  # settings can be equal after they were limited
            self.results[key] = self.predicted(model, codes)
        result = self.results[key]
        return result | {
            "minutes": minutes + result["minutes"],
            "seconds_to_predict": seconds + result["seconds_to_predict"],
            "warnings": sorted({*messages, *result["warnings"]}),
        }

    def predicted(self, model, codes):
        """Fit a clusterer to the codes of training samples and predict those of test samples."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            started = time.process_time()
            model.fit(codes[0])
            fitted = time.process_time()
            labels = model.predict(codes[1])
            seconds = time.process_time() - fitted
        return {
            "v_measure": v_measure_score(self.y_test, labels),
            "accuracy": clustering_accuracy_score(self.y_test, labels),
            "minutes": (fitted - started) / 60,
            "seconds_to_predict": seconds,
            "warnings": first_lines(caught),
            "reports": reports(model),
        }


def first_lines(caught):
    """Return the distinct first lines of warnings."""
    return sorted({str(warning.message).splitlines()[0] for warning in caught})


def compile_umap(methods):
    """Fit UMAP to noise, so that the time of compiling it counts for no run; few samples take another path."""
    if any("UMAP" in STEPS[method] for method in methods):
        for n_samples in (500, 5_000):
            noise = np.random.default_rng(0).standard_normal((n_samples, 5), np.float32)
            make_umap(seed=0).fit(noise).transform(noise[:100])


def row_of(name, method, settings=None):
    """Return the name of the row of a run."""
    return ", ".join([name, method, *([json.dumps(settings)] if settings is not None else [])])


def about(name):
    """Return the fields of a record that say what a set is for."""
    return {"set": name, "role": SETS[name].role, "group": group_of(name)}


def tune(args):
    """Make the missing runs of the grids."""
    done = read_runs(args.tuning)
    for name, seed in itertools.product(args.sets, TUNING_SEEDS):
        if name in LARGE and seed != TUNING_SEEDS[0]:
            continue
        cells = [(method, settings) for method in args.methods for settings in grid_of(method, name)]
        cells = [cell for cell in cells if seed not in done.get(row_of(name, *cell), {})]
        runner = Runner(name, seed, args.data) if cells else None
        for method, settings in cells:
            result = runner.run(method, settings)
            head = environment(args.threads, "umap-learn") | {"row": row_of(name, method, settings), "seed": seed}
            result = {key: result[key] for key in ("v_measure", "accuracy", "minutes")}
            append_run(args.tuning, head | {**about(name), "method": method, "settings": settings} | result)
        if cells:
            print(f"{name}, seed {seed}: {len(cells)} runs, {time.process_time() / 60:.1f} min so far", flush=True)


def freeze(args):
    """Write the best settings of the grids of the requested methods, by group of sets."""
    frozen = read_record(args.settings)
    for method in args.methods:
        for group, rows in cluster_tables.ranked_settings(method, args.tuning).items():
            frozen.setdefault(method, {})[group] = rows[0][0]
            print(f"{method}, {group}: {rows[0][0]}")
    write_record(args.settings, {method: frozen[method] for method in sorted(frozen)})


def settings_of(method, name, path):
    """Return the settings of a method on a set, which are frozen for those with a grid."""
    if method not in GRIDS:
        return OWN_SETTINGS.get(method, {})
    frozen = read_record(path).get(method, {})
    if group_of(name) not in frozen:
        raise ValueError(f"{method} has no settings for {group_of(name)}; run --tune and --freeze first.")
    return frozen[group_of(name)]


def run_missing(args):
    """Make the missing runs, all methods of a set and seed together."""
    for seed, name in itertools.product(args.seeds, args.sets):
        done = read_runs(args.output)
        methods = [method for method in args.methods if seed not in done.get(row_of(name, method), {})]
        runner = Runner(name, seed, args.data) if methods else None
        for method in methods:
            settings = settings_of(method, name, args.settings)
            head = environment(args.threads, "umap-learn") | {"row": row_of(name, method), "seed": seed}
            record = head | {**about(name), "method": method, "settings": settings} | runner.run(method, settings)
            append_run(args.output, record)
            scores = f"V {record['v_measure']:.3f}, accuracy {record['accuracy']:.3f}, {record['minutes']:.2f} min"
            print(f"{name}, {method}, seed {seed}: {scores}", flush=True)


def show(args):
    """Print the tables of recorded runs."""
    for name in cluster_tables.read(args.output):
        print(f"{name}\n\n{cluster_tables.one_set(name, args.output)}\n")
    for text in (cluster_tables.overview(path=args.output), cluster_tables.summary(args.output)):
        print(f"{text}\n")


def arguments():
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--tune", action="store_true", help="run the grids of the baselines on development sets")
    action.add_argument("--freeze", action="store_true", help="write the best settings of the grids, and run nothing")
    action.add_argument("--tables", action="store_true", help="print the tables of recorded runs, and run nothing")
    action.add_argument("--tuning-table", action="store_true", help="print the best settings of the grids")
    parser.add_argument("--sets", nargs="+", choices=[*SETS], metavar="NAME", help="those not opened last by default")
    parser.add_argument("--methods", nargs="+", default=[*cluster_tables.METHODS], choices=[*STEPS], metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[*range(5)], help="0 to 4 by default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", type=Path, help='folder of the sets; by default "sets" below SKVAE_DATA_HOME')
    parser.add_argument("--output", type=Path, default=cluster_tables.RUNS)
    parser.add_argument("--tuning", type=Path, default=cluster_tables.TUNING)
    parser.add_argument("--settings", type=Path, default=cluster_tables.SETTINGS)
    args = parser.parse_args()
    if args.sets is None:
        role = [name for name, data in SETS.items() if data.role == DEVELOPMENT]
        args.sets = (
            role if args.tune else [name for name, data in SETS.items() if data.role not in (OPENED_LAST, UNBALANCED)]
        )
    if args.tune and (others := [name for name in args.sets if SETS[name].role != DEVELOPMENT]):
        parser.error(f"--tune is for development sets; {', '.join(others)} are not.")
    return args


def main():
    """Tune, run or print."""
    args = arguments()
    if args.freeze:
        freeze(args)
        return
    if args.tables or args.tuning_table:
        if args.tables:
            show(args)
        else:
            print(cluster_tables.settings(5, args.tuning))
        return
    os.environ["NUMBA_NUM_THREADS"] = str(args.threads)  # read when UMAP is imported
    torch.set_num_threads(args.threads)
    with threadpool_limits(args.threads):
        compile_umap(args.methods)
        (tune if args.tune else run_missing)(args)


if __name__ == "__main__":
    main()
