"""All measurements that need a GPU: tests of devices, mixtures, an epoch, VaDE, k-means.

    SKVAE_DATA_HOME=folder-of-mnist python benchmarks/gpu.py --output benchmarks/results/gpu.json

It suits a machine that is available for minutes: the record is written after every part, a part that fails is
recorded with its error, and no part begins after ``--minutes``. Fits of a part take turns in one process; the first
ones, in which kernels are loaded, do not count. A ratio is the other's time over ours, the median over repeats.

- tests: `tests/test_devices.py` and `tests/test_waits.py` on the GPU itself.
- mixtures: `TorchGMM` on the GPU compared with scikit-learn's `GaussianMixture` on the CPU of that machine and, with
  scikit-learn's array API, on that GPU, all from the same parameters, to the same number of iterations; their lower
  bounds should be the same.
- epoch: an epoch of the VAE of the studies compared with a plain loop over a DataLoader on that GPU.
- vade: `VaDEClusterer(10)` with its defaults on 60,000 MNIST images: seconds, V-measure of the others.
- k-means: `TorchMiniBatchKMeans(100)` on (60000, 784) images, compared with scikit-learn's on the CPU.

``--device cpu --small`` tries the script where there is no GPU.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
import traceback
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import vae
from record import ROOT, processor, write_record
from sklearn import config_context
from sklearn.cluster import MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import v_measure_score
from sklearn.mixture import GaussianMixture

from skvae import TorchGMM, TorchMiniBatchKMeans, VaDEClusterer
from skvae.datasets import fetch_mnist

REPEATS, ITERATIONS = 3, 20
SHAPES = [(70_000, 10, 10, "full"), (70_000, 50, 10, "full"), (1_000_000, 10, 10, "diag"), (70_000, 784, 10, "diag")]


def seconds_of(device, fits):
    """Return the seconds of several fits that take turns, by name, and the results of the last ones."""
    results, seconds = {}, {name: [] for name in fits}
    for repeat in range(1 + REPEATS):
        for name, fit in fits.items():
            start = time.perf_counter()
            results[name] = fit()
            if device == "cuda":
                torch.cuda.synchronize()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return seconds, results


def with_ratios(seconds, ours="skvae"):
    """Median seconds, and for the others medians of ratios."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {
        name: statistics.median(other / mine for other, mine in zip(values, seconds[ours], strict=True))
        for name, values in seconds.items()
        if name != ours
    }
    return {"seconds": medians, "ratios": ratios}


