"""Classifier whose clusters are named by a few labels."""

import numpy as np
import pandas as pd
import pytest
import sklearn
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import BaseEstimator, ClusterMixin, clone
from sklearn.cluster import DBSCAN, AgglomerativeClustering, KMeans
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError, UnsetMetadataPassedError
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils._param_validation import InvalidParameterError

from skvae import ClusterLabelClassifier, TorchGMM, TorchMiniBatchKMeans
from skvae.estimators.label_classifier import ASSIGNMENTS
from skvae.metrics import clustering_accuracy_score, match_clusters


class Rounding(ClusterMixin, BaseEstimator):
    """Clusterer whose clusters are the values of X."""

    def fit(self, X, y=None):
        if y is not None:
            raise ValueError("Labels were shown to the clusterer.")
        self.n_features_in_ = 1
        return self

    def predict(self, X):
        return np.asarray(X)[:, 0].astype(int)


def by_cluster(clusters, y, **params):
    """Fit a classifier to clusters."""
    return ClusterLabelClassifier(Rounding(), **params).fit(np.asarray(clusters)[:, None], y)


CLUSTERS = [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
CLASSES = ["a", "a", "b", None, "a", "a", "a", "c", "b", "c"]
COUNTS = [[2, 1, 0], [3, 0, 0], [0, 1, 2]]


@pytest.mark.parametrize(
    ("assignment", "table"),
    [
        ("majority", [[1, 0, 0], [1, 0, 0], [0, 0, 1]]),
        ("proportional", [[2 / 3, 1 / 3, 0], [1, 0, 0], [0, 1 / 3, 2 / 3]]),
        ("hungarian", [[0, 1, 0], [1, 0, 0], [0, 0, 1]]),
    ],
)
def test_assignments(assignment, table):
    classifier = by_cluster(CLUSTERS, np.array(CLASSES, dtype=object), assignment=assignment)
    assert_array_equal(classifier.counts_, COUNTS)
    assert_array_equal(classifier.table_, table)
    assert_allclose(classifier.class_prior_, [5 / 9, 2 / 9, 2 / 9])
    assert_array_equal(classifier.classes_, ["a", "b", "c"])
    assert_array_equal(classifier.cluster_labels_, CLUSTERS)
    assert_array_equal(classifier.predict_proba([[0], [1], [2]]), table)
    assert_array_equal(classifier.predict([[0], [1], [2]]), classifier.classes_[np.argmax(table, axis=1)])


@pytest.mark.parametrize("assignment", list(ASSIGNMENTS))
@pytest.mark.parametrize("n_clusters", [1, 2, 5, 9])
def test_tables_are_distributions(assignment, n_clusters):
    rng = np.random.default_rng(n_clusters)
    clusters, y = rng.integers(n_clusters, size=300), rng.integers(5, size=300)
    classifier = by_cluster(clusters, y, assignment=assignment)
    assert classifier.table_.shape == (n_clusters, 5)
    assert (classifier.table_ >= 0).all()
    assert_allclose(classifier.table_.sum(axis=1), 1, rtol=1e-15)


@pytest.mark.parametrize("n_clusters", [3, 5, 8])
def test_hungarian_is_the_matching_of_the_metrics(n_clusters):
    rng = np.random.default_rng(0)
    y = rng.integers(5, size=200)
    clusters = np.where(rng.uniform(size=200) < 0.6, y % n_clusters, rng.integers(n_clusters, size=200))
    classifier = by_cluster(clusters, y, assignment="hungarian")
    matched = match_clusters(y, clusters)
    assert {cluster: classifier.table_[cluster].argmax() for cluster in matched} == matched
    score = classifier.score(clusters[:, None], y)
    if n_clusters <= 5:
        assert score == pytest.approx(clustering_accuracy_score(y, clusters))
    else:  # the others go by their majority
        assert score > clustering_accuracy_score(y, clusters)
        others = sorted(set(range(n_clusters)) - set(matched))
        assert_array_equal(classifier.table_[others].argmax(axis=1), classifier.counts_[others].argmax(axis=1))


def test_hungarian_does_not_pair_clusters_and_classes_without_common_samples():
    """The only class left has no sample in the only cluster left."""
    classifier = by_cluster([0] * 11 + [1] * 8, [0] * 10 + [1] + [0] * 8, assignment="hungarian")
    assert_array_equal(classifier.counts_, [[10, 1], [8, 0]])
    assert_array_equal(classifier.table_, [[1, 0], [1, 0]])


def test_ties_go_to_the_first_class():
    assert_array_equal(by_cluster([0, 0, 1, 1], ["b", "a", "a", "b"]).predict([[0], [1]]), ["a", "a"])


@pytest.mark.parametrize("assignment", list(ASSIGNMENTS))
def test_clusters_without_labels_get_class_frequencies(assignment):
    with pytest.warns(UserWarning, match=r"2 of 4 clusters have no labelled row \(1, 2\)") as record:
        classifier = by_cluster([0, 0, 1, 2, 3], [7, 8, -1, -1, 7], assignment=assignment)
    assert record[0].filename == __file__
    assert_allclose(classifier.table_[[1, 2]], [[2 / 3, 1 / 3]] * 2)
    assert_array_equal(classifier.predict([[1]]), [7])


def test_warning_names_some_clusters():
    with pytest.warns(UserWarning, match=r"\(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, \.\.\.\)"):
        by_cluster(np.arange(20), np.r_[4, np.full(19, -1)])


def test_samples_in_no_cluster_get_class_frequencies():
    """Noise, and clusters without training samples."""
    classifier = by_cluster([-1, 0, 0, 1], ["b", "a", "a", "b"])
    assert_array_equal(classifier.counts_, [[2, 0], [0, 1]])
    assert_array_equal(classifier.class_prior_, [0.5, 0.5])
    assert_array_equal(classifier.predict_proba([[-1], [0], [5]]), [[0.5, 0.5], [1, 0], [0.5, 0.5]])
    noise = by_cluster([-1, -1, -1, -1], [0, 0, 0, 1])
    assert noise.table_.shape == (0, 2)
    assert_array_equal(noise.predict_proba([[-1], [0]]), [[0.75, 0.25]] * 2)


MISSING = {
    "integers": (np.array([3, -1, 5, -1]), [3, 5]),
    "list with None": ([3, None, 5, None], [3, 5]),
    "NaN": (np.array([3.0, np.nan, 5.0, np.nan]), [3.0, 5.0]),
    "strings with None": (np.array(["x", None, "y", None], dtype=object), ["x", "y"]),
    "strings with NaN": (np.array(["x", np.nan, "y", np.nan], dtype=object), ["x", "y"]),
    "pandas strings": (pd.Series(["x", None, "y", None]), ["x", "y"]),
    "pandas category": (pd.Series(["x", None, "y", None], dtype="category"), ["x", "y"]),
    "pandas integers": (pd.Series([3, None, 5, None], dtype="Int64"), [3, 5]),
    "pandas integers with both": (pd.Series([3, -1, 5, None], dtype="Int64"), [3, 5]),
    "objects": (np.array([3, -1, 5, -1], dtype=object), [3, 5]),
    "pandas booleans": (pd.Series([False, None, True, None], dtype="boolean"), [False, True]),
    "booleans": (np.array([False, None, True, None], dtype=object), [False, True]),
}


@pytest.mark.parametrize(("y", "classes"), MISSING.values(), ids=MISSING)
def test_unlabelled_samples(y, classes):
    classifier = by_cluster([0, 0, 1, 1], y)
    assert classifier.classes_.tolist() == classes
    assert_array_equal(classifier.counts_, np.eye(2))
    assert classifier.predict([[1], [0]]).tolist() == classes[::-1]
    assert classifier.score([[0], [0], [1], [1]], y) == 1.0


def test_minus_one_and_one_are_two_classes():
    y = [-1, -1, 1, 1]
    assert_array_equal(by_cluster([0, 0, 1, 1], y).classes_, [-1, 1])
    with pytest.warns(UserWarning, match="no labelled row"):
        assert_array_equal(by_cluster([0, 0, 1, 1], y, unlabelled=-1).classes_, [1])
    assert_array_equal(by_cluster([0, 0, 1, 1], [-1, -1, 1, 2], unlabelled=None).classes_, [-1, 1, 2])
    assert_array_equal(by_cluster([0, 0, 1, 1], [-1.0, -1.0, 1.0, 2.0]).classes_, [-1, 1, 2])


def test_other_marks():
    y = ["a", "?", "b", "?"]
    assert_array_equal(by_cluster([0, 0, 1, 1], y, unlabelled="?").classes_, ["a", "b"])
    assert_array_equal(by_cluster([0, 0, 1, 1], [5, 0, 6, 0], unlabelled=0).classes_, [5, 6])
    assert_array_equal(by_cluster([0, 0, 1, 1], ["a", "-1", "b", "-1"]).classes_, ["-1", "a", "b"])


def test_score_counts_labelled_samples():
    classifier = by_cluster([0, 0, 1, 1], [4, 4, 6, 6])
    X, y = [[0], [0], [1], [1]], [4, -1, 6, 4]
    assert classifier.score(X, y) == pytest.approx(2 / 3)
    assert classifier.score(X, y, sample_weight=[1, 9, 1, 2]) == pytest.approx(0.5)
    assert classifier.score(pd.DataFrame(X), pd.Series(y)) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="y has no labelled row"):
        classifier.score(X, [-1] * 4)
    with pytest.raises(ValueError, match="Every labelled row has a sample_weight of zero"):
        classifier.score(X, y, sample_weight=[0, 9, 0, 0])
    assert classifier.score([[0], [0], [1], [np.nan]], y, sample_weight=[1, 9, 1, 0]) == 1
    signs = by_cluster([0, 0, 1, 1], [-1, -1, 1, 1])
    assert signs.score([[0], [1]], [-1, -1]) == 0.5  # as in fit, although 1 is not among them here


