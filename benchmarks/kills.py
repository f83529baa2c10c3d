"""Kill a training at random moments, start it again, and compare the end with one that was never killed.

    python benchmarks/kills.py --kills 20 --output benchmarks/results/kills.json

A process fits an estimator with ``checkpoint=``; it is killed (SIGKILL) after a random time, and another one begins,
until all kills are done and the last may finish. The parameters are compared bit for bit.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from record import environment, write_record

from skvae.fitting.checkpoint import read_checkpoint

FIT = """
import sys, warnings
import numpy as np
from sklearn.datasets import load_digits
from skvae import AutoencoderEmbedder, VaDEClusterer, VAEEmbedder
warnings.simplefilter("ignore")
X = load_digits().data / 16
settings = {"random_state": 0, "checkpoint": sys.argv[2] or None}
estimators = {
    "VAEEmbedder": VAEEmbedder(5, max_epochs=EPOCHS, early_stopping=True, n_iter_no_change=99, dropout=0.1, **settings),
    "AutoencoderEmbedder": AutoencoderEmbedder(5, max_epochs=EPOCHS, corruption=0.2, lr_schedule="cosine", **settings),
    "VaDEClusterer": VaDEClusterer(10, image_shape=(8, 8), pretrain_epochs=20, max_epochs=30, **settings),
}
estimator = estimators[sys.argv[1]].fit(X)
arrays = {name: value.numpy() for name, value in estimator.module_.state_dict().items()}
np.savez(sys.argv[3], **arrays)
"""


def run(name, checkpoint, result, n_epochs):
    """The process that fits an estimator."""
    return subprocess.Popen([sys.executable, "-c", FIT.replace("EPOCHS", str(n_epochs)), name, checkpoint, str(result)])


def differences(one, other):
    """Names of the arrays of two files that are not the same."""
    with np.load(one) as mine, np.load(other) as theirs:
        both = set(mine.files) & set(theirs.files)
        same = {name for name in both if np.array_equal(mine[name], theirs[name])}
        return sorted((set(mine.files) | set(theirs.files)) - same)


def kill_and_go_on(name, n_kills, n_epochs, longest, folder):
    """Kill so often; where each began, and what is different at the end."""
    folder = Path(folder)
    checkpoint, killed, whole = folder / "training.pt", folder / "killed.npz", folder / "whole.npz"
    run(name, "", whole, n_epochs).wait()
    draw, states = random.Random(0), []
    for _ in range(n_kills):
        process = run(name, str(checkpoint), killed, n_epochs)
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else None
        while process.poll() is None and (not checkpoint.exists() or checkpoint.stat().st_mtime_ns == before):
            time.sleep(0.005)  # importing takes seconds; a kill there would say little
        time.sleep(draw.uniform(0, longest))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if checkpoint.exists():
            content = read_checkpoint(checkpoint)
            current = content["current"]
            states.append([len(content["finished"]), current["epochs_done"] if current else 0])
    run(name, str(checkpoint), killed, n_epochs).wait()
    return {"stopped_in": states, "different": differences(killed, whole), "left": checkpoint.exists()}


def main():
    """Kill at random moments, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="in all; each estimator has its share")
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--longest", type=float, default=1.0, help="seconds after the first epoch of a process")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    names = ["VAEEmbedder", "AutoencoderEmbedder", "VaDEClusterer"]
    shares = [args.kills // 3 + (index < args.kills % 3) for index in range(3)]
    record = environment(1) | {"kills": dict(zip(names, shares, strict=True)), "rows": {}}
    for name, n_kills in zip(names, shares, strict=True):
        with tempfile.TemporaryDirectory() as folder:
            record["rows"][name] = kill_and_go_on(name, n_kills, args.epochs, args.longest, folder)
        print(name, n_kills, "kills", record["rows"][name], flush=True)
    write_record(args.output, record)


if __name__ == "__main__":
    main()
