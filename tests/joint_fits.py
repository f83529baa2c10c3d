"""Fits of one process with all samples, and of several with a shard each.

As a script, ``joint_fits.py FOLDER``, one of these processes: it writes its results to a file in the folder.
"""

import contextlib
import faulthandler
import io
import os
import sys
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import torch
from helpers import Slices, fitted_values
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from skorch.callbacks import Callback
from torch import nn

import skvae.data.tensors
import skvae.fitting.batch_samplers
import skvae.fitting.mixture_init
import skvae.fitting.weighted_rows
from skvae import AutoencoderEmbedder, TorchGMM, TorchMiniBatchKMeans, TorchPPCA, VaDEClusterer, VAEEmbedder
from skvae.distributed import alone, shard
from skvae.fitting.distributed import current_group, distributed_fit
from skvae.fitting.lloyd import lloyd
from skvae.fitting.weighted_rows import WeightedRows

ROWS = np.random.default_rng(0).normal(size=(1500, 4)) @ np.diag([1.0, 2.0, 3.0, 0.5])
ROWS[:500] += 4
ROWS[500:1000, 1] -= 9
ROWS += 50
WEIGHTS = np.random.default_rng(1).uniform(0, 2, size=len(ROWS)).round(1)
HOLES = np.where(np.random.default_rng(2).uniform(size=ROWS.shape) < 0.1, np.nan, ROWS)
CLASSES = np.repeat([2, 7, 4], 500)
RESP = np.random.default_rng(3).dirichlet(np.ones(3), size=len(ROWS))


class Shard:
    """Samples of one process among several, in shards of unequal size."""

    def __init__(self, rank, size):
        self.rank, self.size = rank, size

    def __call__(self, rows):
        """Return the shard of an array (n, ...)."""
        ends = np.round(np.linspace(0, 1, self.size + 1) ** 1.5 * len(rows)).astype(int)
        return rows[ends[self.rank] : ends[self.rank + 1]]


@contextlib.contextmanager
def limits(max_gathered=None, sample=None, pool=None):
    """Patch limits, so that few samples are treated as many are."""
    changes = [
        (skvae.fitting.mixture_init, "MAX_GATHERED_ROWS", max_gathered),
        (skvae.fitting.batch_samplers, "MAX_GATHERED_ROWS", max_gathered),
        (skvae.fitting.weighted_rows, "MAX_SAMPLE_ROWS", sample),
        (skvae.data.tensors, "POOL_BYTES", pool),
        (skvae.data.tensors, "POOL_BATCHES", None if pool is None else 1),
    ]
    with contextlib.ExitStack() as stack:
        for module, name, value in changes:
            if value is not None:
                stack.enter_context(mock.patch.object(module, name, value))
        yield


def mixture(X=ROWS, weighted=False, dtype=np.float64, y=None, lazy=False, few=None, k=3, **settings):
    """Return a fit of a mixture."""

    def fit(own):
        rows = own(X).astype(dtype)
        init = {"init_params": own(RESP)} if settings.get("init_params") is RESP else {}
        gmm = TorchGMM(k, **{"random_state": 0, "max_iter": 30, **settings, **init})
        with limits(**few or {}):
            gmm.fit(Slices(rows) if lazy else rows, None if y is None else own(y), own(WEIGHTS) if weighted else None)
        return fitted_values(gmm)

    return fit


def batches(own):
    """Make steps of stepwise EM."""
    gmm = TorchGMM(3, random_state=0)
    for rows in np.split(ROWS[np.random.default_rng(0).permutation(len(ROWS))], 3):
        gmm.partial_fit(own(rows))
    return fitted_values(gmm)


def kmeans(weighted=False, X=ROWS, lazy=False, few=None, **settings):
    """Return a fit of mini-batch k-means."""

    def fit(own):
        rows = own(X)
        estimator = TorchMiniBatchKMeans(5, **{"random_state": 0, "batch_size": 200, **settings})
        with limits(**few or {}):
            estimator.fit(Slices(rows) if lazy else rows, sample_weight=own(WEIGHTS) if weighted else None)
        return fitted_values(estimator)

    return fit


def batches_of_kmeans(own):
    """Make steps of k-means by `partial_fit`."""
    estimator = TorchMiniBatchKMeans(5, random_state=0)
    for rows in np.split(ROWS[np.random.default_rng(0).permutation(len(ROWS))], 3):
        estimator.partial_fit(own(rows))
    return fitted_values(estimator)


def ppca(n_components, X=ROWS, weighted=False):
    """Return a fit of PPCA."""

    def fit(own):
        return fitted_values(TorchPPCA(n_components).fit(own(X), sample_weight=own(WEIGHTS) if weighted else None))

    return fit


def corners(X, n_clusters, random_state):
    """Return initial centres."""
    return X[X[:, 0].argsort()[np.linspace(0, len(X) - 1, n_clusters).astype(int)]]


