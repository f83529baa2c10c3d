"""
VaDE by V-measure: perceptrons and convolutions
===============================================

This example repeats a study of MNIST. It evaluates variational deep embedding with perceptrons and with convolutions by
the V-measure of clusters and digits on training and test images. Trainings of MNIST take minutes to hours, so that the
table shows recorded results. The figures are those of a training on scikit-learn's digits or, with ``--data mnist``, on
20,000 images of MNIST.
"""

# %%
# Reported and recorded results
# -----------------------------
# Most rows have the evidence lower bound (ELBO) as the objective, as in the study. The last rows add the mutual
# information between neighbours, or between augmented views of the same image, the default of
# :class:`~skvae.VaDEClusterer` for images in version 0.1.0.

import argparse
import json
import statistics
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import v_measure_score
from sklearn.model_selection import train_test_split

from skvae import VaDEClusterer
from skvae.callbacks import LatentSnapshots
from skvae.datasets import fetch_mnist
from skvae.displays import ClusterEvolutionDisplay, ClusterSamplesDisplay, TrainingCurveDisplay
from skvae.metrics import matched_confusion_matrix

parser = argparse.ArgumentParser(description="VaDE by V-measure.")
parser.add_argument("--data", choices=["auto", "mnist", "digits"], default="auto", help="auto: digits")
parser.add_argument("--epochs", type=int)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--output", help="folder for the figures")
args, _ = parser.parse_known_args()

# Name of each row, V-measures of the study (train, test), and the row of the benchmark.
STUDY = {
    "perceptrons, 25 epochs": ((67.1, 67.5), "mnist, mlp, plain bound, 25 epochs"),
    "perceptrons, 300 epochs": ((71.66, 71.59), "mnist, mlp, plain bound, 300 epochs"),
    "convolutions, 25 epochs": ((82.12, 82.67), "mnist, conv, no views, 25 epochs"),
    "convolutions, 100 epochs": ((84.7, 85.02), "mnist, conv, no views, 100 epochs"),
    "convolutions, 25 epochs, 14 clusters": ((78.63, 77.89), "mnist, conv, no views, 25 epochs, 14 clusters"),
    "convolutions, neighbours, 25 epochs": (None, "mnist, conv, neighbours, 25 epochs"),
    "augmentation (defaults of 0.1.0)": (None, "mnist, defaults"),
    "augmentation, 14 clusters": (None, "mnist, 14 clusters"),
}
paths = [folder / "benchmarks/results/vade.jsonl" for folder in (Path.cwd(), *Path.cwd().parents)]
records = [json.loads(line) for path in paths if path.is_file() for line in path.read_text().splitlines()]


def percent(runs, score):
    """Return the mean of a score over the runs that have it, in percent."""
    values = [100 * run[score] for run in runs if score in run]
    return f"{statistics.mean(values):.2f}" if values else "-"


print(f"{'V-measure in percent':38}{'reported':^18}{'here':^18}")
print(f"{'MNIST':38}{'train':>9}{'test':>9}{'train':>9}{'test':>9}{'seeds':>7}{'minutes':>9}")
for name, (reported, row) in STUDY.items():
    runs = [record for record in records if record["row"] == row]
    if runs:
        minutes = statistics.mean(run["minutes"] for run in runs)
        cells = [f"{value:9.2f}" for value in reported or ()] or [f"{'-':>9}"] * 2
        cells += [f"{percent(runs, score):>9}" for score in ("v_measure_train", "v_measure")]
        print(f"{name:38}{''.join(cells)}{len(runs):7}{minutes:9.1f}")

# %%
# Training
# --------
# A callback stores latent codes of some test images, and the mixture, at several epochs.

if args.data == "mnist":
    X, y = fetch_mnist(return_X_y=True)
    X, image_shape = (X / 255).astype("float32"), (28, 28)
    X_train, X_test, y_train, y_test = X[:20_000], X[60_000:], y[:20_000], y[60_000:]
else:
    X, y = load_digits(return_X_y=True)
    X, image_shape = X / 16, (8, 8)
    X_train, X_test, y_train, y_test = train_test_split(X, y, stratify=y, random_state=args.seed)

lengths = {} if args.epochs is None else {"pretrain_epochs": args.epochs, "max_epochs": args.epochs}
vade = VaDEClusterer(
    n_clusters=10,
    image_shape=image_shape,
    augment=None,
    callbacks=[LatentSnapshots(X_test[:1_000])],
    random_state=args.seed,
    **lengths,
).fit(X_train)
print(f"\n{len(X_train)} images of {image_shape[0]} x {image_shape[1]} pixels, {vade.n_iter_} epochs of joint training")
for part, rows, labels in (("train", X_train, y_train), ("test", X_test, y_test)):
    print(f"V-measure, {part}: {100 * v_measure_score(labels, vade.predict(rows)):.2f}")

_ = TrainingCurveDisplay.from_estimator(vade)

# %%
# Evolution of the clusters
# -------------------------
# The figure shows latent codes by digit, projected onto the plane that separates the final clusters best, and ellipses
# of the mixture.

_ = ClusterEvolutionDisplay.from_estimator(vade, y_test[:1_000], projection="discriminant", n_panels=3)

# %%
# Samples of each cluster
# -----------------------
# Left: samples. Right: the confusion matrix, whose columns are the clusters in the order of their matched digits.

matrix, clusters = matched_confusion_matrix(y_test, vade.predict(X_test))
figure, axes = plt.subplots(1, 2, figsize=(12, 5.5), layout="constrained")
ClusterSamplesDisplay.from_estimator(vade, n_samples=10, image_shape=image_shape, ax=axes[0])
axes[1].imshow(matrix, cmap="Blues")
axes[0].set_title("Samples")
axes[1].set(title="Test images", xlabel="cluster", ylabel="digit")
axes[1].set(xticks=range(len(clusters)), xticklabels=clusters, yticks=range(10))
for (digit, column), count in np.ndenumerate(matrix):
    color = "white" if count > matrix.max() / 2 else "black"
    axes[1].text(column, digit, count, ha="center", va="center", color=color)

if args.output:
    for number in plt.get_fignums():
        plt.figure(number).savefig(Path(args.output) / f"study_vade_{number}.png", dpi=80)
