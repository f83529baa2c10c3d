"""Walk samples through the code: which files and functions a call enters, and how often it changes between files.

    python benchmarks/walk.py --output benchmarks/results/walk.json

Each method is called with 200 samples of 8 features while Python reports every call of a function. Counted are files
of the package, distinct functions (lambdas and comprehensions among them), changes of file in the order in which these
functions are entered first, and the depth of frames of the package. ``--functions`` prints this order.
"""

import argparse
import itertools
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from record import write_record

import skvae
from skvae import TorchGMM, TorchMiniBatchKMeans, TorchPPCA, VaDEClusterer, VAEEmbedder

ROOT = str(Path(skvae.__file__).parent)
X = np.random.RandomState(0).randn(200, 8)
SMALL = {"max_epochs": 2, "random_state": 0}
CALLS = {
    "TorchGMM.fit": (lambda: TorchGMM(3, random_state=0), "fit"),
    "TorchGMM.predict": (lambda: TorchGMM(3, random_state=0).fit(X), "predict"),
    "TorchMiniBatchKMeans.fit": (lambda: TorchMiniBatchKMeans(3, random_state=0), "fit"),
    "TorchMiniBatchKMeans.predict": (lambda: TorchMiniBatchKMeans(3, random_state=0).fit(X), "predict"),
    "TorchPPCA.fit": (lambda: TorchPPCA(3), "fit"),
    "TorchPPCA.transform": (lambda: TorchPPCA(3).fit(X), "transform"),
    "VAEEmbedder.fit": (lambda: VAEEmbedder(3, **SMALL), "fit"),
    "VAEEmbedder.transform": (lambda: VAEEmbedder(3, **SMALL).fit(X), "transform"),
    "VaDEClusterer.fit": (lambda: VaDEClusterer(3, pretrain_epochs=2, **SMALL), "fit"),
    "VaDEClusterer.predict": (lambda: VaDEClusterer(3, pretrain_epochs=2, **SMALL).fit(X), "predict"),
}


class Walk(NamedTuple):
    """Counts of a call."""

    files: int
    functions: int
    changes_of_file: int
    depth: int


def walk(call):
    """Call a function; return the counts and the functions as (file, name), in the order of their first calls."""
    entered, deepest = {}, 0

    def on_event(frame, event, arg):
        nonlocal deepest
        if event != "call" or not frame.f_code.co_filename.startswith(ROOT):
            return
        code = frame.f_code
        entered[code.co_filename.removeprefix(ROOT + "/"), code.co_qualname] = None
        depth = 0
        while frame is not None:
            depth, frame = depth + frame.f_code.co_filename.startswith(ROOT), frame.f_back
        deepest = max(deepest, depth)

    sys.setprofile(on_event)
    try:
        call()
    finally:
        sys.setprofile(None)
    files = [file for file, _ in entered]
    n_changes = 1 + sum(one != other for one, other in itertools.pairwise(files))
    return Walk(len(set(files)), len(files), n_changes, deepest), list(entered)


def main():
    """Walk through the calls, print a table, and write a record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="calls whose name contains this")
    parser.add_argument("--functions", action="store_true", help="name the functions")
    parser.add_argument("--output", type=Path, help="a JSON file for the counts")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    record = {}
    print("| call | files | functions | changes of file | depth |\n|--|--|--|--|--|")
    for name, (make, method) in CALLS.items():
        if args.only not in name:
            continue
        call = getattr(make(), method)
        counts, functions = walk(lambda call=call: call(X))
        print(f"| {name} | {' | '.join(map(str, counts))} |", flush=True)
        record[name] = counts._asdict()
        for file, function in functions if args.functions else ():
            print(f"    {file}::{function}")
    write_record(args.output, record)


if __name__ == "__main__":
    main()
