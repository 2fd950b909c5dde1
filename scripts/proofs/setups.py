"""What is drawn is what Setup says: one image of a tiny model under a setup, with everything looked at that computes.

The proof goes through all legal setups, the tests through some that hold every pair of choices, the family among them.
Setups of a GPU are drawn on a pretend one, and on the CPU too where nothing may move a pixel.
"""

from __future__ import annotations

import gc
import itertools
import os
import random
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from diffusers.models.attention import BasicTransformerBlock  # noqa: E402
from torch._dynamo.eval_frame import _debug_get_cache_entry_list  # noqa: E402

from scripts import make_checkpoint  # noqa: E402
from sdcli.draw import attention, captured, compiled, local, packed  # noqa: E402
from sdcli.draw.place import Components  # noqa: E402
from sdcli.events import Decoded  # noqa: E402
from sdcli.machine import processor  # noqa: E402
from sdcli.machine.hardware import Hardware  # noqa: E402
from sdcli.models import resolve  # noqa: E402
from sdcli.models.model import Model  # noqa: E402
from sdcli.plan.legality import legal  # noqa: E402
from sdcli.plan.plan import Plan, Setup  # noqa: E402
from sdcli.plan.planner import make_plan  # noqa: E402
from sdcli.plan.techniques import TECHNIQUES  # noqa: E402
from sdcli.plan.techniques.attention import Blocks, blocks  # noqa: E402
from sdcli.plan.techniques.vae_dtype import effective  # noqa: E402
from sdcli.request.request import Request  # noqa: E402
from sdcli.sizes import GIB  # noqa: E402
from tests.pretend_gpu import Pretended, device, pretend  # noqa: E402

NAME = "setups"
CLAIM = (
    "Every legal setup of a CPU and of a GPU, for tiny SD and SDXL: number types, storage, attention, rows of a UNet "
    "call, tiles, threads, and what is in memory meanwhile are looked at in the modules, and are what Setup says. Of "
    "setups that take a compiler, as many as hold every pair of choices."
)

FAMILIES = ("sd15", "sdxl")
SIZE = {"width": 576, "height": 64}  # wider than the larger tiles
DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
THREADS = 1  # so that as many processes as cores go through the setups


def cpu() -> Hardware:
    """This one, as to what it can compute."""
    return Hardware(
        device="cpu", name="a CPU", source="os", total=64 * GIB, free=64 * GIB, ram_total=64 * GIB, ram_free=64 * GIB,
        isa=processor.read().isa, threads=THREADS, dtypes={"fp32": "probed", "bf16": "probed", "fp16": "unavailable"},
        openvino=True, compiler=True,
    )  # fmt: skip


def gpu() -> Hardware:
    """A pretend one computes on the CPU, where triton's kernels do not run: nothing is compiled for it."""
    return replace(cpu(), device="cuda:0", name="a GPU", capability="8.9", dtypes={}, compiler=False)


MACHINES = {"cpu": cpu(), "gpu": gpu()}


def legal_setups(model: Model, hardware: Hardware) -> list[Setup]:
    setups = []
    for choices in itertools.product(*[technique.choices for technique in TECHNIQUES]):
        slots = dict(zip([technique.slot for technique in TECHNIQUES], choices, strict=True))
        setup = Setup(threads=THREADS, device=hardware.device, isa=hardware.isa, **slots)  # type: ignore[arg-type]
        if legal(setup, hardware, model) is None:
            setups.append(setup)
    return setups


def covering(offered: Mapping[str, list[Setup]]) -> list[tuple[str, Setup]]:
    """Few of these families' setups that hold every pair of choices which any of them holds, the family being one."""

    def pairs(family: str, setup: Setup) -> set[tuple[str, ...]]:
        chosen = [("family", family), *((technique.slot, technique.of(setup)) for technique in TECHNIQUES)]
        return {(*a, *b) for a, b in itertools.combinations(chosen, 2)}

    held = {(family, setup): pairs(family, setup) for family, setups in offered.items() for setup in setups}
    left = set().union(*held.values())
    order = list(held)
    random.Random(0).shuffle(order)
    chosen_setups = []
    while left:
        best = max(order, key=lambda one: len(held[one] & left))
        chosen_setups.append(best)
        left -= held[best]
    return chosen_setups


