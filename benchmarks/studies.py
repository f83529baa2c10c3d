"""Five published studies of MNIST repeated with skvae: their reported scores and those of the same settings here.

    python benchmarks/studies.py --rows "e, "

(a) a tanh VAE with two latent dimensions and a mixture initialized by class means, as a classifier of three digits;
(b) a ReLU VAE with eight latents, beta 3, and a mixture whose clusters a validation set names; (d) k-means by gradient
steps and convolutional autoencoders; (e) density models compared. (c) is VaDE, of which `vade.py` has the rows.

Where a study does not say a setting, ours is written next to it, and was fixed before the runs. Each run is recorded as
a line of a ``.jsonl`` file with the reported figures, its settings, its scores on the 10,000 test images (unless it
says otherwise) and its minutes, of the clock and of the processor; the table shows all recorded runs. MNIST is read by
`skvae.datasets.fetch_mnist`.
"""

import argparse
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch
from record import environment, read_runs, write_run
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    mean_squared_error,
    pairwise_distances_argmin,
    pairwise_distances_argmin_min,
    v_measure_score,
)
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits

from skvae import AutoencoderEmbedder, ClusterLabelClassifier, TorchGMM, TorchMiniBatchKMeans, TorchPPCA, VAEEmbedder
from skvae.callbacks import EpochScores, LatentSnapshots
from skvae.datasets import fetch_mnist
from skvae.fitting.batch_samplers import DirectBatchSampler
from skvae.fitting.minibatch import fit_mini_batches
from skvae.fitting.weighted_rows import WeightedRows
from skvae.metrics import clustering_accuracy_score, reconstruction_error, structural_similarity_score
from skvae.models.likelihoods import Gaussian

N_PIXELS = 784
FROM_THE_START = {"kl_warmup_epochs": 0, "latent_norm_epochs": 0}  # the loss of the studies, in all epochs
STEP = 4.5  # of study (d), on the mean over a batch of the squared distance of a row to its centre
CONV = {"image_shape": (28, 28), "channels": (16, 32)}
WIDE_CONV = {"image_shape": (28, 28), "channels": (32, 64), "max_epochs": 20, "batch_size": 32}


class PixelGaussian(Gaussian):
    """One learned noise scale for all pixels, in their own units: the noise of PPCA."""

    @classmethod
    def from_data(cls, summary):
        """Pixels are centred, not scaled."""
        return cls(summary.mean, torch.ones_like(summary.scale))


def images():
    """Training and test images as rows in [0, 1], and their labels."""
    X, y = fetch_mnist(return_X_y=True)
    X = (X / 255).astype(np.float32)
    return X[:60_000], y[:60_000], X[60_000:], y[60_000:]


def run_three_digits(seed):
    """(a): the digits 1, 4 and 8, four fifths of them to train on."""
    X_train, y_train, X_test, y_test = images()
    X, y = np.concatenate([X_train, X_test]), np.concatenate([y_train, y_test])
    X, y = X[np.isin(y, (1, 4, 8))], y[np.isin(y, (1, 4, 8))]
    X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.2, stratify=y, random_state=seed)
    settings = {"hidden_layer_sizes": (400, 196, 48), "head_layer_sizes": (16,), "activation": "tanh"}
    settings |= {"batch_norm": True, "lr": 1e-3, "batch_size": 128, "max_epochs": 50}
    ssim = partial(structural_similarity_score, image_shape=(28, 28), data_range=1)
    watched = {"train": X_train[:1000], "test": X_test[:1000]}
    callbacks = [
        EpochScores({"mse": mean_squared_error, "ssim": ssim}, watched),
        LatentSnapshots(np.concatenate([X_train, X_test]), epochs=[2, 5, 10, 20, 30, 40]),
    ]
    vae = VAEEmbedder(2, **settings, **FROM_THE_START, callbacks=callbacks, random_state=seed).fit(X_train)
    accuracies, snapshots = {}, LatentSnapshots.of(vae)
    for epoch, codes in zip(snapshots.epochs.tolist(), snapshots.codes, strict=True):
        gmm = TorchGMM(3, init_params="labels", weights_init=[1 / 3] * 3, precisions_init=[10 * np.eye(2)] * 3)
        gmm.set_params(tol=1e-15, max_iter=1000).fit(codes[: len(X_train)], y_train)
        labels = np.array([1, 4, 8])[gmm.predict(codes[len(X_train) :])]
        accuracies[epoch] = accuracy_score(y_test, labels)
    names = [f"{part}_{name}" for part in watched for name in ("mse", "ssim")]
    curves = {name: [row[name] for row in vae.history_] for name in names}
    results = {"settings": settings, "accuracy": accuracies[epoch], "accuracy_by_epoch": accuracies}
    results |= {"n_parameters": sum(p.numel() for p in vae.module_.parameters()), "n_iter_mixture": gmm.n_iter_}
    return results | {"mse": curves["test_mse"][-1], "ssim": curves["test_ssim"][-1], "curves": curves}


