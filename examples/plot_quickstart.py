"""
Cluster handwritten digits with a VAE and a Gaussian mixture
============================================================

A variational autoencoder embeds the images in ten dimensions, and a Gaussian mixture clusters the latent codes. The
pipeline, the scores on held-out data and the grid search are those of scikit-learn. The labels are used only for
scoring.

Run it with ``--data mnist`` for MNIST (read from ``--data-home`` or ``SKVAE_DATA_HOME``, else downloaded).
"""

# %%
# Data
# ----
# The digits of scikit-learn are 1,797 images of 8 x 8 pixels.

import argparse
import time

import matplotlib.pyplot as plt
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.metrics import ConfusionMatrixDisplay, adjusted_rand_score, v_measure_score
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import Pipeline

from skvae import TorchGMM, VAEEmbedder
from skvae.datasets import fetch_mnist
from skvae.displays import LatentSpaceDisplay, ReconstructionDisplay
from skvae.metrics import clustering_accuracy_score, matched_confusion_matrix

parser = argparse.ArgumentParser(description="Cluster digits with a VAE and a Gaussian mixture.")
parser.add_argument("--data", choices=["digits", "mnist"], default="digits")
parser.add_argument("--data-home", help="folder that holds mnist.npz")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--output", default="quickstart.png", help="where to save the figure")
parser.add_argument("--no-search", action="store_true", help="skip the grid search")
args, _ = parser.parse_known_args()

if args.data == "digits":
    X, y = load_digits(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(X / 16, y, stratify=y, random_state=args.seed)
    image_shape, max_epochs = (8, 8), 250
else:
    X, y = fetch_mnist(data_home=args.data_home, return_X_y=True)
    X = (X / 255).astype("float32")
    X_train, X_test, y_train, y_test = X[:60_000], X[60_000:], y[:60_000], y[60_000:]
    image_shape, max_epochs = (28, 28), "auto"

# %%
# Fit and score
# -------------
# Neither step uses the labels. A small weight of the KL term (``beta``), batch normalization, several initializations
# of the mixture and a larger ``reg_covar`` are better for clustering than the defaults. k-means on the pixels is the
# baseline.

started = time.perf_counter()
pipeline = Pipeline(
    [
        ("vae", VAEEmbedder(10, beta=0.1, batch_norm=True, max_epochs=max_epochs, random_state=args.seed, verbose=1)),
        ("gmm", TorchGMM(10, n_init=10, reg_covar=1e-2, random_state=args.seed)),
    ]
)
pipeline.fit(X_train)
minutes = (time.perf_counter() - started) / 60
clusters = pipeline.predict(X_test)
pixels = KMeans(n_clusters=10, n_init=10, random_state=args.seed).fit(X_train).predict(X_test)

print(f"\n{len(X_train)} training images in {minutes:.1f} min; scores on {len(X_test)} held-out images:\n")
print(f"{'':22}{'V-measure':>10}{'adj. Rand':>11}{'accuracy':>10}")
for name, found in [("VAE + Gaussian mixture", clusters), ("k-means on pixels", pixels)]:
    scores = [score(y_test, found) for score in (v_measure_score, adjusted_rand_score, clustering_accuracy_score)]
    print(f"{name:22}{scores[0]:10.3f}{scores[1]:11.3f}{scores[2]:10.3f}")

# %%
# Confusion matrix
# ----------------
# Each cluster is matched to a digit, and shown in the column of this digit.

matrix, _ = matched_confusion_matrix(y_test, clusters)
print("\nConfusion matrix (rows: digits 0-9, columns: their clusters)\n")
for digit, row in enumerate(matrix):
    print(f"{digit} |" + "".join(f"{count:6d}" for count in row))

# %%
# Grid search
# -----------
# The grid has parameters of both steps. Selection by V-measure needs labels. Without labels, omit ``scoring``: the
# log-likelihood of the mixture then compares mixtures of the same latent codes.

if not args.no_search:
    search = GridSearchCV(
        clone(pipeline).set_params(vae__verbose=0, vae__max_epochs=60),
        {"vae__n_components": [5, 10], "gmm__covariance_type": ["full", "diag"]},
        scoring="v_measure_score",
        cv=3,
        refit=False,
    )
    n_rows = 2_000  # a subset and shorter training are enough to rank the parameters
    search.fit(X_train[:n_rows], y_train[:n_rows])
    print("\nGrid search, mean V-measure of 3 folds\n")
    for setting, score in zip(search.cv_results_["params"], search.cv_results_["mean_test_score"], strict=True):
        print(f"{score:.3f}  {setting}")

# %%
# Figures
# -------
# The figure shows latent codes of held-out images with the two-standard-deviation ellipses of the mixture, projected
# onto the plane that separates the clusters best; the confusion matrix; and reconstructions. Clusters that overlap in
# the projection may be separate in ten dimensions.

vae, gmm = pipeline["vae"], pipeline["gmm"]
figure, axes = plt.subplot_mosaic(
    [["codes", "confusion"], ["images", "images"]], figsize=(11, 7.2), height_ratios=[3, 1], layout="constrained"
)
shown = slice(0, 3_000)
LatentSpaceDisplay.from_estimator(
    gmm, vae.transform(X_test[shown]), y_test[shown], projection="discriminant", ax=axes["codes"]
)
axes["codes"].set(title="Latent codes by digit, and ellipses of the mixture")
ConfusionMatrixDisplay(matrix).plot(ax=axes["confusion"], cmap="Blues", colorbar=False)
axes["confusion"].set(title="Digits and their clusters", xlabel="matched cluster", ylabel="digit")
ReconstructionDisplay.from_estimator(vae, X_test[:16], image_shape=image_shape, ax=axes["images"])
axes["images"].set(title="Held-out images and their reconstructions")
figure.savefig(args.output, dpi=120)
print(f"\nFigure saved to {args.output}")