def empty_clusters(own):
    """Run Lloyd's algorithm from centres of which some have no samples."""
    x = torch.from_numpy(ROWS - ROWS.mean(0))
    start = torch.cat([x[:2], x[:4] + 1e3])
    with distributed_fit():
        centers, _ = lloyd(WeightedRows(own(x), None, current_group()), start)
    return {"centers": centers.numpy()}


MANY = {"max_gathered": 100}
COVARIANCE_TYPES = ("full", "tied", "diag", "spherical", "tied_diag", "tied_spherical")
FITS = {
    **{f"mixture, {name}": mixture(covariance_type=name) for name in COVARIANCE_TYPES},
    **{
        f"mixture, {start}": mixture(init_params=start, n_init=2, weighted=True)
        for start in ("k-means++", "random", "random_from_data")
    },
    "mixture, kmeans": mixture(weighted=True),
    "mixture, full, in float32": mixture(dtype=np.float32),
    "mixture, from labels": mixture(init_params="labels", y=CLASSES),
    "mixture, from responsibilities": mixture(init_params=RESP),
    "mixture, from a clusterer": mixture(init_params=KMeans(3, n_init=1, random_state=0)),
    "mixture, missing values": mixture(HOLES, weighted=True),
    "mixture, missing values, diag": mixture(HOLES, covariance_type="diag", init_params="k-means++"),
    "mixture, squarem": mixture(acceleration="squarem", tol=1e-6),
    "mixture, in batches": batches,
    "mixture, large samples": mixture(k=2, weighted=True),
    "mixture, a dead component": mixture(means_init=[ROWS[0], ROWS[700], ROWS[1400] + 1e3], max_iter=200),
    "Lloyd, empty clusters": empty_clusters,
    "mixture, read a chunk at a time": mixture(lazy=True, few={"sample": 300}, init_params="k-means++"),
    "mixture, read a chunk at a time, weighted": mixture(lazy=True, few={"sample": 300}, weighted=True),
    "mixture, of many rows": mixture(few=MANY),
    "mixture, of many rows, at random": mixture(few=MANY, init_params="random_from_data", weighted=True),
    "k-means": kmeans(),
    "k-means, weighted": kmeans(weighted=True, learning_rate=0.3, tol=1e-3),
    "k-means, at random": kmeans(init="random", n_init=3, reassignment_ratio=0.5),
    "k-means, given": kmeans(init=ROWS[::300]),
    "k-means, from a function": kmeans(init=corners, batch_size=2000),
    "k-means, all rows in a batch": kmeans(batch_size=5000, weighted=True),
    "k-means, equal rows": kmeans(X=np.repeat(ROWS[::10], 10, axis=0), reassignment_ratio=0.3),
    "k-means, in batches": batches_of_kmeans,
    "PPCA": ppca(2),
    "PPCA, weighted": ppca(0.9, weighted=True),
    "PPCA, mle": ppca("mle"),
    "PPCA, more features than rows": ppca(3, ROWS[::20].reshape(-1, 12).repeat(4, axis=1)[:, ::-1]),
    "PPCA, missing values": ppca(2, HOLES, weighted=True),
    "PPCA, missing values, a share": ppca(0.95, HOLES),
}
# Draws depend on the shards.
OTHER_DRAWS = {
    "k-means, from pools": kmeans(lazy=True, few={"pool": 2**13}),
    "k-means, from pools, weighted": kmeans(lazy=True, few={"pool": 2**13}, weighted=True),
    "k-means, of many rows": kmeans(few=MANY, weighted=True),
}


def weights_of(estimator):
    """Return the parameters and buffers of the networks, and the fitted attributes."""
    weights = {name: value.numpy() for name, value in estimator.module_.state_dict().items()}
    values = {"loss_curve": estimator.loss_curve_, **fitted_values(estimator)}
    if values.get("init_losses_"):
        values["init_losses_"] = np.concatenate(values["init_losses_"])  # of fewer and fewer mixtures
    return weights | values


NET = {"hidden_layer_sizes": (16,), "random_state": 0, "max_epochs": 4, "batch_size": 64}


def autoencoder(**settings):
    """Return a fit of an autoencoder with all samples in a batch: only initial weights are random."""

    def fit(own):
        estimator = AutoencoderEmbedder(2, **NET | {"batch_size": 4000, "optimizer": "sgd", "lr": 0.01, **settings})
        return weights_of(estimator.fit(own(ROWS)))

    return fit


def network(cls, X=ROWS, weighted=False, **settings):
    """Return a fit of a network with random batches, on shuffled samples."""
    order = np.random.default_rng(0).permutation(len(X))

    def fit(own):
        weight = own(WEIGHTS[order]) if weighted else None
        estimator = cls(**NET | settings).fit(own(X[order]), sample_weight=weight)
        return weights_of(estimator) | {"score": estimator.score(X)}

    return fit


