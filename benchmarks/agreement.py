"""TorchGMM compared with scikit-learn's GaussianMixture on real data: likelihood, clusters, iterations.

    SKVAE_DATA_HOME=... python benchmarks/agreement.py --output docs/agreement.md

Ten fits of each, with ``random_state`` 0 to 9, on one half of the samples; the other half is held out. First both are
initialized by default, by their own k-means; then by the same ten initializations: random samples as means, equal
weights, and the precision of all samples. MNIST is left out if it is not in ``SKVAE_DATA_HOME``.
"""

import argparse
import os
import warnings
from pathlib import Path

import numpy as np
import sklearn
import torch
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import v_measure_score
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

import skvae
from skvae import TorchGMM, TorchPPCA
from skvae.datasets import fetch_mnist

CLASSES = {"TorchGMM": TorchGMM, "GaussianMixture": GaussianMixture}
TYPES = ("full", "tied", "diag", "spherical")
SEEDS = range(10)
MNIST_ROWS = 20_000


def standardized(load):
    """Standardize a dataset whose features have different units."""
    X, y = load(return_X_y=True)
    return StandardScaler().fit_transform(X), y


def mnist_codes():
    """The ten principal components of some rows, in units of the pixels' range."""
    X, y = fetch_mnist(return_X_y=True)
    X, y = X[:MNIST_ROWS].reshape(MNIST_ROWS, -1) / 255.0, y[:MNIST_ROWS]
    return TorchPPCA(10).fit(X).transform(X), y


DATA = {  # name: what it is, reg_covar, loader
    "iris": ("unchanged (cm)", 1e-6, lambda: load_iris(return_X_y=True)),
    "wine": ("standardized", 1e-2, lambda: standardized(load_wine)),
    "breast cancer": ("standardized", 1e-2, lambda: standardized(load_breast_cancer)),
    "digits": ("unchanged (0 to 16), with constant pixels", 1e-2, lambda: load_digits(return_X_y=True)),
    "MNIST codes": (f"`TorchPPCA(10)` of {MNIST_ROWS} images", 1e-6, mnist_codes),
}


def common_start(X, covariance_type, n_components, seed):
    """Return initial parameters: random rows, equal weights, the precision of all rows (slightly regularised)."""
    covariance = np.cov(X.T) + 1e-2 * np.eye(X.shape[1])
    variances = covariance.diagonal()
    precisions = {
        "full": np.stack([np.linalg.inv(covariance)] * n_components),
        "tied": np.linalg.inv(covariance),
        "diag": np.tile(1 / variances, (n_components, 1)),
        "spherical": np.full(n_components, 1 / variances.mean()),
    }
    rows = np.random.default_rng(seed).choice(len(X), n_components, replace=False)
    weights = np.full(n_components, 1 / n_components)
    return {"weights_init": weights, "means_init": X[rows], "precisions_init": precisions[covariance_type]}


def measure(cls, halves, parameters):
    """Fit once: log-likelihoods of both halves, V-measure and labels of the half held out, iterations."""
    (X, X_out), (_, y_out) = halves
    gmm = cls(max_iter=1_000, **parameters).fit(X)
    labels = gmm.predict(X_out)
    return gmm.score(X), gmm.score(X_out), v_measure_score(y_out, labels), gmm.n_iter_, labels


def compare(name, covariance_type, same_start):
    """Return measures (seeds, 4) of both classes, and the largest number of rows whose labels differ."""
    _, reg_covar, load = DATA[name]
    X, y = load()
    X, X_out, y, y_out = train_test_split(X, y, test_size=0.5, stratify=y, random_state=0)
    k, results, n_other = len(np.unique(y)), {name: [] for name in CLASSES}, 0
    for seed in SEEDS:
        parameters = {"n_components": k, "covariance_type": covariance_type, "reg_covar": reg_covar}
        parameters |= common_start(X, covariance_type, k, seed) if same_start else {"random_state": seed}
        runs = {name: measure(cls, ((X, X_out), (y, y_out)), parameters) for name, cls in CLASSES.items()}
        for name, run in runs.items():
            results[name].append(run[:-1])
        n_other = max(n_other, int((runs["TorchGMM"][-1] != runs["GaussianMixture"][-1]).sum()))
    return {name: np.array(rows, dtype=float) for name, rows in results.items()}, n_other


