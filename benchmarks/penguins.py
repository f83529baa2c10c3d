"""Penguins of a table with numbers, categories and gaps: clusters and species, by seed.

    pip install palmerpenguins
    python benchmarks/penguins.py --seeds 10

344 penguins (Horst, Hill and Gorman 2020, CC0): four measurements, island and sex, of which 19 values are missing;
species only score. k-means and "TorchGMM" see standardized numbers and one-hot codes, with means and the most frequent
category in gaps; the others see the data frame. V is the V-measure of the three clusters and the species.
"""

import argparse
import importlib.util
import statistics
import warnings
from pathlib import Path

import pandas as pd
import torch
from record import RESULTS, environment, write_record
from sklearn.cluster import KMeans
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.metrics import v_measure_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from threadpoolctl import threadpool_limits

from skvae import TorchGMM, VaDEClusterer, VAEEmbedder


def load_penguins():
    """Return the table without the year of the measurement, and the species."""
    folder = Path(importlib.util.find_spec("palmerpenguins").submodule_search_locations[0])
    penguins = pd.read_csv(folder / "data" / "penguins.csv")
    return penguins.drop(columns=["species", "year"]), penguins["species"]


def encoded(clusterer, X):
    """Return clusters of standardized numbers and one-hot codes."""
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    categories = make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder())
    encoder = make_column_transformer(
        (numbers, make_column_selector(dtype_include="number")),
        (categories, make_column_selector(dtype_exclude="number")),
    )
    return make_pipeline(encoder, clusterer).fit_predict(X)


def mixture(seed):
    """Return the mixture that clusters latent codes, and without a network one-hot codes."""
    return TorchGMM(3, reg_covar=1e-2, n_init=10, random_state=seed)


def embedded(n_components):
    """Return a function that clusters latent codes."""

    def clusters(X, seed):
        codes = VAEEmbedder(n_components, random_state=seed).fit_transform(X)
        return mixture(seed).fit_predict(codes)

    return clusters


METHODS = {
    "k-means": lambda X, seed: encoded(KMeans(3, n_init=10, random_state=seed), X),
    "TorchGMM": lambda X, seed: encoded(mixture(seed), X),
    "VaDEClusterer": lambda X, seed: VaDEClusterer(3, random_state=seed).fit_predict(X),
    **{f"VAEEmbedder({n}) + TorchGMM": embedded(n) for n in (2, 5, 10)},
}


def main():
    """Run, and print the scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS / "penguins.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    (X, species), rows = load_penguins(), {}
    record = {"environment": environment(args.threads), "rows": rows}
    with threadpool_limits(args.threads), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, clusters in METHODS.items():
            rows[name] = [v_measure_score(species, clusters(X, seed)) for seed in range(args.seeds)]
            write_record(args.output, record)
    for name, scores in rows.items():
        print(f"{name:32}V {statistics.mean(scores):.3f}, worst {min(scores):.3f}")


if __name__ == "__main__":
    main()
