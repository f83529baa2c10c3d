"""Hash the fits of all estimators in many settings, to prove that a change of the code changes no number.

    python benchmarks/fingerprints.py before.json        # and after.json, with the changed code
    python benchmarks/fingerprints.py --compare before.json after.json

Fitted attributes, predictions, parameters of networks and saved files are hashed to the last bit, and so are the texts
of warnings and errors. Hashes depend on the machine, the number of threads and the versions of libraries, so that no
record of them is kept. ``--only vade`` selects the settings whose name contains this.
"""

import argparse
import contextlib
import hashlib
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from record import write_record
from scipy.sparse import csr_matrix, issparse
from sklearn.cluster import KMeans
from skorch.callbacks import Callback
from torch.utils.data import DataLoader, TensorDataset

import skvae
from skvae import (
    AutoencoderEmbedder,
    ClusterLabelClassifier,
    TorchGMM,
    TorchMiniBatchKMeans,
    TorchPPCA,
    VaDEClusterer,
    VAEEmbedder,
)
from skvae.distributed import shard

R = np.random.RandomState(0)
CENTERS = 4 * R.randn(3, 6)
Y = R.randint(3, size=600)
X = CENTERS[Y] + R.randn(600, 6) @ R.randn(6, 6)
DATA = {
    "float64": X,
    "float32": X.astype(np.float32),
    "missing": np.where(R.rand(*X.shape) < 0.07, np.nan, X),
    "sparse": csr_matrix(X * (np.abs(X) > 2)),
    "flat": np.column_stack([X, np.ones(len(X)), X[:, 0]]),
    "ties": np.repeat(R.randint(0, 3, (40, 3)).astype(float), 5, 0),
    "frame": pd.DataFrame(X, columns=[f"x{i}" for i in range(6)]),
    "counts": np.floor(np.abs(X)),
    "binary": (X > 0) * 1.0,
    "unit": 1 / (1 + np.exp(-X)),
    "images": R.rand(300, 64),
    "bytes": R.randint(0, 256, (300, 64)).astype(np.uint8),
}
WEIGHT = R.randint(0, 4, len(X)).astype(float)
COVARIANCE_TYPES = ("full", "tied", "diag", "spherical", "tied_diag", "tied_spherical")
NET = {"hidden_layer_sizes": (16,), "max_epochs": 3, "random_state": 0}
IMAGES = {"image_shape": (8, 8), "channels": (4, 8), "max_epochs": 2, "random_state": 0}
VADE = {**NET, "latent_dim": 2, "pretrain_epochs": 2, "batch_size": 64}
VIEWS = {**VADE, "image_shape": (8, 8), "architecture": "mlp", "augment": "affine"}
METHODS = ("predict", "predict_proba", "transform", "score_samples", "score", "impute", "reconstruct", "log_likelihood")


class OnDisk:
    """Rows that are read a slice at a time, as from a file."""

    def __init__(self, rows):
        self._rows, self.shape, self.dtype, self.ndim = rows, rows.shape, rows.dtype, 2

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, rows):
        return self._rows[rows]


