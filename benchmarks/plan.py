"""What `run.py` runs: every benchmark with its command, the records that it leaves, its needs and how long it takes."""

import importlib.util
import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
MNIST, FASHION, LETTERS, SATELLITE = (f"{name}.npz" for name in ("mnist", "fashion_mnist", "letters", "satellite"))


@dataclass(frozen=True)
class Benchmark:
    """A command, minutes of the processor that all of it takes, and the files in `RESULTS` that it writes.

    Records may be patterns. `modules` have to be installed beside skvae, and `data` lie in the folder SKVAE_DATA_HOME.
    """

    command: str
    minutes: float
    records: tuple
    modules: tuple = ()
    data: tuple = ()
    variables: dict = field(default_factory=dict)

    def missing_records(self):
        """Those that are not there."""
        return [pattern for pattern in self.records if not any(RESULTS.glob(pattern))]

    def missing_needs(self):
        """Modules that are not installed, and data that are not in their folder."""
        folder = Path(os.environ.get("SKVAE_DATA_HOME", ""))
        modules = [f"the module {name}" for name in self.modules if importlib.util.find_spec(name) is None]
        data = [f"{name} in the folder SKVAE_DATA_HOME" for name in self.data if not (folder / name).is_file()]
        return modules + data

    def arguments(self):
        """Script and arguments, for a process that begins in `ROOT`."""
        script, *rest = shlex.split(self.command)
        return [f"benchmarks/{script}", *rest]


def runs(folder, seeds_of_rows):
    """Records of rows of which each has so many seeds, from 0 on."""
    return tuple(f"{folder}/{file_name(row, seed)}" for row, n in seeds_of_rows.items() for seed in range(n))


def file_name(row, seed):
    """File of the record of one run."""
    return f"{row.replace(', ', '_').replace(' + ', '+').replace(' ', '-')}_{seed}.json"


def vade(rows, minutes, data, seeds_of_rows):
    """Rows of `vade.py` whose name contains `rows`."""
    command = f'vade.py --missing --rows "{rows}" --seeds {max(seeds_of_rows.values())}'
    return Benchmark(command, minutes, runs("vade", seeds_of_rows), data=data)


def peers(name, minutes, data, seeds_of_methods):
    """Methods of `clustering_peers.py` on one data set."""
    seeds_of_rows = {f"{name}, {method}": n for method, n in seeds_of_methods.items()}
    methods = " ".join(f'"{method}"' for method in seeds_of_methods)
    command = f"clustering_peers.py --data {name} --methods {methods} --seeds {max(seeds_of_methods.values())}"
    return Benchmark(command, minutes, runs("clustering_peers", seeds_of_rows), ("umap", "clustpy"), data)


def kept(script, minutes, name, *arguments, **needs):
    """A script that writes one file."""
    command = " ".join([f"{script}.py", *arguments, "--output", f"benchmarks/results/{name}.json"])
    return Benchmark(command, minutes, (f"{name}.json",), **needs)


ARRAY_API = {"SCIPY_ARRAY_API": "1"}
GMMS = ("pomegranate", "tgmm", "torchgmm")
CLUSTERERS = ("k-means", "PCA + GaussianMixture", "UMAP + GaussianMixture", "autoencoder + UMAP + GaussianMixture")
SMALL_CLUSTERERS = (*CLUSTERERS, "GaussianMixture", "ClustPy VaDE", "TorchGMM", "VAEEmbedder + TorchGMM")
SMALL_DATA, LARGE_DATA = dict.fromkeys(SMALL_CLUSTERERS, 10), dict.fromkeys(CLUSTERERS[:3], 10)
BENCHMARKS = {
    "gmm": kept("gmm", 25, "gmm", "--threads 1"),
    "gmm, 2 threads": kept("gmm", 7, "gmm_2_threads", "--threads 2", '--rows "float64 (70000"'),
    "gmm, busy": kept("gmm", 1, "gmm_busy", "--busy"),
    "gmm, peers": kept("gmm_peers", 5, "gmm_peers", "--shapes 2", modules=GMMS, variables=ARRAY_API),
    "gmm, edges": kept("gmm_edges", 3, "gmm_edges"),
    "k-means": kept("kmeans", 2, "kmeans", data=(MNIST,)),
    "ppca": kept("ppca", 2, "ppca"),
    "vae": kept("vae", 12, "vae", "--repeats 3", '--peers "plain loop"', data=(MNIST,)),
    "vae, quality": kept("vae_quality", 105, "vae_quality", modules=("pythae",), data=(MNIST,)),
    "vae, tables": kept("vae_tables", 7, "vae_tables"),
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
    "vade, plain bound": vade(
        "mnist, mlp, plain bound, 25 epochs", 18, (MNIST,), {"mnist, mlp, plain bound, 25 epochs": 2}
    ),
    "vade, 100 epochs": vade(
        "mnist, conv, no views, 100 epochs", 35, (MNIST,), {"mnist, conv, no views, 100 epochs": 1}
    ),
    "vade, 300 epochs": vade(
        "mnist, mlp, plain bound, 300 epochs", 105, (MNIST,), {"mnist, mlp, plain bound, 300 epochs": 1}
    ),
    "peers, digits": peers("digits", 30, (), SMALL_DATA),
    "peers, satellite": peers("satellite", 80, (SATELLITE,), SMALL_DATA | {"VaDEClusterer": 10}),
    "peers, mnist": peers("mnist", 30, (MNIST,), LARGE_DATA),
    "peers, mnist, autoencoder": peers("mnist", 15, (MNIST,), {CLUSTERERS[3]: 3}),
    "peers, mnist, pixels": peers("mnist", 25, (MNIST,), {"GaussianMixture": 1}),
    "peers, fashion": peers("fashion", 30, (FASHION,), LARGE_DATA),
    "peers, fashion, autoencoder": peers("fashion", 15, (FASHION,), {CLUSTERERS[3]: 3}),
    "peers, fashion, pixels": peers("fashion", 25, (FASHION,), {"GaussianMixture": 1}),
    "memory": kept("memory", 10, "memory"),
    "streams": kept("streams", 15, "streams", data=(MNIST,)),
    "shuffled runs": kept("block_shuffle", 45, "block_shuffle", data=(MNIST,)),
    "large files": kept("streaming", 10, "streaming", "--rows 0"),
    "kills": kept("kills", 5, "kills"),
    "corrupted files": kept("corrupted_files", 2, "corrupted_files"),
    "imputation": kept("imputation", 28, "imputation"),
    "scaling": kept("scaling", 15, "scaling"),
    "studies": Benchmark(
        "studies.py",
        130,
        ("studies/a_*.json", "studies/b_*.json", "studies/d_*.json", "studies/e_*.json"),
        (),
        (MNIST,),
    ),
}