def run_relu(seed):
    """(b): 50,000 images to train on, 10,000 whose labels name the clusters."""
    X, y, X_test, y_test = images()
    X_train, X_named, _, y_named = train_test_split(X, y, test_size=10_000, stratify=y, random_state=seed)
    settings = {"n_components": 8, "hidden_layer_sizes": (392, 196, 98), "beta": 3, "lr": 5e-4, "batch_size": 32}
    vae = VAEEmbedder(**settings, **FROM_THE_START, max_epochs=100, random_state=seed).fit(X_train)
    codes, named, test = (vae.transform(rows) for rows in (X_train, X_named, X_test))
    results = {"settings": settings | {"max_epochs": 100}, "active_units": vae.active_units_}
    results |= {"elbo": vae.score(X_test), "mse": reconstruction_error(vae, X_test)}
    for k in (10, 50):
        gmm = TorchGMM(k, tol=1e-6, max_iter=1000, n_init=5, random_state=seed).fit(codes)
        classifier = ClusterLabelClassifier(FrozenEstimator(gmm)).fit(named, y_named)
        results |= {f"accuracy_{k}": classifier.score(test, y_test)}
        results |= {f"v_measure_{k}": v_measure_score(y_test, gmm.predict(test)), f"converged_{k}": gmm.converged_}
    return results


def first_images(X, y):
    """The first image of each digit."""
    return X[[np.flatnonzero(y == digit)[0] for digit in range(10)]]


def noise_images(seed):
    """Ten images of uniform noise."""
    return np.random.default_rng(seed).uniform(size=(10, N_PIXELS)).astype(np.float32)


def run_kmeans(start, learning_rate=STEP):
    """(d): ten epochs of gradient steps from chosen centres, or from ten random images."""

    def run(seed):
        X, y, X_test, y_test = images()
        init = {"digits": first_images(X, y), "noise": noise_images(seed), "rows": "random"}[start]
        settings = {"learning_rate": learning_rate, "batch_size": 64, "max_iter": 10, "reassignment_ratio": 0.0}
        settings |= {"max_no_improvement": None, "n_init": 1}
        kmeans = TorchMiniBatchKMeans(10, init=init, **settings, random_state=seed).fit(X)
        results = cluster_scores(kmeans.cluster_centers_, X, y, X_test, y_test)
        if start != "rows":
            results["start"] = cluster_scores(init, X, y, X_test, y_test)
        return results | {"settings": settings}

    return run


def run_unlimited_steps(start):
    """(d): the same with steps that may go past the mean of a cluster, as plain gradient steps do, and may diverge."""

    def run(seed):
        X, y, X_test, y_test = images()
        init = {"digits": first_images(X, y), "noise": noise_images(seed)}[start]
        sampler, generator = DirectBatchSampler(WeightedRows(torch.from_numpy(X))), torch.Generator().manual_seed(seed)
        centers = sampler.centered(torch.from_numpy(init))
        settings = {"max_iter": 10, "batch_size": 64, "tol": 0.0, "max_no_improvement": None, "reassignment_ratio": 0.0}
        fit = fit_mini_batches(sampler, centers, generator, rates=unlimited, **settings)
        centers = (fit.centers + sampler.offset).numpy()
        scores = cluster_scores(centers, X, y, X_test, y_test) if np.isfinite(centers).all() else {"diverged": True}
        return scores | {"settings": settings}

    return run