def settings():
    """Return the settings by name, as tuples (estimator, data, arguments of fit, mode)."""
    by_name = {}

    def add(name, estimator, data, mode="fit", **arguments):
        by_name[f"{type(estimator).__name__} {name} {data} {mode}"] = estimator, DATA[data], arguments, mode

    weight = {"sample_weight": WEIGHT}
    for kind in COVARIANCE_TYPES:
        for data in ("float64", "float32", "missing", "flat", "ties"):
            add(kind, TorchGMM(4, covariance_type=kind, random_state=1), data)
        add(f"{kind} weights", TorchGMM(4, covariance_type=kind, random_state=0), "missing", **weight)
        quick = {"acceleration": "squarem", "tol": 1e-7}
        add(f"{kind} squarem", TorchGMM(5, covariance_type=kind, random_state=0, **quick), "float64")
        add(f"{kind} squarem", TorchGMM(5, covariance_type=kind, random_state=0, **quick), "missing")
        add(kind, TorchGMM(3, covariance_type=kind, random_state=0), "float64", "partial_fit")
    for init in ("k-means++", "random", "random_from_data", "labels", KMeans(3, n_init=1), np.eye(3)[Y]):
        name = "responsibilities" if isinstance(init, np.ndarray) else str(init)
        add(name, TorchGMM(3, init_params=init, n_init=2, random_state=0), "float64", y=Y)
    add("warm", TorchGMM(3, warm_start=True, max_iter=3, random_state=0), "frame", "twice")
    add("sparse", TorchGMM(3, random_state=0), "sparse")
    add("disk", TorchGMM(3, random_state=0), "float64", "disk", **weight)
    add("chunks", TorchGMM(3, chunk_size=50, tol=1e-8, random_state=0), "float32", **weight)
    for data in ("float64", "float32", "missing", "flat", "sparse", "frame"):
        for n_components in (2, 0.9, "mle", None):
            add(f"{n_components}", TorchPPCA(n_components), data)
    add("disk", TorchPPCA(2), "float64", "disk", **weight)
    for data in ("float64", "float32", "ties", "sparse", "frame"):
        add("start", TorchMiniBatchKMeans(4, random_state=0), data)
        add("random", TorchMiniBatchKMeans(20, init="random", batch_size=64, random_state=0), data)
    add("rate", TorchMiniBatchKMeans(4, learning_rate=0.2, batch_size=50, random_state=0), "float64", **weight)
    add("looks", TorchMiniBatchKMeans(20, reassignment_ratio=0.2, batch_size=30, random_state=0), "float64")
    add("tol", TorchMiniBatchKMeans(4, tol=1e-3, max_no_improvement=None, random_state=0), "float64")
    add("disk", TorchMiniBatchKMeans(4, batch_size=64, random_state=0), "float64", "disk", **weight)
    add("batches", TorchMiniBatchKMeans(4, random_state=0), "float64", "partial_fit")
    likelihoods = {"gaussian": ("float64", "float32", "missing", "frame", "sparse"), "bernoulli": ("binary",)}
    likelihoods |= {"poisson": ("counts",), "negative_binomial": ("counts",), "categorical": ("counts",)}
    likelihoods |= {"continuous_bernoulli": ("unit",), "gaussian_features": ("float64",), "gaussian_samples": ("flat",)}
    for likelihood, names in likelihoods.items():
        for data in names:
            add(likelihood, VAEEmbedder(2, likelihood=likelihood, **NET), data)
    many = {"batch_norm": True, "dropout": 0.1, "max_grad_norm": 1.0, "lr_schedule": "cosine", "early_stopping": True}
    add("many", VAEEmbedder(2, n_draws=2, kl_warmup_epochs=2, free_bits=0.1, **many, **NET), "bytes")
    add("conv", VAEEmbedder(2, augment="affine", **IMAGES), "images")
    add("hybrid", AutoencoderEmbedder(2, architecture="hybrid", corruption=0.1, **IMAGES), "images")
    for cls in (VAEEmbedder, AutoencoderEmbedder):
        add("weights", cls(2, **NET), "float64", **weight)
        add("held out", cls(2, early_stopping=True, n_iter_no_change=1, tol=0.5, **NET), "float64", X_val=X[:50])
        add("warm", cls(2, warm_start=True, **NET), "float64", "twice")
        add("batches", cls(2, **NET), "float64", "partial_fit")
        add("disk", cls(2, **NET), "float64", "disk", **weight)
        add("loader", cls(2, **NET), "float64", "loader")
        add("killed", cls(2, **NET), "float64", "checkpoint")
    for data in ("float64", "float32", "missing", "sparse", "frame"):
        add("plain", VaDEClusterer(3, **VADE), data)
    add("chosen views", VaDEClusterer(3, **VIEWS), "images")
    add("views", VaDEClusterer(3, consistency=1.0, **VIEWS), "images")
    add("weights", VaDEClusterer(3, covariance_type="full", **VADE), "float64", **weight)
    add("disk", VaDEClusterer(3, **VADE), "float64", "disk")
    add("warm", VaDEClusterer(3, warm_start=True, **VADE), "float64", "twice")
    add("batches", VaDEClusterer(3, **VADE), "float64", "partial_fit")
    add("killed", VaDEClusterer(3, **VIEWS), "images", "checkpoint")
    pretrained = AutoencoderEmbedder(2, hidden_layer_sizes=(16,), max_epochs=2, random_state=0).fit(X)
    add("pretrained", VaDEClusterer(3, pretrained=pretrained, **VADE), "float64")
    add("labels", ClusterLabelClassifier(TorchGMM(3, random_state=0)), "float64", y=np.where(Y == 1, -1, Y))
    add(
        "hungarian",
        ClusterLabelClassifier(TorchMiniBatchKMeans(3, random_state=0), assignment="hungarian"),
        "frame",
        y=Y,
    )
    return by_name


