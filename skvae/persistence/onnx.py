"""Fitted estimators as ONNX graphs, which serve without torch."""

import logging
import warnings

import numpy as np
import torch
from sklearn.base import is_classifier
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted
from torch import nn

from ..estimators import ClusterLabelClassifier
from . import container

OPSETS = {"": 18, "ai.onnx.ml": 3}
IR_VERSION = 10  # which runtimes of recent years read
DTYPES = {"float32": torch.float32, "float64": torch.float64}
INPUT = "X"
# Names of outputs that `transform` returns, which are passed to the next step; without one of these, the first output.
TRANSFORMED = ("codes", "probabilities", "distances", "transformed")
OLDEST_TORCH = (2, 7)  # graphs of 2.5 fix the number of rows, or fail


def to_onnx(estimator, path, *, dtype="float32"):
    """Write the predictions of a fitted estimator into a file, as an ONNX graph.

    The graph has one input, ``X`` of shape (rows, n_features), and outputs by name:

    ====================================== ==================================================
    `VAEEmbedder`, `AutoencoderEmbedder`,  ``codes``: the result of `transform`
    `TorchPPCA`
    `VaDEClusterer`                        ``labels``, ``probabilities``, ``codes``
    `TorchGMM`                             ``labels``, ``probabilities``, ``log_likelihood``
    `TorchMiniBatchKMeans`                 ``labels``, ``distances`` to the centres
    `ClusterLabelClassifier`               ``labels``, ``probabilities`` of the classes
    `sklearn.pipeline.Pipeline` of these   those of its last step
    ====================================== ==================================================

    Steps of a pipeline, and clusterers inside a classifier, may be scikit-learn's too, if skl2onnx knows them. A graph
    computes and does not check: samples for which an estimator raises an error get some result.

    Parameters
    ----------
    estimator : estimator or Pipeline
        Fitted. torch has to be able to export networks of your own.
    path : str or path-like
        Where to write.
    dtype : {"float32", "float64"}, default="float32"
        Dtype of ``X`` and of networks. Mixtures are always computed in float64. Runtimes may lack convolutions in
        float64.

    Raises
    ------
    ImportError
        If onnx, onnxscript or skl2onnx are not installed, or torch is older than 2.7, whose graphs can be wrong.
    TypeError
        If a step is neither of this package nor supported by skl2onnx, or selects columns by name.
    ValueError
        If the classes of a classifier are not integers.

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


class ClassLookup(nn.Module):
    """Classes of clusters, from their probabilities (n, k) or labels (n,)."""

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

    def forward(self, clusters):
        """Return classes (n,), their probabilities (n, c)."""
        is_soft = clusters.is_floating_point()
        probabilities = clusters.double() @ self.table if is_soft else self.table[clusters]
        return self.classes[probabilities.argmax(1)], probabilities.to(self.dtype)


def _graph(estimator, dtype):
    """Return the graph of an estimator."""
    if isinstance(estimator, FrozenEstimator):
        estimator = estimator.estimator
    if isinstance(estimator, Pipeline):
        return _pipeline_graph(estimator, dtype)
    check_is_fitted(estimator)
    if isinstance(estimator, ClusterLabelClassifier):
        clusterer = _graph(estimator.estimator_, dtype)
        outputs = {output.name: output for output in clusterer.graph.output}
        probabilities = torch.zeros(2, len(estimator.table_), dtype=dtype)
        if hasattr(estimator.estimator_, "predict_proba"):
            name, example = "probabilities", probabilities
        else:
            name, example = "labels", probabilities[:, 0].long()
        return _chain(clusterer, outputs[name].name, _export(ClassLookup(estimator, dtype), example))
    if hasattr(estimator, "_export_module"):
        return _export(estimator._export_module(dtype), torch.zeros(2, estimator.n_features_in_, dtype=dtype))
    return _sklearn_graph(estimator, dtype)


def _pipeline_graph(pipeline, dtype):
    """Return the graph of a pipeline."""
    steps = [step for _, step in pipeline.steps if step is not None and step != "passthrough"]
    if not steps:
        raise ValueError("The pipeline has no step but 'passthrough'; there is nothing to write.")
    model = _graph(steps[0], dtype)
    for step in steps[1:]:
        names = [output.name for output in model.graph.output]
        transformed = next(name for name in (*TRANSFORMED, *names) if name in names)
        model = _chain(model, transformed, _graph(step, dtype))
    return model


def _chain(first, output, second):
    """Chain two graphs: an output of the first is the input of the second."""
    from onnx import compose

    first = compose.add_prefix(first, "before_", rename_inputs=False)
    second = compose.add_prefix(second, "after_", rename_outputs=False)
    pair = [(f"before_{output}", second.graph.input[0].name)]
    return compose.merge_models(first, second, pair, outputs=[output.name for output in second.graph.output])


def _export(module, example):
    """Return the graph of a module, with an example of its input."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # torch reports optional libraries that are not installed
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
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
    finally:
        logger.setLevel(level)
    model = program.model_proto
    model.ir_version = IR_VERSION
    return model


