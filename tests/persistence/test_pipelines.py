"""Files with estimators of scikit-learn, by way of skops."""

import builtins
import io
import json
import pickle
import zipfile

import numpy as np
import pandas as pd
import pytest
import skops.io
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import config_context
from sklearn.cluster import KMeans
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

import skvae
from skvae import TorchGMM, VaDEClusterer, VAEEmbedder
from skvae.persistence import container

SHORT = {"max_epochs": 2, "random_state": 0}


@pytest.fixture(scope="module")
def X():
    return np.random.default_rng(0).normal(size=(60, 5))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.skvae"


def save_and_load(estimator, path):
    skvae.save(estimator, path)
    return skvae.load(path)


def test_pipelines(X, path):
    pipeline = make_pipeline(StandardScaler(), VAEEmbedder(2, **SHORT), TorchGMM(2, random_state=0)).fit(X)
    other = save_and_load(pipeline, path)
    assert_array_equal(other.predict(X), pipeline.predict(X))
    assert_array_equal(other[:-1].transform(X), pipeline[:-1].transform(X))
    assert other.get_params().keys() == pipeline.get_params().keys()


def test_column_transformers_and_frames(path):
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"a": rng.normal(size=40), "b": rng.normal(size=40), "c": list("xyxy") * 10})
    encode = make_column_transformer((VAEEmbedder(1, **SHORT), ["a", "b"]), (OneHotEncoder(), ["c"]))
    pipeline = make_pipeline(encode, LogisticRegression()).fit(table, table["c"])
    assert_allclose(save_and_load(pipeline, path).predict_proba(table), pipeline.predict_proba(table))
    mixed = make_pipeline(VAEEmbedder(2, **SHORT), TorchGMM(2, random_state=0)).fit(table)
    assert_array_equal(save_and_load(mixed, path).predict(table), mixed.predict(table))


def test_searches_and_estimators_that_are_not_fitted(X, path):
    search = GridSearchCV(TorchGMM(random_state=0), {"n_components": [1, 2]}, cv=2).fit(X)
    other = save_and_load(search, path)
    assert other.best_params_ == search.best_params_
    assert_array_equal(other.predict(X), search.predict(X))
    y = (X[:, 0] > 0).astype(int)
    pipeline = make_pipeline(VAEEmbedder(2, **SHORT), LogisticRegression())
    folds = StratifiedKFold(2, shuffle=True, random_state=0)
    search = GridSearchCV(pipeline, {"logisticregression__C": [1, 2]}, cv=folds, scoring="accuracy").fit(X, y)
    assert save_and_load(search, path).score(X, y) == search.score(X, y)
    assert save_and_load(make_pipeline(VaDEClusterer(3)), path).get_params()["vadeclusterer__n_clusters"] == 3
    assert save_and_load(KMeans(4), path).n_clusters == 4


def test_files_are_checked(X, path):
    skvae.save(make_pipeline(StandardScaler(), TorchGMM(2, random_state=0)).fit(X), path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="is not an estimator that skvae.save wrote"):
        skvae.load(path)


class Harmless(StandardScaler):
    """A class that skops does not know."""


def packed(value):
    """Return a file with some bytes in the place of those of skops."""
    tree = {"format_version": 1, "versions": {}, "skops": {"$": "array", "name": "a"}}
    encoder = skvae.persistence.files.ValueEncoder(None)
    tree["skops"] = encoder.encode(value, "value")
    return container.pack(tree, encoder.arrays)


def edited(change, estimator=None, **zipped):
    """Return a file of skops whose description was changed."""
    original = zipfile.ZipFile(io.BytesIO(skops.io.dumps(estimator or FunctionTransformer(np.exp))))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **zipped) as archive:
        for name in original.namelist():
            content = original.read(name).decode() if name == "schema.json" else original.read(name)
            archive.writestr(name, change(content) if name == "schema.json" else content)
    return np.frombuffer(file.getvalue(), np.uint8)


def renamed(module, name, loader="FunctionNode"):
    """Return a function that gives the function of a transformer another name, or another loader."""

    def change(text):
        schema = json.loads(text)
        node = schema["content"]["content"]["func"]
        node |= {"__module__": module, "__class__": name, "__loader__": loader}
        return json.dumps(schema)

    return change


HOSTILE = {
    "a module that a module imports": lambda: edited(renamed("sklearn.metrics._classification", "np")),
    "a function of the system": lambda: edited(renamed("os", "system")),
    "a method": lambda: edited(renamed("sklearn.metrics._scorer", "_Scorer", "MethodNode")),
    "a partial function": lambda: edited(renamed("sklearn.metrics._scorer", "_Scorer", "PartialNode")),
    "a constructor": lambda: edited(renamed("sklearn.metrics._scorer", "_Scorer", "LossNode")),
    "compressed": lambda: edited(str, compression=zipfile.ZIP_DEFLATED),
    "no description": lambda: edited(lambda text: "[]"),
    "unfinished": lambda: edited(lambda text: text[:50]),
    "own class": lambda: np.frombuffer(skops.io.dumps(Harmless()), np.uint8),
    "no estimator": lambda: np.frombuffer(skops.io.dumps({"a": 1}), np.uint8),
    "pickle": lambda: np.frombuffer(pickle.dumps(StandardScaler()), np.uint8),
    "nothing": lambda: np.zeros(0, np.uint8),
    "numbers": lambda: np.zeros(3),
    "text": lambda: "PK",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_refused(kind, path):
    path.write_bytes(packed(HOSTILE[kind]()))
    with pytest.raises(ValueError, match="is not an estimator that skvae.save wrote"):
        skvae.load(path)


def test_changes_alone_are_no_reason(path):
    """The edited files of above are refused for what was changed."""
    path.write_bytes(packed(edited(str)))
    assert skvae.load(path).func is np.exp


@pytest.mark.parametrize("estimator", [KNeighborsClassifier(algorithm="kd_tree"), RandomForestClassifier(2)])
def test_estimators_that_need_code_are_refused(estimator, X, path):
    with pytest.raises(TypeError, match="joblib.dump"):
        skvae.save(make_pipeline(StandardScaler(), estimator).fit(X, X[:, 0] > 0), path)
    assert not path.exists()


def test_functions_are_refused(path):
    pipeline = make_pipeline(FunctionTransformer(Harmless), TorchGMM(2))
    with pytest.raises(TypeError, match=r"The Pipeline is an estimator of which it holds [\w.]*Harmless.*joblib.dump"):
        skvae.save(pipeline, path)
    assert not path.exists()


def test_without_skops(X, path, monkeypatch):
    original = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("skops"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pip install skvae\[skops\]"):
        skvae.save(make_pipeline(TorchGMM(2)), path)
    skvae.save(TorchGMM(2), path)
    assert skvae.load(path).n_components == 2


def test_requests_of_metadata(tmp_path):
    X = np.random.default_rng(0).normal(size=(40, 3))
    with config_context(enable_metadata_routing=True):
        gmm = TorchGMM(2, random_state=0).set_fit_request(sample_weight=True)
        pipeline = make_pipeline(StandardScaler(), gmm).fit(X)
        skvae.save(pipeline, tmp_path / "pipeline.skvae")
        loaded = skvae.load(tmp_path / "pipeline.skvae")
        assert loaded[-1].get_metadata_routing().fit.requests["sample_weight"] is True
        scaler = StandardScaler().set_fit_request(sample_weight=True)
        pipeline = make_pipeline(scaler, gmm).fit(X)
    with pytest.raises(TypeError, match="a step with metadata requests, which skops cannot store"):
        skvae.save(pipeline, tmp_path / "pipeline.skvae")
