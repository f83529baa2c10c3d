"""Corrupted files of `skvae.save`: each should be refused, or load as an equal model.

    python benchmarks/corrupted_files.py --n 10000 --output benchmarks/results/corrupted_files.json

Three kinds of damage, in turn, over all estimators. *Bytes*: flipped, cut, inserted, repeated, exchanged; none may load
as a model that is not equal. *Plants*: pickles that would create a file when they are loaded, alone, in files of other
libraries, or in the file of an estimator; none may run. *Forgeries*: changes with a checksum that fits, of the text, of
the values in it and of the arrays. The numbers of a model can be exchanged for others this way, so that some load as
another model: its methods have to return results, or to raise a ValueError. The memory of the process is limited, and
the slowest file is reported.
"""

import argparse
import copy
import hashlib
import io
import json
import pickle
import random
import resource
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import joblib
import numpy as np
import torch
from sklearn.datasets import make_blobs
from sklearn.frozen import FrozenEstimator

import skvae
from skvae import (
    AutoencoderEmbedder,
    ClusterLabelClassifier,
    TorchGMM,
    TorchMiniBatchKMeans,
    TorchPPCA,
    VaDEClusterer,
    VAEEmbedder,
)
from skvae.persistence import container
from skvae.persistence.files import encode_estimator
from skvae.persistence.values import ValueEncoder

MEMORY = 8 * 2**30  # bytes of address space
SMALL = {"max_epochs": 1, "random_state": 0}
IMAGES = {"image_shape": (4, 4), "channels": (2, 3), "hidden_layer_sizes": (5,)}


def fitted_estimators():
    """Return one of each estimator, with all parts that files can store."""
    X, y = make_blobs(80, 16, centers=3, random_state=0)
    U = (X - X.min()) / np.ptp(X)
    state = np.random.RandomState(0)
    embedder = VAEEmbedder(2, hidden_layer_sizes=(5,), **SMALL).fit(X)
    results = [
        TorchGMM(3, random_state=state, means_init=X[:3]).fit(X.astype(np.float32)),
        TorchGMM(2, covariance_type="tied", random_state=0).fit(X),
        TorchPPCA(2).fit(X),
        TorchMiniBatchKMeans(3, random_state=0).fit(X),
        embedder,
        VAEEmbedder(2, **IMAGES, batch_norm=True, layer_norm=True, dropout=0.1, **SMALL).fit(U),
        AutoencoderEmbedder(
            2, head_layer_sizes=(4,), hidden_layer_sizes=6, likelihood="gaussian_features", **SMALL
        ).fit(X),
        VaDEClusterer(2, latent_dim=2, pretrained=FrozenEstimator(embedder), n_init=2, **SMALL).fit(X),
        ClusterLabelClassifier(TorchGMM(3, random_state=0)).fit(X, np.array(["a", "b", "c"])[y]),
        VAEEmbedder(3),
    ]
    return [(estimator, X if estimator.__class__ is not VAEEmbedder else U) for estimator in results]


def content(estimator):
    """Return all parts of an estimator that a file stores, to be compared."""
    encoder = ValueEncoder(encode_estimator)
    tree = encoder.encode(estimator, "")
    return json.dumps(tree), [(array.dtype, array.shape, array.tobytes()) for array in encoder.arrays.values()]


