"""
Latent space of a variational autoencoder
=========================================

This example fits two variational autoencoders to handwritten digits, with two and with ten latent dimensions. It plots
latent codes, decoded images, reconstructions and training curves. The labels are used only to colour the points.
"""

# %%
# Fit
# ---
# Convolutions need the shape of the images. Early stopping holds out a tenth of the images.

import argparse

import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import norm
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from skvae import VAEEmbedder
from skvae.displays import LatentSpaceDisplay, ReconstructionDisplay

parser = argparse.ArgumentParser(description="Latent space of a variational autoencoder.")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--output", default="autoencoders.png", help="where to save the figure")
args, _ = parser.parse_known_args()

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X / 16, y, stratify=y, random_state=args.seed)
plane = VAEEmbedder(2, batch_norm=True, max_epochs=200, random_state=args.seed)
plane.fit(X_train, X_val=X_test)
wide = VAEEmbedder(10, image_shape=(8, 8), early_stopping=True, max_epochs=200, random_state=args.seed)
wide.fit(X_train)
print(f"ELBO of held-out images: {plane.score(X_test):.2f} nats with 2 dimensions, {wide.score(X_test):.2f} with 10")
bounds = [vae.log_likelihood(X_test, 100).mean() for vae in (plane, wide)]
print(f"importance-weighted: {bounds[0]:.2f} and {bounds[1]:.2f}")
print(f"{wide.active_units_} of 10 dimensions are in use; training stopped after {wide.n_iter_} epochs")

# %%
# Latent codes, decoded images and training curves
# ------------------------------------------------
# The points of the grid have equal prior probability. ``history_`` has both terms of the evidence lower bound (ELBO).
# ``kl_per_dimension_`` shows which dimensions carry information.

fig, axes = plt.subplots(2, 3, figsize=(13, 8), layout="constrained")
LatentSpaceDisplay.from_predictions(plane.transform(X_test), y_test, ax=axes[0, 0])
axes[0, 0].set_title("Latent codes of held-out images, by label")

quantiles = norm.ppf(np.linspace(0.03, 0.97, 12))
grid = np.stack(np.meshgrid(quantiles, quantiles[::-1]), -1).reshape(-1, 2)
images = plane.inverse_transform(grid).reshape(12, 12, 8, 8).transpose(0, 2, 1, 3).reshape(96, 96)
axes[0, 1].imshow(images, cmap="gray_r", extent=(0.03, 0.97, 0.03, 0.97))
axes[0, 1].set(title="Decoded plane", xlabel="quantile of dimension 1", ylabel="quantile of dimension 2")

ReconstructionDisplay.from_estimator(wide, X_test[:8], image_shape=(8, 8), ax=axes[0, 2])
axes[0, 2].set_title("Reconstructions, 10 dimensions")

epochs = [row["epoch"] for row in plane.history_]
axes[1, 0].plot(epochs, [row["train_loss"] for row in plane.history_], label="training")
axes[1, 0].plot(epochs, [row["valid_loss"] for row in plane.history_], label="held out")
axes[1, 0].set(title="Loss by epoch, 2 dimensions", xlabel="epoch", ylabel="nats", ylim=(None, plane.loss_curve_[4]))
axes[1, 0].legend()
axes[1, 1].plot(epochs, [-row["train_log_likelihood"] for row in plane.history_], label="reconstruction")
axes[1, 1].plot(epochs, [row["train_kl"] for row in plane.history_], label="KL")
axes[1, 1].set(title="Terms of the ELBO, 2 dimensions", xlabel="epoch", ylabel="nats", yscale="log")
axes[1, 1].legend()
axes[1, 2].bar(range(10), np.sort(wide.kl_per_dimension_)[::-1])
axes[1, 2].set(title="KL of each of 10 dimensions, sorted", xlabel="dimension", ylabel="nats", xticks=range(10))
fig.savefig(args.output, dpi=80)
print(f"figure: {args.output}")
