"""Training of `VAEEmbedder` in bfloat16 and in float32: time of an epoch, and the bound of held-out images.

    python benchmarks/precision.py --output benchmarks/results/precision.json

MNIST, 20,000 training images, batches of 256, one thread. Both precisions take turns with the same seeds. Seconds are
those of the processor in an epoch, from a fit with all epochs less one with a single epoch. The processor needs
instructions for bfloat16 (AMX or AVX-512 BF16).
"""

import argparse
import statistics
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from record import environment, write_record
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from skvae import VAEEmbedder
from skvae.datasets import fetch_mnist

NETWORKS = {
    "784-256-128-10": {},
    "784-500-500-2000-10": {"hidden_layer_sizes": (500, 500, 2_000)},
    "convolutions 1-32-64, 10 latents": {"image_shape": (28, 28)},
}
PRECISIONS = ("float32", "bf16")


def timed_fit(X, epochs, **settings):
    """Return a fitted estimator, and seconds of the processor."""
    started = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        vae = VAEEmbedder(10, batch_size=256, max_epochs=epochs, kl_warmup_epochs=0, **settings).fit(X)
    return vae, time.process_time() - started


def main():
    """Compare both precisions for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--networks", nargs="+", default=[*NETWORKS], choices=[*NETWORKS])
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    X = (fetch_mnist().data / 255).astype(np.float32)
    X_train, X_test = X[: args.images], X[60_000:]
    record = environment(1) | {"images": args.images, "epochs": args.epochs, "rows": {}}
    with threadpool_limits(1):
        for name in args.networks:
            rows = record["rows"][name] = {precision: {"seconds": [], "bounds": []} for precision in PRECISIONS}
            for seed in range(args.repeats):
                for precision in PRECISIONS:
                    settings = NETWORKS[name] | {"precision": precision, "random_state": seed}
                    _, short = timed_fit(X_train, 1, **settings)
                    vae, long = timed_fit(X_train, args.epochs, **settings)
                    rows[precision]["seconds"].append((long - short) / (args.epochs - 1))
                    rows[precision]["bounds"].append(vae.score(X_test))
            for precision, row in rows.items():
                seconds, bound = statistics.median(row["seconds"]), statistics.mean(row["bounds"])
                print(f"{name}, {precision}: {seconds:.2f} s, bound {bound:.2f}", flush=True)
            write_record(args.output, record)


if __name__ == "__main__":
    main()
