"""A file that is not what was written is an error: damaged, of another kind, or forged. No code is run from it."""

import importlib.util
import io
import json
import pickle
import random
import time
import zipfile
from pathlib import Path

import joblib
import numpy as np
import pytest
import safetensors.numpy
import torch
from sklearn.datasets import make_blobs

import skvae
from skvae import TorchGMM, VAEEmbedder
from skvae.persistence import container
from skvae.persistence.values import MAX_DEPTH

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "corrupted_files.py"


@pytest.fixture(scope="module")
def corrupted_files():
    """The benchmark of ten thousand files, of which the tests run some."""
    spec = importlib.util.spec_from_file_location("corrupted_files", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def path(tmp_path):
    return tmp_path / "estimator.skvae"


@pytest.fixture(scope="module")
def gmm_bytes(tmp_path_factory):
    path = tmp_path_factory.mktemp("gmm") / "gmm.skvae"
    X, _ = make_blobs(60, 3, random_state=0)
    skvae.save(TorchGMM(2, random_state=0).fit(X), path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def vae_bytes(tmp_path_factory):
    path = tmp_path_factory.mktemp("vae") / "vae.skvae"
    X = np.random.default_rng(0).random((60, 16))
    images = {"image_shape": (4, 4), "channels": (2,), "hidden_layer_sizes": (5,)}
    skvae.save(VAEEmbedder(2, **images, max_epochs=1, random_state=0).fit(X), path)
    return path.read_bytes()


def refused(path, data, match="is not an estimator that skvae.save wrote"):
    path.write_bytes(data)
    begun = time.perf_counter()
    with pytest.raises(ValueError, match=match):
        skvae.load(path)
    assert time.perf_counter() - begun < 5


# Damage.


def test_every_cut_is_an_error(gmm_bytes, path):
    for size in [*range(0, 200, 7), *range(200, len(gmm_bytes), 97), len(gmm_bytes) - 1]:
        refused(path, gmm_bytes[:size])


def test_every_byte_counts(gmm_bytes, path):
    for place in range(0, len(gmm_bytes), 5):
        changed = bytearray(gmm_bytes)
        changed[place] ^= 1
        refused(path, bytes(changed))


def test_more_bytes_are_an_error(gmm_bytes, path):
    for more in (b"\0", b"\n", gmm_bytes):
        refused(path, gmm_bytes + more, "its checksum is wrong")
        refused(path, more + gmm_bytes)


def test_corrupted_files(corrupted_files):
    """Damaged, planted and forged files over all kinds of estimators."""
    counts, pickles_ran, slowest = corrupted_files.run(400)
    assert not pickles_ran
    assert slowest < 5
    assert set(counts["bytes"]) | set(counts["plants"]) <= {"refused", "unchanged"}
    assert set(counts["forgeries"]) <= {
        "refused", "unchanged", "equal", "another model, which answers", "another model, which refuses"
    }  # fmt: skip
    assert counts["bytes"]["refused"] > 150
    assert counts["forgeries"]["refused"] > 80


# Files of other kinds.


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        skvae.load(tmp_path / "missing")
    with pytest.raises(ValueError, match="it is not a file but a folder or a device"):
        skvae.load(tmp_path)
    with pytest.raises(ValueError, match="it is not a file but a folder or a device"):
        skvae.load("/dev/zero")
    with pytest.raises(TypeError):
        skvae.load(io.BytesIO())


def foreign_files():
    """Names and bytes."""
    gmm, file = TorchGMM(2).fit([[0.0], [1.0], [5.0]]), io.BytesIO()
    yield "empty", b""
    yield "one byte", b"{"
    yield "text", b"A text that is longer than a number."
    yield "json", b'{"estimator": "TorchGMM"}'
    yield "pickle", pickle.dumps(gmm)
    yield "png", b"\x89PNG\r\n\x1a\n" + bytes(100)
    yield "zeros", bytes(10_000)
    joblib.dump(gmm, file)
    yield "joblib", file.getvalue()
    torch.save({"a": torch.zeros(3)}, file := io.BytesIO())
    yield "torch", file.getvalue()
    with zipfile.ZipFile(file := io.BytesIO(), "w") as archive:
        archive.writestr("a.txt", "text")
    yield "zip", file.getvalue()
    yield "safetensors", safetensors.numpy.save({"a": np.zeros(3)}, {"format": "pt"})


@pytest.mark.parametrize(
    ("name", "data"), list(foreign_files()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_foreign_files(name, data, path):
    problem = r"(it has another format|it has \d+ bytes)"
    refused(path, data, rf"estimator.skvae' is not an estimator that skvae.save wrote: {problem}")


@pytest.mark.parametrize("size", [2**63, 2**64 - 1, 2**40, 2**25 + 1, 10_000])
def test_absurd_lengths_of_the_header(size, gmm_bytes, path):
    refused(path, size.to_bytes(8, "little") + gmm_bytes[8:])


def test_a_large_foreign_file_is_not_read(path, monkeypatch):
    with open(path, "wb") as file:
        file.write((100).to_bytes(8, "little") + bytes(200))
        file.truncate(2**40)  # without that many bytes on the disk
    with pytest.raises(ValueError, match="it has another format"):
        skvae.load(path)


# Forgeries: with a checksum that fits.


def forged(data, change):
    """The bytes with another tree and other arrays, which ``change`` makes in place."""
    tree, arrays = container.unpack(data)
    del tree["sha256"]
    change(tree, arrays)
    return container.pack(tree, arrays)


def test_an_honest_forgery_loads(gmm_bytes, path):
    """So that the refusals below are not those of the checksum."""
    path.write_bytes(forged(gmm_bytes, lambda tree, arrays: tree["estimator"]["params"].update(tol=0.5)))
    assert skvae.load(path).tol == 0.5


def fitted(tree):
    return tree["estimator"]["fitted"]


def deep(depth):
    value = 1.0
    for _ in range(depth):
        value = [value]
    return value


GMM_FORGERIES = {
    "newer format": (
        lambda t, a: t.update(format_version=2),
        "its format has the version 2, but this skvae reads version 1; it was written by",
    ),
    "version of another type": (lambda t, a: t.update(format_version=True), "its format has the version True"),
    "more fields": (lambda t, a: t.update(code="print()"), "it has the fields"),
    "no estimator": (lambda t, a: t.update(estimator=[1, 2]), "its value is not an estimator"),
    "unknown class": (lambda t, a: t["estimator"].update({"class": "Pipeline"}), "the estimator 'Pipeline' is unknown"),
    "builtin": (lambda t, a: t["estimator"].update({"class": "eval"}), "the estimator 'eval' is unknown"),
    "class that is none": (lambda t, a: t["estimator"].update({"class": ["TorchGMM"]}), "an estimator has the fields"),
    "unknown parameter": (lambda t, a: t["estimator"]["params"].update(code=1), "TorchGMM has no parameters .'code'"),
    "parameter of wrong type": (
        lambda t, a: t["estimator"]["params"].update(n_components="three"),
        "the parameters of its TorchGMM are not valid .*n_components",
    ),
    "unknown kind of value": (
        lambda t, a: t["estimator"]["params"].update(tol={"$": "pickle", "value": "gASV"}),
        "a value of the unknown type 'pickle'",
    ),
    "kind that is none": (lambda t, a: t["estimator"]["params"].update(tol={"$": [1]}), "a value of the unknown type"),
    "method covered up": (lambda t, a: fitted(t).update(predict=1), "a fitted TorchGMM has no attribute 'predict'"),
    "class covered up": (lambda t, a: fitted(t).update(__class__="x"), "has no attribute '__class__'"),
    "parameter twice": (lambda t, a: fitted(t).update(n_components=2), "has no attribute 'n_components'"),
    "attribute of wrong type": (lambda t, a: fitted(t).update(n_iter_="many"), "n_iter_ of its TorchGMM is a str"),
    "negative count": (lambda t, a: fitted(t).update(n_iter_=-1), "n_iter_ of its TorchGMM is -1"),
    "absurd features": (lambda t, a: fitted(t).update(n_features_in_=10**12), "its TorchGMM has 10+ features"),
    "other features": (lambda t, a: fitted(t).update(n_features_in_=4), "its fitted attributes are inconsistent"),
    "attribute is missing": (lambda t, a: fitted(t).pop("covariances_") and a.clear(), "missing|refers|inconsistent"),
    "array is missing": (lambda t, a: a.pop("0"), "the array '0' is missing"),
    "array too many": (lambda t, a: a.update(x=np.zeros(3)), "nothing refers to its arrays .'x'"),
    "array of integers": (
        lambda t, a: a.update({k: v.astype(np.int64) for k, v in a.items()}),
        "is an array of int64",
    ),
    "array of another shape": (
        lambda t, a: a.update({k: v[..., None] for k, v in a.items()}),
        "has the shape .*, which contradicts",
    ),
    "deep values": (lambda t, a: t["estimator"]["params"].update(means_init=deep(MAX_DEPTH)), "too deep"),
    "very deep values": (lambda t, a: t["estimator"]["params"].update(means_init=deep(300)), "too deep|JSON"),
    "absurd text array": (
        lambda t, a: t["estimator"]["params"].update(
            means_init={"$": "objects", "text": False, "shape": [10**9, 10**9], "items": [1]}
        ),
        "1 objects do not fill an array",
    ),
    "long text array": (
        lambda t, a: t["estimator"]["params"].update(
            means_init={"$": "objects", "text": True, "shape": [1000], "items": ["x" * 10**6] + ["x"] * 999}
        ),
        "strings of up to 1000000",
    ),
    "absurd device": (
        lambda t, a: t["estimator"]["params"].update(device={"$": "device", "value": "a:b"}),
        "'a:b' is not a device",
    ),
    "random state": (
        lambda t, a: t["estimator"]["params"].update(random_state={"$": "RandomState", "state": 3}),
        "a random state is invalid",
    ),
}


@pytest.mark.parametrize(("change", "match"), GMM_FORGERIES.values(), ids=GMM_FORGERIES)
def test_forged_mixtures(change, match, gmm_bytes, path):
    refused(path, forged(gmm_bytes, change), match)


def part(tree, *names):
    """The description of a part of the module."""
    node = dict(fitted(tree)["module_"]["items"])
    for name in names:
        node = dict(dict(node["parts"]["items"])[name]["items"])
    return node


def set_setting(tree, names, key, value):
    for pair in part(tree, *names)["settings"]["items"]:
        if pair[0] == key:
            pair[1] = value


def set_kind(tree, names, kind):
    owner = part(tree, *names[:-1])["parts"]["items"]
    for pair in dict(owner)[names[-1]]["items"]:
        if pair[0] == "kind":
            pair[1] = kind


CONV, UP, LINEAR = ("encoder", "1"), ("decoder", "5"), ("encoder", "4")
VAE_FORGERIES = {
    "unknown kind": (lambda t, a: set_kind(t, LINEAR, "os.system"), "Modules of the kind 'os.system'"),
    "another kind": (lambda t, a: set_kind(t, LINEAR, "torch.BatchNorm1d"), "A torch.BatchNorm1d cannot be built"),
    "absurd size": (lambda t, a: set_setting(t, LINEAR, "in_features", 10**12), "weight of Linear should be of shape"),
    "overflow": (lambda t, a: set_setting(t, LINEAR, "in_features", 10**30), "A torch.Linear cannot be built"),
    "size of text": (
        lambda t, a: set_setting(t, LINEAR, "in_features", "x" * 10**5),
        "A torch.Linear cannot be built",
    ),
    "absurd stride": (
        lambda t, a: set_setting(t, UP, "stride", {"$": "tuple", "items": [10**6, 10**6]}),
        "its networks hold .* values for a sample|attributes are inconsistent",
    ),
    "absurd padding": (
        lambda t, a: set_setting(t, CONV, "padding", {"$": "tuple", "items": [10**6, 10**6]}),
        "attributes are inconsistent",
    ),
    "width of nothing": (lambda t, a: fitted(t).update(_widest=1), "values for a sample, but the file says 1"),
    "absurd width": (lambda t, a: fitted(t).update(_widest=2**40), "values for a sample, but"),
    "module that is none": (lambda t, a: fitted(t).update(module_=[1]), "module_ of its VAEEmbedder is a list"),
    "module is missing": (lambda t, a: fitted(t).pop("module_") and a.clear(), "missing|refers|inconsistent"),
    "half precision": (
        lambda t, a: a.update({k: v.astype(np.uint8) for k, v in a.items()}),
        "have no arrays of|is an array of uint8",
    ),
}


@pytest.mark.parametrize(("change", "match"), VAE_FORGERIES.values(), ids=VAE_FORGERIES)
def test_forged_networks(change, match, vae_bytes, path):
    refused(path, forged(vae_bytes, change), match)


def signed_header(corrupted_files, header, body=b""):
    """A file with this header, whose checksum fits."""
    return bytes(corrupted_files.signed(len(header).to_bytes(8, "little") + header + body))


def inner(text):
    """A header around the text of an estimator."""
    start = '{"sha256":"' + "0" * 64 + '",'
    return json.dumps({"__metadata__": {"skvae": start + text}}, separators=(",", ":")).encode()


HEADERS = {
    "nested lists": inner('"estimator":' + "[" * 10**6),
    "nested objects": inner('"estimator":' + '{"a":' * 10**5),
    "NaN": inner('"format_version":NaN}'),
    "Infinity": inner('"format_version":1,"estimator":-Infinity}'),
    "too large": inner('"format_version":1,"estimator":1e999}'),
    "many digits": inner('"format_version":' + "9" * 10**5 + "}"),
    "a key twice": inner('"format_version":1,"format_version":1}'),
    "unfinished": inner('"format_version":1'),
    "outer lists": b"[" * 10**6 + container.MARKER + b"0" * 64,
    "no metadata": b'{"a":"' + container.MARKER + b"0" * 64 + b'\\""}',
    "no text": b'{"__metadata__":{"skvae":1,"x":"' + container.MARKER + b"0" * 64 + b'"}}',
    "checksum at the end": b'{"__metadata__":{"skvae":"' + container.MARKER,
    "no unicode": b'{"__metadata__":{"skvae":"\xff' + container.MARKER + b"0" * 64 + b'\\""}}',
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_hostile_text(header, corrupted_files, path):
    refused(path, signed_header(corrupted_files, header))


ENTRIES = {
    "absurd shape": {"dtype": "F64", "shape": [2**62, 2**62], "data_offsets": [0, 8]},
    "negative shape": {"dtype": "F64", "shape": [-1], "data_offsets": [0, 8]},
    "shape of floats": {"dtype": "F64", "shape": [1.0], "data_offsets": [0, 8]},
    "empty, but absurd": {"dtype": "F64", "shape": [2**62, 0], "data_offsets": [0, 0]},
    "many axes": {"dtype": "F64", "shape": [1] * 100, "data_offsets": [0, 8]},
    "absurd offsets": {"dtype": "F64", "shape": [1], "data_offsets": [2**62, 2**62 + 8]},
    "offsets backwards": {"dtype": "F64", "shape": [1], "data_offsets": [8, 0]},
    "unknown type": {"dtype": "O", "shape": [1], "data_offsets": [0, 8]},
    "type without arrays": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]},
    "list": [1, 2],
    "more": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8], "code": "x"},
}


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_hostile_arrays(entry, corrupted_files, path):
    text = (
        '{"sha256":"'
        + "0" * 64
        + '","format_version":1,"versions":{},"estimator":{"$":"array","name":"0","fortran":false}}'
    )
    header = json.dumps({"__metadata__": {"skvae": text}, "0": entry}, separators=(",", ":")).encode()
    refused(path, signed_header(corrupted_files, header, bytes(8)))


def test_planted_pickles_are_pickles(corrupted_files, tmp_path):
    """Which would create the file, if anything loaded them."""
    mark = tmp_path / "ran"
    pickle.loads(corrupted_files.plants(mark)[0]).close()
    assert mark.exists()


def test_random_forgeries_are_many(corrupted_files):
    """The fuzzer changes what it is given."""
    rng = random.Random(0)
    data = bytes(range(256)) * 4
    assert all(any(change(bytearray(data), rng) != data for _ in range(5)) for change in corrupted_files.BYTES)
