"""Draw the figures of the pages: ``python docs/draw_pictures.py [name ...]`` writes to docs/images.

The examples of the gallery write their own figures.
"""

import importlib
import sys
import warnings
from io import BytesIO
from pathlib import Path
from unittest import mock

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import ListedColormap
from PIL import Image
from scipy import stats
from sklearn.datasets import load_digits, make_moons
from sklearn.exceptions import ConvergenceWarning

from skvae import (
    AutoencoderEmbedder,
    ClusterLabelClassifier,
    TorchGMM,
    TorchMiniBatchKMeans,
    TorchPPCA,
    VaDEClusterer,
    VAEEmbedder,
)
from skvae.displays import LatentSpaceDisplay
from skvae.displays.drawing import COLORS
from skvae.models import COVARIANCES

IMAGES = Path(__file__).parent / "images"
BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
DPI = 90
GREY = "#717581"


def three_clusters(n=150, seed=3):
    """Rows of three clusters of different shape, and their labels."""
    rng = np.random.default_rng(seed)
    shapes = ([[2.2, 0.0], [1.5, 0.45]], [[0.5, 0.0], [-0.3, 1.3]], [[0.6, 0.0], [0.0, 0.6]])
    centres = ((-3.0, 0.0), (3.0, 1.0), (1.0, -3.5))
    X = [rng.normal(size=(n, 2)) @ np.array(A).T + c for A, c in zip(shapes, centres, strict=True)]
    return np.concatenate(X), np.repeat([0, 1, 2], n)


def plain(ax, title=None):
    """Axes without ticks, for planes whose units say nothing."""
    ax.set(xticks=[], yticks=[], xlabel="", ylabel="", title=title or ax.get_title())
    if ax.get_legend() is not None:
        ax.get_legend().remove()


def mixtures():
    """The six types of covariances on the same rows."""
    X, _ = three_clusters()
    figure, panels = plt.subplots(2, 3, figsize=(8.4, 4.9), layout="compressed", sharex=True, sharey=True)
    for ax, kind in zip(panels.flat, COVARIANCES, strict=True):
        gmm = TorchGMM(3, covariance_type=kind, n_init=5, random_state=0).fit(X)
        LatentSpaceDisplay.from_estimator(gmm, X, ax=ax)
        ax.set_aspect("equal", adjustable="box")
        plain(ax, f'"{kind}": BIC {gmm.bic(X):,.0f}')
    return figure


def kmeans():
    """Cells of the centres, and the fall of the inertia for two kinds of steps."""
    X, _ = three_clusters(n=700)
    kmeans = TorchMiniBatchKMeans(6, batch_size=100, random_state=0).fit(X)
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.6), layout="constrained", width_ratios=(1, 1.15))
    across, down = np.meshgrid(np.linspace(-10, 6, 500), np.linspace(-6.5, 6, 400))
    cells = kmeans.predict(np.column_stack([across.ravel(), down.ravel()])).reshape(across.shape)
    left.pcolormesh(across, down, cells, cmap=ListedColormap(COLORS[:6]), alpha=0.35, rasterized=True)
    left.scatter(*X.T, s=3, color="#333333", linewidths=0)
    left.scatter(*kmeans.cluster_centers_.T, s=90, marker="P", color="white", edgecolors="black")
    left.set(xlim=(-10, 6), ylim=(-6.5, 6))
    plain(left, "Centres and their cells")
    start = X[np.random.default_rng(1).choice(len(X), 6, replace=False)]
    lines = (("counts", "-", '"counts"'), (0.3, "--", "0.3"), (2.0, ":", "2.0"))
    for (rate, style, name), color in zip(lines, COLORS, strict=False):
        model = TorchMiniBatchKMeans(6, init=start, learning_rate=rate, random_state=0, reassignment_ratio=0)
        order = np.random.default_rng(2).permutation(np.tile(np.arange(len(X)), 4))
        errors = []
        for rows in order.reshape(-1, 60):
            model.partial_fit(X[rows])
            errors.append(-model.score(X) / len(X))
        right.plot(np.arange(1, len(errors) + 1), errors, style, color=color, linewidth=2, label=name)
    right.set(xlabel="steps", ylabel="mean squared distance to the centre", title="Three kinds of steps")
    right.legend(title="learning_rate")
    right.grid(alpha=0.3)
    return figure


