"""
Density models compared on one scale
====================================

This example repeats a study of MNIST. It compares variational autoencoders with two latent dimensions (perceptrons,
convolutions), probabilistic PCA and a Gaussian mixture by log-likelihoods and reconstruction errors of test images. The
results of the study were on three scales; here they are converted to two, and models are compared on the same scale.
Without MNIST (in the folder ``SKVAE_DATA_HOME``, or downloaded by ``--data mnist``) the images are scikit-learn's
digits.
"""

# %%
# Scales of the log-likelihood
# ----------------------------
# With a Bernoulli likelihood on grey values, the evidence lower bound (ELBO) is a bound on a cross-entropy, which is
# not a density over [0, 1] and cannot be compared with one. PPCA and Gaussian mixtures are densities of continuous
# pixels, and so is a VAE with a Gaussian likelihood with one noise scale for all pixels, of which PPCA is the linear
# case. Densities depend on units: for pixels in [0, 255], the log-density of 784 pixels is 784 log 255 = 4344.4 nats
# lower than for pixels in [0, 1], which converts the reported -4329.7 of PPCA to 14.7.

import argparse
import json
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from skvae import TorchGMM, TorchPPCA, VAEEmbedder
from skvae.datasets import fetch_mnist
from skvae.displays import LatentSpaceDisplay, ManifoldDisplay
from skvae.metrics import reconstruction_error
from skvae.models.likelihoods import Gaussian

parser = argparse.ArgumentParser(description="Density models compared on one scale.")
parser.add_argument("--data", choices=["auto", "mnist", "digits"], default="auto")
parser.add_argument("--epochs", type=int)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--output", help="folder for the figures")
args, _ = parser.parse_known_args()

has_mnist = (Path(os.environ.get("SKVAE_DATA_HOME", "")) / "mnist.npz").is_file()
if args.data == "mnist" or (args.data == "auto" and has_mnist):
    X, y = fetch_mnist(return_X_y=True)
    X, image_shape, epochs, n_grid = (X / 255).astype("float32"), (28, 28), args.epochs or 5, 15
    X_train, X_test, y_test = X[:60_000], X[60_000:], y[60_000:]
else:
    X, y = load_digits(return_X_y=True)
    X, image_shape, epochs, n_grid = X / 16, (8, 8), args.epochs or 100, 10
    X_train, X_test, _, y_test = train_test_split(X, y, test_size=0.25, stratify=y, random_state=args.seed)

# %%
# Reported and recorded results
# -----------------------------
# The recorded results have the settings of the study: 60,000 images, 25 epochs. Scores of all rows except the first two
# are mean log-densities of pixels in [0, 1] (ELBO for the VAEs). Errors are those of pixels in [0, 1].

print(f"{'MNIST':36}{'score':>10}{'reported':>10}{'error':>9}{'reported':>10}{'minutes':>9}")
paths = [folder / "benchmarks/results/studies.jsonl" for folder in (Path.cwd(), *Path.cwd().parents)]
records = [json.loads(line) for path in paths if path.is_file() for line in path.read_text().splitlines()]
for record in (record for record in records if record["row"].startswith("e, ")):
    reported = record["reported"]
    score = reported.get("elbo", reported.get("log_likelihood_255", np.nan) + 784 * np.log(255))
    ours = f"{record.get('elbo', record.get('log_likelihood')):10.2f}{score:10.2f}"
    errors = f"{record['mse']:9.4f}{reported.get('mse', np.nan):10.4f}"
    print(f"{record['row'].removeprefix('e, '):36}{ours}{errors}{record['minutes']:9.1f}".replace("nan", "  -"))

# %%
# Models
# ------
# A likelihood can be a class. This one has the same noise scale for all pixels, like PPCA. The noise scale of
# ``likelihood="gaussian"`` is proportional to the standard deviation of each pixel, which is close to zero at the
# border of MNIST.


