"""Stand-in for an accelerator that this machine lacks: device tensors in the memory of the CPU.

Within ``with accelerator("cuda"):`` torch finds two devices of this kind. Their tensors are a wrapper subclass around
tensors of the CPU whose ``device`` is ``cuda:0``; torch's C++ code takes them for tensors of the CPU, so that gradients
flow as there. A dispatch mode sees every operator, and

- raises where operands or a generator are on different devices, or an array is asked of a device tensor;
- raises where "mps" would: float64, and operators for which torch's own table of kernels has none for it;
- counts the calls that make the host wait until the device has finished its work: reading a value, copies (except those
  that do not block, from pinned memory), operators whose results have a size that only the device knows, masks as
  indices, and tensors of the CPU as indices;
- is out of memory for a tensor larger than `Accelerator.largest_bytes`.

Random numbers of a device generator are those of a CPU generator with this seed, so that results are equal to the
CPU's. On the real thing they are others.

It does not show how kernels round, draw or order their sums, which kernels CUDA lacks, how much memory there is,
whether a copy is finished or how long anything takes, nor autocast, torch.compile, CUDA graphs, NCCL and forks. Which
operators wait is taken from torch's documentation and code, not measured.
"""

import sys
import weakref
from collections import Counter
from contextlib import ExitStack, contextmanager
from functools import cache, partial, wraps
from unittest import mock

import torch
from torch.optim import optimizer
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