def conditional(own):
    """Fit a VAE with a covariate of levels, one of numbers, and size factors, on shuffled samples."""
    order = np.random.default_rng(0).permutation(len(ROWS))
    X, sizes = np.abs(ROWS - ROWS.mean(0)).astype(np.int64)[order], WEIGHTS[order] + 0.5
    covariates = pd.DataFrame({"level": CLASSES[order].astype(str), "number": ROWS[order, 0]})
    vae = VAEEmbedder(2, likelihood="poisson", **NET | SHORT)
    vae.fit(own(X), covariates=own(covariates), size_factors=own(sizes))
    return weights_of(vae) | {"score": vae.score(X, covariates=covariates, size_factors=sizes)}


def frames(own):
    """Fit a VAE to a data frame, of which one process has a category that the other lacks."""
    levels = np.array(list("abc"))[np.searchsorted([2, 4, 7], CLASSES)]
    levels[0] = "first"
    X = pd.DataFrame({"x": ROWS[:, 0], "level": levels, "y": ROWS[:, 1]})
    vae = VAEEmbedder(2, **NET | SHORT).fit(own(X))
    return weights_of(vae) | {"score": vae.score(X)}


def uneven(own):
    """Fit to shards of 1490 and 10 samples: the second process has none in most of the steps."""
    X = ROWS[:1490] if own.rank == 0 else ROWS[1490:]
    return weights_of(VAEEmbedder(2, batch_norm=True, **NET).fit(X))


def epoch_by_epoch(own):
    """Call `partial_fit`, then continue by a warm start."""
    vae = VAEEmbedder(2, **NET)
    for rows in np.split(ROWS, 3):
        vae.partial_fit(own(rows))
    return weights_of(vae.set_params(warm_start=True).fit(own(ROWS)))


def digits(own):
    """Fit VaDE with augmented views, and prune mixtures."""
    X = load_digits().data[:600] / 16
    settings = {"pretrain_epochs": 10, "max_epochs": 20, "random_state": 0, "n_init": 8, "architecture": "mlp"}
    vade = VaDEClusterer(4, image_shape=(8, 8), hidden_layer_sizes=(32,), **settings).fit(own(X))
    return weights_of(vade) | {"score": vade.score(X)}


class FailingLinear(nn.Linear):
    """An encoder that, in some processes, is out of memory for large batches, and once returns NaN."""

    def __init__(self, n_inputs, n_outputs, fails):
        super().__init__(n_inputs, n_outputs)
        self.fails, self.n_calls = fails, 0

    def forward(self, x):
        """Encode."""
        if self.training and self.fails:
            self.n_calls += 1
            if len(x) > 100:
                raise torch.cuda.OutOfMemoryError("no memory")
            if self.n_calls == 30:
                return super().forward(x) * torch.nan
        return super().forward(x)


def failing(own):
    """Fit with an encoder that fails in the second process."""
    vae = VAEEmbedder(2, encoder=lambda *sizes: FailingLinear(*sizes, own.rank == 1), **NET | {"batch_size": 300})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        vae.fit(own(ROWS))
    results = {name: value for name, value in weights_of(vae).items() if name != "n_calls"}
    return results | {"warnings": [str(warning.message) for warning in caught]}


def long_fit(own, **settings):
    """Fit with all options that a checkpoint stores."""
    settings = {"dropout": 0.1, "batch_norm": True, "early_stopping": True, "lr_schedule": "cosine", **settings}
    settings = {**NET, "max_epochs": 8, "n_iter_no_change": 50, **settings}
    return weights_of(VAEEmbedder(2, **settings).fit(own(ROWS)))


SHORT = {"max_epochs": 10, "batch_size": 150, "lr": 5e-3}
EQUAL_NETS = {"autoencoder": autoencoder(), "autoencoder, adam": autoencoder(optimizer="adam", weight_decay=0.01)}
NETS = {
    "VAE": network(VAEEmbedder, n_components=2, **SHORT),
    "VAE, batch norm, weighted": network(VAEEmbedder, n_components=2, batch_norm=True, weighted=True, **SHORT),
    "VAE, missing values": network(VAEEmbedder, HOLES, n_components=2, early_stopping=True, **SHORT),
    "VAE, covariates": conditional,
    "VAE, data frames": frames,
    "VaDE": network(VaDEClusterer, n_clusters=3, latent_dim=2, pretrain_epochs=10, **SHORT),
    "VaDE, augmented views": digits,
}
ODD_NETS = {"uneven": uneven, "epoch by epoch": epoch_by_epoch, "long": long_fit, "failing": failing}