def unlimited(masses, counts):
    """Rates of gradient steps on the mean squared distance."""
    return 2 * STEP * masses / masses.sum()


def cluster_scores(centers, X, y, X_test, y_test):
    """Mean squared error of test pixels against their centres, and how clusters and digits agree."""
    labels = pairwise_distances_argmin(X, centers)
    test, squares = pairwise_distances_argmin_min(X_test, centers, metric="sqeuclidean")
    return {
        "loss": float(squares.mean(dtype=float)) / N_PIXELS,
        "accuracy": clustering_accuracy_score(y_test, test),
        "v_measure": v_measure_score(y_test, test),
        "largest_share": float(np.bincount(test, minlength=10).max() / len(test)),
        "train_confusion": confusion_matrix(y, labels, labels=range(10)).tolist(),
    }


def run_autoencoder(settings):
    """(d): a convolutional autoencoder with ten codes."""

    def run(seed):
        X, _, X_test, _ = images()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = AutoencoderEmbedder(10, **settings, random_state=seed).fit(X)
        results = {"settings": settings, "mse": reconstruction_error(model, X_test)}
        results["cross_entropy"] = -model.score(X_test) / N_PIXELS
        results["code_sd"] = np.sqrt(np.diag(model.code_covariance_)).tolist()
        results["mse_of_mean_image"] = float(np.square(X_test - X.mean(0)).mean())
        return results | {"warnings": [str(warning.message) for warning in caught]}

    return run


def run_vae(**settings):
    """(e): ELBO and errors of a VAE, of reconstructions from mean codes and from codes drawn from the posterior."""

    def run(seed):
        X, _, X_test, _ = images()
        vae = VAEEmbedder(**settings, **FROM_THE_START, lr=1e-3, batch_size=128, random_state=seed).fit(X)
        model, generator = vae.module_, torch.Generator().manual_seed(seed)
        with torch.inference_mode():
            q = model.posterior(model.standardize(torch.from_numpy(X_test)))
            codes = model.prior.draw(q, torch.randn(q.mean.shape, generator=generator))
        drawn = vae.inverse_transform(codes.numpy())
        results = {"elbo": vae.score(X_test), "log_likelihood": float(vae.log_likelihood(X_test[:2000], 200).mean())}
        results |= {"mse": reconstruction_error(vae, X_test), "mse_of_draws": float(np.square(drawn - X_test).mean())}
        kept = {name: getattr(value, "__name__", value) for name, value in settings.items()}
        return results | {"settings": kept}

    return run


def run_ppca(seed):
    """(e): the linear model."""
    X, _, X_test, _ = images()
    ppca = TorchPPCA(2).fit(X)
    return density_scores(ppca, X_test, ppca.inverse_transform(ppca.transform(X_test)))


def run_mixture(scale=1, **settings):
    """(e): a mixture of ten Gaussians; a reconstruction is the mean of the means under the responsibilities."""

    def run(seed):
        X, _, X_test, _ = images()
        gmm = TorchGMM(10, **settings, random_state=seed).fit(X * np.float32(scale))
        X_test = X_test * np.float32(scale)
        results = density_scores(gmm, X_test, gmm.predict_proba(X_test) @ gmm.means_, scale)
        shown = {"settings": settings | {"scale": scale}}
        return results | shown | {"n_iter": gmm.n_iter_, "converged": gmm.converged_}

    return run


def density_scores(model, X_test, reconstructed, scale=1):
    """Mean log-density of a test image for pixels in [0, 1] and for pixels in [0, 255], median, and squared error."""
    densities = model.score_samples(X_test).astype(float) + N_PIXELS * np.log(scale)
    return {
        "log_likelihood": densities.mean(),
        "log_likelihood_255": densities.mean() - N_PIXELS * np.log(255),
        "median_log_likelihood": float(np.median(densities)),
        "mse": float(np.square((reconstructed - X_test) / scale, dtype=float).mean()),
    }


