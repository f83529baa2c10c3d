"""Fits by several processes on one machine: time of an iteration, efficiency, and how far the results differ.

    python benchmarks/scaling.py --repeats 5 --output benchmarks/results/scaling.json

Each fit is made by one process with all rows, and by several with a shard of them each, one thread a process, joined as
``torchrun`` joins them, over the loopback interface. The time of an iteration is that of a fit with many less that of a
fit with few, divided by the difference of their numbers; for PPCA it is that of the whole fit. Efficiency is the time
of one process over the time of n processes and n. The numbers of processes take turns, and medians over the repeats
are shown with the lowest and highest.

"error" is the largest difference of a fitted parameter from that of one process, divided by the largest parameter of
its kind. Networks draw other batches with other numbers of processes: their ELBOs are shown instead.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from record import environment, write_record

from skvae import TorchGMM, TorchMiniBatchKMeans, TorchPPCA, VAEEmbedder
from skvae.distributed import shard

N_FEATURES, N_COMPONENTS, N_CLUSTERS, PIXELS = 32, 20, 100, 784
EM, STEPS, EPOCHS = (2, 6), (10, 60), (1, 3)  # iterations of the shorter and the longer fit
PARAMETERS = ("weights_", "means_", "covariances_", "cluster_centers_", "components_", "explained_variance_")


def write_data(folder, n_rows, n_images):
    """Overlapping clusters with correlations (float64), and images with a few patterns (float32)."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(N_COMPONENTS, N_FEATURES))
    mixing = np.eye(N_FEATURES) + rng.normal(size=(N_COMPONENTS, N_FEATURES, N_FEATURES)) / (2 * N_FEATURES**0.5)
    labels = rng.integers(N_COMPONENTS, size=n_rows)
    X = rng.standard_normal((n_rows, N_FEATURES))
    for c in range(N_COMPONENTS):
        X[labels == c] = X[labels == c] @ mixing[c] + means[c]
    np.save(folder / "rows.npy", X)
    images = rng.normal(size=(n_images, 5)).astype(np.float32) @ rng.normal(size=(5, PIXELS)).astype(np.float32)
    np.save(folder / "images.npy", images.clip(0, 1))


def mixture(kind, dtype):
    """EM from given means."""

    def fit(folder, n):
        X = shard(np.load(folder / "rows.npy", mmap_mode="r"))
        start = np.load(folder / "rows.npy", mmap_mode="r")[:N_COMPONENTS]
        precisions = {"full": np.stack([np.eye(N_FEATURES)] * N_COMPONENTS), "diag": np.ones(start.shape)}[kind]
        weights = np.full(N_COMPONENTS, 1 / N_COMPONENTS)
        given = {"weights_init": weights, "means_init": start, "precisions_init": precisions}
        return TorchGMM(N_COMPONENTS, covariance_type=kind, tol=0.0, max_iter=n, **given), np.array(X, dtype)

    return fit


def kmeans(folder, n):
    """Steps of k-means with large batches."""
    X = np.load(folder / "rows.npy", mmap_mode="r")
    n_passes = max(1, round(n * 2**16 / len(X)))
    settings = {
        "batch_size": 2**16,
        "max_iter": n_passes,
        "max_no_improvement": None,
        "compute_labels": False,
        "random_state": 0,
    }
    return TorchMiniBatchKMeans(N_CLUSTERS, init=np.array(X[:N_CLUSTERS]), **settings), np.array(shard(X))


def ppca(folder, n):
    """The closed form, whole."""
    return TorchPPCA(8), np.array(shard(np.load(folder / "rows.npy", mmap_mode="r")))


def vae(folder, n):
    """Epochs of a network."""
    X = np.array(shard(np.load(folder / "images.npy", mmap_mode="r")))
    return VAEEmbedder(10, hidden_layer_sizes=(500, 500), batch_size=512, max_epochs=n, random_state=0), X


