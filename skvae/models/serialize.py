"""Descriptions of modules as plain data, for pickles and files: names, numbers and arrays.

A description is a dict: the ``kind`` of a module, a key of ``SERIALIZERS``; its ``settings``; its ``arrays``, by the
names of its parameters and buffers; and its ``parts``, the descriptions of its submodules. Only modules of this package
and of torch, whose classes are in ``SERIALIZERS``, have descriptions. It is no ``state_dict``, because networks may be
users' own combinations of layers.
"""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from . import (
    ACTIVATIONS,
    COVARIANCES,
    LIKELIHOODS,
    CovariateInputs,
    Flat,
    GaussianMixturePrior,
    LatentModel,
    MaskedLikelihood,
    MixedLikelihood,
    StandardNormal,
)
from .counts import Categorical
from .covariances import Mixture
from .likelihoods import FixedGaussian, Standardized
from .networks import Affine, Dropout, Flatten, Heads, LatentNorm, LogScaleHead, Unflatten

FIELDS = ("kind", "settings", "arrays", "parts", "frozen", "channels_last", "training")
OPTIONS = {"size_factors": ("total", "given"), "has_shifts": (True,)}  # attributes of likelihoods of counts
DTYPES = (torch.float32, torch.float64, torch.float16, torch.int64)  # of parameters and buffers


class Serializer(NamedTuple):
    """Functions that describe and build modules of a class."""

    cls: type
    settings: Callable  # module -> dict of plain values
    build: Callable  # (settings, parts, shapes of the arrays) -> module, called where tensors have no memory


def layer(cls, *names):
    """Return the serializer of a layer whose attributes are the arguments of its constructor."""

    def settings(module):
        return {name: getattr(module, name) is not None if name == "bias" else getattr(module, name) for name in names}

    def build(settings, parts, shapes):
        check_names("settings", settings, names)
        check_names("parts", parts, ())
        return cls(**settings)

    return Serializer(cls, settings, build)


def container(cls, build):
    """Return the serializer of a module that has parts only, from which it is built."""

    def build_from(settings, parts, shapes):
        check_names("settings", settings, ())
        return build(parts)

    return Serializer(cls, lambda module: {}, build_from)


def assembly(cls, *names):
    """Return the serializer of a module whose parts are the arguments of its constructor."""

    def build(parts):
        check_names("parts", parts, names)
        return cls(**parts)

    return container(cls, build)


def likelihood(cls, *names):
    """Return the serializer of a likelihood, which takes a mean and a scale of each feature if it has arrays."""

    def settings(module):
        values = {name: getattr(module, name) for name in names}
        return values | {name: getattr(module, name) for name in OPTIONS if getattr(module, name, None)}

    def build(settings, parts, shapes):
        settings = dict(settings)
        options = {name: settings.pop(name) for name in OPTIONS if hasattr(cls, name) and name in settings}
        for name, value in options.items():
            if value not in OPTIONS[name]:
                raise ValueError(f"{name}={value!r:.40} is unknown")
        check_names("settings", settings, names)
        if not shapes:
            return cls(**settings)
        (size,) = shapes["feature_mean" if issubclass(cls, Standardized) else "log_mean"]
        module = cls(torch.empty(size, dtype=torch.float64), torch.empty(size, dtype=torch.float64), **settings)
        for name, value in options.items():
            setattr(module, name, value)
        return module

    return Serializer(cls, settings, build)


def build_latent_model(parts):
    """Build a model; there may be covariates."""
    check_names("parts", parts, ("encoder", "decoder", "likelihood", "prior", *(parts.keys() & {"covariates"})))
    return LatentModel(**parts)


def build_categorical(settings, parts, shapes):
    """Build a categorical likelihood, whose arrays are functions of its settings."""
    check_names("settings", settings, ("n_categories",))
    with torch.device("cpu"):
        return Categorical(settings["n_categories"])


def build_mixed(settings, parts, shapes):
    """Build a likelihood of groups of features, whose arrays are functions of its settings."""
    check_names("settings", settings, ("features",))
    check_names("parts", parts, ("likelihoods",))
    with torch.device("cpu"):
        return MixedLikelihood(parts["likelihoods"], settings["features"])


def build_mixture_prior(settings, parts, shapes):
    """Build a prior with as many mixtures, components and dimensions as its arrays have."""
    check_names("settings", settings, ("covariance_type", "sampled"))
    family, (n_mixtures, *shape) = COVARIANCES[settings["covariance_type"]], shapes["means"]
    factor = torch.empty(family.compact_shape(*shape))
    mixture = Mixture(torch.empty(shape[0]), torch.empty(shape), factor, factor)
    return GaussianMixturePrior([mixture] * n_mixtures, family, settings["sampled"])


def prior_settings(module):
    """Return the settings of a mixture prior."""
    names = [name for name, family in COVARIANCES.items() if family == module.family]
    return {"covariance_type": names[0], "sampled": module.sampled}


def build_affine(settings, parts, shapes):
    """Build an affine map of as many features as its arrays have."""
    check_names("settings", settings, ())
    return Affine(torch.empty(shapes["scale"]), torch.empty(shapes["offset"]))