MLP = {"n_components": 2, "hidden_layer_sizes": (512, 256), "max_epochs": 25}
CONV_VAE = {"n_components": 2, **CONV, "max_epochs": 25}
# Function of each row and its reported scores.
ROWS = {
    "a, tanh vae and mixture": (run_three_digits, {"accuracy": 0.97}),
    "b, relu vae and mixture": (run_relu, {}),
    "d, k-means, an image of each digit": (run_kmeans("digits"), {"loss": 0.087}),
    "d, k-means by running means, an image of each digit": (run_kmeans("digits", "counts"), {"loss": 0.087}),
    "d, k-means, noise": (run_kmeans("noise"), {"loss": 0.21}),
    "d, k-means, random images": (run_kmeans("rows"), {"loss": 0.21}),
    "d, unlimited steps, an image of each digit": (run_unlimited_steps("digits"), {"loss": 0.087}),
    "d, unlimited steps, noise": (run_unlimited_steps("noise"), {"loss": 0.21}),
    "d, autoencoder, conv": (run_autoencoder(CONV | {"max_epochs": 10, "batch_size": 64}), {"mse": 0.069}),
    "d, autoencoder, wide": (run_autoencoder(WIDE_CONV | {"lr": 0.05, "weight_decay": 1e-4}), {"mse": 0.068}),
    "e, mlp vae": (run_vae(**MLP), {"elbo": -142.81, "mse": 0.0375}),
    "e, conv vae": (run_vae(**CONV_VAE), {"elbo": -156.82, "mse": 0.0443}),
    "e, mlp vae, gaussian": (run_vae(**MLP, likelihood=PixelGaussian), {}),
    "e, mlp vae, continuous bernoulli": (run_vae(**MLP, likelihood="continuous_bernoulli"), {}),
    "e, ppca": (run_ppca, {"log_likelihood_255": -4329.7, "mse": 3629 / 255**2}),
    "e, mixture, spherical": (run_mixture(covariance_type="spherical"), {}),
    "e, mixture, full": (
        run_mixture(255, covariance_type="full", max_iter=20),
        {"log_likelihood_255": -1.07e7, "mse": 3832 / 255**2},
    ),
    "e, mixture, full, regularised": (run_mixture(covariance_type="full", reg_covar=0.01, max_iter=20), {}),
}


def line(record):
    """Format the scores of a run and those reported."""
    shown = ("accuracy", "accuracy_10", "accuracy_50", "v_measure", "loss", "elbo", "log_likelihood", "mse", "ssim")
    cells = [f"{record['row']:52}{record['seed']:5}{record['minutes']:8.1f}{record['cpu_minutes']:6.1f}  "]
    for score in (*shown, *(set(record["reported"]) - set(shown))):
        if score in record:
            reported = f" ({record['reported'][score]:.5g})" if score in record["reported"] else ""
            cells.append(f"{score} {record[score]:.5g}{reported}")
    return "  ".join(cells)


def main():
    """Make the requested runs, and print the table of all recorded runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="", help="only rows whose name contains this; 'none' prints the table alone")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/studies.jsonl"), help="of the records")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with threadpool_limits(args.threads):
        for name, (run, reported) in ROWS.items():
            for seed in range(args.seeds if args.rows in name else 0):
                record = environment(args.threads, "scikit-image") | {"row": name, "seed": seed, "reported": reported}
                started = np.array([time.perf_counter(), time.process_time()])
                record |= run(seed)
                minutes = (np.array([time.perf_counter(), time.process_time()]) - started) / 60
                record |= dict(zip(("minutes", "cpu_minutes"), minutes.tolist(), strict=True))
                write_run(args.output, record)
                print(line(record), flush=True)
    print(f"\n{'row':52}{'seed':>5}{'min':>8}{'cpu':>6}    score (reported)")
    for runs in read_runs(args.output).values():
        print(*map(line, runs.values()), sep="\n")


if __name__ == "__main__":
    main()