WORKS = {
    "EM, full, float64": (mixture("full", np.float64), EM),
    "EM, full, float32": (mixture("full", np.float32), EM),
    "EM, diag, float64": (mixture("diag", np.float64), EM),
    "k-means, batches of 65536": (kmeans, STEPS),
    "PPCA": (ppca, (1, 1)),
    "VAE, batches of 512": (vae, EPOCHS),
}


def child(name, folder):
    """Time a fit in one of the processes; the first prints the results and writes the parameters."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    make, (few, many) = WORKS[name]
    estimator, X = make(folder, few)
    estimator.fit(X[: max(200, len(X) // 100)])  # what is loaded and compiled once
    seconds, counts = [], []
    for n in (few, many):
        estimator, X = make(folder, n)
        started = time.perf_counter()
        estimator.fit(X)
        seconds.append(time.perf_counter() - started)
        counts.append(getattr(estimator, "n_steps_", n))
    if int(os.environ["RANK"]) > 0:
        return
    each = seconds[1] if few == many else (seconds[1] - seconds[0]) / (counts[1] - counts[0])
    results = {name: getattr(estimator, name) for name in PARAMETERS if hasattr(estimator, name)}
    np.savez(folder / "parameters.npz", **results)
    bound = -estimator.loss_curve_[-1] if hasattr(estimator, "loss_curve_") else None
    print(json.dumps({"seconds": each, "fit_seconds": seconds[1], "bound": bound}))


def measured(name, n_processes, folder):
    """Return the results of a number of processes, and their parameters."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(n_processes)}
    shared |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, __file__, "--child", name, str(folder)]
    running = [
        subprocess.Popen(command, env={**os.environ, **shared, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
        for rank in range(n_processes)
    ]
    printed = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise RuntimeError(f"A process of {name!r} failed; its error is above.")
    with np.load(folder / "parameters.npz") as results:
        return json.loads(printed[0].splitlines()[-1]), dict(results)


def difference(results, reference):
    """Largest relative difference of parameters, None if there are none."""
    parts = [np.abs(results[name] - part).max() / np.abs(part).max() for name, part in reference.items()]
    return float(max(parts)) if parts else None


def compare(name, args, folder):
    """All numbers of processes, in turn."""
    times, record = {n: [] for n in args.processes}, {}
    for _ in range(args.repeats):
        for n in args.processes:
            results, parameters = measured(name, n, folder)
            times[n].append(results["seconds"])
            if n == args.processes[0]:
                reference = parameters
            record[n] = results | {"error": difference(parameters, reference), "n_repeats": args.repeats}
    for n in args.processes:
        ratios = sorted(one / (n * many) for one, many in zip(times[args.processes[0]], times[n], strict=True))
        record[n] |= {"seconds": statistics.median(times[n]), "times": times[n]}
        record[n]["efficiency"] = {"median": statistics.median(ratios), "lowest": ratios[0], "highest": ratios[-1]}
    return record


def main():
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument(
        "--processes", type=int, nargs="+", default=[1, 2], help="the first is what others are compared to"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--works", nargs="*", default=[*WORKS], choices=[*WORKS])
    parser.add_argument("--folder", type=Path, help="where the data are written and deleted")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args.child[0], Path(args.child[1]))
    record = environment(1) | {"cores": os.cpu_count(), "rows": args.rows, "images": args.images, "works": {}}
    print(f"{'work':28}{'processes':>10}{'s an iteration':>16}{'efficiency':>22}{'error':>10}{'bound':>9}")
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        write_data(folder, args.rows, args.images)
        for work in args.works:
            record["works"][work] = compare(work, args, folder)
            for n, row in record["works"][work].items():
                share = "{median:.2f} ({lowest:.2f} to {highest:.2f})".format(**row["efficiency"])
                error = "" if row["error"] is None else f"{row['error']:.1e}"
                bound = "" if row["bound"] is None else f"{row['bound']:.2f}"
                print(f"{work:28}{n:>10}{row['seconds']:>16.4f}{share:>22}{error:>10}{bound:>9}", flush=True)
            write_record(args.output, record)
    return None


if __name__ == "__main__":
    main()
