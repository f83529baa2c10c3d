"""
Clustering mixed-type data of customers
=======================================

This example clusters a data frame with numbers, counts, categories, booleans and missing values, with a likelihood for
each column. It describes the clusters, saves the model and samples new customers. The data are simulated from three
groups, which are used only for scoring.
"""

# %%
# Data
# ----

import argparse
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.cluster import KMeans
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.metrics import v_measure_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import skvae
from skvae import TorchGMM, VaDEClusterer, VAEEmbedder
from skvae.displays import ClusterProfileDisplay

parser = argparse.ArgumentParser(description="Cluster customers.")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--output", default="customers.png", help="where to save the figure")
args, _ = parser.parse_known_args()

rng = np.random.default_rng(args.seed)
group = rng.integers(3, size=2_000)
income = rng.normal(size=2_000)  # independent of the groups
table = pd.DataFrame(
    {
        "age": rng.normal(np.array([28, 45, 66])[group], 7).round(),
        "spending": np.exp(rng.normal(5 + 0.5 * income + np.array([0, 0.6, 0.2])[group], 0.3)).round(2),
        "visits": rng.poisson(np.array([12, 4, 7])[group] * np.exp(0.2 * income)),
        "channel": np.where(rng.random(2_000) < 0.75, np.array(["app", "web", "shop"])[group], "web"),
        "region": rng.choice(["north", "south", "east", "west"], 2_000),
        "member": rng.random(2_000) < np.array([0.2, 0.7, 0.5])[group],
        "discount": rng.beta(2, np.array([3, 9, 6])[group]).round(3),
    }
)
for column, share in {"age": 0.1, "channel": 0.1, "discount": 0.05}.items():
    table.loc[rng.random(2_000) < share, column] = np.nan

folder = Path(tempfile.mkdtemp())
table.to_csv(folder / "customers.csv", index=False)
customers = pd.read_csv(folder / "customers.csv")
print(customers.head())

# %%
# Clusters
# --------
# Likelihoods are selected automatically for each column, except for the counts of visits. k-means is fitted to
# standardized numbers and one-hot encoded categories, with imputed missing values.

likelihood = [("visits", "negative_binomial", ["visits"])]
vade = VaDEClusterer(3, latent_dim=4, likelihood=likelihood, random_state=args.seed).fit(customers)
print(vade.column_likelihoods_)

vae = VAEEmbedder(4, likelihood=likelihood, random_state=args.seed)
mixture = TorchGMM(3, reg_covar=1e-2, n_init=10, random_state=args.seed)
numbers = make_pipeline(SimpleImputer(), StandardScaler())
categories = make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder())
encoder = make_column_transformer(
    (numbers, make_column_selector(dtype_include="number")), (categories, make_column_selector(dtype_exclude="number"))
)
kmeans = make_pipeline(encoder, KMeans(3, n_init=10, random_state=args.seed))
found = {
    "VaDEClusterer": vade.labels_,
    "VAEEmbedder and TorchGMM": make_pipeline(vae, mixture).fit_predict(customers),
    "k-means of one-hot codes": kmeans.fit_predict(customers),
}
print("\nV-measure of clusters and groups")
for name, labels in found.items():
    print(f"{name:28}{v_measure_score(group, labels):.2f}")

# %%
# Description of the clusters
# ---------------------------
# The figure shows means of numbers and shares of categories. Colours show the difference from all customers.

display = ClusterProfileDisplay.from_estimator(vade, customers)
print(*display.describe(), sep="\n")
display.figure_.savefig(args.output, dpi=110)
plt.show()

# %%
# Save, load, impute and sample
# -----------------------------
# Imputed values and samples have the columns and dtypes of the data frame.

skvae.save(vade, folder / "customers.skvae")
loaded = skvae.load(folder / "customers.skvae")
print(loaded.impute(customers[customers.isna().any(axis=1)].head(3)))
new, cluster = loaded.sample(3, cluster=0, random_state=args.seed)
print(new)
