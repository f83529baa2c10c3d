"""Time of a training epoch of VAEEmbedder compared with other trainers of the same networks.

    python benchmarks/vae.py --threads 1 --repeats 5 --output benchmarks/results/vae.json

All train the same architecture on the same images with the same batch size, optimizer, learning rate, number of steps
and precision: a plain PyTorch loop (DataLoader, sigmoid outputs, default Adam, the loss read in every batch), skorch
with its defaults, and pythae. An epoch is the difference between a fit of many epochs and one of few, divided by the
difference of their numbers: for ours, of `fit` itself. Fits take turns in one process with one number of threads; a
ratio is the other's time over ours in a repeat, and the median over repeats is shown with the lowest and highest.
"ELBO" is that of held-out images after the longer fit, mean and standard deviation over repeats, which have different
seeds; all are scored by the same formula. "whole" is an epoch's share of the longer fit, validation and attributes
included; the "bare" step is forward, loss, backward and fused Adam on prepared batches, and "beside" the share of
our fit that is anything else.

The images are MNIST, if the environment variable SKVAE_DATA_HOME names a folder that has it, otherwise random ones of
the same shape. A package that is not installed, or fails, is named with the reason: ``pip install pythae`` (a separate
environment is best).
"""

import argparse
import contextlib
import copy
import io
import logging
import os
import statistics
import tempfile
import time
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from record import environment, write_record
from skorch import NeuralNet
from threadpoolctl import threadpool_limits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from skvae import VAEEmbedder
from skvae.datasets import fetch_mnist
from skvae.fitting.evaluation import normal_points

BATCH_SIZE, LR = 128, 1e-3
N_SCORED = 2_000  # test images whose ELBO shows whether the work was equal
N_POINTS = 16  # at which the expectation over codes is taken for a score
ARCHITECTURES = {
    "mlp 784-400-196-48-16-2": {
        "n_components": 2,
        "hidden_layer_sizes": (400, 196, 48, 16),
        "activation": "tanh",
        "batch_norm": True,
    },
    "mlp 784-500-500-2000-10": {"n_components": 10, "hidden_layer_sizes": (500, 500, 2000)},
    "conv 16-32-2": {"n_components": 2, "image_shape": (28, 28), "channels": (16, 32)},
}


def load_images(n_images=None):
    """Return training and test images, float32 rows in [0, 1], and their name."""
    home = os.environ.get("SKVAE_DATA_HOME")
    if home and (Path(home) / "mnist.npz").is_file():
        X, name = fetch_mnist(data_home=home).data.astype(np.float32) / 255, "MNIST"
    else:
        rng = np.random.default_rng(0)
        X = rng.normal(size=(70_000, 5)).astype(np.float32) @ rng.normal(size=(5, 784)).astype(np.float32)
        X, name = X.clip(0, 1), "random images"
    return X[: min(n_images or 60_000, 60_000)], X[60_000:], name


class PlainVAE(nn.Module):
    """A variational autoencoder with Bernoulli pixels, as it is usually written."""

    def __init__(self, n_components, hidden_layer_sizes=(), activation="relu", batch_norm=False, **images):
        super().__init__()
        make = plain_conv if images else plain_mlp
        settings = images or {"hidden_layer_sizes": hidden_layer_sizes, "batch_norm": batch_norm}
        function = {"relu": nn.ReLU, "tanh": nn.Tanh}[activation]
        self.encoder, width, self.decoder = make(n_components, function, **settings)
        self.mean = nn.Linear(width, n_components)
        self.log_variance = nn.Linear(width, n_components)

    def forward(self, x):
        """Pixels, mean and log-variance of the codes."""
        hidden = self.encoder(x)
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        return self.decoder(z), mean, log_variance


def plain_mlp(n_components, function, hidden_layer_sizes, batch_norm):
    """Hidden layers of the encoder, their last width, and the decoder."""

    def layers(sizes):
        for before, after in pairwise(sizes):
            yield from (nn.Linear(before, after), *([nn.BatchNorm1d(after)] if batch_norm else []), function())

    sizes = (784, *hidden_layer_sizes)
    last = [nn.Linear(sizes[1], 784), nn.Sigmoid()]
    return nn.Sequential(*layers(sizes)), sizes[-1], nn.Sequential(*layers((n_components, *sizes[:0:-1])), *last)


def plain_conv(n_components, function, channels, image_shape):
    """The same with convolutions of stride 2."""
    first, second = channels
    encoder = [nn.Unflatten(1, (1, *image_shape)), nn.Conv2d(1, first, 3, stride=2, padding=1), function()]
    encoder += [nn.Conv2d(first, second, 3, stride=2, padding=1), function(), nn.Flatten()]
    decoder = [nn.Linear(n_components, second * 49), function(), nn.Unflatten(1, (second, 7, 7))]
    decoder += [nn.ConvTranspose2d(second, first, 3, stride=2, padding=1, output_padding=1), function()]
    decoder += [nn.ConvTranspose2d(first, 1, 3, stride=2, padding=1, output_padding=1), nn.Sigmoid(), nn.Flatten()]
    return nn.Sequential(*encoder), second * 49, nn.Sequential(*decoder)