def tests(device, small):
    """Count the tests of devices that pass on the GPU."""
    files = ["tests/test_devices.py", "tests/test_waits.py"]
    command = [sys.executable, "-m", "pytest", "-n4", *files, "-k", f"not stand-in and ({device} or mps)"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    failed = re.findall(r"^FAILED (\S+.*)$", done.stdout, re.MULTILINE)
    return {"status": done.returncode, "end": done.stdout.strip().splitlines()[-1:], "failed": failed}


def clusters(n, d, k):
    """Overlapping clusters."""
    rng = np.random.default_rng(0)
    means, labels = 3 * rng.normal(size=(k, d)) / np.sqrt(d), rng.integers(k, size=n)
    return (means[labels] + rng.normal(size=(n, d))).astype(np.float64), labels


def mixtures(device, small):
    """Fits of mixtures from the same initialization."""
    rows = []
    for n, d, k, kind in SHAPES[:1] if small else SHAPES:
        X, labels = clusters(n // 20 if small else n, d, k)
        resp = np.eye(k)[labels]
        weights, means = resp.mean(0), (resp.T @ X) / resp.sum(0)[:, None]
        settings = {"covariance_type": kind, "tol": 0.0, "max_iter": ITERATIONS}
        precisions = np.tile(np.eye(d), (k, 1, 1)) if kind == "full" else np.ones((k, d))
        given = {"weights_init": weights, "means_init": means, "precisions_init": precisions}
        start = given | {"init_params": "random", "random_state": 0}
        x = torch.tensor(X, device=device)

        def on_array_api(x=x, settings=settings, k=k, start=start, given=given):
            own = {name: torch.tensor(value, device=x.device) for name, value in given.items()}
            with config_context(array_api_dispatch=True):
                return float(GaussianMixture(k, **settings | start | own).fit(x).lower_bound_)

        fits = {
            "skvae": lambda X=X, s=settings, k=k, start=start: (
                TorchGMM(k, device=device, **s, **start).fit(X).lower_bound_
            ),
            "scikit-learn": lambda X=X, s=settings, k=k, start=start: (
                GaussianMixture(k, **s, **start).fit(X).lower_bound_
            ),
            "scikit-learn, array API": on_array_api,
        }
        seconds, bounds = seconds_of(device, fits)
        rows.append({"shape": [len(X), d, k], "kind": kind, "bounds": bounds, **with_ratios(seconds)})
    return rows


def epoch(device, small):
    """Seconds of an epoch, from the difference of a long and a short fit."""
    X, _, name = vae.load_images(2_000 if small else None)
    architecture = vae.ARCHITECTURES["mlp 784-400-196-48-16-2"]
    lengths = (1, 2) if small else (2, 12)
    ours = {"batch_size": vae.BATCH_SIZE, "lr": vae.LR, "random_state": 0, "device": device}
    fits = {
        f"{who} {n}": (lambda n=n, fit=fit: fit(n))
        for n in lengths
        for who, fit in {
            "skvae": lambda n: vae.VAEEmbedder(**architecture, **ours, max_epochs=n).fit(X).loss_curve_[-1],
            "plain loop": lambda n: plain_loop(X, architecture, n, device),
        }.items()
    }
    seconds, _ = seconds_of(device, fits)
    short, long = lengths
    per_epoch = {
        who: [
            (a - b) / (long - short) for a, b in zip(seconds[f"{who} {long}"], seconds[f"{who} {short}"], strict=True)
        ]
        for who in ("skvae", "plain loop")
    }
    return {"images": name, "shape": list(X.shape), **with_ratios(per_epoch)}


def plain_loop(X, architecture, epochs, device):
    """A loop as it is usually written: batches of a DataLoader go to the device, the loss is read in every step."""
    torch.manual_seed(0)
    model, criterion = vae.PlainVAE(**architecture).to(device), vae.PlainLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=vae.LR)
    data = vae.TensorDataset(torch.from_numpy(X))
    loader = vae.DataLoader(data, batch_size=vae.BATCH_SIZE, shuffle=True, pin_memory=device == "cuda")
    for _ in range(epochs):
        total = 0.0
        for (x,) in loader:
            x = x.to(device, non_blocking=True)
            optimizer.zero_grad()
            loss = criterion(model(x), x)
            loss.backward()
            optimizer.step()
            total += loss.item()
    return total


def vade(device, small):
    """VaDEClusterer with its defaults on MNIST."""
    X, y = fetch_mnist(return_X_y=True)
    X = X.astype(np.float32) / 255
    n = 2_000 if small else 60_000
    limits = {"pretrain_epochs": 1, "max_epochs": 1} if small else {}
    start = time.perf_counter()
    fitted = VaDEClusterer(10, image_shape=(28, 28), device=device, random_state=0, **limits).fit(X[:n])
    took = time.perf_counter() - start
    return {"seconds": took, "v_measure": v_measure_score(y[60_000:], fitted.predict(X[60_000:]))}


def k_means(device, small):
    """Mini-batch k-means of images with 100 clusters."""
    X, _, name = vae.load_images(5_000 if small else None)
    fits = {
        "skvae": lambda: TorchMiniBatchKMeans(100, device=device, random_state=0).fit(X).inertia_,
        "scikit-learn": lambda: MiniBatchKMeans(100, random_state=0).fit(X).inertia_,
    }
    seconds, inertias = seconds_of(device, fits)
    return {"images": name, "shape": [*X.shape, 100], "inertias": inertias, **with_ratios(seconds)}


PARTS = {"tests": tests, "mixtures": mixtures, "epoch": epoch, "vade": vade, "k-means": k_means}


def machine(device):
    """Return the device, the processor, the number of cores and the versions that results depend on."""
    name = torch.cuda.get_device_name() if device == "cuda" else processor()
    versions = {package: version(package) for package in ("torch", "scikit-learn", "numpy")}
    return {"device": name, "processor": processor(), "cores": os.cpu_count(), **versions}


def main():
    """Measure one part after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=9.0, help="after which no part begins")
    parser.add_argument("--small", action="store_true", help="try the script: few rows, few epochs")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    begun, record = time.perf_counter(), machine(args.device)
    warnings.simplefilter("ignore", ConvergenceWarning)
    for name in args.parts:
        if time.perf_counter() - begun > 60 * args.minutes:
            record[name] = "not begun: the time was over"
            continue
        start = time.perf_counter()
        try:
            record[name] = PARTS[name](args.device, args.small)
        except Exception as error:  # the others are worth their minutes
            traceback.print_exc()
            record[name] = {"error": f"{type(error).__name__}: {error}"}
        print(f"{name} ({time.perf_counter() - start:.0f} s): {json.dumps(record[name])}", flush=True)
        write_record(args.output, record)


if __name__ == "__main__":
    main()
