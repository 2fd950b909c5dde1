"""Any torch module in the same tables, by its hooks: U-Net++, V-Net, DeepLab from their own packages.

The module's own code is imported and run, which is what --module asks for.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from sdcli.errors import BadFile, ModelMissing, Usage
from sdcli.inspect import figures
from sdcli.inspect.facts import At, Inspection, Source
from sdcli.models.trace import Leaf
from sdcli.models.unet import Block, Unet
from sdcli.terminal import show, size_text

if TYPE_CHECKING:
    import torch

EXAMPLE = "sdcli inspect-unet --module diffusers:AutoencoderTiny --input 1,3,256,256"
KINDS = {
    "Linear": "linear",
    "Embedding": "embedding",
    "MultiheadAttention": "linear",
}


def inspect(name: str, shapes: Sequence[str], *, dtype: str = "fp16") -> Inspection:
    """The module that `package.module:factory` makes, run once on zeros of these shapes without computing."""
    if not shapes:
        raise Usage("--module needs --input, the shape of its input", hint=EXAMPLE)
    inputs = [_shape(text) for text in shapes]
    return _run(name, _factory(name), inputs, dtype)


def _shape(text: str) -> tuple[tuple[int, ...], bool]:
    """(sizes, whether whole numbers such as token ids)."""
    match = re.fullmatch(r"\s*(\d{1,9}(?:[,x×]\d{1,9})*)(:int)?\s*", text)
    sizes = tuple(int(n) for n in re.split(r"[,x×]", match[1])) if match else ()
    if not match or not sizes or not all(sizes):
        raise Usage(f"--input {show(text, 60)} is not a shape", hint=EXAMPLE)
    return sizes, bool(match[2])


def _factory(name: str) -> Callable[[], Any]:
    where, _, called = name.partition(":")
    if not where or not called:
        raise Usage(f"--module {show(name, 80)} is not package.module:factory", hint=EXAMPLE)
    try:
        target: Any = importlib.import_module(where)
    except ImportError as error:
        raise ModelMissing(f"cannot import {show(where, 80)}: {show(error, 160)}", hint=EXAMPLE) from None
    for part in called.split("."):
        target = getattr(target, part, None)
    if not callable(target):
        raise ModelMissing(f"{show(where, 80)} has no {show(called, 80)} to call", hint=EXAMPLE)
    factory: Callable[[], Any] = target
    return factory


def _run(name: str, factory: Callable[[], Any], shapes: list[tuple[tuple[int, ...], bool]], dtype: str) -> Inspection:
    """On the meta device, where nothing is computed; on the CPU for modules that cannot be run there."""
    import torch

    problems: list[str] = []
    for device in ("meta", "cpu"):
        try:
            with torch.device(device):
                model = factory()
                if not isinstance(model, torch.nn.Module):
                    raise Usage(f"{show(name, 80)} returned a {type(model).__name__}, not a torch module", hint=EXAMPLE)
                model.eval()
                inputs = [torch.zeros(sizes, dtype=torch.int64 if whole else torch.float32) for sizes, whole in shapes]
            return _look(name, model, inputs, dtype)
        except Usage:
            raise
        except Exception as error:  # foreign code may raise anything
            problems.append(f"{type(error).__name__}: {show((str(error).splitlines() or [''])[0], 160)}")
    raise BadFile(
        f"{show(name, 80)} does not run on {', '.join('×'.join(map(str, s)) for s, _ in shapes)}: {problems[-1]}",
        hint=EXAMPLE,
    )


def _look(name: str, model: torch.nn.Module, inputs: list[torch.Tensor], dtype: str) -> Inspection:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    calls: list[tuple[str, Any, tuple[int, ...]]] = []

    def hook(path: str) -> Any:
        def record(module: Any, _inputs: Any, output: Any) -> None:
            calls.append((path, module, _first_shape(output)))

        return record

    handles = [
        module.register_forward_hook(hook(path))
        for path, module in model.named_modules()
        if path and (not list(module.children()) or list(module.parameters(recurse=False)))
    ]
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        output = model(*inputs)
    for handle in handles:
        handle.remove()
    macs = _macs(counter, model)
    return _inspection(name, model, inputs, _first_shape(output), calls, macs, counter.get_total_flops() // 2, dtype)


def _first_shape(output: Any) -> tuple[int, ...]:
    from torch import Tensor
    from torch.utils._pytree import tree_leaves

    if hasattr(output, "to_tuple"):
        output = output.to_tuple()
    for item in tree_leaves(output):
        if isinstance(item, Tensor):
            return tuple(item.shape)
    return ()


def _macs(counter: Any, model: torch.nn.Module) -> dict[str, int]:
    """Multiply-adds inside every module, its children included."""
    top = type(model).__name__
    return {
        path.removeprefix(f"{top}."): sum(flops.values()) // 2
        for path, flops in counter.get_flop_counts().items()
        if path.startswith(f"{top}.")
    }


def _inspection(
    name: str,
    model: torch.nn.Module,
    inputs: list[torch.Tensor],
    output: tuple[int, ...],
    calls: list[tuple[str, Any, tuple[int, ...]]],
    macs: dict[str, int],
    total: int,
    dtype: str,
) -> Inspection:
    leaves = _leaves(calls, macs)
    leaves += _unclaimed(leaves, macs, total)
    unused = _unused(model, {leaf.name for leaf in leaves})
    by_kind = {"convolution": 0, "linear": 0, "attention": 0}
    for leaf in leaves:
        by_kind[leaf.kind if leaf.kind in by_kind else "attention"] += leaf.macs
    first = tuple(inputs[0].shape)
    height, width = (first[-2], first[-1]) if len(first) >= 3 else (1, first[-1])
    unet = Unet(
        type=type(model).__name__,
        latent=(first[1] if len(first) >= 3 else 1, height, width),
        batch=first[0],
        tokens=0,
        leaves=tuple(leaves),
        blocks=_blocks(model, leaves, (height, width)),
        skips=(),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        macs=total,
        macs_by_kind=by_kind,
        peak_elements=max((leaf.elements for leaf in leaves), default=0),
        largest_scores=0,
        time_channels=0,
        text_channels=0,
        time_enters=0,
        text_enters=0,
        config={},
    )
    source = Source(
        name=name,
        kind="module",
        family="",
        title=type(model).__name__,
        origin=f"{show(name, 80)}, {figures.shape(first)} → {figures.shape(output)}",
        config={},
        pixels_per_latent=1,
        unexpected=unused,
    )
    return Inspection(
        source=source, at=At(width=width, height=height, batch=first[0], tokens=0, dtype=dtype), unet=unet
    )


def _leaves(calls: list[tuple[str, Any, tuple[int, ...]]], macs: dict[str, int]) -> list[Leaf]:
    """A row per module and call; weights and work are counted in the first call only."""
    leaves: list[Leaf] = []
    seen: set[str] = set()
    counted: set[int] = set()
    for path, module, output in calls:
        again = path in seen
        seen.add(path)
        own = {key: value for key, value in module.named_parameters(recurse=False) if id(value) not in counted}
        counted |= {id(value) for value in own.values()}
        weight = getattr(module, "weight", None)
        shape = tuple(weight.shape) if weight is not None and hasattr(weight, "shape") else ()
        kernel = getattr(module, "kernel_size", ())
        elements = 1
        for side in output:
            elements *= side
        leaves.append(
            Leaf(
                path + (" (again)" if again else ""),
                type(module).__name__,
                _kind(module),
                shape,
                tuple(kernel) if isinstance(kernel, (tuple, list)) else (),
                getattr(module, "bias", None) is not None,
                0 if again else sum(value.numel() for value in own.values()),
                output,
                0 if again else _own_macs(path, macs),
                elements if output else 0,
            )
        )
    return leaves


def _own_macs(path: str, macs: dict[str, int]) -> int:
    """A module's work without that of its children, which have their own rows."""
    inside = path + "."
    children = {other: value for other, value in macs.items() if other.startswith(inside)}
    direct = [v for other, v in children.items() if "." not in other[len(inside) :]]
    return max(0, macs.get(path, 0) - sum(direct))