def test_probabilities_of_a_mixture(blobs):
    """P(class | x) = sum over clusters of P(cluster | x) P(class | cluster)."""
    X, y = blobs[0] * 0.2, blobs[1]
    gmm = TorchGMM(4, random_state=0)
    classifier = ClusterLabelClassifier(gmm, assignment="proportional").fit(X, y)
    resp = clone(gmm).fit(X).predict_proba(X)
    assert_allclose(classifier.predict_proba(X), resp @ classifier.table_, rtol=1e-12)
    assert_array_equal(classifier.cluster_labels_, resp.argmax(axis=1))
    assert_allclose(classifier.predict_proba(X).sum(axis=1), 1, rtol=1e-12)
    assert classifier.predict_proba(X.astype(np.float32)).dtype == np.float32


def test_labels_do_not_change_clusters(blobs):
    X, y = blobs
    kmeans = KMeans(3, random_state=0)
    few = np.where(np.arange(len(y)) % 30 == 0, y, -1)
    classifier = ClusterLabelClassifier(kmeans).fit(X, few)
    assert_array_equal(classifier.cluster_labels_, clone(kmeans).fit(X).labels_)
    assert classifier.score(X, y) == 1.0


@pytest.mark.parametrize("estimator", [KMeans(3, random_state=0), TorchMiniBatchKMeans(3, random_state=0)], ids=str)
def test_precisions_may_differ(estimator, blobs):
    X, y = blobs
    for dtype, other in ((np.float32, np.float64), (np.float64, np.float32), (np.float32, np.int64)):
        classifier = ClusterLabelClassifier(estimator).fit(X.astype(dtype), y)
        assert_array_equal(classifier.predict(X.astype(other)), y)
    assert_array_equal(ClusterLabelClassifier(estimator).fit(X.tolist(), y).predict(X.astype(np.float32)), y)


