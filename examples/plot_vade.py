"""
Deep clustering of handwritten digits
=====================================

VaDE is a variational autoencoder whose prior is a Gaussian mixture: one objective trains the embedding and the
clusters. This example clusters images without labels, and compares the clusters of held-out images with their labels.
"""

# %%
# Fit and score
# -------------
# A callback stores latent codes of held-out images at several epochs. The baselines are k-means and a Gaussian mixture
# on the pixels.

import argparse

import matplotlib.pyplot as plt
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.metrics import ConfusionMatrixDisplay, v_measure_score
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import train_test_split

from skvae import VaDEClusterer
from skvae.callbacks import LatentSnapshots
from skvae.displays import ClusterEvolutionDisplay, ClusterSamplesDisplay, TrainingCurveDisplay
from skvae.metrics import clustering_accuracy_score, matched_confusion_matrix

parser = argparse.ArgumentParser(description="Cluster digits with VaDE.")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--output", default="vade.png", help="where to save the figure")
args, _ = parser.parse_known_args()

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X / 16, y, stratify=y, random_state=args.seed)
snapshots = LatentSnapshots(X_test, epochs=[1, 10, 100])
vade = VaDEClusterer(10, image_shape=(8, 8), augment=None, callbacks=[snapshots], random_state=args.seed)
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
print(f"\n{vade.n_effective_clusters_:.1f} effective clusters; ELBO of held-out images {vade.score(X_test):.2f} nats")

# %%
# Evolution of the clusters
# -------------------------
# Top: latent codes of held-out images after 1, 10 and 100 epochs, projected onto the plane that separates the final
# clusters best. Bottom: samples of each cluster, the confusion matrix of digits and clusters, and the ELBO by epoch.

fig, axes = plt.subplots(2, 3, figsize=(14, 9), layout="constrained")
ClusterEvolutionDisplay.from_estimator(vade, y_test, projection="discriminant", ax=axes[0])
ClusterSamplesDisplay.from_estimator(vade, image_shape=(8, 8), random_state=args.seed, ax=axes[1, 0])
matrix, _ = matched_confusion_matrix(y_test, vade.predict(X_test))
ConfusionMatrixDisplay(matrix).plot(ax=axes[1, 1], colorbar=False)
TrainingCurveDisplay.from_estimator(vade, terms=["elbo"], ax=axes[1, 2])
axes[1, 0].set_title("Samples")
axes[1, 1].set(title="Digits and their clusters", xlabel="matched cluster", ylabel="digit")
fig.savefig(args.output, dpi=80)
print(f"figure: {args.output}")
