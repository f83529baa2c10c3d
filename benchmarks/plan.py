"""Plan of `run.py`: every benchmark with its command, its records, its needs and its minutes."""

import importlib.util
import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path

import choice_tables
from cluster_tables import BASELINES, INITS, METHODS, OURS
from record import RESULTS, read_record, read_runs

MNIST, FASHION, LETTERS = (f"{name}.npz" for name in ("mnist", "fashion_mnist", "letters"))


@dataclass(frozen=True)
class Benchmark:
    """A command, the minutes of the processor that it takes, and the file in `RESULTS` that it writes.

    `seeds` has the number of seeds of each row, for a file with a record of each run. `modules` must be installed
    besides skvae, and `data` be in the folder SKVAE_DATA_HOME.
    """

    command: str
    minutes: float
    output: str
    seeds: dict = field(default_factory=dict)
    modules: tuple = ()
    data: tuple = ()
    variables: dict = field(default_factory=dict)

    def records(self):
        """Return the records by name; those that are missing are empty."""
        if not self.seeds:
            return {self.output: read_record(RESULTS / self.output)}
        rows = read_runs(RESULTS / self.output)
        runs = [(row, seed) for row, n_seeds in self.seeds.items() for seed in range(n_seeds)]
        return {f"{row}, seed {seed}": rows.get(row, {}).get(seed, {}) for row, seed in runs}

    def missing_records(self):
        """Return the names of records that are missing."""
        return [name for name, record in self.records().items() if not record]

    def missing_needs(self):
        """Return modules that are not installed, and data that are not in their folder."""
        folder = Path(os.environ.get("SKVAE_DATA_HOME", ""))
        modules = [f"the module {name}" for name in self.modules if importlib.util.find_spec(name) is None]
        data = [f"{name} in the folder SKVAE_DATA_HOME" for name in self.data if not (folder / name).is_file()]
        return modules + data

    def arguments(self):
        """Return the script and its arguments, for a process that runs in the root of the repository."""
        script, *rest = shlex.split(self.command)
        return [f"benchmarks/{script}", *rest]


def vade(pattern, minutes, data, seeds):
    """Return the benchmark of the rows of `vade.py` whose name contains a pattern."""
    command = f'vade.py --missing --rows "{pattern}" --seeds {max(seeds.values())}'
    return Benchmark(command, minutes, "vade.jsonl", seeds, data=data)


def clusters(names, methods, minutes, n_seeds=5):
    """Return the benchmark of methods of `clusters.py` on sets of `sets.py`."""
    seeds = {f"{name}, {method}": n_seeds for name in names for method in methods}
    quoted = " ".join(f'"{method}"' for method in methods)
    numbers = " ".join(map(str, range(n_seeds)))
    command = f"clusters.py --sets {' '.join(names)} --methods {quoted} --seeds {numbers}"
    data = tuple(f"sets/{name}.npz" for name in names)
    return Benchmark(command, minutes, "clusters.jsonl", seeds, ("umap",), data)


def choice(names, minutes, n_seeds=5):
    """Return the benchmark of `choice.py` on sets of `sets.py`."""
    seeds = {f"{name}, init={init}": n_seeds for name in names for init in choice_tables.INITS}
    command = f"choice.py --sets {' '.join(names)} --seeds {' '.join(map(str, range(n_seeds)))}"
    return Benchmark(command, minutes, "choice.jsonl", seeds, data=tuple(f"sets/{name}.npz" for name in names))


def single(script, minutes, name, *arguments, **needs):
    """Return the benchmark of a script that writes a single record."""
    command = " ".join([f"{script}.py", *arguments, "--output", f"benchmarks/results/{name}.json"])
    return Benchmark(command, minutes, f"{name}.json", **needs)


