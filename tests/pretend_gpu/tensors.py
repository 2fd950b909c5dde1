"""Tensors that say they are on a GPU and keep their numbers on the CPU, or, where they are blank, nowhere.

Two modes see every call of torch: one the calls of its operators, whatever library makes them, the other those of its
Python bindings that ask for a real GPU before any operator is reached.
"""

from __future__ import annotations

import functools
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.pretend_gpu.allocator import Allocator, Block, OutOfSpace, Peaks
from tests.pretend_gpu.trees import leaves, map_tensors, tensors

if TYPE_CHECKING:
    from tests.pretend_gpu.graphs import Recording

aten = torch.ops.aten
NoMode = torch._C.DisableTorchFunction

# Operators whose result the host has to see before it can go on.
_WAITED_FOR = {
    aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default,
    aten.is_nonzero.default, aten._unique2.default,
}  # fmt: skip
_MATRIX_PRODUCTS = {aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default, aten.linear.default}
_CONVOLUTIONS = {aten.conv2d.default, aten.convolution.default}
_MAY_MIX = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}


class PretendTensor(torch.Tensor):
    """`inner`, on another device by its own account. Views of each other have inner tensors that are."""

    inner: Tensor

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor, device: torch.device | None = None, requires_grad: bool = False) -> PretendTensor:
        if device is None:  # a library makes a parameter of the class of another one
            return torch.nn.Parameter(inner, requires_grad)  # type: ignore[return-value]
        made: PretendTensor = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            layout=inner.layout, device=device, requires_grad=requires_grad,
        )  # fmt: skip
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} on a pretend GPU's tensor, after the GPU has gone or in another thread")

    def __repr__(self) -> str:  # type: ignore[override]
        return f"PretendTensor({self.inner!r}, device={self.device})"


@dataclass
class Traffic:
    """What happened since it was made: calls of operators, those of them that launch something on the GPU (views and
    empty tensors do not, a graph is one whatever is in it), copies in bytes, and moments at which the host waited."""

    calls: int = 0
    launches: Counter[str] = field(default_factory=Counter)
    to_device: int = 0
    to_host: int = 0
    waits: Counter[str] = field(default_factory=Counter)


class Memory:
    """What one GPU's tensors hold, by storage: views count once."""

    def __init__(self, allocator: Allocator, workspace: int) -> None:
        self.allocator = allocator
        self.workspaces: dict[int, Block] = {}  # the matrix library's, by stream; kept for good
        self._workspace = workspace  # bytes of one
        self.fail_at = 0  # the allocation, counted from now, that finds no memory
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def hold(self, inner: Tensor, stream: int, private: int = 0) -> None:
        storage = inner.untyped_storage()
        key = storage._cdata
        if key in self._storages or not storage.nbytes():
            return
        self.fail_at -= 1
        if self.fail_at == 0:
            raise OutOfSpace(storage.nbytes())
        block = self.allocator.allocate(storage.nbytes(), stream, private)

        def gone(_: object) -> None:
            del self._storages[key]
            self.allocator.free(block)

        self._storages[key] = weakref.ref(storage, gone)

    def work(self, stream: int, private: int = 0) -> None:
        """Before the first matrix product of a stream."""
        if stream not in self.workspaces:
            self.workspaces[stream] = self.allocator.allocate(self._workspace, stream, private)

    @property
    def held(self) -> int:
        """Bytes allocated for tensors."""
        return self.allocator.allocated.now - sum(block.size for block in self.workspaces.values())