def _unclaimed(leaves: list[Leaf], macs: dict[str, int], total: int) -> list[Leaf]:
    """Work done outside any row, such as attention products: a row for each module that does it, so rows add up."""
    rows = []
    named = {leaf.name for leaf in leaves}
    for path in macs:
        own = _own_macs(path, macs)
        if path not in named and own:
            rows.append(Leaf(f"{path}.products", "matmul", "attention", (), (), False, 0, (), own, 0))
    rest = total - sum(leaf.macs for leaf in (*leaves, *rows))
    if rest:
        rows.append(Leaf("(top).products", "matmul", "attention", (), (), False, 0, (), rest, 0))
    return rows


def _kind(module: Any) -> str:
    name = type(module).__name__
    if "Conv" in name:
        return "convolution"
    if "Norm" in name:
        return "norm"
    if name in KINDS:
        return KINDS[name]
    return "linear" if "Linear" in name else "other"


def _unused(model: torch.nn.Module, named: set[str]) -> tuple[str, ...]:
    """Modules with weights that this call never reached."""
    return tuple(
        path
        for path, module in model.named_modules()
        if path and path not in named and sum(p.numel() for p in module.parameters(recurse=False))
    )


def _blocks(model: torch.nn.Module, leaves: list[Leaf], resolution: tuple[int, int]) -> tuple[Block, ...]:
    """The module's children as blocks, in the order their first layer is called."""
    order: dict[str, list[int]] = {}
    for number, leaf in enumerate(leaves):
        order.setdefault(leaf.name.split(".")[0].removesuffix(" (again)"), []).append(number)
    children = dict(model.named_children())
    return tuple(
        Block(
            name=name,
            role="module",
            type=type(children[name]).__name__ if name in children else "",
            level=0,
            resolution=resolution,
            in_channels=0,
            out_channels=0,
            parameters=sum(leaves[i].parameters for i in numbers),
            macs=sum(leaves[i].macs for i in numbers),
            elements=max(leaves[i].elements for i in numbers),
            first=numbers[0],
            last=numbers[-1] + 1,
        )
        for name, numbers in order.items()
    )


def summary(look: Inspection) -> list[str]:
    """Three lines about a module that is not a diffusion UNet."""
    unet = look.unet
    kinds = figures.shares(unet.macs_by_kind) or "no multiply-adds counted"
    lines = [
        f"{show(look.source.title, 60)} · {look.source.origin}",
        f"{unet.parameters:,} parameters: {size_text(4 * unet.parameters)} fp32, {size_text(2 * unet.parameters)} fp16",
        f"{unet.macs / 1e9:,.2f} GMAC = {unet.macs * 2 / 1e9:,.2f} GFLOP a call · work: {kinds}",
    ]
    if look.source.unexpected:
        lines.append(f"not reached by this call: {show(', '.join(look.source.unexpected[:4]), 160)}")
    return lines
