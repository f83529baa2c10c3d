"""Quality of VAEEmbedder on MNIST in the settings of a published comparison, and of other trainers of the networks.

    python benchmarks/vae_quality.py --output benchmarks/results/vae_quality.json

Perceptrons and convolutions with Bernoulli pixels, Adam with learning rate 1e-3 and batches of 128, 25 epochs over the
60,000 training images. On the 10,000 test images: the evidence lower bound in nats, its expectation over codes taken at
fixed points, the same for all; and the mean squared error of reconstructions from mean codes, pixels in [0, 1]. The
mean and standard deviation over seeds are shown. A plain PyTorch loop and pythae train the same networks with the same
optimizer and number of steps, with fewer seeds and for 2 latent dimensions alone; "ours less" is our mean bound with
those seeds less theirs, which should not be below -0.5. The published figures have 2 latent dimensions, and do not say
how wide the perceptrons are. No labels are used.
"""

import argparse
import logging
import statistics
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from record import environment, write_record
from threadpoolctl import threadpool_limits
from vae import load_images, plain_scores, train_plain, train_pythae, train_skvae

MLP = {"hidden_layer_sizes": (512, 256)}
CONV = {"image_shape": (28, 28), "channels": (16, 32)}
ROWS = {
    "mlp, 2 latents": {"n_components": 2, **MLP},
    "conv, 2 latents": {"n_components": 2, **CONV},
    "mlp, 10 latents": {"n_components": 10, **MLP},
    "conv, 10 latents": {"n_components": 10, **CONV},
}
PUBLISHED = {"mlp, 2 latents": (-142.81, 0.0375), "conv, 2 latents": (-156.82, 0.0443)}  # bound, squared error


def run_skvae(X, X_test, architecture, epochs, seed):
    """Return the ELBO of each test image and reconstructions, ours."""
    vae = train_skvae(X, architecture, epochs, seed)
    return lambda: (vae.score_samples(X_test), vae.reconstruct(X_test))


def run_peer(train):
    """Return the same of another trainer."""

    def run(X, X_test, architecture, epochs, seed):
        model = train(X, architecture, epochs, seed)
        return lambda: plain_scores(model, X_test)

    return run


TRAINERS = {"skvae": run_skvae, "plain loop": run_peer(train_plain), "pythae": run_peer(train_pythae)}


def measure(run, images, architecture, epochs, seed):
    """Bound, squared error and seconds of training with one seed."""
    X, X_test, _ = images
    started = time.perf_counter()
    scores = run(X, X_test, architecture, epochs, seed)
    seconds = time.perf_counter() - started
    elbo, decoded = scores()
    return {"elbo": float(elbo.mean()), "mse": float(np.square(decoded - X_test).mean()), "seconds": seconds}


def compare(images, architecture, epochs, seeds, peer_seeds):
    """All trainers in turns, ours with more seeds."""
    runs = {}
    for seed in range(seeds):
        for name, run in TRAINERS.items():
            if name == "skvae" or seed < peer_seeds:
                runs.setdefault(name, []).append(measure(run, images, architecture, epochs, seed))
    rows = {name: summary(found) for name, found in runs.items()}
    for name, row in rows.items():  # on the same seeds
        row["against"] = statistics.mean(run["elbo"] for run in runs["skvae"][: len(runs[name])]) - row["elbo"]
    return rows


def summary(runs):
    """Means and standard deviations over seeds."""
    row = {}
    for name in ("elbo", "mse", "seconds"):
        values = [run[name] for run in runs]
        row |= {name: statistics.mean(values), f"{name}_sd": statistics.stdev(values) if len(values) > 1 else None}
    return row | {"runs": runs}


def with_sd(row, name, digits):
    """A mean with its standard deviation, if there is one."""
    sd = row[f"{name}_sd"]
    return f"{row[name]:.{digits}f}" + (f" ({sd:.{digits}f})" if sd is not None else "")


def show(work, rows):
    """Print the lines of one architecture."""
    for name, row in rows.items():
        against = "" if name == "skvae" else f"{row['against']:+12.2f}"
        results = f"{with_sd(row, 'elbo', 2):>18}{with_sd(row, 'mse', 4):>18}{row['seconds']:11.1f}"
        print(f"{work:20}{name:12}{results}{against}", flush=True)
    if work in PUBLISHED:
        elbo, mse = PUBLISHED[work]
        print(f"{work:20}{'published':12}{elbo:18.2f}{mse:18.4f}", flush=True)


def main():
    """Run the comparison and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--peer-seeds", type=int, default=3, help="of the other trainers, for 2 latents")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--images", type=int, default=60_000, help="how many training images")
    parser.add_argument("--rows", help="only rows whose name contains this")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(args.threads)
    images = load_images(args.images)
    record = environment(args.threads, "pythae") | {
        "images": images[2],
        "n_images": len(images[0]),
        "epochs": args.epochs,
    }
    record |= {"seeds": args.seeds, "published": PUBLISHED, "rows": {}}
    print(f"{len(images[0])} training images: {images[2]}; {args.epochs} epochs, {args.seeds} seeds")
    print(f"{'architecture':20}{'trainer':12}{'test ELBO (sd)':>18}{'MSE (sd)':>18}{'fit s':>11}{'ours less':>12}")
    with threadpool_limits(args.threads):
        for work, architecture in ROWS.items():
            if args.rows and args.rows not in work:
                continue
            peer_seeds = args.peer_seeds if work in PUBLISHED else 0
            record["rows"][work] = compare(images, architecture, args.epochs, args.seeds, peer_seeds)
            show(work, record["rows"][work])
            write_record(args.output, record)


if __name__ == "__main__":
    main()
