"""Batches in their order of arrival with `partial_fit`, compared with `fit` to all rows.

    SKVAE_DATA_HOME=... python benchmarks/partial_fit.py --output benchmarks/results/partial_fit.json

The 60,000 training images of MNIST come in their original order, 1,000 at a time, or as many as the name of a row says;
each batch is seen once in a pass.
The mixture has full covariances and works on the images' 32 first principal components, k-means on the pixels from 0 to
1, and the VAE is a perceptron with 10 latent dimensions, whose `fit` makes as many epochs as the stream makes passes.

Scores are those of the 10,000 test images: the mean log-likelihood, the evidence lower bound, and minus the mean
squared distance to the nearest centre. "gap" is the score of `fit` less that of the stream, relative to the size of the
score of `fit`: the median over seeds, with the lowest and highest. Both sides have the same seeds.
"""

import argparse
import statistics
import warnings
from pathlib import Path

import numpy as np
import torch
from record import environment, read_record, write_record

from skvae import TorchGMM, TorchMiniBatchKMeans, TorchPPCA, VAEEmbedder
from skvae.datasets import fetch_mnist

BATCH, AXES = 1000, 32
NETWORK = {"hidden_layer_sizes": (512, 256), "likelihood": "bernoulli", "batch_size": 128}


def images():
    """Training and test images in their original order, float32 from 0 to 1."""
    return tuple(fetch_mnist(subset=part).data.astype(np.float32) / 255 for part in ("train", "test"))


def codes():
    """The first principal components of both."""
    train, test = images()
    ppca = TorchPPCA(AXES).fit(train)
    return tuple(ppca.transform(X).astype(np.float64) for X in (train, test))


def mixture(k, seed, n_passes):
    """Return a mixture."""
    return TorchGMM(k, random_state=seed)


def kmeans(k, seed, n_passes):
    """Return mini-batch k-means."""
    return TorchMiniBatchKMeans(k, random_state=seed)


def vae(k, seed, n_passes):
    """Return a VAE, with an epoch for each pass."""
    whole = {"kl_warmup_epochs": 0, "latent_norm_epochs": 0}  # as a stream has it
    return VAEEmbedder(k, **NETWORK, **whole, max_epochs=n_passes, random_state=seed)


def score(results, X):
    """Return the mean score of the rows; higher is better."""
    return results.score(X) / (len(X) if isinstance(results, TorchMiniBatchKMeans) else 1)


WORKS = {
    "TorchGMM, 10 components": (codes, mixture, 10, (1, 3, 10), BATCH),
    "TorchGMM, 10 components, 250 rows": (codes, mixture, 10, (1, 3, 10), 250),
    "TorchGMM, 50 components": (codes, mixture, 50, (1, 3, 10), BATCH),
    "TorchGMM, 50 components, 5,000 rows": (codes, mixture, 50, (1, 3, 10), 5000),
    "TorchMiniBatchKMeans, 10 clusters": (images, kmeans, 10, (1, 3), BATCH),
    "TorchMiniBatchKMeans, 100 clusters": (images, kmeans, 100, (1, 3), BATCH),
    "VAEEmbedder, 10 latents": (images, vae, 10, (1, 5), BATCH),
}


def scores(make, k, data, n_passes, batch, seed):
    """Score of `fit`, and of the stream after each number of passes."""
    X, X_test = data
    fitted = {n: make(k, seed, n).fit(X) for n in (n_passes if make is vae else n_passes[:1])}
    streamed, results = make(k, seed, 1), {}
    for n in range(1, max(n_passes) + 1):
        streamed.partial_fit(X[start : start + batch] for start in range(0, len(X), batch))
        if n in n_passes:
            whole = fitted.get(n, fitted[n_passes[0]])
            results[n] = {"fit": score(whole, X_test), "stream": score(streamed, X_test)}
    return results


def summary(runs):
    """Means of the scores, and the gap."""
    gaps = sorted((run["fit"] - run["stream"]) / abs(run["fit"]) for run in runs)
    results = {side: statistics.mean(run[side] for run in runs) for side in ("fit", "stream")}
    return results | {"gap": statistics.median(gaps), "lowest": gaps[0], "highest": gaps[-1], "runs": runs}


def main():
    """Measure all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--works", nargs="*", default=[*WORKS], choices=[*WORKS])
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    record = environment(args.threads) | {"batch": BATCH, "seeds": args.seeds, "works": {}}
    record["works"] |= read_record(args.output).get("works", {})  # works that are left out are kept
    print(f"{'estimator':36}{'passes':>7}{'fit':>11}{'stream':>11}{'gap':>24}")
    for name in args.works:
        load, make, k, n_passes, batch = WORKS[name]
        data = load()
        runs = [scores(make, k, data, n_passes, batch, seed) for seed in range(args.seeds)]
        record["works"][name] = {n: summary([run[n] for run in runs]) for n in n_passes}
        for n, row in record["works"][name].items():
            gap = "{gap:.2%} ({lowest:.2%} to {highest:.2%})".format(**row)
            print(f"{name:36}{n:>7}{row['fit']:>11.3f}{row['stream']:>11.3f}{gap:>28}", flush=True)
        write_record(args.output, record)


if __name__ == "__main__":
    main()