class PixelGaussian(Gaussian):
    """One learned noise scale for all pixels, in their own units."""

    @classmethod
    def from_data(cls, summary):
        """Return a likelihood of centred, unscaled pixels."""
        return cls(summary.mean, torch.ones_like(summary.scale))


training = {"max_epochs": epochs, "lr": 1e-3, "batch_size": 128, "random_state": args.seed}
training |= {"kl_warmup_epochs": 0, "latent_norm_epochs": 0}  # the ELBO from the first epoch
models = {
    "VAE, perceptrons": VAEEmbedder(2, hidden_layer_sizes=(512, 256), **training),
    "VAE, convolutions": VAEEmbedder(2, image_shape=image_shape, channels=(16, 32), **training),
    "VAE, perceptrons, Gaussian": VAEEmbedder(2, hidden_layer_sizes=(512, 256), likelihood=PixelGaussian, **training),
    "PPCA": TorchPPCA(2),
    "Gaussian mixture": TorchGMM(10, covariance_type="spherical", random_state=args.seed),
}
print(f"\n{f'this run, {len(X_train)} images, {epochs} epochs':44}{'score':>10}{'error':>9}")
for name, model in models.items():
    model.fit(X_train)
    if isinstance(model, TorchGMM):  # the reconstruction is the expected mean given the sample
        error = np.square(model.predict_proba(X_test) @ model.means_ - X_test).mean()
    else:
        error = reconstruction_error(model, X_test)
    scale = "cross-entropy" if getattr(model, "likelihood_", "") == "bernoulli" else "log-density"
    print(f"{name:28}{scale:16}{model.score(X_test):10.2f}{error:9.4f}")

# %%
# Latent codes and decoded images
# -------------------------------
# Top: latent codes of test images by digit. Bottom: images decoded from a grid with equal prior probability. Images of
# PPCA are the mean image plus multiples of two principal axes.

embedders = {name: models[name] for name in ("VAE, perceptrons", "VAE, convolutions", "PPCA")}
figure, axes = plt.subplots(2, 3, figsize=(13.5, 8.6), layout="constrained")
for (name, model), (above, below) in zip(embedders.items(), axes.T, strict=True):
    LatentSpaceDisplay.from_predictions(model.transform(X_test[:3_000]), y_test[:3_000], ax=above)
    above.set(title=name, xlabel="", ylabel="")
    if above is not axes[0, -1]:
        above.get_legend().remove()
    ManifoldDisplay.from_estimator(model, n_grid=n_grid, image_shape=image_shape, ax=below)

# %%
# Reconstructions
# ---------------
# As in the study, images are decoded from posterior draws. Posterior means have slightly lower errors.

shown = X_test[:12]
generator = torch.Generator().manual_seed(args.seed)
rows = {"test images": shown}
for name, model in embedders.items():
    codes = model.transform(shown)
    if isinstance(model, VAEEmbedder):
        with torch.inference_mode():
            q = model.module_.posterior(model.module_.standardize(torch.as_tensor(shown)))
            codes = model.module_.prior.draw(q, torch.randn(q.mean.shape, generator=generator)).numpy()
    rows[name] = model.inverse_transform(codes)
images = np.stack(list(rows.values())).reshape(len(rows), len(shown), *image_shape)
images = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=np.nan)  # empty borders
_, _, height, width = images.shape
figure, ax = plt.subplots(figsize=(12, 4.2), layout="constrained")
ax.imshow(images.transpose(0, 2, 1, 3).reshape(len(rows) * height, -1), cmap="gray_r", vmin=0, vmax=1)
ax.set(xticks=[], yticks=height * (np.arange(len(rows)) + 0.5), yticklabels=rows)
ax.tick_params(length=0)
ax.spines[:].set_visible(False)

if args.output:
    for number in plt.get_fignums():
        plt.figure(number).savefig(Path(args.output) / f"study_densities_{number}.png", dpi=80)