ARRAY_API = {"SCIPY_ARRAY_API": "1"}
GMMS = ("pomegranate", "tgmm", "torchgmm")
SMALL_SETS = ("digits", "satellite", "segment", "pbmc", "wine", "cancer", "penbased", "texture", "optdigits")
NEW_SETS = ("austen", "tissues", "olive", "vowel", "capitals")
CHOICE_SETS = (*SMALL_SETS, "austen", "tissues", "olive", "vowel")
UNBALANCED_SETS = ("digits_1_to_10", "digits_1_to_100")
IMAGE_SETS = ("mnist10k", "fashion10k", "mnist", "fashion", "letters")
STUDIES = (
    "a, tanh vae and mixture",
    "b, relu vae and mixture",
    *(f"d, k-means, {init}" for init in ("an image of each digit", "noise", "random images")),
    "d, k-means by running means, an image of each digit",
    *(f"d, unlimited steps, {init}" for init in ("an image of each digit", "noise")),
    *(f"d, autoencoder, {network}" for network in ("conv", "wide")),
    *(f"e, {model}" for model in ("mlp vae", "conv vae", "mlp vae, gaussian", "mlp vae, continuous bernoulli", "ppca")),
    *(f"e, mixture, {covariances}" for covariances in ("spherical", "full", "full, regularised")),
)
CELLS = (
    "cells, PCA of log-counts",
    "cells, VAEEmbedder",
    "cells, VAEEmbedder, size factors",
    "cells, SCVI",
    "batches, PCA of log-counts",
    "batches, VAEEmbedder",
    "batches, VAEEmbedder, size factors",
    "batches, VAEEmbedder, size factors and covariates",
    "batches, VAEEmbedder, zero-inflated, size factors and covariates",
    "batches, SCVI",
    "batches, SCVI, batches",
    "batches, SCVI, batches, its epochs",
)
BENCHMARKS = {
    "gmm": single("gmm", 25, "gmm", "--threads 1"),
    "gmm, 2 threads": single("gmm", 7, "gmm_2_threads", "--threads 2", '--rows "float64 (70000"'),
    "gmm, busy": single("gmm", 1, "gmm_busy", "--busy"),
    "gmm, peers": single("gmm_peers", 5, "gmm_peers", "--shapes 2", modules=GMMS, variables=ARRAY_API),
    "gmm, edges": single("gmm_edges", 3, "gmm_edges"),
    "k-means": single("kmeans", 2, "kmeans", data=(MNIST,)),
    "ppca": single("ppca", 2, "ppca"),
    "vae": single("vae", 12, "vae", "--repeats 3", '--peers "plain loop"', data=(MNIST,)),
    "vae, quality": single("vae_quality", 105, "vae_quality", modules=("pythae",), data=(MNIST,)),
    "vae, tables": single("vae_tables", 7, "vae_tables"),
    "vade, mnist": vade("mnist, defaults", 47, (MNIST,), {"mnist, defaults": 10}),
    "vade, mnist 20k": vade("mnist 20k, defaults", 50, (MNIST,), {"mnist 20k, defaults": 10}),
    "vade, fashion": vade("fashion, defaults", 45, (FASHION,), {"fashion, defaults": 10}),
    "vade, letters": vade("letters, defaults", 23, (LETTERS,), {"letters, defaults": 5}),
    "vade, digits": vade(
        "digits",
        20,
        (),
        {
            "digits, views, defaults": 10,
            "digits, no views": 10,
            "digits, mlp": 10,
            "digits, k-means": 10,
            "digits, full mixture": 10,
        },
    ),
    "vade, 14 clusters": vade("mnist, 14 clusters", 9, (MNIST,), {"mnist, 14 clusters": 2}),
    "vade, no views": vade(
        "mnist, conv, no views, 25 epochs",
        35,
        (MNIST,),
        {"mnist, conv, no views, 25 epochs": 2, "mnist, conv, no views, 25 epochs, 14 clusters": 2},
    ),
    "vade, neighbours": vade(
        "mnist, conv, neighbours",
        30,
        (MNIST,),
        {f"mnist, conv, neighbours, {what}": 1 for what in ("25 epochs", "14 clusters", "100 epochs")},
    ),
    "vade, plain bound": vade(
        "mnist, mlp, plain bound, 25 epochs", 18, (MNIST,), {"mnist, mlp, plain bound, 25 epochs": 2}
    ),
    "vade, 100 epochs": vade(
        "mnist, conv, no views, 100 epochs", 35, (MNIST,), {"mnist, conv, no views, 100 epochs": 1}
    ),
    "vade, 300 epochs": vade(
        "mnist, mlp, plain bound, 300 epochs", 105, (MNIST,), {"mnist, mlp, plain bound, 300 epochs": 1}
    ),
    "clusters, baselines": clusters(SMALL_SETS, BASELINES, 60),
    "clusters, baselines, images": clusters(IMAGE_SETS, BASELINES, 300),
    "clusters, baselines, new sets": clusters(NEW_SETS, BASELINES, 60),
    "clusters": clusters(SMALL_SETS, OURS, 60),
    "clusters, images": clusters(IMAGE_SETS, OURS, 300),
    "clusters, new sets": clusters(NEW_SETS, OURS, 60),
    "clusters, unbalanced": clusters(UNBALANCED_SETS, METHODS, 20),
    "clusters, initializations": clusters(SMALL_SETS, INITS, 60),
    "clusters, initializations, new sets": clusters(NEW_SETS, INITS, 30),
    "choice": choice(CHOICE_SETS, 120),
    "training length": single("training_length", 10, "training_length"),
    "precision": single("precision", 8, "precision", data=(MNIST,)),
    "cells": Benchmark("cells.py", 30, "cells.jsonl", dict.fromkeys(CELLS, 5), modules=("scvi", "h5py")),
    "penguins": single("penguins", 5, "penguins", modules=("palmerpenguins",)),
    "memory": single("memory", 10, "memory"),
    "partial_fit": single("partial_fit", 15, "partial_fit", data=(MNIST,)),
    "shuffled runs": single("shuffled_runs", 45, "shuffled_runs", data=(MNIST,)),
    "large files": single("large_files", 10, "large_files", "--rows 0"),
    "kills": single("kills", 5, "kills"),
    "corrupted files": single("corrupted_files", 2, "corrupted_files"),
    "imputation": single("imputation", 28, "imputation"),
    "scaling": single("scaling", 15, "scaling"),
    "studies": Benchmark("studies.py", 130, "studies.jsonl", dict.fromkeys(STUDIES, 1), data=(MNIST,)),
}