def chosen(family: str, setups: list[Setup]) -> list[Setup]:
    """All, but of those that take a compiler, half a minute each, only as many as hold every pair of choices."""
    compiled = [setup for setup in setups if setup.execution == "compile"]
    covered = [setup for _, setup in covering({family: compiled})]
    return [setup for setup in setups if setup.execution != "compile"] + covered


def plan_of(path: Path, hardware: Hardware, setup: Setup) -> Plan:
    steps = 2 if setup.execution == "graph" else 1  # one to capture it, one to replay it
    request = Request(prompts=("a cat",), seeds=(7,), steps=steps, guidance=5.0, sampler="Euler", **SIZE)  # type: ignore[arg-type]
    plan = make_plan(request, resolve.at(path), hardware, {})
    return replace(plan, setup=setup, fallbacks=())


@dataclass
class Seen:
    """What was looked at while an image was drawn."""

    rows: list[int] = field(default_factory=list)  # of the UNet's calls
    dtypes: dict[str, set[str]] = field(default_factory=dict)  # of what components compute with
    stored: dict[str, set[Any]] = field(default_factory=dict)  # of their weights while they rest
    processors: dict[str, set[str]] = field(default_factory=dict)
    tiles: list[tuple[int, int]] = field(default_factory=list)  # latents that the decoder was given
    blocks: set[Blocks | None] = field(default_factory=set)  # that attention was computed in
    planned: set[Blocks | None] = field(default_factory=set)  # what the setup says of the same attentions
    executions: dict[str, set[str]] = field(default_factory=dict)  # of components, by what computes in them
    launched: list[set[str]] = field(default_factory=list)  # on the GPU, by every call of the UNet
    loaded: dict[str, tuple[str, ...]] = field(default_factory=dict)  # components there while one is at work
    threads: set[int] = field(default_factory=set)
    streamed: dict[str, bool] = field(default_factory=dict)
    offloaded: dict[str, bool] = field(default_factory=dict)
    drawn: list[Decoded] = field(default_factory=list)
    graphs: int = 0  # of blocks like those, compiled and still there
    left: int = 0  # bytes on the GPU when all was over


def draw(plan: Plan) -> Seen:
    seen = Seen()
    on_gpu = plan.setup.device != "cpu"
    real_use, real_blocked = Components.use, attention.blocked

    def use(self: Components, name: str) -> Any:
        context = real_use(self, name)
        module = context.__enter__()
        if name == "unet" and pretended is not None and not hasattr(module, "_looked_at"):
            _count_launches(seen, module, pretended)
        _look(seen, self, name, module)
        return _Entered(context, module, seen)

    def blocked(query: Any, key: Any, value: Any, block: Blocks) -> Any:
        seen.blocks.add(block)
        rows = query.shape[0] * query.shape[1]
        seen.planned.add(blocks(rows, key.shape[2], plan.setup.threads, plan.setup.blocks))
        return real_blocked(query, key, value, block)

    with ExitStack() as stack:
        pretended = stack.enter_context(pretend(device("64GiB", capability="8.9"))) if on_gpu else None
        stack.enter_context(mock.patch.object(Components, "use", use))
        stack.enter_context(mock.patch.object(attention, "blocked", blocked))
        seen.drawn = [event for event in local.run(plan) if isinstance(event, Decoded)]
        if pretended is not None:
            gc.collect()
            seen.left = pretended.held()
    return seen


def on_the_cpu(plan: Plan) -> list[bytes]:
    """The pixels of the same setup there, where neither placement nor a graph nor tiles that it lacks move any."""
    vae = "whole" if plan.setup.vae == "cpu" else plan.setup.vae
    setup = replace(plan.setup, device="cpu", placement="resident", execution="eager", vae=vae)
    return [event.pixels for event in draw(replace(plan, setup=setup, hardware=cpu())).drawn]


class _Entered:
    """A context that was entered already, to look at what it gives."""

    def __init__(self, context: Any, module: Any, seen: Seen) -> None:
        self.context, self.module, self.seen = context, module, seen

    def __enter__(self) -> Any:
        return self.module

    def __exit__(self, *error: Any) -> Any:
        self.seen.graphs = max(self.seen.graphs, len(_debug_get_cache_entry_list(BasicTransformerBlock.forward)))
        return self.context.__exit__(*error)


