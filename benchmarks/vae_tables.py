"""Codes of VAEEmbedder with its defaults on small tables, compared with principal components of the same number.

    python benchmarks/vae_tables.py --output benchmarks/results/vae_tables.json

Embeddings are fitted to the training part of each fold without labels. Then k-nearest neighbours and logistic
regression are trained on the codes of the training part, and their accuracy on the rest is shown in percent: mean over
seeds of the mean over folds, and standard deviation over seeds, which draw the folds and the networks. Labels only
score. "PCA" and "all features" see standardised features unless the unit is common to all of them. Codes of the VAE are
of unit scale, whatever they carry; PCA has them with the scale of the data, and whitened. Neighbours see codes as they
are, logistic regression standardises them. "bound" is the score of the rest, in nats: for the VAE its evidence lower
bound. "units" is the number of latent dimensions in use, "s" the seconds of one fit.
"""

import argparse
import statistics
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from record import environment, write_record
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from threadpoolctl import threadpool_limits

from skvae import VAEEmbedder

CLASSIFIERS = {
    "k-NN": KNeighborsClassifier,
    "logistic regression": lambda: make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000)),
}


def load_tables():
    """Name of each table: its features, classes and whether the features need a common unit."""
    (digits, digit), cancer, wine = load_digits(return_X_y=True), load_breast_cancer(return_X_y=True), load_wine()
    return {
        "breast cancer": (*cancer, True),
        "wine": (wine.data, wine.target, True),
        "digits": (digits, digit, True),
        "digits / 16": (digits / 16, digit, False),
    }


def embeddings(n_components, mixed_units, seed):
    """Return the embeddings to compare."""
    before = [StandardScaler()] if mixed_units else []
    return {
        "VAEEmbedder": VAEEmbedder(n_components, random_state=seed),
        "PCA": make_pipeline(*before, PCA(n_components, random_state=seed)),
        "PCA, whitened": make_pipeline(*before, PCA(n_components, whiten=True, random_state=seed)),
        "all features": make_pipeline(*before, FunctionTransformer()),
    }


def score(embedding, X, y, folds):
    """Mean accuracy of each classifier over folds, seconds of a fit and latent dimensions in use."""
    results = {name: [] for name in (*CLASSIFIERS, "seconds", "units", "bound")}
    for train, test in folds:
        started = time.perf_counter()
        codes = embedding.fit(X[train]).transform(X[train])
        results["seconds"].append(time.perf_counter() - started)
        results["bound"].append(embedding.score(X[test]) if isinstance(embedding, VAEEmbedder) else np.nan)
        results["units"].append(getattr(embedding, "active_units_", codes.shape[1]))
        for name, make in CLASSIFIERS.items():
            classifier = make().fit(codes, y[train])
            results[name].append(classifier.score(embedding.transform(X[test]), y[test]))
    return {name: float(np.mean(values)) for name, values in results.items()}


def compare(X, y, mixed_units, n_seeds):
    """Scores of all embeddings of one table."""
    n_components = min(10, X.shape[1] // 2)
    runs = {}
    for seed in range(n_seeds):
        folds = list(StratifiedKFold(5, shuffle=True, random_state=seed).split(X, y))
        for name, embedding in embeddings(n_components, mixed_units, seed).items():
            runs.setdefault(name, []).append(score(embedding, X, y, folds))
    return {"shape": X.shape, "n_components": n_components, "embeddings": {k: summary(v) for k, v in runs.items()}}


def summary(runs):
    """Mean and standard deviation over seeds of everything that was measured."""
    columns = {name: [run[name] for run in runs] for name in runs[0]}
    return {
        name: {"mean": statistics.mean(values), "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None}
        for name, values in columns.items()
    }


def lines(table, result):
    """Markdown lines of one table."""
    for name, row in result["embeddings"].items():
        size = result["shape"][1] if name == "all features" else result["n_components"]
        cells = [table, "{} x {}".format(*result["shape"]), name, str(size)]
        cells += [percent(row[classifier]) for classifier in CLASSIFIERS]
        yield (
            "| "
            + " | ".join([*cells, f"{row['units']['mean']:.1f}", bound(row["bound"]), f"{row['seconds']['mean']:.2f}"])
            + " |"
        )


def bound(results):
    """A bound in nats, where there is one."""
    return "" if np.isnan(results["mean"]) else f"{results['mean']:.1f}"


def percent(results):
    """An accuracy in percent."""
    return f"{100 * results['mean']:.1f}" + (f" ± {100 * results['sd']:.1f}" if results["sd"] is not None else "")


def main():
    """Run the comparison and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", help="only tables whose name contains this")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    record = environment(args.threads) | {"seeds": args.seeds, "rows": {}}
    head = ["table", "shape", "embedding", "size", *CLASSIFIERS, "units", "bound", "s"]
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    with threadpool_limits(args.threads):
        for table, (X, y, mixed_units) in load_tables().items():
            if args.rows and args.rows not in table:
                continue
            record["rows"][table] = compare(X, y, mixed_units, args.seeds)
            print(*lines(table, record["rows"][table]), sep="\n", flush=True)
            write_record(args.output, record)


if __name__ == "__main__":
    main()