def span(values, digits):
    """Format mean, lowest and highest."""
    if np.ptp(values) < 0.5 * 10**-digits:
        return f"{values.mean():.{digits}f}"
    return f"{values.mean():.{digits}f} ({values.min():.{digits}f} to {values.max():.{digits}f})"


def row(*cells):
    """Format a row of a Markdown table."""
    return "| " + " | ".join(map(str, cells)) + " |"


def cells_of(results):
    """Format likelihoods, V-measure and iterations of ten fits."""
    return [span(results[:, column], digits) for column, digits in enumerate((3, 3, 3, 0))]


def report(names):
    """Return the lines of the page."""
    heads = ["log-likelihood, training", "log-likelihood, held out", "V-measure, held out", "iterations"]
    yield "# Agreement with scikit-learn on real data\n"
    yield "```\npython benchmarks/agreement.py --output docs/agreement.md\n```\n"
    yield f"This command wrote the page with skvae {skvae.__version__}, scikit-learn {sklearn.__version__},"
    yield f"torch {torch.__version__.split('+')[0]} and NumPy {np.__version__}, on one thread. MNIST is read from the"
    yield "folder in the environment variable `SKVAE_DATA_HOME`.\n"
    yield "Each cell is the mean and, in brackets, the lowest and the highest value of ten fits, with `random_state`"
    yield "from 0 to 9. Each dataset is split once into a half for the fit and a half that is held out, with equal"
    yield "shares of the classes. Log-likelihoods are in nats per sample. The number of components is that of the"
    yield "classes, and parameters other than `max_iter=1000` and `reg_covar` have their defaults.\n"
    yield row("data", "samples", "features", "components", "units", "`reg_covar`")
    yield row(*["--"] * 6)
    for name in names:
        units, reg_covar, load = DATA[name]
        X, y = load()
        yield row(name, *X.shape, len(np.unique(y)), units, f"{reg_covar:g}")
    yield "\n## Default initializations\n"
    yield "The two classes draw their initializations differently, so that fits with one seed differ; the results of"
    yield "ten seeds should agree. A wide range indicates local maxima: means of ten fits differ by chance.\n"
    yield row("data", "covariances", "", *heads)
    yield row(*["--"] * 7)
    for name in names:
        for kind in TYPES:
            results, _ = compare(name, kind, same_start=False)
            for label, values in results.items():
                yield row(name, kind, f"`{label}`", *cells_of(values))
    yield "\n## Equal initializations\n"
    yield "Both classes are initialized with random samples as means, equal weights, and the precision of all samples."
    yield "The cells are those of `TorchGMM`. The last three columns are the largest differences from `GaussianMixture`"
    yield "in ten pairs of fits: of log-likelihoods and numbers of iterations, and the number of held-out samples"
    yield "that are in another component.\n"
    yield row("data", "covariances", *heads, "difference: log-likelihood", "iterations", "samples")
    yield row(*["--"] * 9)
    for name in names:
        for kind in TYPES:
            results, n_other = compare(name, kind, same_start=True)
            difference = np.abs(results["TorchGMM"] - results["GaussianMixture"]).max(0)
            largest = difference[:2].max()
            # Rounding, which is not the same on every machine, is not worth its digits.
            shown = "< 1e-8" if largest < 1e-8 else f"{largest:.0e}"
            yield row(name, kind, *cells_of(results["TorchGMM"]), shown, int(difference[3]), n_other)


def main():
    """Compare and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    args = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    torch.set_num_threads(1)
    names = [name for name in DATA if name != "MNIST codes" or os.environ.get("SKVAE_DATA_HOME")]
    lines = []
    with threadpool_limits(1):
        for line in report(names):
            print(line, flush=True)
            lines.append(line)
    if args.output:
        args.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