CPU = torch.device("cpu")
NEEDED = (
    (torch._C, "_current_graph_task_id"),
    (torch._C, "_group_tensors_by_device_and_dtype"),
    (torch._C._nn, "_parse_to"),
    (torch.__future__, "set_swap_module_params_on_conversion"),
)
LACKS = [name for owner, name in NEEDED if not hasattr(owner, name)]
TOO_OLD = f"torch {torch.__version__} lacks {', '.join(LACKS)}, which the stand-in needs." if LACKS else None
COPIES = {"aten::copy_", "aten::_to_copy"}  # between devices
WAITING = {
    "aten::_local_scalar_dense", "aten::_assert_async", "aten::_linalg_check_errors", "aten::_linalg_eigh",
    "aten::_linalg_solve_ex", "aten::_linalg_svd", "aten::_unique2", "aten::bincount", "aten::equal",
    "aten::linalg_eig", "aten::linalg_lstsq", "aten::masked_select", "aten::multinomial", "aten::nonzero",
    "aten::unique_consecutive", "aten::unique_dim",
}  # fmt: skip
CHECKED = {"aten::linalg_cholesky_ex", "aten::linalg_inv_ex", "aten::linalg_lu_factor_ex"}  # they wait if they check
INDEXED = {"aten::index", "aten::_unsafe_index", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_"}
TAKE_NUMBERS = {"aten::fill_", "aten::masked_fill", "aten::masked_fill_", "aten::index_fill_", "aten::where"}
NOT_ON_MPS = {
    "aten::_linalg_eigh", "aten::linalg_eig", "aten::poisson", "aten::binomial", "aten::special_ndtri",
    "aten::special_log_ndtr",
}  # fmt: skip
DOUBLES = (torch.float64, torch.complex128)
NO_FLOAT64 = "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
PLACES = weakref.WeakValueDictionary()  # device generators, by the address of what is in them


class Accelerator:
    """State of the simulated devices, and counters.

    Attributes
    ----------
    kind : str
        "cuda" or "mps".
    count : int
        Number of devices.
    free_bytes, largest_bytes : int
        Bytes that are reported as free, and the size of the largest tensor that fits.
    waits : Counter of (str, str)
        Number of waits of the host by reason and line of the package.
    n_pickled : int
        Device tensors that were pickled.
    """

    def __init__(self, kind, count):
        self.kind, self.count, self.waits, self.n_pickled = kind, count, Counter(), 0
        self.free_bytes = self.largest_bytes = 2**36
        self.pinned, self.mode = set(), _Mode()  # where pinned memory begins
        self.generators = []  # the global ones

    def has(self, device):
        """Return whether a device is one of these."""
        return device is not None and torch.device(device).type == self.kind

    def place(self, device):
        """Return the device with its index."""
        index = torch.device(device).index or 0
        if index >= self.count:
            raise RuntimeError(f"{self.kind.upper()} error: invalid device ordinal")
        return torch.device(self.kind, index)

    def wait(self, why):
        """Count a wait."""
        self.waits[why, _caller()] += 1

    def pin(self, tensor):
        """Note that a tensor is in pinned memory."""
        start = tensor.untyped_storage().data_ptr()
        self.pinned.add(start)
        weakref.finalize(tensor, self.pinned.discard, start)
        return tensor

    def is_pinned(self, tensor):
        """Return whether a tensor is in pinned memory."""
        return not isinstance(tensor, DeviceTensor) and tensor.untyped_storage().data_ptr() in self.pinned

    @contextmanager
    def counting(self):
        """Count only the waits within the block, in a counter of its own."""
        before, self.waits = self.waits, Counter()
        try:
            yield self.waits
        finally:
            self.waits = before


ACTIVE = None  # the accelerator within `accelerator`


def n_pickled():
    """Return the number of pickled tensors of the stand-in; those of a real device are not counted."""
    return 0 if ACTIVE is None else ACTIVE.n_pickled


def _caller():
    """Return the innermost running line of the package, or else of the test."""
    frame, outside = sys._getframe(2), "?"
    while frame is not None:
        name = frame.f_code.co_filename
        if "/skvae/" in name and "site-packages" not in name:
            return f"{name.rsplit('/skvae/', 1)[1]}:{frame.f_lineno}"
        if outside == "?" and "torch" not in name and name != __file__:
            outside = f"{name.rsplit('/', 1)[-1]}:{frame.f_lineno}"
        frame = frame.f_back
    return outside


class DeviceTensor(torch.Tensor):
    """A tensor on a device."""

    @staticmethod
    def __new__(cls, held, place):
        found = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            layout=held.layout, device=CPU, requires_grad=False,
        )  # fmt: skip
        found.held, found.place = held, place
        return found

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: self.place)
    is_cuda = property(lambda self: self.place.type == "cuda")
    is_mps = property(lambda self: self.place.type == "mps")
    is_cpu = property(lambda self: False)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _dispatch(func, args, kwargs or {})

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, value):
        torch.Tensor.data.__set__(self, value)
        self.held = value.held

    def numpy(self, *, force=False):
        if force:
            return self.detach().cpu().numpy()
        raise TypeError(f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() first.")

    def __array__(self, dtype=None, copy=None):
        return self.numpy()

    def tolist(self):
        return self.detach().cpu().tolist()

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            found = self.detach().clone().requires_grad_(self.requires_grad)
            vars(found).update({name: True for name in ("_is_param",) if name in vars(self)})
            found.grad = None if self.grad is None else self.grad.__deepcopy__(memo)
            memo[id(self)] = found
        return memo[id(self)]

    def __reduce_ex__(self, protocol):
        ACTIVE.n_pickled += 1
        return self.held.detach().clone().__reduce_ex__(protocol)  # as it comes back with map_location="cpu"

    def __repr__(self):
        return f"DeviceTensor({self.held!r}, device={self.device})"


def _made_on_cpu(function):
    """Wrap a function that makes a tensor of values: make it on the CPU, and copy it to the device."""

    @wraps(function)
    def make(*args, device=None, requires_grad=False, **kwargs):
        source = args[0] if args else kwargs.get("data", kwargs.get("obj"))
        if isinstance(source, DeviceTensor):
            device = source.device if device is None else device
            found = source.detach() if function is not PLAIN["tensor"] else source.detach().clone()
            return found.to(device, kwargs.get("dtype")).requires_grad_(requires_grad)
        found = function(*args, **kwargs)
        return (found if device is None else found.to(device)).requires_grad_(requires_grad or found.requires_grad)

    return make


def _moved(tensor, *args, **kwargs):
    """Replace `torch.Tensor.to`, which takes all tensors for tensors of the CPU."""
    copy = kwargs.pop("copy", False)
    device, dtype, non_blocking, memory_format = torch._C._nn._parse_to(*args, **kwargs)
    if args and isinstance(args[0], torch.Tensor):
        device, dtype = args[0].device, args[0].dtype
    place = device if device is None or not ACTIVE.has(device) else ACTIVE.place(device)
    if place is None or place == tensor.device:  # nothing moves
        return PLAIN["to"](tensor, dtype=dtype, copy=copy, memory_format=memory_format)
    options = {"dtype": dtype, "device": place, "non_blocking": non_blocking}
    return torch.ops.aten._to_copy(tensor, **options | ({"memory_format": memory_format} if memory_format else {}))


def _by_device(tensors, with_indices=False):
    """Group tensors by their devices, which torch's C++ code takes for the CPU."""
    found = PLAIN["group"](tensors, with_indices)
    return {(lists[0][0].device, dtype): (lists, indices) for (_, dtype), (lists, indices) in found.items()}


def _new_tensor(like, data, *, dtype=None, device=None, requires_grad=False):
    """Replace `torch.Tensor.new_tensor`."""
    options = {"dtype": dtype or like.dtype, "device": device or like.device}
    return torch.tensor(data, **options, requires_grad=requires_grad)


PLAIN = {name: getattr(torch, name) for name in ("tensor", "as_tensor", "asarray")}
PLAIN |= {"to": torch.Tensor.to, "group": getattr(torch._C, NEEDED[1][1], None)}


class DeviceGenerator(torch._C.Generator):
    """A generator on a device, with the numbers of one on the CPU."""

    def __new__(cls, place):
        found = super().__new__(cls, "cpu")
        found.place = place
        PLACES[found._cdata] = found  # operators see another object of Python
        return found

    def __init__(self, place):
        pass

    device = property(lambda self: self.place)

    def manual_seed(self, seed):
        super().manual_seed(seed)
        return self


class _Generator(type(torch._C.Generator)):
    """Metaclass of the replacement of `torch.Generator`, which makes generators of the CPU or of a device."""

    def __call__(cls, device="cpu"):
        return DeviceGenerator(ACTIVE.place(device)) if ACTIVE.has(device) else torch._C.Generator(device)

    def __instancecheck__(cls, value):
        return isinstance(value, torch._C.Generator)


class Generator(torch._C.Generator, metaclass=_Generator):
    """Replacement of `torch.Generator`."""


class _Mode(TorchDispatchMode):
    """Mode that receives the operators without a device tensor among their arguments."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _dispatch(func, args, kwargs or {})


@cache
def _facts(func):
    """Return the name of an operator, whether it is composite, and whether results share memory with arguments."""
    is_composite = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")
    has_aliases = any(part.alias_info is not None for part in [*func._schema.arguments, *func._schema.returns])
    return func._schema.name, is_composite, has_aliases


def _dispatch(func, args, kwargs):
    """Run an operator on the CPU tensors that device tensors wrap."""
    name, is_composite, has_aliases = _facts(func)
    if is_composite:
        with ACTIVE.mode:  # made of other operators; in inference mode they arrive as a whole
            found = func.decompose(*args, **kwargs)
        if found is not NotImplemented:
            return found
    flat = [*_leaves(args), *_leaves(list(kwargs.values()))]
    tensors = [value for value in flat if isinstance(value, torch.Tensor)]
    places = {value.place for value in tensors if isinstance(value, DeviceTensor)}
    wanted = kwargs.get("device")
    target = ACTIVE.place(wanted) if ACTIVE.has(wanted) else wanted
    to = next(iter(places), CPU) if target is None else target
    generator = next((PLACES.get(value._cdata, value) for value in flat if isinstance(value, Generator)), None)
    if generator is not None and generator.device != to:
        raise RuntimeError(f"Expected a '{to}' generator device but found '{generator.device}'")
    if not places and not ACTIVE.has(to):
        return _elsewhere(func, args, kwargs)
    if name in COPIES:
        to = args[0].device if name == "aten::copy_" else to
        _count_copy(name, args, kwargs, to)
    else:
        _check_places(func, name, args, kwargs, tensors, places)
        _count_waits(name, args, kwargs)
    if to.type == "mps" and name in NOT_ON_MPS:
        raise NotImplementedError(f"The operator '{name}' is not currently implemented for the MPS device.")
    held = {key: _map(_held, value) for key, value in kwargs.items()}
    found = _run(func, _map(_held, args), held, generator, to)
    if to == CPU:
        return found
    if name == "aten::_to_copy" and found is _held(args[0]):
        found = found.clone()
    if not has_aliases:
        return _map(partial(_wrap, place=to), found)
    # In inference mode, a view of a tensor from before is not one of that mode.
    outside = torch.is_inference_mode_enabled() and func.is_view and not args[0].is_inference()
    with torch.inference_mode(False) if outside else ExitStack():
        wrapped = _map(partial(_wrap, place=to), found)
    return return_and_correct_aliasing(func, args, kwargs, wrapped)


def _leaves(value):
    """Return the items of nested lists and tuples, as torch's pytree does in more time."""
    return [leaf for part in value for leaf in _leaves(part)] if type(value) in (list, tuple) else [value]


def _map(function, value):
    """Return nested lists and tuples with a function applied to their items."""
    return type(value)([_map(function, part) for part in value]) if type(value) in (list, tuple) else function(value)


def _elsewhere(func, args, kwargs):
    """Run an operator without device tensors; pinned memory is recorded."""
    pinned = kwargs.get("pin_memory")
    found = func(*args, **(kwargs | {"pin_memory": None} if pinned else kwargs))
    return ACTIVE.pin(found) if pinned else found


def _held(value):
    return value.held if isinstance(value, DeviceTensor) else value


def _wrap(value, place):
    """Wrap the results of an operator as tensors of a device."""
    if not isinstance(value, torch.Tensor) or isinstance(value, DeviceTensor):
        return value
    if place.type == "mps" and value.dtype in DOUBLES:
        raise TypeError(NO_FLOAT64)
    if value.nbytes > ACTIVE.largest_bytes:
        raise out_of_memory(place.type, value.nbytes)
    return DeviceTensor(value, place)


def out_of_memory(kind, n_bytes):
    """Return the error of a device without memory."""
    if kind == "mps":
        return RuntimeError(f"MPS backend out of memory. Tried to allocate {n_bytes} bytes on private pool.")
    return torch.cuda.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {n_bytes} bytes.")


def _run(func, args, kwargs, generator, to):
    """Call an operator on the CPU; draws without a generator use the global one of the device."""
    kwargs = {name: value for name, value in kwargs.items() if name not in ("pin_memory", "non_blocking")}
    kwargs |= {"device": CPU} if kwargs.get("device") is not None else {}
    if generator is not None or to == CPU or torch.Tag.nondeterministic_seeded not in func.tags:
        return func(*args, **kwargs)
    own, before = ACTIVE.generators[to.index], torch.get_rng_state()
    torch.set_rng_state(own.get_state())
    try:
        return func(*args, **kwargs)
    finally:
        own.set_state(torch.get_rng_state())
        torch.set_rng_state(before)


def _check_places(func, name, args, kwargs, tensors, places):
    """Raise if operands are on different devices; numbers of the CPU may be combined with tensors of a device."""
    hosts = [value for value in tensors if not isinstance(value, DeviceTensor)]
    if name in INDEXED and isinstance(args[0], DeviceTensor):
        hosts = [value for value in hosts if not any(value is index for index in args[1])]
    if not hosts and len(places) < 2:
        return
    written = {id(value) for value in [*args[:1], kwargs.get("out")] if name.endswith("_") or value is not args[0]}
    if torch.Tag.pointwise in func.tags or name in TAKE_NUMBERS or name.startswith("aten::_foreach"):
        hosts = [value for value in hosts if value.ndim or id(value) in written]
    if torch._C._current_graph_task_id() != -1:
        hosts = []  # formulas of gradients, in C++, make zeros on the CPU
    if len(places) > 1 or (places and hosts):
        found = " and ".join(sorted({str(value.device) for value in [*tensors]}))
        raise RuntimeError(f"Expected all tensors to be on the same device, but found at least two: {found} ({func}).")


def _count_waits(name, args, kwargs):
    """Count the waits of the host in an operator on a device."""
    checks = name in CHECKED and kwargs.get("check_errors")
    sizes = name == "aten::repeat_interleave" and kwargs.get("output_size") is None
    if name in WAITING or checks or sizes:
        ACTIVE.wait("item" if name == "aten::_local_scalar_dense" else name[6:])
    if name not in INDEXED:
        return
    indices = [value for value in args[1] if isinstance(value, torch.Tensor)]
    masks = [value for value in indices if value.dtype in (torch.bool, torch.uint8)]
    fills = name not in ("aten::index", "aten::_unsafe_index") and len(indices) == 1 and args[2].numel() == 1
    for value in indices:
        if not isinstance(value, DeviceTensor):
            ACTIVE.wait("index to device")
    for _ in [] if fills else masks:
        ACTIVE.wait("mask as index")


def _count_copy(name, args, kwargs, to):
    """Count a copy between devices, unless it does not block."""
    source = args[1] if name == "aten::copy_" else args[0]
    dtype = args[0].dtype if name == "aten::copy_" else kwargs.get("dtype")
    if source.device.type == "mps" and dtype in DOUBLES:  # it is converted there, and copied then
        raise TypeError(NO_FLOAT64)
    last = args[2] if name == "aten::copy_" and len(args) > 2 else False
    free = (kwargs.get("non_blocking") or last) and ACTIVE.is_pinned(source)
    if source.device != to and not free:
        ACTIVE.wait("to host" if to == CPU else "to device" if source.device == CPU else "between devices")


def _patches(device):
    """Yield the patches of torch that simulate the device: objects, names and values."""

    def index(where):
        return where if isinstance(where, int) else torch.device(where or device.kind).index or 0

    def seed_all(seed):
        for generator in device.generators:
            generator.manual_seed(seed)

    def state(where=None):
        return device.generators[index(where)].get_state()

    def set_state(new, where=None):
        device.generators[index(where)].set_state(new)

    yield from [
        (torch, "Generator", Generator),
        (torch.Tensor, "pin_memory", lambda self, *where: device.pin(self.clone())),
    ]
    yield torch.Tensor, "is_pinned", lambda self, *where: device.is_pinned(self)
    yield from ((torch, name, _made_on_cpu(PLAIN[name])) for name in ("tensor", "as_tensor", "asarray"))
    yield from [(torch.Tensor, "to", _moved), (torch.Tensor, "cpu", lambda self, **kwargs: self.to(CPU))]
    yield torch.Tensor, "cuda", lambda self, where=None: self.to(torch.device("cuda", index(where)))
    yield torch.Tensor, "new_tensor", _new_tensor
    yield torch._C, "_group_tensors_by_device_and_dtype", _by_device
    if device.kind == "mps":
        yield torch.cuda, "is_available", lambda: False
        yield torch.backends.mps, "is_available", lambda: True
        yield from [(torch.mps, "manual_seed", seed_all), (torch.mps, "get_rng_state", lambda: state())]
        yield torch.mps, "set_rng_state", lambda new: set_state(new)
        return
    cuda = {
        "_lazy_init": lambda: None, "is_available": lambda: True, "device_count": lambda: device.count,
        "current_device": lambda: 0, "_is_in_bad_fork": lambda: False, "manual_seed_all": seed_all,
        "manual_seed": lambda seed: device.generators[0].manual_seed(seed), "get_rng_state": state,
        "set_rng_state": set_state, "mem_get_info": lambda where=None: (device.free_bytes, 2**36),
        "synchronize": lambda where=None: device.wait("synchronize"),
    }  # fmt: skip
    yield from ((torch.cuda, name, value) for name, value in cuda.items())


@contextmanager
def accelerator(kind, count=2):
    """Simulate devices.

    Parameters
    ----------
    kind : {"cuda", "mps"}
    count : int, default=2

    Yields
    ------
    device : Accelerator
    """
    global ACTIVE
    _device_constructors()  # which remembers the functions of torch itself, for `with torch.device("meta")`
    ACTIVE = Accelerator(kind, count)
    ACTIVE.generators[:] = [DeviceGenerator(torch.device(kind, index)) for index in range(count)]
    with ExitStack() as stack:
        swap = torch.__future__.get_swap_module_params_on_conversion()
        stack.callback(torch.__future__.set_swap_module_params_on_conversion, swap)
        torch.__future__.set_swap_module_params_on_conversion(True)  # moved parameters stay the same objects
        optimizer._foreach_supported_types.append(DeviceTensor)
        stack.callback(optimizer._foreach_supported_types.remove, DeviceTensor)
        for owner, name, value in _patches(ACTIVE):
            stack.enter_context(mock.patch.object(owner, name, value))
        stack.enter_context(ACTIVE.mode)
        try:
            yield ACTIVE
        finally:
            ACTIVE = None