def test_pipelines_of_text(blobs):
    X, y = blobs
    frame = pd.DataFrame(X, columns=list("abcd"))
    classifier = ClusterLabelClassifier(make_pipeline(StandardScaler(), TorchGMM(3, random_state=0)))
    with pytest.raises(AttributeError):
        _ = classifier.n_features_in_
    classifier.fit(frame, y)
    assert classifier.n_features_in_ == 4
    assert_array_equal(classifier.feature_names_in_, list("abcd"))
    assert classifier.score(frame, y) == 1.0
    assert not hasattr(classifier.fit(X, y), "feature_names_in_")
    words = np.array(["red apple", "red cherry", "red apple pie", "blue sea", "blue sky", "blue sky sea"])
    text = ClusterLabelClassifier(make_pipeline(TfidfVectorizer(), KMeans(2, random_state=0)))
    text.fit(words, ["warm", None, None, None, "cold", None])
    assert_array_equal(text.predict(words), ["warm"] * 3 + ["cold"] * 3)


def test_frozen_estimator(blobs):
    X, y = blobs
    for fitted in (KMeans(3, random_state=0).fit(X), TorchGMM(3, random_state=0).fit(X)):
        classifier = ClusterLabelClassifier(FrozenEstimator(fitted)).fit(X[:50], y[:50], sample_weight=np.ones(50))
        assert classifier.estimator_.estimator is fitted
        assert classifier.score(X, y) == 1.0


