"""One real call of the UNet on this machine: milliseconds per block and the peak of live bytes, next to the prediction.

The weights are random: time and memory do not depend on them. torch is imported only by --measure.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sdcli.errors import BadFile, DeviceUnusable, DoesNotFit, Usage
from sdcli.inspect.facts import Inspection, MeasuredBlock, MeasuredCall
from sdcli.terminal import say, show, size_text

if TYPE_CHECKING:
    import torch

SMALL = 50_000_000_000  # multiply-adds; above it, the first call's preparation is negligible on a CPU


def measure(look: Inspection, device: str) -> Inspection:
    """The same inspection, with `measured`."""
    if look.unet.type != "UNet2DConditionModel":
        raise Usage(
            "--measure runs diffusion UNets; this one has no torch module here",
            hint="sdcli inspect-unet sd15 --measure",
        )
    import torch

    target = _device(device)
    dtype = _dtype(look.at.dtype, target)
    _refuse_too_large(look, target, dtype)
    say(f"building {size_text(look.unet.parameters * dtype.itemsize)} of random weights on {target.type} …")
    model = _build(look, target, dtype)
    inputs = _inputs(look, target, dtype)
    with torch.inference_mode():
        run, peak = _call(model, inputs, look, target)
    names = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
    total = sum(seconds for _, seconds in run)
    measured = MeasuredCall(
        device=_name(target),
        dtype=names[dtype],
        seconds=total,
        blocks=tuple(MeasuredBlock(name=name, seconds=seconds) for name, seconds in run),
        activation_peak_bytes=peak,
    )
    return look.measured_as(measured)


def _device(name: str) -> torch.device:
    import torch

    from sdcli.draw import devices

    if name == "auto":
        return devices.first_usable()
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise DeviceUnusable(
            f"{show(name, 40)} cannot be used: {show(first, 160)}",
            hint="sdcli inspect-unet sd15 --measure --device cpu",
        ) from None
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    """The requested dtype, except on a CPU, which only emulates fp16."""
    import torch

    if device.type == "cpu":
        return torch.bfloat16 if name == "bf16" else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16}.get(name, torch.float16)


def _refuse_too_large(look: Inspection, device: torch.device, dtype: torch.dtype) -> None:
    need = (look.unet.parameters + look.unet.peak_elements) * dtype.itemsize
    free = _free(device)
    if free is not None and need > 0.92 * free:
        raise DoesNotFit(
            f"one call needs {size_text(need)}; {size_text(free)} free on {device.type}",
            hint="sdcli inspect-unet sd15 --measure --dtype bf16",
            need=need,
            free=free,
        )


def _free(device: torch.device) -> int | None:
    """Free bytes on the device, None where unknown."""
    from sdcli.draw import devices

    return devices.functions(device).free()


def _build(look: Inspection, device: torch.device, dtype: torch.dtype) -> Any:
    """The module without its slow initialisation: allocated on the device, then filled cheaply."""
    import torch

    from sdcli.draw.quiet import libraries_silenced

    with libraries_silenced():
        from diffusers import UNet2DConditionModel

        with torch.device("meta"):
            try:
                model = UNet2DConditionModel.from_config(dict(look.source.config))
            except (ValueError, TypeError) as error:
                raise BadFile(f"diffusers cannot build this UNet: {show(error, 200)}") from None
    model = model.to(dtype).to_empty(device=device).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.uniform_(-0.03, 0.03)
            else:
                weight.fill_(1.0 if name.endswith("weight") else 0.0)
        for buffer in model.buffers():
            buffer.zero_()
    return model


def _inputs(look: Inspection, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    import torch

    config, unet, batch = look.source.config, look.unet, look.at.batch

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    context = config.get("cross_attention_dim") or 1280
    context = context[0] if isinstance(context, (list, tuple)) else context
    text = config.get("encoder_hid_dim") or context
    inputs: dict[str, Any] = {
        "sample": random(batch, *unet.latent),
        "timestep": torch.tensor(500, device=device),
        "encoder_hidden_states": random(batch, look.at.tokens, text),
        "added_cond_kwargs": _added(config, context, random, batch),
    }
    if config.get("time_cond_proj_dim"):
        inputs["timestep_cond"] = random(batch, config["time_cond_proj_dim"])
    labels = _labels(config, random, batch, device)
    if labels is not None:
        inputs["class_labels"] = labels
    return inputs


def _added(config: Mapping[str, Any], context: int, random: Any, batch: int) -> dict[str, Any] | None:
    kind = config.get("addition_embed_type")
    if kind == "text_time":
        step, width = config["addition_time_embed_dim"], config["projection_class_embeddings_input_dim"]
        ids = 5 if (width - 1280) == 5 * step else 6  # the refiner has an aesthetic score for two sizes
        return {"text_embeds": random(batch, width - ids * step), "time_ids": random(batch, ids)}
    if kind == "text_image":
        return {"text_embeds": random(batch, context), "image_embeds": random(batch, context)}
    if kind == "image":
        return {"image_embeds": random(batch, config["encoder_hid_dim"])}
    return None


def _labels(config: Mapping[str, Any], random: Any, batch: int, device: torch.device) -> Any:
    import torch

    kind = config.get("class_embed_type")
    if kind is None and config.get("num_class_embeds"):
        return torch.zeros(batch, dtype=torch.int64, device=device)
    if kind == "timestep":
        return random(batch)
    if kind in ("projection", "simple_projection"):
        return random(batch, config["projection_class_embeddings_input_dim"])
    if kind == "identity":
        return random(batch, config.get("time_embedding_dim") or 4 * config["block_out_channels"][0])
    return None


def _call(
    model: Any, inputs: dict[str, Any], look: Inspection, device: torch.device
) -> tuple[list[tuple[str, float]], int]:
    """Seconds from the end of one block to the end of the next, so that they add up; and the live peak."""
    from sdcli.draw import devices

    marks: list[tuple[str, float]] = []
    functions = devices.functions(device)

    def settled() -> float:
        functions.wait()
        return time.perf_counter()

    def hook(name: str) -> Any:
        def ended(_module: Any, _inputs: Any, _output: Any) -> None:
            marks.append((name, settled()))

        return ended

    handles = []
    for block in look.unet.blocks:
        module = _submodule(model, block.name)
        if module is not None:
            handles.append(module.register_forward_hook(hook(block.name)))
    try:
        if functions.streams or look.unet.macs < SMALL:  # the first call picks kernels
            model(**inputs)
        with _live_bytes() as tracker:
            started = settled()
            model(**inputs)
            ended = settled()
    finally:
        for handle in handles:
            handle.remove()
    marks = [mark for mark in marks if mark[1] >= started]
    if not marks:
        return [("call", ended - started)], tracker.peak
    run, before = [], started
    for name, mark in marks:
        run.append((name, mark - before))
        before = mark
    return run, tracker.peak


def _submodule(model: Any, name: str) -> Any:
    module = model
    for part in name.split("."):
        module = module[int(part)] if part.isdigit() else getattr(module, part, None)
        if module is None:
            return None
    return module


@contextmanager
def _live_bytes() -> Iterator[Any]:
    """Follows every storage created inside it until its last reference is gone."""
    from torch.multiprocessing.reductions import StorageWeakRef
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Tracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.alive: dict[int, tuple[Any, int]] = {}
            self.peak = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            import torch

            before = set()
            for item in tree_leaves((args, kwargs)):
                if isinstance(item, torch.Tensor):
                    before.add(StorageWeakRef(item.untyped_storage()).cdata)  # type: ignore[no-untyped-call]
            result = func(*args, **(kwargs or {}))
            for key in [key for key, (reference, _) in self.alive.items() if reference.expired()]:
                del self.alive[key]
            for item in tree_leaves(result):
                if isinstance(item, torch.Tensor):
                    storage = item.untyped_storage()
                    reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
                    if reference.cdata not in before:
                        self.alive.setdefault(reference.cdata, (reference, storage.nbytes()))
            self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
            return result

    with Tracker() as tracker:
        yield tracker


def _name(device: torch.device) -> str:
    import torch

    if device.type in ("cuda", "xpu"):
        return str(torch.get_device_module(device).get_device_name(device))
    return f"{device.type}, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type