class PlainLoss(nn.Module):
    """Minus the evidence lower bound, in the mean over a batch."""

    def forward(self, outputs, x):
        """Return the loss of the outputs for the images x."""
        pixels, mean, log_variance = outputs
        kl = -0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp())
        return (F.binary_cross_entropy(pixels, x, reduction="sum") + kl) / len(x)


@torch.inference_mode()
def plain_scores(model, X):
    """ELBO of each row at the points that `VAEEmbedder.score_samples` uses, and reconstructions from mean codes."""
    model, elbo, decoded = copy.deepcopy(model).eval(), [], []
    points = normal_points(N_POINTS, model.mean.out_features).float()
    for x in torch.from_numpy(X).split(1000):
        hidden = model.encoder(x)
        mean, log_variance = model.mean(hidden), model.log_variance(hidden)
        kl = -0.5 * (1 + log_variance - mean.pow(2) - log_variance.exp()).sum(1)
        log_likelihood = torch.zeros_like(kl)
        for point in points:
            pixels = model.decoder(mean + torch.exp(0.5 * log_variance) * point)
            log_likelihood -= F.binary_cross_entropy(pixels, x, reduction="none").sum(1) / N_POINTS
        elbo.append(log_likelihood - kl)
        decoded.append(model.decoder(mean))
    return torch.cat(elbo).numpy(), torch.cat(decoded).numpy()


def train_skvae(X, architecture, epochs, seed):
    """Ours, through `fit`, from the first epoch with the loss of the others."""
    settings = architecture | {"kl_warmup_epochs": 0, "latent_norm_epochs": 0}
    return VAEEmbedder(**settings, batch_size=BATCH_SIZE, lr=LR, max_epochs=epochs, random_state=seed).fit(X)


def train_plain(X, architecture, epochs, seed):
    """A plain PyTorch loop."""
    torch.manual_seed(seed)
    model, criterion = PlainVAE(**architecture), PlainLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    loader = DataLoader(TensorDataset(torch.from_numpy(X)), batch_size=BATCH_SIZE, shuffle=True)
    model.train()
    for _ in range(epochs):
        total = 0.0
        for (x,) in loader:
            optimizer.zero_grad()
            loss = criterion(model(x), x)
            loss.backward()
            optimizer.step()
            total += loss.item()
    return model


def train_skorch(X, architecture, epochs, seed):
    """The package skorch with its defaults, apart from the rows that it would hold out."""
    torch.manual_seed(seed)
    settings = {f"module__{name}": value for name, value in architecture.items()}
    settings |= {"optimizer": torch.optim.Adam, "lr": LR, "batch_size": BATCH_SIZE, "max_epochs": epochs, "verbose": 0}
    net = NeuralNet(PlainVAE, criterion=PlainLoss, train_split=None, iterator_train__shuffle=True, **settings)
    return net.fit(X, X).module_


def train_pythae(X, architecture, epochs, seed):
    """The package pythae with the same networks."""
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.pipelines import TrainingPipeline
    from pythae.trainers import BaseTrainerConfig

    class Encoder(BaseEncoder):
        def __init__(self, parts):
            super().__init__()
            self.body, self.mean, self.log_variance = parts.encoder, parts.mean, parts.log_variance

        def forward(self, x):
            hidden = self.body(x)
            return ModelOutput(embedding=self.mean(hidden), log_covariance=self.log_variance(hidden))

    class Decoder(BaseDecoder):
        def __init__(self, parts):
            super().__init__()
            self.body = parts.decoder

        def forward(self, z):
            return ModelOutput(reconstruction=self.body(z))

    torch.manual_seed(seed)
    parts = PlainVAE(**architecture)
    settings = VAEConfig(input_dim=(784,), latent_dim=architecture["n_components"], reconstruction_loss="bce")
    vae = VAE(settings, encoder=Encoder(parts), decoder=Decoder(parts))
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        sizes = {"per_device_train_batch_size": BATCH_SIZE, "num_epochs": epochs, "learning_rate": LR}
        trainer = BaseTrainerConfig(output_dir=folder, seed=seed, no_cuda=True, optimizer_cls="Adam", **sizes)
        TrainingPipeline(model=vae, training_config=trainer)(train_data=X)
    return parts


TRAINERS = {"skvae": train_skvae, "plain loop": train_plain, "skorch": train_skorch, "pythae": train_pythae}


def mean_elbo(trained, X):
    """Mean over rows of the evidence lower bound."""
    return float((trained.score_samples(X) if isinstance(trained, VAEEmbedder) else plain_scores(trained, X)[0]).mean())


def seconds_of_fits(train, X, architecture, epochs, seed):
    """Seconds of an epoch, seconds of the longer fit by epoch, and what it trained."""
    times = []
    for n_epochs in epochs:
        started = time.perf_counter()
        trained = train(X, architecture, n_epochs, seed)
        times.append(time.perf_counter() - started)
    return (times[1] - times[0]) / (epochs[1] - epochs[0]), times[1] / epochs[1], trained