class Plant:
    """An object whose pickle creates a file when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


# Damage of bytes, without regard to what they mean.


def flip(data, rng):
    """Flip one bit, anywhere or in the text."""
    place = rng.randrange(len(data) if rng.random() < 0.5 else min(len(data), 4_000))
    data[place] ^= 1 << rng.randrange(8)
    return data


def replace_bytes(data, rng):
    """Replace a run of bytes."""
    start, size = rng.randrange(len(data)), rng.randrange(1, 64)
    data[start : start + size] = rng.randbytes(min(size, len(data) - start))
    return data


def cut(data, rng):
    """Truncate."""
    return data[: rng.randrange(len(data))]


def leave_out(data, rng):
    """Remove a run of bytes."""
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.randrange(1, 256) :]


def insert(data, rng):
    """Insert bytes, perhaps at the end."""
    start = rng.choice([len(data), rng.randrange(len(data))])
    return data[:start] + rng.randbytes(rng.randrange(1, 64)) + data[start:]


def repeat(data, rng):
    """Repeat a run of bytes."""
    start = rng.randrange(len(data))
    end = start + rng.randrange(1, 256)
    return data[:end] + data[start:]


def exchange(data, rng):
    """Exchange two runs of bytes."""
    size = rng.randrange(1, 64)
    first, second = sorted(rng.randrange(max(1, len(data) - size)) for _ in range(2))
    data[first : first + size], data[second : second + size] = data[second : second + size], data[first : first + size]
    return data


def other_length(data, rng):
    """Change the length of the header."""
    size = rng.choice([0, 1, 7, len(data), len(data) - 8, 2**24, 2**31, 2**63, 2**64 - 1, rng.randrange(2**20)])
    data[:8] = size.to_bytes(8, "little")
    return data


BYTES = (flip, flip, flip, replace_bytes, cut, leave_out, insert, repeat, exchange, other_length)


# Pickles.


def plants(path):
    """Return pickles that create a file when loaded, in several formats."""
    results = [pickle.dumps(Plant(path), protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    for write in (lambda file: joblib.dump(Plant(path), file), lambda file: torch.save(Plant(path), file)):
        file = io.BytesIO()
        write(file)
        results.append(file.getvalue())
    file = io.BytesIO()
    np.savez(file, a=np.array([Plant(path)], dtype=object))
    return [*results, file.getvalue()]


def plant(data, rng, pickles):
    """Replace the file, or a part of it, by a pickle; the checksum may fit."""
    results = rng.choice(pickles)
    start = rng.randrange(len(data))
    return rng.choice(
        [results, data + results, results + data, data[:start] + results + data[start:], signed(data[:start] + results),
         signed(data[:8] + results + data[8:]), len(results).to_bytes(8, "little") + results + bytes(data)]
    )  # fmt: skip


# Forgeries.


def signed(data):
    """Return the bytes with a fitting checksum, if there is a place for one."""
    data = bytearray(data)
    place = data.find(container.MARKER)
    if place < 0:
        return data
    place += len(container.MARKER)
    data[place : place + container.N_DIGITS] = b"0" * len(data[place : place + container.N_DIGITS])
    data[place : place + container.N_DIGITS] = hashlib.sha256(data).hexdigest().encode()
    return data


SCALARS = (
    0,
    1,
    -1,
    2,
    3,
    10**9,
    -(10**18),
    2**70,
    0.5,
    -1.5,
    1e300,
    True,
    False,
    None,
    "",
    "nan",
    "mlp",
    "\ud800",
    "a" * 99,
)
TAGS = ("tuple", "dict", "array", "objects", "scalar", "text", "dtype", "type", "device", "RandomState", "frozen",
        "module", "estimator", "float", "pickle")  # fmt: skip


def forge_tree(tree, arrays, rng):
    """Change values in the text."""
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        path, node = random_node(tree, rng)
        parent, key = path
        change = rng.randrange(7)
        if change == 0:
            parent[key] = rng.choice(SCALARS)
        elif change == 1 and isinstance(node, int | float) and not isinstance(node, bool):
            parent[key] = rng.choice([node + 1, node - 1, -node, node * 1000, float(node), str(node), [node]])
        elif change == 2 and isinstance(parent, list):
            parent.insert(key, copy.deepcopy(node))
        elif change == 3:
            del parent[key]
        elif change == 4 and isinstance(node, dict):
            node[rng.choice(["$", "class", "value", "items", "x", "predict"])] = rng.choice([*TAGS, *SCALARS])
        elif change == 5 and isinstance(parent, dict):
            parent[rng.choice(["predict", "__class__", "fit", "labels_", "x"])] = parent.pop(key)
        else:
            parent[key] = copy.deepcopy(random_node(tree, rng)[1])
    return tree, arrays


def random_node(tree, rng):
    """Return a random place (parent, key) in a tree and its value, any place or one near the top."""
    if rng.random() < 0.5:
        parent, key = rng.choice(list(places(tree)))
        return (parent, key), parent[key]
    parent, key = {"root": tree}, "root"
    while isinstance(parent[key], dict | list) and parent[key] and (key == "root" or rng.random() < 0.85):
        parent = parent[key]
        key = rng.choice(list(parent)) if isinstance(parent, dict) else rng.randrange(len(parent))
    return (parent, key), parent[key]


def places(tree):
    """Yield all places (parent, key) in a tree."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield tree, key
        if isinstance(value, dict | list):
            yield from places(value)