def _sklearn_graph(estimator, dtype):
    """Return the graph of an estimator of scikit-learn, with the names of outputs of this package."""
    import skl2onnx
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType
    from skl2onnx.common.exceptions import MissingConverter, MissingShapeCalculator

    if not hasattr(estimator, "n_features_in_"):
        raise TypeError(f"to_onnx writes fitted estimators and pipelines of them, but got {estimator!r}.")
    input_type = FloatTensorType if dtype == torch.float32 else DoubleTensorType
    # Probabilities as an array, not as a list of dicts.
    options = {id(estimator): {"zipmap": False}} if is_classifier(estimator) else None
    try:
        model = skl2onnx.to_onnx(
            estimator,
            initial_types=[(INPUT, input_type([None, estimator.n_features_in_]))],
            options=options,
            target_opset=OPSETS,
        )
    except (MissingConverter, MissingShapeCalculator) as error:
        raise TypeError(
            f"skl2onnx has no converter for {type(estimator).__name__}; register one with it, or leave the step out."
        ) from error
    except (KeyError, RuntimeError) as error:  # raised by converters for unsupported parameters
        raise TypeError(
            f"skl2onnx cannot convert this {type(estimator).__name__}. A graph has one input without column names: "
            "select columns by position, and of a search give best_estimator_."
        ) from error
    del model.opset_import[:]
    for domain, version in OPSETS.items():
        model.opset_import.add(domain=domain, version=version)
    model.ir_version = IR_VERSION
    return _rename_outputs(model)


def _rename_outputs(model):
    """Give the outputs of a graph of skl2onnx their names in this package."""
    names = {"label": "labels", "output_label": "labels", "output_probability": "probabilities", "scores": "distances"}
    outputs = [output.name for output in model.graph.output]
    names = {name: names.get(name, name) for name in outputs} if len(outputs) > 1 else {outputs[0]: "transformed"}
    for node in model.graph.node:
        for values in (node.input, node.output):
            for index, name in enumerate(values):
                values[index] = names.get(name, name)
    for output in model.graph.output:
        output.name = names[output.name]
    return _flatten_labels(model) if "labels" in names.values() else model


def _flatten_labels(model):
    """Reshape labels to (n,), which some converters return as a column."""
    from onnx import TensorProto, helper, numpy_helper

    node = next(node for node in model.graph.node if "labels" in node.output)
    node.output[list(node.output).index("labels")] = "labels_of_any_shape"
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1]), "flat"))
    model.graph.node.append(helper.make_node("Reshape", ["labels_of_any_shape", "flat"], ["labels"]))
    index = [output.name for output in model.graph.output].index("labels")
    model.graph.output[index].CopyFrom(helper.make_tensor_value_info("labels", TensorProto.INT64, ["rows"]))
    return model