def bare_seconds(vae, X):
    """Seconds of an epoch's gradient steps, with prepared batches and noise."""
    model, rows = copy.deepcopy(vae.module_).train(), torch.from_numpy(X).split(BATCH_SIZE)
    noise = torch.randn(BATCH_SIZE, vae.n_components, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=LR, fused=True)
    started = time.perf_counter()
    for u in rows:
        optimizer.zero_grad()
        loss = -model(u, noise[: len(u)]).value.mean()
        loss.backward()
        optimizer.step()
    return time.perf_counter() - started


def compare(architecture, images, epochs, repeats, trainers):
    """Interleaved measurements of trainers on one architecture."""
    X, X_test, _ = images
    results, failed, bare = {}, {}, []
    for seed in range(repeats):
        for name, train in trainers.items():
            if name in failed:
                continue
            try:
                *seconds, trained = seconds_of_fits(train, X, architecture, epochs, seed)
            except Exception as error:  # an error of another package is its result
                failed[name] = f"{type(error).__name__}: {error}".splitlines()[0][:100]
                continue
            results.setdefault(name, []).append((*seconds, mean_elbo(trained, X_test[:N_SCORED])))
            if name == "skvae":
                bare.append(bare_seconds(trained, X))
    if "skvae" in failed:
        raise RuntimeError(failed["skvae"])
    rows = {name: summary(runs, results["skvae"]) for name, runs in results.items() if name not in failed}
    beside = [1 - bare_run / whole for bare_run, (_, whole, _) in zip(bare, results["skvae"], strict=True)]
    rows["skvae"] |= {"bare_step": statistics.median(bare), "beside": statistics.median(beside)}
    return rows | {name: {"failed": reason} for name, reason in failed.items()}


def summary(runs, ours):
    """Medians over repeats, ratios to ours, and the evidence lower bounds."""
    seconds, whole, elbo = zip(*runs, strict=True)
    row = {"seconds": statistics.median(seconds), "whole": statistics.median(whole), "elbo": statistics.mean(elbo)}
    row["elbo_sd"] = statistics.stdev(elbo) if len(elbo) > 1 else None
    for name, column in (("ratio", 0), ("whole_ratio", 1)):
        ratios = sorted(run[column] / our[column] for run, our in zip(runs, ours, strict=True))
        row |= {name: statistics.median(ratios), f"{name}_lowest": ratios[0], f"{name}_highest": ratios[-1]}
    return row | {"runs": [list(run) for run in runs]}


def show(work, rows):
    """Print the lines of one architecture."""
    for name, row in rows.items():
        if "failed" in row:
            print(f"{work:26}{name:12}{row['failed']}", flush=True)
            continue
        spread = f"{row['ratio_lowest']:.2f}-{row['ratio_highest']:.2f}"
        elbo = f"{row['elbo']:.2f}" + (f" ({row['elbo_sd']:.2f})" if row["elbo_sd"] is not None else "")
        bare = f"{row['bare_step']:9.2f}{row['beside']:9.1%}" if "bare_step" in row else ""
        times = f"{row['seconds']:9.2f}{row['ratio']:8.2f}{spread:>12}{row['whole']:9.2f}{row['whole_ratio']:8.2f}"
        print(f"{work:26}{name:12}{times}{elbo:>17}{bare}", flush=True)


def main():
    """Run the comparison and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", help="only architectures whose name contains this")
    parser.add_argument("--images", type=int, default=60_000, help="how many training images")
    parser.add_argument("--epochs", type=int, nargs=2, default=(1, 3), help="of the shorter and the longer fit")
    parser.add_argument("--peers", nargs="*", default=[*TRAINERS][1:], choices=[*TRAINERS][1:], help="besides ours")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(args.threads)
    images, trainers = load_images(args.images), {name: TRAINERS[name] for name in ("skvae", *args.peers)}
    record = environment(args.threads, "pythae") | {"images": images[2], "n_images": len(images[0])}
    record |= {"repeats": args.repeats, "epochs": list(args.epochs), "rows": {}}
    head = (
        f"{'epoch s':>9}{'ratio':>8}{'range':>12}{'whole s':>9}{'ratio':>8}{'ELBO (sd)':>17}{'bare s':>9}{'beside':>9}"
    )
    print(f"{len(images[0])} training images: {images[2]}\n{'architecture':26}{'trainer':12}{head}")
    with threadpool_limits(args.threads):
        train_skvae(images[0][:2000], {"n_components": 2}, 1, 0)  # warm up
        for work, architecture in ARCHITECTURES.items():
            if args.rows and args.rows not in work:
                continue
            record["rows"][work] = compare(architecture, images, args.epochs, args.repeats, trainers)
            show(work, record["rows"][work])
            write_record(args.output, record)


if __name__ == "__main__":
    main()
