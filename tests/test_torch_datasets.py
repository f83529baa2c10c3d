"""Datasets and loaders of torch: they give the results of an array of their samples, and streams are loops."""

import warnings

import numpy as np
import pytest
import torch
from helpers import assert_same, fitted_values, outputs, over_estimators, some_classes
from numpy.testing import assert_array_equal
from sklearn.base import clone
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from skvae import AutoencoderEmbedder, ClusterLabelClassifier, TorchGMM, TorchMiniBatchKMeans, TorchPPCA, VAEEmbedder
from skvae.data.torch_datasets import DatasetSource, samples_of_dataset
from skvae.distributed import shard

CLOSE = {"rtol": 1e-6, "atol": 1e-6}
NET = {"hidden_layer_sizes": (8,), "max_epochs": 2, "random_state": 0}
STREAMED = [
    TorchGMM(2, random_state=0),
    TorchMiniBatchKMeans(2, random_state=0),
    AutoencoderEmbedder(1, **NET),
    VAEEmbedder(1, **NET),
]
over_streamed = pytest.mark.parametrize("estimator", STREAMED, ids=lambda estimator: type(estimator).__name__)
pytestmark = [
    pytest.mark.filterwarnings("ignore:EM did not converge:sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:Clusters overlap"),
    pytest.mark.filterwarnings("ignore:Clusters .* have almost no samples"),
]


class Rows(Dataset):
    """Map-style dataset whose items have a form of the user's."""

    def __init__(self, X, form=torch.from_numpy):
        self.X, self.form, self.read = X, form, []

    def __len__(self):
        return len(self.X)

    def __getitem__(self, i):
        self.read.append(i)
        return self.form(self.X[i])


class ManyRows(Rows):
    """Map-style dataset that reads several items at once."""

    def __getitem__(self, i):
        raise NotImplementedError

    def __getitems__(self, indices):
        self.read.extend(indices)
        return [self.form(self.X[i]) for i in indices]


class Stream(IterableDataset):
    """Iterable dataset."""

    def __init__(self, X):
        self.X = X

    def __iter__(self):
        return iter(self.X)


def with_label(row):
    return torch.from_numpy(row), 3


DATASETS = {
    "tensors": lambda X: TensorDataset(torch.from_numpy(X)),
    "tensors and labels": lambda X: TensorDataset(torch.from_numpy(X), torch.zeros(len(X))),
    "rows": Rows,
    "rows and labels": lambda X: Rows(X, with_label),
    "rows and labels in lists": lambda X: Rows(X, lambda row: [row, np.array(3)]),
    "arrays": lambda X: Rows(X, np.asarray),
    "lists": lambda X: Rows(X, np.ndarray.tolist),
    "many rows": ManyRows,
    "parts": lambda X: ConcatDataset([Rows(X[:70], with_label), TensorDataset(torch.from_numpy(X[70:]))]),
    "subset": lambda X: Subset(Rows(np.repeat(X, 2, axis=0), with_label), range(0, 2 * len(X), 2)),
    "loader": lambda X: DataLoader(Rows(X, with_label), batch_size=7, shuffle=True, drop_last=True),
    "loader of items": lambda X: DataLoader(Rows(X, with_label), batch_size=None),
}


@pytest.fixture
def X(blobs):
    return blobs[0][::3]


@over_estimators
def test_datasets_give_the_results_of_an_array(estimator, X):
    y = some_classes(X)
    fitted = clone(estimator).fit(X, y)
    expected = outputs(fitted, X)
    for name in ("tensors and labels", "rows and labels", "loader"):
        rows = DATASETS[name](X)
        assert_same(outputs(fitted, rows), expected, **CLOSE)
        assert_same(outputs(clone(estimator).fit(rows, y), rows), expected, **CLOSE)


