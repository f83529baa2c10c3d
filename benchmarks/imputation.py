"""Filling in missing values: mixtures and probabilistic PCA compared with scikit-learn's imputers.

    python benchmarks/imputation.py --output benchmarks/results/imputation.json

Features are standardised, and 10 % or 30 % of all values are hidden completely at random, with another draw for each
seed. Methods see the rest, and are scored by the root mean square error of the hidden values, in standard deviations of
a feature: mean and standard deviation over seeds. Nothing hidden chooses the size of a model: it has the lowest BIC of
the observed values, or for "TorchGMM, cross-validated", size and ``reg_covar`` have the highest log-likelihood of the
observed values of held-out rows in three folds. "size" is the mean number of components of `TorchGMM`, or dimension of
`TorchPPCA`. "s" are the seconds of everything, choice included. Features that never vary are left out.
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
from sklearn.experimental import enable_iterative_imputer  # noqa: F401 (its import is what enables it)
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
from sklearn.model_selection import GridSearchCV
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from skvae import AutoencoderEmbedder, TorchGMM, TorchPPCA, VaDEClusterer, VAEEmbedder

SHARES = (0.1, 0.3)  # of the values that are hidden
REG_COVAR = 0.1  # a tenth of the variance of a feature
SIZES = (1, 2, 3, 5, 8)  # components of a mixture
GRID = {"n_components": [1, 3, 8], "reg_covar": [0.01, 0.1]}
DIMENSIONS = (1, 2, 3, 5, 8, 12, 20, 30)
NEURAL = {  # those that can fill in values
    "VAEEmbedder": lambda d, seed: VAEEmbedder(min(10, d // 2), random_state=seed),
    "AutoencoderEmbedder": lambda d, seed: AutoencoderEmbedder(min(10, d // 2), random_state=seed),
    "VaDEClusterer": lambda d, seed: VaDEClusterer(5, latent_dim=min(10, d // 2), random_state=seed),
}


def load_tables():
    """Name of each table and its standardised features."""
    loaders = {"wine": load_wine, "breast cancer": load_breast_cancer, "digits": load_digits}
    tables = {name: load().data for name, load in loaders.items()}
    return {name: StandardScaler().fit_transform(X[:, X.std(axis=0) > 0]) for name, X in tables.items()}


def hide(X, share, seed):
    """A table with values replaced by NaN, but at least one of each column is left."""
    hidden = np.random.default_rng(seed).uniform(size=X.shape) < share
    hidden[0, hidden.all(axis=0)] = False
    return np.where(hidden, np.nan, X)


def lowest_bic(candidates, X, n_parameters):
    """The fitted candidate with the lowest BIC, and its size."""
    scored = []
    for size, estimator in candidates:
        log_likelihood = len(X) * estimator.fit(X).score(X)
        scored.append((n_parameters(estimator) * np.log(len(X)) - 2 * log_likelihood, size, estimator))
    _, size, best = min(scored, key=lambda results: results[0])
    return size, best


def mixture_parameters(gmm):
    """Number of free parameters of a mixture with full covariances."""
    k, d = gmm.means_.shape
    return k * (1 + d + d * (d + 1) // 2) - 1


def ppca_parameters(ppca):
    """Number of free parameters: the mean, the noise, and loadings up to rotation."""
    q, d = ppca.components_.shape
    return d + 1 + d * q - q * (q - 1) // 2


def fill_by_mixture(X, seed):
    """Imputed rows and the number of components."""
    candidates = ((k, TorchGMM(k, reg_covar=REG_COVAR, max_iter=200, random_state=seed)) for k in SIZES)
    size, gmm = lowest_bic(candidates, X, mixture_parameters)
    return gmm.impute(X), size


def fill_by_best_mixture(X, seed):
    """Imputed rows and the number of components."""
    search = GridSearchCV(TorchGMM(max_iter=200, random_state=seed), GRID, cv=3).fit(X)
    return search.best_estimator_.impute(X), search.best_params_["n_components"]


def fill_by_ppca(X, seed):
    """Imputed rows and the dimension."""
    candidates = ((q, TorchPPCA(q)) for q in DIMENSIONS if q < X.shape[1])
    size, ppca = lowest_bic(candidates, X, ppca_parameters)
    return ppca.impute(X), size


def fill_by(imputer):
    """Imputed rows by a transformer, which has no size."""
    return lambda X, seed: (imputer(seed).fit_transform(X), np.nan)


def fill_by_network(make):
    """Imputed rows by an estimator with an ``impute`` method, which has no size."""
    return lambda X, seed: (make(X.shape[1], seed).fit(X).impute(X), np.nan)


def methods(neural):
    """Name and function of each method: neural ones if they are asked for and can impute."""
    classes = {"VAEEmbedder": VAEEmbedder, "AutoencoderEmbedder": AutoencoderEmbedder, "VaDEClusterer": VaDEClusterer}
    able = [name for name in neural if hasattr(classes[name], "impute")]
    return {
        "TorchGMM": fill_by_mixture,
        "TorchGMM, cross-validated": fill_by_best_mixture,
        "TorchPPCA": fill_by_ppca,
        "mean": fill_by(lambda seed: SimpleImputer()),
        "IterativeImputer": fill_by(lambda seed: IterativeImputer(random_state=seed)),
        "KNNImputer": fill_by(lambda seed: KNNImputer()),
    } | {name: fill_by_network(NEURAL[name]) for name in able}


def score(fill, X, share, seed):
    """Error, size and seconds of one method."""
    observed = hide(X, share, seed)
    started = time.perf_counter()
    filled, size = fill(observed, seed)
    seconds = time.perf_counter() - started
    error = float(np.sqrt(np.square(filled - X)[np.isnan(observed)].mean()))
    return {"rmse": error, "size": float(size), "seconds": seconds}


def summary(runs):
    """Mean and standard deviation over seeds of everything that was measured."""
    columns = {name: [run[name] for run in runs] for name in runs[0]}
    return {
        name: {"mean": statistics.mean(values), "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None}
        for name, values in columns.items()
    }


def line(table, shape, share, name, results):
    """A Markdown line."""
    rmse, size = results["rmse"], results["size"]["mean"]
    spread = "" if rmse["sd"] is None else f" ± {rmse['sd']:.3f}"
    cells = [table, "{} x {}".format(*shape), f"{share:.0%}", name, f"{rmse['mean']:.3f}{spread}"]
    cells += ["" if np.isnan(size) else f"{size:.1f}", f"{results['seconds']['mean']:.2f}"]
    return "| " + " | ".join(cells) + " |"


def main():
    """Run the comparison and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", help="only tables whose name contains this")
    parser.add_argument("--neural", nargs="*", choices=NEURAL, default=["VAEEmbedder"], help="networks to compare")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    record = environment(args.threads) | {"seeds": args.seeds, "rows": {}}
    head = ["table", "shape", "hidden", "method", "RMSE", "size", "s"]
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    with threadpool_limits(args.threads):
        for table, X in load_tables().items():
            if args.rows and args.rows not in table:
                continue
            for share in SHARES:
                results = record["rows"][f"{table}, {share:.0%}"] = {"shape": X.shape, "methods": {}}
                for name, fill in methods(args.neural).items():
                    runs = [score(fill, X, share, seed) for seed in range(args.seeds)]
                    results["methods"][name] = summary(runs)
                    print(line(table, X.shape, share, name, results["methods"][name]), flush=True)
                    write_record(args.output, record)


if __name__ == "__main__":
    main()
