"""
Deep clustering of handwritten digits
=====================================

VaDE is a variational autoencoder whose prior is a Gaussian mixture: the embedding and the clusters are learned under
one bound. Clusters are found in the training images without labels; the labels of held-out images only score.
"""

# %%
# Fit and score
# -------------
# A callback of skorch keeps codes on the way. k-means and a Gaussian mixture see the pixels.

import argparse

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.metrics import ConfusionMatrixDisplay, v_measure_score
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import train_test_split
from skorch.callbacks import Callback

from skvae import VaDEClusterer
from skvae.displays import LatentSpaceDisplay
from skvae.metrics import clustering_accuracy_score, matched_confusion_matrix

parser = argparse.ArgumentParser(description="Cluster digits with VaDE.")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--output", default="vade.png", help="where to save the figure")
args, _ = parser.parse_known_args()

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X / 16, y, stratify=y, random_state=args.seed)
snapshots = {}


class Snapshots(Callback):
    """Keep the codes of held-out images, and the mixture, of some epochs."""

    def on_epoch_end(self, net, **kwargs):
        """Look at the model."""
        model, epoch = net.module_.eval(), len(net.history)
        if epoch in (1, 10, 100):
            with torch.inference_mode():
                codes = model.posterior(model.standardize(torch.from_numpy(X_test))).mean
            mixture = model.prior.mixture
            snapshots[epoch] = [part.detach().numpy() for part in (codes, mixture.means, mixture.covariances)]


vade = VaDEClusterer(10, image_shape=(8, 8), augment=None, callbacks=[Snapshots()], random_state=args.seed)
vade.fit(X_train)
clusterers = {
    "VaDE": vade,
    "Gaussian mixture on pixels": GaussianMixture(10, reg_covar=1e-3, n_init=3, random_state=args.seed).fit(X_train),
    "k-means on pixels": KMeans(10, n_init=10, random_state=args.seed).fit(X_train),
}
print(f"{'':28}{'V-measure':>10}{'accuracy':>10}")
for name, clusterer in clusterers.items():
    found = clusterer.predict(X_test)
    print(f"{name:28}{v_measure_score(y_test, found):10.3f}{clustering_accuracy_score(y_test, found):10.3f}")
print(f"\n{vade.n_effective_clusters_:.1f} effective clusters; bound of held-out images {vade.score(X_test):.2f} nats")

# %%
# How the clusters form
# ---------------------
# The codes of held-out images in the plane that separates the final clusters best, after 1, 10 and 100 epochs.

fig, axes = plt.subplots(2, 3, figsize=(14, 9), layout="constrained")
for ax, (epoch, (codes, means, covariances)) in zip(axes[0], sorted(snapshots.items()), strict=True):
    drawn = {"means": means, "covariances": covariances, "projection": "discriminant"}
    LatentSpaceDisplay.from_predictions(codes, y_test, ax=ax, **drawn)
    ax.set_title(f"Codes by label, epoch {epoch}")

# %%
# What the clusters are
# ---------------------
# Rows of the second picture are clusters: the decoded mean, then samples from the cluster's component.

centers = vade.cluster_centers_.reshape(10, 1, 8, 8)
noise = np.random.default_rng(args.seed).normal(size=(10, 11, vade.latent_dim))
codes = vade.means_[:, None] + np.einsum("kij,knj->kni", np.linalg.cholesky(vade.covariances_), noise)
samples = vade.inverse_transform(codes.reshape(-1, vade.latent_dim)).reshape(10, 11, 8, 8)
images = np.concatenate([centers, np.ones((10, 1, 8, 8)) * 0.3, samples], axis=1)
axes[1, 0].imshow(images.transpose(0, 2, 1, 3).reshape(80, -1), cmap="gray_r")
axes[1, 0].set(title="Centre and samples of each cluster", xticks=[], yticks=range(4, 80, 8), yticklabels=range(10))

matrix, _ = matched_confusion_matrix(y_test, vade.predict(X_test))
ConfusionMatrixDisplay(matrix).plot(ax=axes[1, 1], colorbar=False)
axes[1, 1].set(title="Digits and their clusters", xlabel="matched cluster", ylabel="digit")

epochs = [row["epoch"] for row in vade.history_]
axes[1, 2].plot(epochs, [-row["train_log_likelihood"] for row in vade.history_], label="reconstruction")
axes[1, 2].plot(epochs, [row["train_kl"] for row in vade.history_], label="divergence from the mixture")
axes[1, 2].set(title="Terms of the bound", xlabel="epoch", ylabel="nats", yscale="log")
axes[1, 2].legend()
fig.savefig(args.output, dpi=80)
print(f"figure: {args.output}")
