"""Fitted estimators as ONNX graphs, which serve without torch."""

import copy
import logging
import warnings
from contextlib import contextmanager

import numpy as np
import torch
from sklearn.base import is_classifier
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted
from torch import nn

from ..estimators import (
    AutoencoderEmbedder,
    ClusterLabelClassifier,
    TorchGMM,
    TorchMiniBatchKMeans,
    TorchPPCA,
    VaDEClusterer,
    VAEEmbedder,
)
from ..models import COVARIANCES
from . import container

OPSETS = {"": 18, "ai.onnx.ml": 3}
IR_VERSION = 10  # what runtimes of the last years read
DTYPES = {"float32": torch.float32, "float64": torch.float64}
INPUT = "X"
OLDEST_TORCH = (2, 7)  # graphs of 2.5 fix the number of rows, or fail


def to_onnx(estimator, path, *, dtype="float32"):
    """Write what a fitted estimator computes for rows into a file, as an ONNX graph.

    The graph has one input, ``X`` of shape (rows, n_features), and outputs by name:

    ====================================== ==================================================
    `VAEEmbedder`, `AutoencoderEmbedder`,  ``codes``: what `transform` gives
    `TorchPPCA`
    `VaDEClusterer`                        ``labels``, ``probabilities``, ``codes``
    `TorchGMM`                             ``labels``, ``probabilities``, ``log_likelihood``
    `TorchMiniBatchKMeans`                 ``labels``, ``distances`` to the centres
    `ClusterLabelClassifier`               ``labels``, ``probabilities`` of the classes
    `sklearn.pipeline.Pipeline` of these   those of its last step
    ====================================== ==================================================

    Steps of a pipeline, and clusterers inside a classifier, may be scikit-learn's too, if skl2onnx knows them. A graph
    computes and does not check: rows that an estimator would refuse get some result.

    Parameters
    ----------
    estimator : estimator or Pipeline
        Fitted. Networks of your own have to be what torch can export.
    path : str or path-like
        Where to write.
    dtype : {"float32", "float64"}, default="float32"
        Of ``X``, and in which networks compute. Mixtures are computed in float64 always. Runtimes may lack convolutions
        in float64.

    Raises
    ------
    ImportError
        If onnx, onnxscript or skl2onnx are not installed, or torch is older than 2.7, whose graphs can be wrong.
    TypeError
        If a step is neither of this package nor known to skl2onnx, or chooses columns by name.
    ValueError
        If the classes of a classifier are no integers.

    See Also
    --------
    save : Estimators that this package reads again.

    Examples
    --------
    >>> import os, tempfile
    >>> import onnxruntime
    >>> from sklearn.datasets import load_iris
    >>> from skvae import TorchGMM, to_onnx
    >>> X = load_iris().data.astype("float32")
    >>> gmm = TorchGMM(3, random_state=0).fit(X)
    >>> path = os.path.join(tempfile.mkdtemp(), "gmm.onnx")
    >>> to_onnx(gmm, path)
    >>> session = onnxruntime.InferenceSession(path)
    >>> labels, probabilities = session.run(["labels", "probabilities"], {"X": X})
    >>> bool((labels == gmm.predict(X)).all())
    True
    """
    try:
        import onnx
        import onnxscript  # noqa: F401
        import skl2onnx  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"to_onnx needs {error.name}, which is not installed; `pip install skvae[onnx]` has what it needs."
        ) from error
    if torch.__version__ < OLDEST_TORCH:
        raise ImportError(
            f"to_onnx needs torch {'.'.join(map(str, OLDEST_TORCH))} or newer, but got torch {torch.__version__}; "
            "`pip install skvae[onnx]` has what it needs."
        )
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} should be one of {sorted(DTYPES)}.")
    model = _graph(estimator, DTYPES[dtype])
    onnx.checker.check_model(model, full_check=True)
    container.write(path, model.SerializeToString())


class Codes(nn.Module):
    """What embedders give."""

    outputs = ("codes",)

    def __init__(self, estimator, dtype):
        super().__init__()
        self.model = _copy_of(estimator.module_, dtype)

    def forward(self, x):
        """Posterior means (n, k)."""
        return self.model.posterior(self.model.standardize(x)).mean


class Clusters(Codes):
    """What VaDE gives; the mixture is computed in float64."""

    outputs = ("labels", "probabilities", "codes")

    def __init__(self, estimator, dtype):
        super().__init__(estimator, dtype)
        self.prior, self.model.prior = self.model.prior.double(), _PointPrior()

    def forward(self, x):
        """Clusters (n,), their probabilities (n, k), codes (n, d)."""
        z = super().forward(x)
        log_resp = self.prior.log_responsibilities(z.double())[:, 0]
        return log_resp.argmax(1), log_resp.exp().to(x.dtype), z