class Machine:
    """The pretend GPUs of one kind, and what the host pinned for them. `blank`: their tensors have shapes only."""

    def __init__(self, kind: str, memories: Iterable[Memory], blank: bool = False) -> None:
        self.kind = kind
        self.blank = blank
        self.home = torch.device("meta" if blank else "cpu")  # of inner tensors
        self.memories = list(memories)
        self.traffic = Traffic()
        self.current = 0  # device
        self.stream = 0
        self.warns = False  # of every wait that was not asked for
        self.recording: Recording | None = None  # of the graph that is being captured
        self.broken = False  # by a call that no capture allows
        self.pinned = Peaks()
        self._pinned: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    # --- into and out of pretence

    def is_here(self, tensor: Any) -> bool:
        return isinstance(tensor, Tensor) and tensor.device.type == self.kind

    def inner(self, value: Any) -> Any:
        if not self.is_here(value):
            return value
        inner = value.__dict__.get("inner")
        if inner is None:
            raise RuntimeError(f"a tensor on {value.device} that no call of torch has made")
        return inner

    def beside(self, value: Any) -> Any:
        """What a call on the numbers takes: inner tensors, and from the host what fits to them."""
        inner = self.inner(value)
        return inner.to("meta") if self.blank and isinstance(inner, Tensor) and inner.ndim else inner

    def wrap(self, inner: Tensor, device: torch.device) -> PretendTensor:
        number = self.current if device.index is None else device.index
        try:
            self.memories[number].hold(inner, self.stream, self.private)
        except OutOfSpace as error:
            raise self._out_of_memory(number, error.args[0]) from None
        return PretendTensor(inner, torch.device(self.kind, number))

    def multiply(self, number: int) -> None:
        """A matrix product is about to run."""
        try:
            self.memories[number].work(self.stream, self.private)
        except OutOfSpace as error:
            raise self._out_of_memory(number, error.args[0]) from None

    @property
    def private(self) -> int:
        """The pool of the graph that is being captured."""
        return self.recording.pool if self.recording is not None else 0

    def _out_of_memory(self, number: int, size: int) -> RuntimeError:
        """In torch's words for this kind of device."""
        allocator = self.memories[number].allocator
        free = allocator.limit - allocator.reserved.now
        if self.kind == "mps":
            return RuntimeError(
                f"MPS backend out of memory (MPS allocated: {allocator.reserved.now / 2**20:.2f} MiB, max allowed: "
                f"{allocator.limit / 2**20:.2f} MiB). Tried to allocate {size / 2**20:.2f} MiB on private pool."
            )
        return torch.OutOfMemoryError(
            f"{'HIP' if torch.version.hip else self.kind.upper()} out of memory. Tried to allocate "
            f"{size / 2**20:.2f} MiB. GPU {number} has a total capacity of {allocator.limit / 2**30:.2f} GiB of which "
            f"{free / 2**20:.2f} MiB is free."
        )

    def read(self, func: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> Any:
        """A call whose result the host has to see. It sees ones in a tensor without numbers: all is true and finite."""
        if not self.blank:
            return self.on_inner(func, args, kwargs)

        def on_ones(*values: Any, **named: Any) -> Any:
            values, named = map_tensors(_ones, (values, named))
            return map_tensors(self.beside, func(*values, **named))

        return self.on_inner(on_ones, args, kwargs)

    def on_inner(self, func: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> Any:
        """The call on the numbers themselves; what comes of it is on the GPU again."""
        given = [value for value in tensors(args, kwargs) if self.is_here(value)]
        device = given[0].device
        owners = {id(self.inner(value)): value for value in given}
        with NoMode():
            result = func(*map_tensors(self.beside, args), **map_tensors(self.beside, kwargs))

        def outer(value: Tensor) -> Tensor:
            owner = owners.get(id(value))
            if owner is None:
                return self.wrap(value, device)
            if owner.shape != value.shape or owner.stride() != value.stride():
                raise NotImplementedError(f"{func} changes the shape of a tensor in place")
            return owner

        self.called(func, args, kwargs, result)
        return map_tensors(outer, result)

    def called(self, func: Callable[..., Any], args: Any, kwargs: Mapping[str, Any], result: Any) -> None:
        """After a call, with its result on the numbers: a launch, unless a graph only takes it down."""
        if self.recording is not None:
            self.recording.add(func, args, kwargs, result)
            return
        given = [self.inner(value) for value in tensors(args, kwargs)]
        if _launches(func, given, result):
            self.traffic.launches[_name(func)] += 1

    def refuse_to_capture(self, why: str) -> None:
        """What the host has to wait for cannot be part of a graph."""
        if self.recording is not None:
            self.broken = True
            raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({why})")

    def wait(self, why: str) -> None:
        self.refuse_to_capture(why)
        self.traffic.waits[why] += 1
        if self.warns:
            warnings.warn("called a synchronizing CUDA operation", stacklevel=2)

    # --- copies

    def copied(self, source: Tensor, target_type: str, non_blocking: bool) -> None:
        """Counts a copy between host and GPU, and the wait for it unless it was asked not to."""
        if target_type == source.device.type:
            return
        if not self.is_pinned(source):
            self.refuse_to_capture("a copy between the host's pageable memory and the device")
        if target_type == self.kind:
            self.traffic.to_device += source.nbytes
            if not non_blocking:
                self.wait("copy to the device")
        elif source.device.type == self.kind:
            self.traffic.to_host += source.nbytes
            if not non_blocking:
                self.wait("copy to the host")

    def to(self, tensor: Tensor, device: Any, dtype: Any, non_blocking: bool, copy: bool, form: Any) -> Tensor:
        """`Tensor.to` without its question for a real GPU."""
        device = tensor.device if device is None else self.full(device)
        dtype = tensor.dtype if dtype is None else dtype
        kept = form in (None, torch.preserve_format) or suggest_memory_format(tensor) == form
        if device == tensor.device and dtype == tensor.dtype and not copy and kept:
            return tensor
        moved: Tensor = aten._to_copy.default(
            tensor, dtype=dtype, device=device, non_blocking=non_blocking, memory_format=form
        )
        return moved

    def full(self, device: Any) -> torch.device:
        """With its number."""
        if isinstance(device, int):
            return torch.device(self.kind, device)
        made = torch.device(device)
        return torch.device(self.kind, self.current) if made.type == self.kind and made.index is None else made

    def pin(self, tensor: Tensor) -> Tensor:
        pinned = tensor.clone()
        storage = pinned.untyped_storage()
        key, size = storage._cdata, 1 << max(0, storage.nbytes() - 1).bit_length()  # by powers of two, as torch does
        self.pinned.move(size)

        def gone(_: object) -> None:
            del self._pinned[key]
            self.pinned.move(-size)

        self._pinned[key] = weakref.ref(storage, gone)
        return pinned

    def is_pinned(self, tensor: Tensor) -> bool:
        return not self.is_here(tensor) and tensor.untyped_storage()._cdata in self._pinned


def _ones(value: Any) -> Any:
    is_blank = isinstance(value, Tensor) and value.is_meta
    return torch.ones(value.shape, dtype=value.dtype) if is_blank else value


# --- operators


class Operators(TorchDispatchMode):
    """Runs every operator on the numbers, if any of its tensors is here or its result is to be."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self.machine = machine

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        machine = self.machine
        given = tensors(args, kwargs)
        here = [tensor for tensor in given if machine.is_here(tensor)]
        asked = kwargs.get("device")
        made_here = asked is not None and torch.device(asked).type == machine.kind
        if not here and not made_here:
            return func(*args, **kwargs)
        machine.traffic.calls += 1
        if func is aten._to_copy.default:
            return self._to_copy(args[0], kwargs)
        if func is aten.copy_.default:
            return self._copy(*args, **kwargs)
        waits = func in _WAITED_FOR or _by_mask(func, args)
        if waits:
            machine.wait(str(func))
        if made_here:
            at_home = {**kwargs, "device": machine.home}
            with NoMode():
                inner = func(*map_tensors(machine.inner, args), **map_tensors(machine.inner, at_home))
            machine.called(func, args, at_home, inner)
            return machine.wrap(inner, torch.device(asked))
        if len(here) < len(given) or len(machine.memories) > 1:
            _refuse_two_devices(func, given)
        if asked is not None:  # a tensor elsewhere, by the shape of one here
            return func(*map_tensors(machine.inner, args), **map_tensors(machine.inner, kwargs))
        if func in _MATRIX_PRODUCTS:
            machine.multiply(here[0].device.index or 0)
        if waits:
            return machine.read(func, args, kwargs)
        if machine.blank and func in _CONVOLUTIONS:
            func = partial(_laid_out, func)
        return machine.on_inner(func, args, kwargs)

    def _to_copy(self, tensor: Tensor, kwargs: dict[str, Any]) -> Tensor:
        machine = self.machine
        device = machine.full(kwargs.get("device") or tensor.device)
        non_blocking = bool(kwargs.pop("non_blocking", False))
        machine.copied(tensor, device.type, non_blocking)
        if device.type == "meta":
            return aten._to_copy.default(machine.inner(tensor), **kwargs)  # type: ignore[no-any-return]
        at_home = {**kwargs, "device": machine.home}
        inner = aten._to_copy.default(machine.inner(tensor), **at_home)
        machine.called(aten._to_copy.default, (tensor,), at_home, inner)
        if device.type == machine.kind:
            return machine.wrap(inner, device)
        return torch.empty_strided(inner.shape, inner.stride(), dtype=inner.dtype).zero_() if machine.blank else inner

    def _copy(self, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        machine = self.machine
        machine.copied(source, target.device.type, non_blocking)
        if machine.blank and not machine.is_here(target):
            return target.zero_()
        inner = machine.inner(target).copy_(machine.inner(source))
        machine.called(aten.copy_.default, (target, source), {}, inner)
        return target


def _name(func: Any) -> str:
    return _name_of_operator(func) if isinstance(func, torch._ops.OpOverload) else _name_of_function(func)


@functools.cache  # operators are few, and live for ever
def _name_of_operator(func: torch._ops.OpOverload) -> str:
    return str(func.overloadpacket.__name__)


def _name_of_function(func: Any) -> str:
    return _name(func.args[0]) if isinstance(func, partial) else str(func.__name__)


def _launches(func: Any, given: Iterable[Tensor], result: Any) -> bool:
    """Whether a call has the GPU do something: a view does not, nor memory without numbers."""
    if "empty" in _name(func):
        return False
    if isinstance(func, torch._ops.OpOverload) and func._schema.is_mutable:
        return True
    before = {value.untyped_storage()._cdata for value in given}
    made = [value.untyped_storage()._cdata for value in tensors(result)]
    return not made or any(storage not in before for storage in made)


def _laid_out(func: Any, tensor: Tensor, weights: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A convolution's result lies as CPUs and GPUs lay it out. Without numbers torch would look at the input alone."""
    forms = (suggest_memory_format(tensor), suggest_memory_format(weights))
    form = torch.channels_last if torch.channels_last in forms else torch.contiguous_format
    result: Tensor = func(tensor, weights, *args, **kwargs).contiguous(memory_format=form)
    return result


def _by_mask(func: Any, args: Any) -> bool:
    """Indexing by a mask first counts what is in it."""
    return func in _MAY_MIX and any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])