@over_estimators
def test_large_datasets_are_read_a_chunk_at_a_time(estimator, X, monkeypatch):
    y = some_classes(X)
    fitted = clone(estimator).fit(X, y)
    monkeypatch.setattr("skvae.data.inputs.MAX_HELD_BYTES", 0)
    rows = Rows(X, with_label)
    assert_same(outputs(fitted, rows), outputs(fitted, X), **CLOSE)
    result = outputs(clone(estimator).fit(rows, y), X)
    if not hasattr(estimator, "max_epochs"):  # networks see rows that are read in another order
        assert_same(result, outputs(fitted, X), **CLOSE)
    assert all(np.isfinite(value).all() for value in result.values())


@pytest.mark.parametrize("make", DATASETS.values(), ids=DATASETS)
def test_forms_of_datasets(make, X):
    expected = TorchPPCA(2).fit(X)
    result = TorchPPCA(2).fit(make(X))
    assert_array_equal(result.components_, expected.components_)
    assert_array_equal(result.transform(make(X)), expected.transform(X))
    assert result.score(make(X)) == expected.score(X)


def test_tensors_are_not_copied(X):
    x = torch.from_numpy(X)
    assert samples_of_dataset(DataLoader(TensorDataset(x, torch.zeros(len(x))))) is x


@pytest.mark.parametrize("dataset", [Rows, ManyRows])
def test_items_are_read_once(dataset, X):
    rows = dataset(X)
    TorchGMM(2, random_state=0).fit(rows)
    assert sorted(rows.read) == [0, *range(len(X))]  # the first one for its shape and dtype


def test_dtypes_and_slices(X):
    rows = DatasetSource(Rows(X.astype(np.float32)))
    assert (rows.shape, rows.dtype) == (X.shape, np.float32)
    assert_array_equal(rows[10:20], X[10:20].astype(np.float32))
    assert rows[20:10].shape == (0, X.shape[1])
    result = TorchPPCA(2).fit(Rows(X.astype(np.float32)))
    assert result.components_.dtype == np.float32
    assert TorchPPCA(2).fit(Rows(X, lambda row: torch.from_numpy(row).bfloat16())).components_.dtype == np.float64


def test_images(X):
    images = Rows(np.tile(X, 4).reshape(-1, 4, 4), with_label)
    flat = np.tile(X, 4)
    vae = VAEEmbedder(1, image_shape=(4, 4), architecture="mlp", **NET)
    expected = clone(vae).fit(flat).transform(flat)
    np.testing.assert_allclose(clone(vae).fit(images).transform(images), expected, **CLOSE)


def test_samples_without_a_class(X):
    y = np.where(np.arange(len(X)) % 3, X[:, 0] > X[:, 0].mean(), -1)
    classifier = ClusterLabelClassifier(TorchGMM(2, random_state=0))
    rows = DataLoader(Rows(X, with_label))
    assert clone(classifier).fit(rows, y).score(rows, y) == clone(classifier).fit(X, y).score(X, y)


def test_shards(monkeypatch, X):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    part, theirs = shard(Rows(X), X)
    assert_array_equal(DatasetSource(part)[:], theirs)


def after_batches(estimator, batches):
    for batch in batches:
        estimator.partial_fit(batch)
    return fitted_values(estimator)


STREAMS = {
    "loader": lambda X: DataLoader(TensorDataset(torch.from_numpy(X), torch.ones(len(X))), batch_size=40),
    "loader of a stream": lambda X: DataLoader(Stream(X), batch_size=40),
    "generator": lambda X: (X[start : start + 40] for start in range(0, len(X), 40)),
    "generator of pairs": lambda X: ((X[start : start + 40], None) for start in range(0, len(X), 40)),
}


@over_streamed
@pytest.mark.parametrize("make", STREAMS.values(), ids=STREAMS)
def test_partial_fit_of_a_stream_is_a_loop_over_batches(estimator, make, X):
    np.random.default_rng(0).shuffle(X)
    expected = after_batches(clone(estimator), np.split(X, [40, 80]))
    result = clone(estimator)
    assert result.partial_fit(make(X)) is result
    result = fitted_values(result)
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        assert_array_equal(result[name], value, err_msg=name)


def test_batches_before_an_error_are_kept(X):
    def batches():
        yield X[:50]
        yield X[50:]
        yield np.full_like(X, np.inf)

    gmm = TorchGMM(2, random_state=0)
    with pytest.raises(ValueError, match="contains infinity"):
        gmm.partial_fit(batches())
    assert gmm.n_iter_ == 2