class Interrupt(Callback):
    """Interrupts a training after a number of epochs, as Ctrl-C does."""

    epochs_left = math.inf

    def on_epoch_end(self, net, **kwargs):
        """Count down, and interrupt."""
        Interrupt.epochs_left -= 1
        if Interrupt.epochs_left < 0:
            raise KeyboardInterrupt


def fit(estimator, data, arguments, mode):
    """Fit the estimator in a mode: once, twice, in batches, or interrupted and resumed."""
    if mode == "twice":
        return estimator.fit(data, **arguments).fit(data, **arguments)
    if mode == "partial_fit":
        for part in range(4):
            estimator.partial_fit(data[part::4])
        return estimator
    if mode == "loader":
        return estimator.partial_fit(DataLoader(TensorDataset(torch.from_numpy(data)), batch_size=150))
    if mode == "disk":
        return estimator.fit(OnDisk(data), **arguments)
    if mode == "checkpoint":
        with tempfile.TemporaryDirectory() as folder:
            estimator.set_params(checkpoint=Path(folder) / "training.pt", callbacks=[Interrupt()])
            for Interrupt.epochs_left in (1, 2, math.inf):
                with contextlib.suppress(KeyboardInterrupt):
                    estimator.fit(data, **arguments)
            return estimator.set_params(checkpoint=None, callbacks=None)
    return estimator.fit(data, **arguments)


def to_bytes(value):
    """Yield the bytes of the numbers of arrays and tensors, and of the text of other values."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, pd.DataFrame):
        value = value.to_numpy()
    if issparse(value):
        value = value.toarray()
    if isinstance(value, np.ndarray) and value.dtype != object:
        yield f"{value.dtype}{value.shape}".encode()
        yield np.ascontiguousarray(value).tobytes()
    elif isinstance(value, dict):
        for name in sorted(set(value) - {"dur"}, key=str):
            yield str(name).encode()
            yield from to_bytes(value[name])
    elif isinstance(value, list | tuple | np.ndarray):
        for item in value:
            yield from to_bytes(item)
    elif not hasattr(value, "__dict__"):
        yield repr(value).encode()


def results_of(estimator, data):
    """Yield the fitted attributes, the results of the methods, and the estimator's file."""
    state = {name: value for name, value in vars(estimator).items() if not name.startswith("_")}
    for name in ("net_", "module_", "callbacks", "checkpoint"):
        state.pop(name, None)
    yield state
    if hasattr(estimator, "module_"):
        yield estimator.module_.state_dict()
    for method in METHODS:
        if hasattr(estimator, method):
            try:
                yield method, getattr(estimator, method)(data)
            except (ValueError, TypeError) as error:
                yield method, str(error)
    if hasattr(estimator, "sample"):
        yield "sample", estimator.sample(5, **({} if "GMM" in type(estimator).__name__ else {"random_state": 0}))
    if hasattr(estimator, "inverse_transform"):
        yield "inverse", estimator.inverse_transform(np.asarray(estimator.transform(data[:5])))
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.skvae"
            skvae.save(estimator, path)
            has_seconds = hasattr(estimator, "history_")  # which differ from run to run
            yield "file", "" if has_seconds else hashlib.blake2b(path.read_bytes()).hexdigest()
            yield "loaded", {name: value for name, value in vars(skvae.load(path)).items() if name.startswith("_")}
    except (TypeError, ValueError, AttributeError) as error:
        yield "file", str(error)