def _refuse_two_devices(func: Any, tensors: Iterable[Tensor]) -> None:
    devices = {str(tensor.device) for tensor in tensors if tensor.ndim or tensor.device.type != "cpu"}
    if len(devices) > 1 and func not in _MAY_MIX:
        names = " and ".join(sorted(devices, reverse=True))
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {names}! (in {func})"
        )


# --- bindings


class Bindings(TorchFunctionMode):
    """Answers the calls that would ask for a real GPU, and lets all others through."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self.machine = machine
        inner = self._on_inner
        self.answers: dict[Any, Callable[..., Any]] = {
            Tensor.to: self._to,
            Tensor.cpu: lambda tensor, **kw: self._to(tensor, "cpu", **kw),
            Tensor.copy_: lambda target, source, non_blocking=False: aten.copy_.default(target, source, non_blocking),
            Tensor.cuda: lambda tensor, device=None, non_blocking=False, **kw: self._to(
                tensor, self.machine.kind if device is None else device, non_blocking=non_blocking, **kw
            ),
            Tensor.contiguous: self._contiguous,
            Tensor.pin_memory: lambda tensor, *_, **__: self.machine.pin(tensor),
            Tensor.is_pinned: lambda tensor, *_, **__: self.machine.is_pinned(tensor),
            Tensor.numpy: self._numpy,
            torch._has_compatible_shallow_copy_type: lambda *_: True,
            functional.scaled_dot_product_attention: self._attention,
            functional.group_norm: self._group_norm,
            torch.tensor: self._made, torch.as_tensor: self._made, torch.asarray: self._made,
            Tensor.data.__set__: self._set_data,  # type: ignore[attr-defined]
            Tensor.data.__get__: lambda tensor: self.machine.on_inner(Tensor.detach, (tensor,), {}),  # type: ignore[attr-defined]
        }  # fmt: skip
        for name, dtype in {
            "float": torch.float32, "half": torch.float16, "bfloat16": torch.bfloat16, "double": torch.float64,
            "int": torch.int32, "long": torch.int64, "bool": torch.bool, "short": torch.int16, "byte": torch.uint8,
        }.items():  # fmt: skip
            self.answers[getattr(Tensor, name)] = lambda tensor, dtype=dtype, **kw: self._to(tensor, dtype, **kw)
        for method in (Tensor.__getitem__, Tensor.__setitem__):
            self.answers[method] = inner(method)
        for method in (
            Tensor.nonzero, Tensor.item, Tensor.tolist, Tensor.__bool__, Tensor.__float__, Tensor.__int__,
            Tensor.__index__,
        ):  # fmt: skip
            self.answers[method] = inner(method, waits=True)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        answer = self.answers.get(func)
        if answer is not None and self._concerns(func, args, kwargs):
            return answer(*args, **kwargs)
        return func(*args, **kwargs)

    def _concerns(self, func: Any, args: Any, kwargs: Any) -> bool:
        machine = self.machine
        if func in (Tensor.pin_memory, Tensor.is_pinned):
            return True
        if any(map(machine.is_here, tensors(args, kwargs))):
            return True
        values = [*args, *kwargs.values()]
        if any(isinstance(v, (torch.device, str)) and str(v).split(":")[0] == machine.kind for v in values):
            return True
        return func == Tensor.cuda or any(type(v) is int and func == Tensor.to for v in values)

    def _on_inner(self, method: Any, waits: bool = False) -> Callable[..., Any]:
        def answer(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            machine = self.machine
            if waits or any(map(_is_mask, leaves(args[:1]))):
                machine.wait(method.__name__)
            if machine.is_here(tensor) and waits:
                return machine.read(method, (tensor, *args), kwargs)
            if machine.is_here(tensor):
                for index in leaves(args[:1]):
                    if isinstance(index, Tensor) and not machine.is_here(index):
                        machine.copied(index, machine.kind, non_blocking=False)
                return machine.on_inner(method, (tensor, *args), kwargs)
            machine.wait(method.__name__)  # a host's tensor, indexed by a number on the device
            with NoMode():
                return method(tensor, *map_tensors(lambda value: _ones(machine.inner(value)), args), **kwargs)

        return answer

    def _to(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        device, dtype = kwargs.get("device"), kwargs.get("dtype")
        flags = [value for value in args if isinstance(value, bool)]
        for value in (*args, *([kwargs["other"]] if "other" in kwargs else ())):
            if isinstance(value, Tensor):
                device, dtype = value.device, value.dtype
            elif isinstance(value, torch.dtype):
                dtype = value
            elif isinstance(value, (str, torch.device)) or (isinstance(value, int) and not isinstance(value, bool)):
                device = value
        non_blocking = kwargs.get("non_blocking", flags[0] if flags else False)
        copy = kwargs.get("copy", flags[1] if len(flags) > 1 else False)
        return self.machine.to(tensor, device, dtype, non_blocking, copy, kwargs.get("memory_format"))

    def _contiguous(self, tensor: Tensor, memory_format: Any = torch.contiguous_format) -> Tensor:
        if tensor.is_contiguous(memory_format=memory_format):
            return tensor
        return aten.clone.default(tensor, memory_format=memory_format)  # type: ignore[no-any-return]

    def _numpy(self, tensor: Tensor, **_: Any) -> Any:
        raise TypeError(f"can't convert {tensor.device} device type tensor to numpy. Use Tensor.cpu() first.")

    def _made(self, data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        if isinstance(data, Tensor):
            return self._to(data, *((device,) if device is not None else ()), **kwargs)
        return self._to(torch.tensor(data, *args, **kwargs), *((device,) if device is not None else ()))

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Whole, as a fused kernel does it: its step by step path would hold a matrix that no GPU ever holds."""
        machine = self.machine
        machine.traffic.calls += 1
        with_sums = query.new_empty(query.shape[:-1], dtype=torch.float32)  # what the kernel keeps for gradients
        fused = _attention_of_shapes if machine.blank else functional.scaled_dot_product_attention
        out = machine.on_inner(fused, (query, key, value, *args), kwargs)
        del with_sums
        return out

    def _group_norm(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """On a GPU it first lays out rows one after another. Done here, the CPU would add in another order."""
        machine = self.machine
        machine.traffic.calls += 1
        copy = tensor if tensor.is_contiguous() else aten.clone.default(tensor, memory_format=torch.contiguous_format)

        def group_norm(*values: Any, **named: Any) -> Tensor:
            return functional.group_norm(*values, **named).contiguous()

        out: Tensor = machine.on_inner(group_norm, (tensor, *args), kwargs)
        del copy
        return out

    def _set_data(self, tensor: Tensor, new: Tensor) -> None:
        with NoMode():
            Tensor.data.__set__(tensor, new)  # type: ignore[attr-defined]
        if self.machine.is_here(new):
            tensor.inner = self.machine.inner(new)  # type: ignore[attr-defined]
        else:
            tensor.__dict__.pop("inner", None)


def _attention_of_shapes(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    """Its result lies as fused kernels lay it out, the heads of one token beside each other."""
    batch, heads, tokens, _width = query.shape
    return query.new_empty(batch, tokens, heads, value.shape[-1]).transpose(1, 2)


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype is torch.bool