def _count_launches(seen: Seen, module: Any, pretended: Pretended) -> None:
    before: list[Any] = []
    module.register_forward_pre_hook(lambda *_: before.append(Counter(pretended.traffic.launches)))
    module.register_forward_hook(lambda *_: seen.launched.append(set(pretended.traffic.launches - before.pop())))


def _look(seen: Seen, components: Components, name: str, module: Any) -> None:
    seen.loaded[name] = components.loaded
    seen.threads.add(torch.get_num_threads())
    large = [p for p in module.parameters() if p.ndim >= 2]
    seen.stored[name] = {p.dtype for p in large}
    seen.streamed[name] = any(
        "group_offloading" in str(getattr(m, "_diffusers_hook", None) and m._diffusers_hook.hooks)
        for m in module.modules()
    )
    seen.offloaded[name] = name in components._offloaded
    blocks = [part for part in module.modules() if hasattr(part.forward, "_torchdynamo_orig_callable")]
    inside = {part for block in blocks for part in block.modules() if part is not block}
    seen.executions[name] = {how for how, kinds in LAYERS.items() for m in module.modules() if isinstance(m, kinds)}
    if blocks and {type(block) for block in blocks} == {BasicTransformerBlock}:
        seen.executions[name] = {"compile"}
    layers = module.unet if isinstance(module, captured.Captured) else module
    if hasattr(layers, "attn_processors"):
        attending = layers.attn_processors.values()
        seen.processors[name] = {getattr(one, "attend", type(one)).__name__ for one in attending}
        seen.processors[name] |= {m.attend.__name__ for m in module.modules() if hasattr(m, "attend")}
    computed = seen.dtypes.setdefault(name, set())
    if getattr(module, "_looked_at", False):
        return
    module._looked_at = True
    computing = (*itertools.chain(*LAYERS.values()), *{type(block) for block in blocks})
    for part in module.modules():
        # a hook within what is compiled would be compiled too
        if part not in inside and isinstance(part, computing):
            part.register_forward_hook(lambda _, given, out: computed.add(DTYPES[_first(out).dtype]))
    if name == "unet":
        module.register_forward_pre_hook(lambda _, given: seen.rows.append(given[0].shape[0]))
    if name == "vae":
        module.decoder.register_forward_pre_hook(lambda _, given: seen.tiles.append(tuple(given[0].shape[-2:])))


def _first(result: Any) -> Any:
    return result[0] if isinstance(result, tuple) else result


# What computes
LAYERS: Mapping[str, tuple[type, ...]] = {
    "eager": (torch.nn.Linear, torch.nn.Conv2d),
    "graph": (captured.Captured,),
    "packed": (packed.Linear, packed.Convolution),
    "openvino": (compiled.Compiled,),
}
FUNCTIONS = {"fused": {"scaled_dot_product_attention"}, "blocked": {"in_blocks"}}
SLICED = {"SlicedAttnProcessor"}


# What a UNet call launches once it is captured: its arguments are copied in, its result out.
REPLAYED = {"copy_", "replay", "clone"}


def _executions(setup: Setup, part: str) -> set[str]:
    if setup.execution == "graph":  # of the UNet, around layers as diffusers has them
        return {"graph", "eager"} if part == "unet" else {"eager"}
    if setup.execution == "compile":  # of the UNet's blocks
        return {"compile"} if part == "unet" else {"eager"}
    return {setup.execution}


def _attention(setup: Setup, part: str) -> set[str]:
    """What computes it; OpenVINO's own cannot be looked at."""
    if setup.execution == "openvino":
        return set()
    if part == "unet" and setup.attention == "sliced":
        return SLICED
    return FUNCTIONS["blocked" if setup.attention == "blocked" else "fused"]