def error_of(function, *args, **kwargs):
    """Return the type and the message of the error that a call raises."""
    try:
        function(*args, **kwargs)
    except Exception as error:
        return type(error).__name__, str(error)
    return None


def a_bad_value(own):
    """Fit new and fitted estimators to an infinite value in the second process."""
    X = own(ROWS).copy()
    gmm = TorchGMM(2, random_state=0).fit(X)
    before = gmm.means_
    X[0, 0] = np.inf if own.rank == 1 else X[0, 0]
    errors = [error_of(TorchGMM(2).fit, X), error_of(gmm.fit, X), error_of(TorchMiniBatchKMeans(2).fit, X)]
    return errors, gmm.means_ is before


def a_late_error(own):
    """Fit with a callable that fails in the second process."""

    def init(X, n_clusters, random_state):
        if own.rank == 1:
            raise ZeroDivisionError("no such number")
        return X[:n_clusters]

    return error_of(TorchMiniBatchKMeans(2, init=init).fit, own(ROWS))


def different_parameters(own):
    """Fit with other parameters, features, dtypes and estimators in the second process."""
    X, second = own(ROWS), own.rank == 1
    return [
        error_of(TorchGMM(3 if second else 2).fit, X),
        error_of(TorchGMM(2).fit, X[:, 1:] if second else X),
        error_of(TorchGMM(2).fit, X.astype(np.float32) if second else X),
        error_of((TorchPPCA(2) if second else TorchGMM(2)).fit, X),
    ]


def out_of_step(own):
    """Call different collectives."""

    def work():
        with distributed_fit():
            current_group().all_gather(torch.ones(3)) if own.rank else current_group().all_reduce_sum(1.0)

    return error_of(work)


def calls_of_one(own):
    """Call methods, and fit, in one process only."""
    X = own(ROWS)
    gmm, kmeans = TorchGMM(2, random_state=0).fit(X), TorchMiniBatchKMeans(2, random_state=0).fit(X)
    if own.rank == 1:
        return None
    with alone():
        one = TorchGMM(2, random_state=0).fit(X)
    parts = gmm.predict(X), gmm.score(X), gmm.bic(X), gmm.sample(3), kmeans.transform(X), kmeans.score(X)
    return len(parts), error_of(TorchPPCA().transform, X), np.array_equal(one.means_, gmm.means_)


def unseeded(own):
    """Fit with a seed from the operating system."""
    return TorchGMM(3, init_params="random", max_iter=3).fit(own(ROWS)).means_


def too_few(own):
    """Fit more components than there are samples, and than there are in one shard."""
    X = ROWS[:8]
    return error_of(TorchGMM(9).fit, own(X)), TorchGMM(7, reg_covar=1.0).fit(own(X)).means_.shape


def shards(own):
    """Shard arrays by `shard`."""
    X, w = shard(ROWS, WEIGHTS)
    return np.array_equal(X, ROWS[: len(X)] if own.rank == 0 else ROWS[-len(X) :]), len(X), len(w)


def prints(own):
    """Capture the output and the warnings of fits."""
    X, printed = own(ROWS), io.StringIO()
    with (
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
        warnings.catch_warnings(record=True) as w,
    ):
        warnings.simplefilter("always", ConvergenceWarning)
        TorchGMM(3, verbose=2, verbose_interval=1, max_iter=1, random_state=0).fit(X)
        TorchMiniBatchKMeans(3, verbose=1, random_state=0).fit(X)
        VAEEmbedder(1, verbose=1, **NET | {"max_epochs": 1}).fit(X)
    return printed.getvalue(), [str(warning.message) for warning in w if warning.category is ConvergenceWarning]


class Failure(Callback):
    """An error in the middle of an epoch."""

    def on_batch_end(self, net, **kwargs):
        """Fail."""
        raise ZeroDivisionError("no such number")


def interrupted(own):
    """Fail in one process while the others wait for gradients, and fit again."""
    X, callbacks = own(ROWS), [Failure()] if own.rank == 1 else []
    vae = VAEEmbedder(2, callbacks=callbacks, **NET)
    return error_of(vae.fit, X), error_of(vae.fit, X), sorted(vars(vae)) == sorted(vae.get_params(deep=False))


CHECKS = [a_bad_value, a_late_error, different_parameters, out_of_step, calls_of_one, unseeded, too_few, shards, prints]
CHECKS = {function.__name__: function for function in [*CHECKS, interrupted]}  # the last ends the group


def main(folder):
    """Make all fits with the other processes."""
    faulthandler.dump_traceback_later(220, exit=True)  # where it waits, if it does not end
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    results = {}
    for name, fit in (FITS | OTHER_DRAWS | EQUAL_NETS | NETS | ODD_NETS | CHECKS).items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", FutureWarning)
            results[name] = fit(Shard(rank, size))
    torch.save(results, Path(folder) / f"results_{rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1])