def test_weights_count_labels():
    X, y = [[0], [0], [0]], ["a", "b", "b"]
    with pytest.warns(UserWarning, match=r"Rounding\.fit takes no sample_weight") as record:
        classifier = ClusterLabelClassifier(Rounding()).fit(X, y, sample_weight=[3, 1, 1])
    assert record[0].filename == __file__
    assert_array_equal(classifier.counts_, [[3, 2]])
    assert_array_equal(classifier.predict([[0]]), ["a"])


@pytest.mark.parametrize("assignment", list(ASSIGNMENTS))
@pytest.mark.parametrize("estimator", [TorchGMM(4, random_state=0), TorchMiniBatchKMeans(4, random_state=0)], ids=str)
def test_integer_weights_are_repeated_samples(estimator, assignment, correlated):
    rng = np.random.default_rng(0)
    weight = rng.integers(4, size=len(correlated))
    y = np.repeat([0, 1, -1], 200)
    classifier = ClusterLabelClassifier(estimator, assignment=assignment)
    one = clone(classifier).fit(correlated, y, sample_weight=weight)
    two = clone(classifier).fit(np.repeat(correlated, weight, axis=0), np.repeat(y, weight))
    assert_allclose(one.counts_, two.counts_)
    assert_allclose(one.predict_proba(correlated), two.predict_proba(correlated), atol=1e-8)


def test_weights_by_name_in_a_pipeline(blobs):
    X, y = blobs
    weight = np.random.default_rng(0).uniform(size=len(X))
    pipeline = make_pipeline(StandardScaler(), TorchGMM(3, random_state=0))
    with pytest.warns(UserWarning, match=r"step__sample_weight"):
        ClusterLabelClassifier(pipeline).fit(X, y, sample_weight=weight)
    classifier = ClusterLabelClassifier(pipeline).fit(X, y, sample_weight=weight, torchgmm__sample_weight=weight)
    expected = clone(pipeline).fit(X, torchgmm__sample_weight=weight)
    assert_array_equal(classifier.estimator_[-1].means_, expected[-1].means_)
    assert classifier.counts_.sum() == pytest.approx(weight.sum())


def test_metadata_routing(blobs):
    X, y = blobs
    weight = np.random.default_rng(0).uniform(size=len(X))
    expected = TorchGMM(3, random_state=0).fit(X, sample_weight=weight)
    with sklearn.config_context(enable_metadata_routing=True):
        gmm = TorchGMM(3, random_state=0)
        with pytest.raises(UnsetMetadataPassedError, match="sample_weight"):
            ClusterLabelClassifier(gmm).fit(X, y, sample_weight=weight)
        asking = ClusterLabelClassifier(gmm.set_fit_request(sample_weight=True)).fit(X, y, sample_weight=weight)
        assert_array_equal(asking.estimator_.means_, expected.means_)
        assert asking.counts_.sum() == pytest.approx(weight.sum())
        refusing = ClusterLabelClassifier(clone(gmm).set_fit_request(sample_weight=False)).fit(X, y, weight)
        assert_array_equal(refusing.estimator_.means_, TorchGMM(3, random_state=0).fit(X).means_)
        assert refusing.counts_.sum() == pytest.approx(weight.sum())
        named = ClusterLabelClassifier(clone(gmm).set_fit_request(sample_weight="w")).fit(X, y, w=weight)
        assert_array_equal(named.estimator_.means_, expected.means_)
        assert named.counts_.sum() == len(X)
        routed = ClusterLabelClassifier(gmm).set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        scores = cross_val_score(routed, X, y, params={"sample_weight": weight})
        assert scores.min() == 1.0