def ppca():
    """The line, the density and the codes of a plane; and the spectrum of digits with its noise."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(250, 1)) @ [[2.4, 1.3]] + 0.6 * rng.normal(size=(250, 2))
    model = TorchPPCA(1).fit(X)
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.6), layout="constrained")
    across, down = np.meshgrid(np.linspace(-8, 8, 200), np.linspace(-5, 5, 150))
    density = model.score_samples(np.column_stack([across.ravel(), down.ravel()])).reshape(across.shape)
    left.contour(across, down, density, levels=np.linspace(-9, -3, 7), colors=GREY, linewidths=0.8, linestyles="solid")
    left.scatter(*X.T, s=9, color=COLORS[0], linewidths=0)
    some = X[np.argsort(X[:, 0])[::25]]
    back = model.inverse_transform(model.transform(some))
    left.plot(*np.stack([some, back]).transpose(2, 0, 1), color=COLORS[2], linewidth=1.2)
    left.plot(*model.inverse_transform([[-3.2], [3.2]]).T, color=COLORS[2], linewidth=2)
    left.set(aspect="equal", xlim=(-8, 8), ylim=(-5, 5))
    plain(left, "Rows, their expected rows, the density")
    digits = load_digits().data
    n_components, spectrum = 10, TorchPPCA().fit(digits).explained_variance_
    found = TorchPPCA(n_components).fit(digits)
    right.bar(np.arange(1, len(spectrum) + 1), spectrum, color=[COLORS[0]] * n_components + ["#c9ced1"] * 64)
    right.axhline(found.noise_variance_, color=COLORS[2], linewidth=2)
    right.text(63, found.noise_variance_ * 1.25, "noise_variance_", color=COLORS[2], ha="right")
    right.set(yscale="log", ylim=(1e-2, 400), xlabel="principal axis", ylabel="variance", title="Digits, 10 components")
    return figure


def labels():
    """Clusters, and what two assignments make of them and of a few labels."""
    X, y = make_moons(400, noise=0.09, random_state=0)
    rng, known = np.random.default_rng(4), np.full(400, -1)
    chosen = rng.choice(400, 24, replace=False)
    known[chosen] = y[chosen]
    wrong = chosen[np.argsort(X[chosen, 0])[[5, 18]]]  # two labels that are not right
    known[wrong] = 1 - y[wrong]
    gmm = TorchGMM(6, random_state=0).fit(X)
    across, down = np.meshgrid(np.linspace(-1.5, 2.5, 320), np.linspace(-1, 1.5, 200))
    grid = np.column_stack([across.ravel(), down.ravel()])
    figure, panels = plt.subplots(1, 3, figsize=(9, 2.5), layout="compressed")
    LatentSpaceDisplay.from_estimator(gmm, X, ax=panels[0])
    panels[0].set(aspect="auto", xlim=(-1.5, 2.5), ylim=(-1, 1.5))
    plain(panels[0], "Clusters, without labels")
    for ax, assignment in zip(panels[1:], ("majority", "proportional"), strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            classifier = ClusterLabelClassifier(gmm, assignment=assignment).fit(X, known)
        share = classifier.predict_proba(grid)[:, 1].reshape(across.shape)
        ax.imshow(share, extent=(-1.5, 2.5, -1, 1.5), origin="lower", cmap="PuOr", vmin=-0.3, vmax=1.3, aspect="auto")
        ax.scatter(*X[known < 0].T, s=3, color="#555555", linewidths=0)
        for c, marker in enumerate("os"):
            ax.scatter(*X[known == c].T, s=38, marker=marker, color=("#e08214", "#542788")[c], edgecolors="white")
        plain(ax, f'"{assignment}"')
    return figure


def likelihoods():
    """Densities of one feature under each likelihood."""
    figure, panels = plt.subplots(2, 2, figsize=(8.4, 5.2), layout="constrained")
    unit, normal, counts, codes = panels.flat
    x = np.linspace(0, 1, 200)
    for logit, color in zip((-2.0, 0.0, 3.0), COLORS, strict=False):
        p = 1 / (1 + np.exp(-logit))
        unit.plot(x, p**x * (1 - p) ** (1 - x), "--", color=color)
        tilt = torch.distributions.ContinuousBernoulli(logits=torch.tensor(logit))
        unit.plot(x, tilt.log_prob(torch.tensor(x)).exp(), color=color, label=f"logit {logit:g}")
    unit.set(title='"continuous_bernoulli", "bernoulli" (dashed)', xlabel="value", ylabel="density")
    x = np.linspace(-4, 4, 300)
    scales = (
        (1.0, "-", "fixed: 1"),
        (0.5, "--", "learned, one for all"),
        (0.25, ":", "for a feature or row"),
    )
    for (scale, style, name), color in zip(scales, COLORS, strict=False):
        normal.plot(x, stats.norm.pdf(x, 0.5, scale), style, color=color, linewidth=2, label=name)
    normal.set(title="four Gaussians: whose scale it is", xlabel="standardised value", ylabel="density")
    n, mu, theta = np.arange(21), 6.0, 2.0
    counts.bar(n - 0.2, stats.poisson.pmf(n, mu), 0.4, color=COLORS[0], label='"poisson"')
    spread = stats.nbinom.pmf(n, theta, theta / (theta + mu))
    counts.bar(n + 0.2, spread, 0.4, color=COLORS[1], label='"negative_binomial", θ = 2')
    counts.set(title="counts, both with mean 6", xlabel="count", ylabel="probability")
    logits = np.array([0.3, 1.6, -1.0, 0.8])
    codes.bar(range(4), np.exp(logits) / np.exp(logits).sum(), 0.6, color=COLORS[4])
    codes.set(title='"categorical"', xlabel="code", ylabel="probability", xticks=range(4))
    for ax in (unit, normal, counts):
        ax.legend(fontsize="small")
    return figure


def priors():
    """Codes of the same digits under the three priors, and what the prior expects."""
    X, y = load_digits(return_X_y=True)
    X, seen = X / 16, y < 6
    X, y = X[seen], y[seen]
    shared = {"hidden_layer_sizes": (128, 64), "batch_norm": True, "random_state": 0}
    settings = {"covariance_type": "full", "pretrain_epochs": 60, "max_epochs": 60}
    models = {
        "Flat: AutoencoderEmbedder": AutoencoderEmbedder(2, max_epochs=60, **shared),
        "StandardNormal: VAEEmbedder": VAEEmbedder(2, max_epochs=80, **shared),
        "GaussianMixturePrior: VaDEClusterer": VaDEClusterer(6, latent_dim=2, **settings, **shared),
    }
    figure, panels = plt.subplots(1, 3, figsize=(9.6, 3.4), layout="constrained")
    for ax, (name, model) in zip(panels, models.items(), strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            Z = model.fit(X).transform(X)
        ax.scatter(*Z.T, s=6, c=np.array(COLORS)[y], linewidths=0)
        low, high = Z.min(0) - 0.5, Z.max(0) + 0.5
        across, down = np.meshgrid(np.linspace(low[0], high[0], 150), np.linspace(low[1], high[1], 150))
        z = torch.tensor(np.column_stack([across.ravel(), down.ravel()]), dtype=torch.float32)
        if hasattr(model.module_.prior, "log_prob"):
            density = model.module_.prior.log_prob(z).detach().numpy().reshape(across.shape)
            levels = density.max() - np.array([4.5, 2, 0.5])
            ax.contour(across, down, density, levels=levels, colors="black", linewidths=0.9, linestyles="solid")
        ax.set(title=name, xlabel="first code", ylabel="second code" if ax is panels[0] else "")
        ax.title.set_fontsize(10)
    return figure


def missing():
    """Rows of two features of which one is missing, and where it is put."""
    rng = np.random.default_rng(1)
    A = np.array([[1.0, 0.0], [0.8, 0.35]])
    X = np.concatenate([rng.normal(size=(120, 2)) @ A.T - [2, 0], rng.normal(size=(120, 2)) @ A.T * [1, -1] + [2, 0]])
    holes = X.copy()
    holes[::4, 1] = np.nan
    gmm = TorchGMM(2, n_init=5, random_state=0).fit(holes)
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.2), layout="constrained", sharex=True, sharey=True)
    lacking, filled = np.isnan(holes[:, 1]), gmm.impute(holes)
    mean = np.where(np.isnan(holes), np.nanmean(holes, 0), holes)
    for ax, table, name in ((left, filled, "TorchGMM.impute"), (right, mean, "Column mean")):
        ax.scatter(*X[~lacking].T, s=9, color=GREY, linewidths=0, label="complete rows")
        ax.scatter(*table[lacking].T, s=26, marker="s", color=COLORS[1], edgecolors="black", label="filled in")
        ax.plot(*np.stack([X[lacking], table[lacking]]).transpose(2, 0, 1), color=COLORS[1], linewidth=0.7)
        ax.set(title=name, xlabel="observed", ylabel="missing in a quarter of the rows" if ax is left else "")
    left.legend(fontsize="small")
    return figure


def saving():
    """What can be written by which function, and what reading it runs."""
    rows = (
        ("an estimator\nof this package", "skvae.save", "skvae.load", COLORS[0]),
        ("a pipeline, a search", "skvae.save\nwith skops", "skvae.load\nwith skops", COLORS[0]),
        ("networks or functions\nof your own", "joblib.dump\ncloudpickle", "joblib.load\npickle.load", COLORS[2]),
        ("what a fit computes", "skvae.to_onnx", "onnxruntime", COLORS[0]),
    )
    figure, ax = plt.subplots(figsize=(8.4, 3.4), layout="constrained")
    ax.set(xlim=(0, 10), ylim=(-0.1, 4.5))
    ax.axis("off")
    box = {"boxstyle": "round,pad=0.45", "facecolor": "white", "linewidth": 1.5}
    for height, (what, writer, reader, color) in zip((3.5, 2.5, 1.5, 0.5), rows, strict=True):
        for x, text in ((1.3, what), (4.1, writer), (7.0, reader)):
            ax.text(x, height, text, ha="center", va="center", fontsize=10, bbox=box | {"edgecolor": color})
        for start, end in ((2.55, 3.2), (4.95, 5.75)):
            ax.annotate("", (end, height), (start, height), arrowprops={"arrowstyle": "->", "color": GREY, "lw": 1.5})
        runs = "runs code from\nthe file" if color == COLORS[2] else "runs no code"
        ax.text(8.5, height, runs, va="center", fontsize=10, color=color, weight="bold")
    for x, name in ((1.3, "what you have"), (4.1, "write"), (7.0, "read")):
        ax.text(x, 4.3, name, ha="center", va="center", fontsize=10, color=GREY)
    return figure


def benchmarks_clusters():
    """Plot the V-measure of clusterers by data set, from the records of `benchmarks/clusters.py`."""
    methods = ("k-means", "PCA + mixture", "UMAP + mixture", "VaDEClusterer")
    markers, colors = "v^sD", (GREY, COLORS[1], COLORS[0], COLORS[2])
    with mock.patch.object(sys, "path", [str(BENCHMARKS), *sys.path]):
        records = importlib.import_module("cluster_tables").read()
    scores = {
        name: [[run["v_measure"] for run in runs[method]] for method in methods]
        for name, runs in records.items()
        if all(method in runs for method in methods)
    }
    order = sorted(scores, key=lambda name: np.mean(scores[name][3]) - np.mean(scores[name][2]))
    figure, ax = plt.subplots(figsize=(8.4, 6.6), layout="constrained")
    for height, name in enumerate(order):
        ax.axhline(height, color="#e3e6e8", linewidth=0.8, zorder=0)
        for values, offset, marker, color in zip(
            scores[name], (0.24, 0.08, -0.08, -0.24), markers, colors, strict=True
        ):
            mean, lowest = np.mean(values), min(values)
            ax.plot([lowest, mean], [height + offset] * 2, color=color, linewidth=1.2, zorder=1)
            ax.plot(lowest, height + offset, "|", color=color, markersize=7, markeredgewidth=1.4, zorder=1)
            ax.plot(mean, height + offset, marker, color=color, markersize=6, zorder=2)
    handles = [
        plt.Line2D([], [], linestyle="", marker=marker, color=color, label=method)
        for method, marker, color in zip(methods, markers, colors, strict=True)
    ]
    handles.append(plt.Line2D([], [], linestyle="", marker="|", color="black", label="lowest seed"))
    figure.legend(handles=handles, loc="outside upper center", ncols=5, frameon=False)
    ax.set(yticks=range(len(order)), yticklabels=order, xlabel="V-measure of test samples, mean of five seeds")
    ax.set(xlim=(-0.02, 1), ylim=(-0.6, len(order) - 0.4))
    ax.grid(axis="x", alpha=0.3)
    return figure


PICTURES = (mixtures, kmeans, ppca, labels, likelihoods, priors, missing, saving, benchmarks_clusters)


def save(figure, path):
    """Write a picture with 128 colours, which is a third of the file."""
    file = BytesIO()
    figure.savefig(file, dpi=DPI)
    Image.open(file).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    plt.switch_backend("agg")
    for draw in PICTURES:
        if len(sys.argv) == 1 or draw.__name__ in sys.argv[1:]:
            name = draw.__name__ if draw is benchmarks_clusters else f"guide_{draw.__name__}"
            save(draw(), IMAGES / f"{name}.png")