def forge_arrays(tree, arrays, rng):
    """Change arrays."""
    if not arrays:
        return tree, arrays
    name = rng.choice(list(arrays))
    array = arrays[name]
    changes = [
        lambda: array.astype(rng.choice([np.float32, np.float64, np.int64, np.uint8, bool, np.float16])),
        lambda: array[..., None],
        lambda: np.concatenate([array.ravel(), array.ravel()]),
        lambda: array.ravel()[: rng.randrange(array.size + 1)].copy(),
        lambda: np.zeros((0, *array.shape), array.dtype),
        lambda: np.full_like(array, np.nan if array.dtype.kind == "f" else 10**6 % 200),
        lambda: np.frombuffer(rng.randbytes(array.nbytes), array.dtype).reshape(array.shape),
        lambda: np.ascontiguousarray(array.T),
        lambda: arrays[rng.choice(list(arrays))],
    ]
    with np.errstate(all="ignore"):  # of numbers that another dtype does not have
        arrays[name] = rng.choice(changes)()
    if rng.random() < 0.1:
        arrays[str(len(arrays))] = arrays.pop(name)
    return tree, arrays


def forge(data, rng):
    """Change the contents, with a fitting checksum."""
    if rng.random() < 0.4:
        return signed(rng.choice(BYTES)(data, rng))
    tree, arrays = container.unpack(bytes(data))
    tree["versions"] = {}
    tree, arrays = rng.choice([forge_tree, forge_tree, forge_arrays])(tree, dict(arrays), rng)
    tree = tree if isinstance(tree, dict) else {"estimator": tree}
    tree.pop("sha256", None)
    return container.pack(tree, arrays)


# What comes of it.


def outcome(path, X, expected):
    """Return the outcome of loading, in a word."""
    try:
        results = skvae.load(path)
    except ValueError:
        return "refused"
    except MemoryError:
        return "loads: too much memory"
    except Exception as error:
        return f"loads: {type(error).__name__}"
    if content(results) == expected:
        return "equal"
    try:
        use(results, X)
    except ValueError:
        return "another model, which refuses"
    except Exception as error:
        return f"another model: {type(error).__name__}"
    return "another model, which answers"


def use(estimator, X):
    """Call all methods."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("predict", "predict_proba", "transform", "score_samples"):
            if hasattr(estimator, name):
                getattr(estimator, name)(X)
        if hasattr(estimator, "sample"):
            estimator.sample(3, random_state=0)


def run(n, seed=0):
    """Return counts of outcomes by damage, pickles that ran, and the time of the slowest file in seconds."""
    rng, counts, slowest = random.Random(seed), {}, 0.0
    with tempfile.TemporaryDirectory() as folder:
        path, mark = Path(folder) / "estimator.skvae", Path(folder) / "ran"
        pickles, known = plants(mark), []
        for estimator, X in fitted_estimators():
            skvae.save(estimator, path)
            known.append((path.read_bytes(), X, content(estimator)))
        kinds = {
            "bytes": lambda data: rng.choice(BYTES)(data, rng),
            "plants": lambda data: plant(data, rng, pickles),
            "forgeries": lambda data: forge(data, rng),
        }
        for i in range(n):
            original, X, expected = known[i % len(known)]
            kind = ("bytes", "forgeries", "bytes", "forgeries", "plants")[i // len(known) % 5]
            data = bytes(kinds[kind](bytearray(original)))
            path.write_bytes(data)
            begun = time.perf_counter()
            results = "unchanged" if data == original else outcome(path, X, expected)
            slowest = max(slowest, time.perf_counter() - begun)
            counts.setdefault(kind, Counter())[results] += 1
        return counts, mark.exists(), slowest


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=10_000, help="number of files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON file for the counts")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    counts, ran, slowest = run(options.n, options.seed)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    record = {"n": options.n, "seed": options.seed, "counts": counts, "pickles_ran": ran}
    record |= {"slowest_s": round(slowest, 3), "peak_resident_mb": round(peak), "skvae": skvae.__version__}
    print(json.dumps(record, indent=2))
    if options.output:
        options.output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
