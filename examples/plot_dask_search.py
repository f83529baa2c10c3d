"""
A search by the workers of a Dask cluster
=========================================

A search over parameters is many small fits, none of which needs the others. scikit-learn gives them to joblib, and
joblib to the workers of a `Dask <https://distributed.dask.org>`_ cluster: the processes of this machine, or those of
many. The estimators need nothing for it, and the results are those of a search in one process, to the last digit.
(``pip install "dask[distributed]"``)
"""

# %%
# What is searched
# ----------------
# A VAE embeds digits, and a mixture finds ten clusters in the codes. Networks may be narrow or wide, and covariances
# poor or rich; the score is how well the clusters of held-out digits agree with their classes (the adjusted Rand
# index). The fits see no class. Likelihoods could not be compared here, because every VAE has codes of its own.

import argparse
import time
import warnings

import joblib
import matplotlib.pyplot as plt
import numpy as np
import torch
from dask.distributed import Client, LocalCluster
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline

from skvae import TorchGMM, VAEEmbedder

parser = argparse.ArgumentParser(description="Search the settings of a pipeline with two Dask workers.")
parser.add_argument("--epochs", type=int, default=20, help="of each VAE")
parser.add_argument("--output", help="where to save the figure")
args, _ = parser.parse_known_args()

X, y = load_digits(return_X_y=True)
X = X / 16
vae = VAEEmbedder(5, likelihood="bernoulli", max_epochs=args.epochs, device="cpu", random_state=0)
pipeline = Pipeline([("vae", vae), ("gmm", TorchGMM(10, device="cpu", random_state=0))])
grid = {"vae__hidden_layer_sizes": [(32,), (128, 128)], "gmm__covariance_type": ["diag", "tied", "full"]}
search = GridSearchCV(pipeline, grid, scoring="adjusted_rand_score", cv=3, refit=False, n_jobs=2)


def timed_search(backend):
    """Mean test scores of all candidates, and seconds, with a backend of joblib."""
    started = time.perf_counter()
    with joblib.parallel_config(backend), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # mixtures that stop early are part of the search
        found = search.fit(X, y).cv_results_
    return found, time.perf_counter() - started


# %%
# One process, and two workers
# ----------------------------
# A worker is a process with one thread, and torch in it uses one as well: more threads than cores would slow all down.
# On a machine with GPUs, a worker for each of them would see that one alone. New processes begin by importing this
# script, which is why what starts them stands behind ``__name__ == "__main__"``.

if __name__ == "__main__":
    torch.set_num_threads(1)
    alone, seconds_alone = timed_search("sequential")
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        client.run(torch.set_num_threads, 1)
        joint, seconds_joint = timed_search("dask")
        workers = len(client.scheduler_info()["workers"])

    scores, others = alone["mean_test_score"], joint["mean_test_score"]
    print(
        f"{len(scores)} candidates, 3 folds: {seconds_alone:.1f} s in one process, {seconds_joint:.1f} s by {workers}"
    )
    print(f"largest difference of a score: {np.abs(scores - others).max():.1g}")
    print(f"best: {joint['params'][np.argmax(others)]}")

# %%
# What came out
# -------------
# The scores, with the standard deviation over the folds.

if __name__ == "__main__":
    labels = [f"{p['vae__hidden_layer_sizes']}\n{p['gmm__covariance_type']}" for p in joint["params"]]
    places = np.arange(len(labels))
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    axes.errorbar(places - 0.08, scores, alone["std_test_score"], fmt="o", label="one process")
    axes.errorbar(places + 0.08, others, joint["std_test_score"], fmt="s", label="Dask, two workers")
    axes.set(xticks=places, xticklabels=labels, ylabel="adjusted Rand index")
    axes.legend()
    if args.output:
        figure.savefig(args.output)