def build_latent_norm(settings, parts, shapes):
    """Build the normalization of as many latent dimensions as its arrays have."""
    check_names("settings", settings, ("is_frozen",))
    norm = LatentNorm(*shapes["running_mean"])
    norm.is_frozen = settings["is_frozen"]
    return norm


def build_log_scale_head(parts):
    """Build an encoder with the layer that returns log-scales."""
    check_names("parts", parts, ("encoder", "log_scale"))
    module = LogScaleHead(parts["encoder"], 1)
    module.log_scale = parts["log_scale"]
    return module


def build_heads(parts):
    """Build networks with the same input."""
    check_names("parts", parts, ("heads",))
    module = Heads([])
    module.heads = parts["heads"]
    return module


def build_sequential(parts):
    """Build a sequence of named layers."""
    module = nn.Sequential()
    for name, part in parts.items():
        module.add_module(name, part)
    return module


CONVOLUTION = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "bias")
BATCH_NORM = ("num_features", "eps", "momentum", "affine", "track_running_stats")
SETTINGS_OF_ACTIVATIONS = {
    nn.ReLU: ("inplace",),
    nn.ELU: ("alpha", "inplace"),
    nn.GELU: ("approximate",),
    nn.SiLU: ("inplace",),
    nn.LeakyReLU: ("negative_slope", "inplace"),
}
LAYERS = [
    layer(nn.Linear, "in_features", "out_features", "bias"),
    layer(nn.Conv2d, *CONVOLUTION, "padding_mode"),
    layer(nn.ConvTranspose2d, *CONVOLUTION, "output_padding"),
    layer(nn.BatchNorm1d, *BATCH_NORM),
    layer(nn.BatchNorm2d, *BATCH_NORM),
    layer(nn.LayerNorm, "normalized_shape", "eps", "elementwise_affine", "bias"),
    layer(nn.GroupNorm, "num_groups", "num_channels", "eps", "affine"),
    layer(nn.Dropout, "p", "inplace"),
    layer(nn.Flatten, "start_dim", "end_dim"),
    layer(nn.Unflatten, "dim", "unflattened_size"),
    layer(nn.Identity),
    *(layer(cls, *SETTINGS_OF_ACTIVATIONS.get(cls, ())) for cls in ACTIVATIONS.values()),
    container(nn.Sequential, build_sequential),
    container(nn.ModuleList, lambda parts: nn.ModuleList(parts.values())),
]
OURS = [
    layer(Dropout, "p"),
    layer(Flatten),
    layer(Unflatten, "shape"),
    layer(Flat, "n_statistics"),
    layer(StandardNormal),
    container(Heads, build_heads),
    assembly(MaskedLikelihood, "likelihood"),
    container(LogScaleHead, build_log_scale_head),
    container(LatentModel, build_latent_model),
    layer(CovariateInputs, "n_features", "n_levels", "n_dispersions"),
    Serializer(Affine, lambda module: {}, build_affine),
    Serializer(LatentNorm, lambda module: {"is_frozen": module.is_frozen}, build_latent_norm),
    Serializer(GaussianMixturePrior, prior_settings, build_mixture_prior),
    Serializer(Categorical, lambda module: {"n_categories": module.n_categories}, build_categorical),
    Serializer(MixedLikelihood, lambda module: {"features": module.features}, build_mixed),
    *(
        likelihood(cls, *(("noise_scale",) if cls is FixedGaussian else ()))
        for cls in LIKELIHOODS.values()
        if cls is not Categorical
    ),
]
# Files have earlier names of classes.
NAMES_IN_FILES = {LogScaleHead: "WithLogScales", MaskedLikelihood: "Observed"}
SERIALIZERS = {f"torch.{serializer.cls.__name__}": serializer for serializer in LAYERS}
SERIALIZERS |= {NAMES_IN_FILES.get(serializer.cls, serializer.cls.__name__): serializer for serializer in OURS}
NAMES = {serializer.cls: name for name, serializer in SERIALIZERS.items()}


def foreign_part(module):
    """Return the reason why a module has no description, or None.

    Parameters
    ----------
    module : torch.nn.Module
    """
    parts = list(module.named_modules(remove_duplicate=False))
    for name, part in parts:
        if type(part) not in NAMES:
            return f"{name or 'the module'} is a {type(part).__module__}.{type(part).__qualname__}"
        if any(hooks for attribute, hooks in vars(part).items() if attribute.endswith("_hooks")):
            return f"{name or 'the module'} has hooks"
    parameters = list(module.named_parameters(remove_duplicate=False))
    for named in (parts, parameters):
        if len({id(value) for _, value in named}) < len(named):
            return "parts of it occur twice"
    unknown = next((tensor.dtype for tensor in module.state_dict().values() if tensor.dtype not in DTYPES), None)
    return None if unknown is None else f"it has values of the type {unknown}"