def differences(plan: Plan, seen: Seen) -> Iterator[str]:
    """Where what was drawn is not what the setup says; nothing where all is."""
    setup = plan.setup
    encoders = {name for name in plan.model.components if name.startswith("text_encoder")}
    vae_dtype = effective(setup)
    rows = ([2] if setup.guidance == "batched" else [1, 1]) * plan.request.steps
    compiled_blocks = setup.execution == "compile"
    checks: Mapping[str, Any] = {
        "dtype of the UNet": (seen.dtypes["unet"], {setup.dtype}),
        "dtype of the encoders": (set().union(*(seen.dtypes[name] for name in encoders)), {setup.dtype}),
        "dtype of the VAE": (seen.dtypes["vae"], {vae_dtype}),
        "storage": (torch.float8_e4m3fn in seen.stored["unet"], setup.storage == "fp8"),
        "attention": (seen.processors.get("unet", set()), _attention(setup, "unet")),
        "attention of the VAE": (seen.processors["vae"], _attention(setup, "vae")),
        "blocks": (seen.blocks, seen.planned),
        "attention in blocks": (bool(seen.blocks), setup.attention == "blocked"),
        "execution of the UNet": (seen.executions["unet"], _executions(setup, "unet")),
        "execution of the VAE": (seen.executions["vae"], _executions(setup, "vae")),
        "rows of a UNet call": (seen.rows, rows[:1] * compiled_blocks + rows),
        "blocks that were compiled": (seen.graphs > 0, compiled_blocks),
        "replays": (
            [launched for launched in seen.launched[1:] if launched == REPLAYED],
            seen.launched[1:] if setup.execution == "graph" else [],
        ),
        "threads": (seen.threads, {setup.threads}),
        "streamed": (seen.streamed["unet"], setup.placement == "group-offload"),
        "waits on the host": (seen.offloaded["unet"], setup.placement == "model-offload"),
        "setup of the image": ([event.setup for event in seen.drawn], [setup]),
        "decoded again": ([event.retried for event in seen.drawn], [None]),
        "bytes left on the GPU": (seen.left, 0),
    }  # fmt: skip
    if setup.device != "cpu" and setup.dtype == vae_dtype == "fp32":
        checks = {**checks, "pixels": ([event.pixels for event in seen.drawn], on_the_cpu(plan))}
    for what, (actual, expected) in checks.items():
        if actual != expected:
            yield f"{what}: {actual}, not {expected}"
    edge = int(setup.vae.removeprefix("tile-")) // 8 if setup.vae.startswith("tile-") else 10**6
    whole = SIZE["height"] // 8, SIZE["width"] // 8
    if max(max(tile) for tile in seen.tiles) != min(edge, max(whole)) or (len(seen.tiles) > 1) != (edge < max(whole)):
        yield f"tiles: {seen.tiles} under {setup.vae}"
    there = set(seen.loaded["unet"])
    expected = {"drop-encoders": {"unet", "vae"}, "disk": {"unet"}}.get(setup.placement, {*encoders, "unet", "vae"})
    if there != expected:
        yield f"beside the UNet: {there}, not {expected}"


def main() -> list[tuple[str, str, str, bool]]:
    rows = []
    # Processes are started afresh: torch's threads do not survive a fork. They share what each of them compiles.
    with (
        tempfile.TemporaryDirectory() as root,
        mock.patch.dict(os.environ, SDCLI_HOME=root),
        ProcessPoolExecutor(mp_context=get_context("spawn")) as workers,
    ):
        for family in FAMILIES:
            path = make_checkpoint.write_folder(Path(root) / family, family, tiny=True)
            for machine, hardware in MACHINES.items():
                setups = chosen(family, legal_setups(resolve.at(path), hardware))
                differing = list(workers.map(partial(_first_difference, path, machine), setups, chunksize=8))
                wrong = [pair for pair in zip(setups, differing, strict=True) if pair[1]]
                first = f"; first {wrong[0]}" if wrong else ""
                seen = f"{len(setups) - len(wrong)} of {len(setups)}{first}"
                rows.append((f"{family} on a {machine.upper()}", seen, "all", not wrong))
    return rows


def _first_difference(path: Path, machine: str, setup: Setup) -> str:
    """Empty where all is as the setup says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan = plan_of(path, MACHINES[machine], setup)
        first = next(differences(plan, draw(plan)), "")
    if setup.execution == "compile":
        torch._dynamo.reset()  # what is drawn later in this process has no compiled blocks
    if not gc.get_freeze_count():  # else every look for garbage goes through what the libraries keep
        gc.freeze()
    return first