def test_clusterers_that_cannot_predict():
    with pytest.raises(InvalidParameterError, match="must be an object implementing 'fit' and 'predict'. Got DBSCAN"):
        ClusterLabelClassifier(DBSCAN()).fit(np.eye(4), [0, 0, 1, 1])
    for clusterer in (DBSCAN(), AgglomerativeClustering(2), make_pipeline(StandardScaler(), DBSCAN())):
        name = type(clusterer.steps[-1][1] if hasattr(clusterer, "steps") else clusterer).__name__
        with pytest.raises(InvalidParameterError, match=f"{name} labels the rows .* cannot label new ones; use"):
            ClusterLabelClassifier(clusterer).fit(np.eye(4), [0, 0, 1, 1])
    with pytest.raises(InvalidParameterError, match="implementing 'fit' and 'predict'. Got Pipeline"):
        ClusterLabelClassifier(make_pipeline(StandardScaler(), DBSCAN())).fit(np.eye(4), [0, 0, 1, 1])
    regression = FrozenEstimator(LinearRegression().fit(np.eye(4), np.arange(4.0)))
    with pytest.raises(ValueError, match=r"predict returned an array of shape \(4,\) and dtype float64; .* whole numb"):
        ClusterLabelClassifier(regression).fit(np.eye(4), [0, 0, 1, 1])


def test_parameters_of_the_clusterer_are_checked(blobs):
    for estimator in (TorchGMM(-1), KMeans(-1)):
        with pytest.raises(InvalidParameterError, match="must be an int in the range"):
            ClusterLabelClassifier(estimator).fit(*blobs)


@pytest.mark.parametrize(
    ("y", "error", "match"),
    [
        ([-1] * 4, ValueError, "y has no labelled row: all 4 are None, NaN or -1; give the class of at least one row"),
        ([None] * 4, ValueError, "y has no labelled row: all 4 are None or NaN"),
        ([np.nan] * 4, ValueError, "y has no labelled row"),
        (None, ValueError, "requires y to be passed, but the target y is None"),
        ([0.5, 0.25, 1.5, 2.5], ValueError, "Unknown label type: continuous"),
        ([0.0, 1.0, np.inf, np.nan], ValueError, "Input y contains infinity"),
        (["a", 1, "b", 2], TypeError, r"labels of the types \['int', 'str'\]; they should be all strings or all numb"),
        ([0, 1, 0], ValueError, "inconsistent numbers of samples"),
        (np.eye(4), ValueError, "y should be a 1d array"),
    ],
    ids=["-1", "None", "NaN", "absent", "continuous", "infinite", "mixed", "short", "matrix"],
)
def test_wrong_labels(y, error, match):
    if isinstance(y, list) and isinstance(y[0], str):
        y = np.array(y, dtype=object)
    with pytest.raises(error, match=match):
        ClusterLabelClassifier(Rounding()).fit(np.zeros((4, 1)), y)


def test_wrong_weights():
    classifier, X = ClusterLabelClassifier(KMeans(1)), np.zeros((3, 1))
    with pytest.raises(ValueError, match="Every labelled row has a sample_weight of zero"):
        classifier.fit(X, [3, -1, -1], sample_weight=[0, 1, 1])
    with pytest.raises(ValueError, match="Negative values"):
        classifier.fit(X, [3, -1, -1], sample_weight=[1, -1, 1])
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        classifier.fit(X, [3, -1, -1], sample_weight=[1, 1])
    with pytest.raises(NotFittedError):
        classifier.predict(X)


@pytest.mark.filterwarnings("ignore:.* clusters have no labelled row")
def test_search_over_nested_parameters():
    X, y = load_digits(return_X_y=True)
    X, y = X[:600], y[:600].copy()
    test, is_labelled = np.arange(600) % 3 == 0, np.arange(600) % 2 == 0
    y_train = np.where(is_labelled, y, -1)[~test]
    pipeline = make_pipeline(PCA(12, random_state=0), TorchGMM(10, covariance_type="tied", random_state=0))
    grid = {
        "assignment": ["majority", "hungarian"],
        "estimator__torchgmm__n_components": [4, 24],
        "estimator__pca__n_components": [12],
    }
    search = GridSearchCV(ClusterLabelClassifier(pipeline), grid, cv=2).fit(X[~test], y_train)
    assert search.best_params_["estimator__torchgmm__n_components"] == 24
    assert search.score(X[test], y[test]) > 0.75
    assert search.best_estimator_.predict_proba(X[test]).shape == (200, 10)


def test_same_probabilities_as_with_gaussian_mixture_of_sklearn(blobs):
    X, y = blobs[0] * 0.3, blobs[1]
    kwargs = {"means_init": [X[y == k].mean(axis=0) for k in range(3)], "random_state": 0, "tol": 1e-8, "max_iter": 500}
    ours, theirs = (ClusterLabelClassifier(mixture(3, **kwargs)).fit(X, y) for mixture in (TorchGMM, GaussianMixture))
    assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-4)