def converted_copy(module, convert):
    """Return a copy of a module for inference, with converted parameters and buffers.

    Copying a module takes longer than applying it to a sample, so that this copies tensors alone. A module that is not
    of this package or of torch may change its other attributes, and is copied with them.

    Parameters
    ----------
    module : torch.nn.Module
    convert : callable, Tensor -> Tensor
        May return the tensor itself, which is then shared.
    """
    if any(type(part) not in NAMES or part.training for part in module.modules()):
        return copy.deepcopy(module)._apply(convert)
    return _converted(module, convert)


def _converted(module, convert):
    copied = module.__new__(type(module))
    vars(copied).update(vars(module))
    for kind in ("_parameters", "_buffers"):
        tensors = getattr(module, kind).items()
        vars(copied)[kind] = {name: None if tensor is None else convert(tensor.detach()) for name, tensor in tensors}
    parts = module._modules.items()
    vars(copied)["_modules"] = {name: None if part is None else _converted(part, convert) for name, part in parts}
    return copied


def module_to_dict(module):
    """Return the description of a module.

    Parameters
    ----------
    module : torch.nn.Module
        For which `foreign_part` returns None.

    Returns
    -------
    description : dict
        Its arrays are on the CPU, and share memory with a module on the CPU.
    """
    name, tensors = NAMES[type(module)], own_tensors(module)
    last = [name for name, tensor in tensors.items() if is_channels_last(tensor)]
    # In the order of memory, which convolutions keep.
    ordered = {name: t.permute(0, 2, 3, 1) if name in last else t for name, t in tensors.items()}
    return {
        "kind": name,
        "settings": SERIALIZERS[name].settings(module),
        "arrays": {name: tensor.detach().cpu().numpy() for name, tensor in ordered.items()},
        "parts": {name: module_to_dict(part) for name, part in module.named_children()},
        "frozen": [name for name, p in module.named_parameters(recurse=False) if not p.requires_grad],
        "channels_last": last,
        "training": module.training,
    }


def module_from_dict(description):
    """Return the module of a description, on the CPU, with memory of its own.

    Raises
    ------
    ValueError
        If it is not a description, if a kind is unknown, or if settings, parts and arrays are inconsistent.
    """
    if not isinstance(description, dict) or set(description) != set(FIELDS):
        raise ValueError(f"The description of a module should have the fields {FIELDS}; save the estimator again.")
    serializer = SERIALIZERS.get(description["kind"]) if isinstance(description["kind"], str) else None
    if serializer is None or not all(isinstance(description[field], dict) for field in ("settings", "arrays", "parts")):
        raise ValueError(f"Modules of the kind {description['kind']!r}, described so, are unknown; update skvae.")
    parts = {name: module_from_dict(part) for name, part in description["parts"].items()}
    last = description["channels_last"]
    tensors = {name: to_parameter(array, name in last) for name, array in description["arrays"].items()}
    try:
        with torch.device("meta"):  # without memory and without draws; values come from the arrays
            module = serializer.build(description["settings"], parts, {name: t.shape for name, t in tensors.items()})
        check_names("parts", dict(module.named_children()), parts)
    except Exception as error:
        raise ValueError(f"A {description['kind']} cannot be built from its description: {error}") from error
    fill(module, tensors, description["frozen"])
    module.training = bool(description["training"])
    return module


def fill(module, tensors, frozen):
    """Replace tensors of a module that have no memory.

    Raises
    ------
    ValueError
        If they have other names, shapes or dtypes.
    """
    expected, name = own_tensors(module), type(module).__name__
    check_names(f"arrays of {name}", tensors, expected)
    for key, tensor in tensors.items():
        target = expected[key]
        if tensor.shape != target.shape or tensor.is_floating_point() != target.is_floating_point():
            raise ValueError(
                f"{key} of {name} should be of shape {tuple(target.shape)} and {target.dtype}, but the array is of "
                f"shape {tuple(tensor.shape)} and {tensor.dtype}."
            )
        if target.device.type != "meta" and not torch.equal(target, tensor):
            raise ValueError(f"{key} of {name} contradicts its settings.")
        if isinstance(target, nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=key not in frozen and target.requires_grad)
        setattr(module, key, tensor)


def own_tensors(module):
    """Return the parameters and buffers of a module without those of its parts, by name."""
    settings = {"recurse": False, "remove_duplicate": False}
    return dict(module.named_parameters(**settings)) | dict(module.named_buffers(**settings))


def to_parameter(array, channels_last):
    """Return a copy of an array as a tensor with its usual order of axes."""
    tensor = torch.tensor(array).contiguous()
    if tensor.dtype not in DTYPES or (channels_last and tensor.ndim != 4):
        raise ValueError(f"Networks have no arrays of {tensor.dtype} with {tensor.ndim} axes.")
    return tensor.permute(0, 3, 1, 2) if channels_last else tensor


def is_channels_last(tensor):
    """Return whether channels are last in memory."""
    if tensor.ndim != 4:
        return False
    like = torch.empty(tensor.shape, device="meta").to(memory_format=torch.channels_last)
    return tensor.stride() == torch.empty_like(like, memory_format=torch.channels_last).stride()


def check_names(what, names, expected):
    """Raise if names are missing or unknown."""
    if set(names) != set(expected):
        raise ValueError(f"The {what} should be {sorted(expected)}, but are {sorted(names)}.")