class _PointPrior(nn.Module):
    """What the posterior asks a prior: how many statistics the encoder gives."""

    n_statistics = 2


class Components(nn.Module):
    """What a mixture gives, in float64."""

    outputs = ("labels", "probabilities", "log_likelihood")

    def __init__(self, estimator, dtype):
        super().__init__()
        mixture, family = estimator._mixture(torch.float64, "cpu"), COVARIANCES[estimator.covariance_type]
        peaks = family.log_prob(mixture.means, mixture.means, mixture.factor).diagonal() + mixture.log_weights
        for name, value in {"means": mixture.means, "factor": mixture.factor, "peaks": peaks}.items():
            self.register_buffer(name, value)

    def forward(self, x):
        """Components (n,), their probabilities (n, k), log-likelihoods (n,)."""
        residual = x.double() - self.means[:, None]  # (k, n, d)
        white = residual @ self.factor if self.factor.ndim == 3 else residual * self.factor[:, None]
        log_joint = (self.peaks[:, None] - 0.5 * white.square().sum(-1)).mT  # (n, k)
        evidence = log_joint.logsumexp(1)
        resp = (log_joint - evidence[:, None]).exp()
        return log_joint.argmax(1), resp.to(x.dtype), evidence.to(x.dtype)


class Centers(nn.Module):
    """What k-means gives."""

    outputs = ("labels", "distances")

    def __init__(self, estimator, dtype):
        super().__init__()
        self.register_buffer("centers", torch.from_numpy(np.array(estimator.cluster_centers_, np.float64)))

    def forward(self, x):
        """Nearest centres (n,), distances to all (n, k)."""
        squares = (x.double()[:, None] - self.centers).square().sum(-1)
        return squares.argmin(1), squares.sqrt().to(x.dtype)


class PrincipalCodes(nn.Module):
    """What probabilistic principal components give."""

    outputs = ("codes",)

    def __init__(self, estimator, dtype):
        super().__init__()
        mean = estimator.mean_.astype(np.float64)
        points = np.concatenate([mean[None], mean + np.eye(len(mean))])
        offset, *rows = estimator.transform(points)  # an affine map is known by where it takes these
        self.register_buffer("mean", torch.from_numpy(mean))
        self.register_buffer("matrix", torch.from_numpy(np.array(rows, np.float64) - offset))

    def forward(self, x):
        """Posterior means (n, k)."""
        return ((x.double() - self.mean) @ self.matrix).to(x.dtype)


class Classes(nn.Module):
    """Classes from what a clusterer gives: probabilities (n, k), or clusters (n,)."""

    outputs = ("labels", "probabilities")

    def __init__(self, estimator, dtype):
        super().__init__()
        classes = np.asarray(estimator.classes_)
        if classes.dtype.kind not in "iub":
            raise ValueError(
                f"to_onnx writes classes that are integers, but those of {type(estimator).__name__} are "
                f"{classes[:3].tolist()}...; fit it to numbers (sklearn.preprocessing.LabelEncoder)."
            )
        self.register_buffer("classes", torch.from_numpy(classes.astype(np.int64)))
        self.register_buffer("table", torch.from_numpy(estimator.table_.astype(np.float64)))
        self.dtype = dtype

    def forward(self, found):
        """Classes (n,), their probabilities (n, c)."""
        probabilities = found.double() @ self.table if found.is_floating_point() else self.table[found]
        return self.classes[probabilities.argmax(1)], probabilities.to(self.dtype)


MODULES = {
    AutoencoderEmbedder: Codes,
    VAEEmbedder: Codes,
    VaDEClusterer: Clusters,
    TorchGMM: Components,
    TorchMiniBatchKMeans: Centers,
    TorchPPCA: PrincipalCodes,
}
# What an estimator's `transform` gives to the next step, by the name of the output; others have one output.
CARRIERS = ("codes", "probabilities", "distances", "transformed")


def _graph(estimator, dtype):
    """The graph of an estimator."""
    estimator = getattr(estimator, "estimator", estimator) if isinstance(estimator, FrozenEstimator) else estimator
    if isinstance(estimator, Pipeline):
        return _chain(estimator, dtype)
    check_is_fitted(estimator)
    if isinstance(estimator, ClusterLabelClassifier):
        clusterer = _graph(estimator.estimator_, dtype)
        found = {output.name: output for output in clusterer.graph.output}
        carrier = "probabilities" if hasattr(estimator.estimator_, "predict_proba") else "labels"
        example = torch.zeros(2, len(estimator.table_), dtype=dtype)
        example = example if carrier == "probabilities" else example[:, 0].long()
        return _after(clusterer, found[carrier].name, _export(Classes(estimator, dtype), example))
    module = next((module for kind, module in MODULES.items() if isinstance(estimator, kind)), None)
    if module is None:
        return _foreign(estimator, dtype)
    return _export(module(estimator, dtype), torch.zeros(2, estimator.n_features_in_, dtype=dtype))