@over_streamed
def test_a_dataset_is_one_batch(estimator, X):
    expected = after_batches(clone(estimator), [X])
    for name, value in after_batches(clone(estimator), [Rows(X, with_label)]).items():
        assert_array_equal(value, expected[name], err_msg=name)


class Endless(Dataset):
    def __getitem__(self, i):
        return np.zeros(2)


INVALID = {
    "a stream": (Stream, TypeError, "Stream, which gives its rows once and in its own order"),
    "a loader of a stream": (lambda X: DataLoader(Stream(X)), TypeError, "Stream, which gives its rows once"),
    "a generator": (iter, TypeError, "give an array or a map-style Dataset, or batches"),
    "no items": (lambda X: Rows(X[:0]), ValueError, "Rows with 0 sample"),
    "no length": (lambda X: Endless(), TypeError, "Endless without __len__"),
    "numbers": (lambda X: Rows(X[:, 0], float), TypeError, r"have shape \(\) and dtype float64"),
    "mappings": (lambda X: Rows(X, lambda row: {"x": row}), TypeError, "dtype object, but they should be rows"),
    "text": (lambda X: Rows(X, lambda row: ["a", "b"]), TypeError, "dtype <U1, but they should be rows"),
    "shapes": (lambda X: Rows(X, lambda row: row[: 2 + int(row[1] > 0)]), ValueError, r"shape \(2,\) or \(3,\)"),
    "late shapes": (
        lambda X: ConcatDataset([Rows(np.zeros((1024, 2))), Rows(X)]),
        ValueError,
        r"Items 1024 to 1123 of X, a ConcatDataset, have shape \(4,\)",
    ),
    "late dtypes": (
        lambda X: ConcatDataset([Rows(np.zeros((1, 4), np.uint8)), Rows(X)]),
        ValueError,
        "and dtype float64, but all items",
    ),
    "a sample": (lambda X: DataLoader(Rows(X), sampler=SubsetRandomSampler([1, 2])), ValueError, "may leave rows out"),
    "draws": (
        lambda X: DataLoader(Rows(X), sampler=WeightedRandomSampler([1.0] * len(X), 9)),
        ValueError,
        "Subset of the dataset, or sample_weight",
    ),
    "batches of the user's": (lambda X: DataLoader(Rows(X), batch_sampler=[[0, 1]]), ValueError, "may leave rows out"),
    "a collate_fn": (lambda X: DataLoader(Rows(X), collate_fn=torch.stack), ValueError, "collate_fn of its own"),
}


@pytest.mark.parametrize(("make", "error", "match"), INVALID.values(), ids=INVALID)
def test_inputs_that_are_not_datasets_of_samples(make, error, match, X):
    ppca = TorchPPCA(2)
    with pytest.raises(error, match=match):
        ppca.fit(make(X))
    assert not hasattr(ppca, "components_")
    ppca.fit(X)
    with pytest.raises(error, match=match):
        ppca.transform(make(X))


@over_streamed
def test_inputs_that_are_not_streams_of_batches(estimator, X):
    with pytest.raises(TypeError, match="gives rows and not batches"):
        estimator.partial_fit(Stream(X))
    for extra in ({"y": np.zeros(len(X))}, {"sample_weight": np.ones(len(X))}):
        with pytest.raises(ValueError, match="call partial_fit for each of them"):
            estimator.partial_fit(DataLoader(Rows(X)), **extra)
    with pytest.raises(ValueError, match=r"X is a list of tables, and not one table; give iter\(X\)"):
        estimator.partial_fit([X[:20], X[20:40]])
    with pytest.raises(ValueError, match="a stream without batches"):
        estimator.partial_fit(iter([]))
    assert not hasattr(estimator, "n_features_in_")


def test_labels_of_a_batch_initialize_a_mixture(X):
    """y is positional, too."""
    y = np.arange(len(X)) % 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gmm = TorchGMM(2, init_params="labels", random_state=0).partial_fit(X, y)
    assert gmm.n_iter_ == 1