def digest_of(estimator, data):
    """Return the digest of a fitted estimator, to which texts can be added."""
    digest = hashlib.blake2b(digest_size=12)
    for part in to_bytes([*results_of(estimator, data)]):
        digest.update(part)
    return digest


def fingerprint(estimator, data, arguments, mode):
    """Return the hash of a setting."""
    digest = hashlib.blake2b(digest_size=12)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            digest = digest_of(fit(estimator, data, arguments, mode), data)
        except Exception as error:
            digest.update(f"{type(error).__name__}: {error}".encode())
            print(f"{type(error).__name__}: {str(error)[:100]}")
    for line in sorted({f"{entry.category.__name__} {entry.message}" for entry in caught}):
        digest.update(line.encode())
    return digest.hexdigest()


def shared_fits(rank):
    """Fit estimators in one of two processes; return the hashes by name."""
    x, weight = shard(X), shard(WEIGHT)
    estimators = {
        "gmm": TorchGMM(3, random_state=0).fit(x, sample_weight=weight),
        "gmm missing": TorchGMM(3, covariance_type="tied", random_state=0).fit(shard(DATA["missing"])),
        "ppca": TorchPPCA(2).fit(x),
        "kmeans": TorchMiniBatchKMeans(4, batch_size=64, random_state=0).fit(x, sample_weight=weight),
        "vae": VAEEmbedder(2, early_stopping=True, **NET).fit(x, sample_weight=weight),
        "autoencoder": AutoencoderEmbedder(2, **NET).partial_fit(x).partial_fit(x),
        "vade": VaDEClusterer(3, **VADE).fit(x),
        "vade views": VaDEClusterer(3, consistency=1.0, **VIEWS).fit(shard(DATA["images"])),
    }
    hashes = {}
    for name, estimator in estimators.items():
        data = DATA["images"] if "views" in name else X
        hashes[f"process {rank} of 2, {name}"] = digest_of(estimator, data).hexdigest()
    return hashes


def distributed_fingerprints():
    """Return the hashes of fits in a process group of two."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(2):
        launched = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {**os.environ, **{name: str(value) for name, value in launched.items()}}
        command = [sys.executable, __file__, "--process", str(rank)]
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate()[0] for process in processes]
    return {name: value for text in outputs for name, value in json.loads(text.splitlines()[-1]).items()}


def compare(before, after):
    """Print the settings whose hashes differ; return their number."""
    before, after = (json.loads(Path(path).read_text()) for path in (before, after))
    differ = [name for name in after if before.get(name) != after[name]]
    print(f"{len(after)} settings compared, {len(differ)} differ", *differ, sep="\n  ")
    return len(differ)


def main():
    """Hash the fits, or compare hashes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, nargs="?")
    parser.add_argument("--only", default="", help="settings whose name contains this")
    parser.add_argument("--compare", nargs=2, metavar="FILE")
    parser.add_argument("--process", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.compare:
        sys.exit(compare(*args.compare) > 0)
    if args.process is not None:
        warnings.simplefilter("ignore")
        print(json.dumps(shared_fits(args.process)))
        return
    chosen = {name: setting for name, setting in settings().items() if args.only.lower() in name.lower()}
    hashes = {name: fingerprint(*setting) for name, setting in chosen.items()}
    if args.only in "two processes":
        hashes |= distributed_fingerprints()
    write_record(args.output, hashes)
    print(f"{len(hashes)} settings of {Path(skvae.__file__).parent}")


if __name__ == "__main__":
    main()