def _chain(pipeline, dtype):
    """The graphs of the steps of a pipeline, one after another."""
    steps = [step for _, step in pipeline.steps if step is not None and step != "passthrough"]
    if not steps:
        raise ValueError("The pipeline has no step but 'passthrough'; there is nothing to write.")
    model = _graph(steps[0], dtype)
    for step in steps[1:]:
        names = [output.name for output in model.graph.output]
        carrier = next(name for name in (*CARRIERS, *names) if name in names)
        model = _after(model, carrier, _graph(step, dtype))
    return model


def _after(first, carrier, second):
    """Two graphs, the second of which takes an output of the first."""
    from onnx import compose

    first = compose.add_prefix(first, "before_", rename_inputs=False)
    second = compose.add_prefix(second, "after_", rename_outputs=False)
    pair = [(f"before_{carrier}", second.graph.input[0].name)]
    return compose.merge_models(first, second, pair, outputs=[output.name for output in second.graph.output])


def _export(module, example):
    """The graph of a module."""
    with _quiet():
        program = torch.onnx.export(
            module.eval(),
            (example,),
            dynamo=True,
            dynamic_shapes=({0: "rows"},),
            input_names=[INPUT],
            output_names=list(module.outputs),
            opset_version=OPSETS[""],
            verbose=False,
        )
    model = program.model_proto
    model.ir_version = IR_VERSION
    return model


def _foreign(estimator, dtype):
    """The graph of an estimator of scikit-learn."""
    import skl2onnx
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType
    from skl2onnx.common.exceptions import MissingConverter, MissingShapeCalculator

    if not hasattr(estimator, "n_features_in_"):
        raise TypeError(f"to_onnx writes fitted estimators and pipelines of them, but got {estimator!r}.")
    kind = FloatTensorType if dtype == torch.float32 else DoubleTensorType
    # Probabilities as an array, not as a list of dicts.
    options = {id(estimator): {"zipmap": False}} if is_classifier(estimator) else None
    try:
        model = skl2onnx.to_onnx(
            estimator,
            initial_types=[(INPUT, kind([None, estimator.n_features_in_]))],
            options=options,
            target_opset=OPSETS,
        )
    except (MissingConverter, MissingShapeCalculator) as error:
        raise TypeError(
            f"skl2onnx has no converter for {type(estimator).__name__}; register one with it, or leave the step out."
        ) from error
    except (KeyError, RuntimeError) as error:  # what it raises where a converter can not go on
        raise TypeError(
            f"skl2onnx can not write this {type(estimator).__name__}. A graph has one table without names: choose "
            "columns by position, and of a search give best_estimator_."
        ) from error
    del model.opset_import[:]
    for domain, version in OPSETS.items():
        model.opset_import.add(domain=domain, version=version)
    model.ir_version = IR_VERSION
    return _renamed(model)


def _renamed(model):
    """The graph of skl2onnx with names of outputs like those of this package."""
    names = {"label": "labels", "output_label": "labels", "output_probability": "probabilities", "scores": "distances"}
    outputs = [output.name for output in model.graph.output]
    names = {name: names.get(name, name) for name in outputs} if len(outputs) > 1 else {outputs[0]: "transformed"}
    for node in model.graph.node:
        for values in (node.input, node.output):
            for index, name in enumerate(values):
                values[index] = names.get(name, name)
    for output in model.graph.output:
        output.name = names[output.name]
    return _flat_labels(model) if "labels" in names.values() else model


def _flat_labels(model):
    """The graph with labels (n,), which some converters give as a column."""
    from onnx import TensorProto, helper, numpy_helper

    node = next(node for node in model.graph.node if "labels" in node.output)
    node.output[list(node.output).index("labels")] = "labels_as_found"
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1]), "flat"))
    model.graph.node.append(helper.make_node("Reshape", ["labels_as_found", "flat"], ["labels"]))
    index = [output.name for output in model.graph.output].index("labels")
    model.graph.output[index].CopyFrom(helper.make_tensor_value_info("labels", TensorProto.INT64, ["rows"]))
    return model


def _copy_of(model, dtype):
    """A copy of a model on the CPU in a precision, for rows as they are given."""
    return copy.deepcopy(model).cpu().to(dtype).eval()


@contextmanager
def _quiet():
    """Without what torch's exporter says of libraries that are not there."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
