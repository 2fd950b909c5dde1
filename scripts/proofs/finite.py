"""NaN and infinity that come up inside a model: an image whose every value is finite, or none."""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from scripts import make_checkpoint  # noqa: E402
from scripts.proofs.out_of_memory import GPU, on_the_cpu  # noqa: E402
from sdcli.draw import local, quiet  # noqa: E402
from sdcli.events import Decoded, Failed, Planned, Saved  # noqa: E402
from sdcli.models import resolve  # noqa: E402
from sdcli.plan.plan import Plan  # noqa: E402
from sdcli.plan.planner import make_plan  # noqa: E402
from sdcli.record.store import store  # noqa: E402
from sdcli.request.request import Request  # noqa: E402
from tests.record.record_samples import destination  # noqa: E402

NAME = "finite"
CLAIM = (
    "NaN or infinity comes out of one of twelve layers of tiny SD1.5, in one value or in all, once or whenever it is "
    "called, in fp32, bf16 and fp16: the image is decoded again in fp32, or it has failed and the next one is drawn. "
    "No image is saved whose last decoding holds a value that is not finite."
)

STEPS, SEEDS = 2, 20
DTYPES = ("fp32", "bf16", "fp16")
PLACES: dict[str, tuple[str, str]] = {  # the class of the network, and the layer in it
    "the text encoder": ("CLIPTextModel", "final_layer_norm"),
    "the UNet's embedding of time": ("UNet2DConditionModel", "time_embedding"),
    "the UNet's first layer": ("UNet2DConditionModel", "conv_in"),
    "a block on the way down": ("UNet2DConditionModel", "down_blocks.1.resnets.0"),
    "an attention": ("UNet2DConditionModel", "down_blocks.0.attentions.0"),
    "the UNet's middle": ("UNet2DConditionModel", "mid_block"),
    "a block on the way up": ("UNet2DConditionModel", "up_blocks.1.resnets.0"),
    "the UNet's last layer": ("UNet2DConditionModel", "conv_out"),
    "the decoder's first layer": ("Decoder", "conv_in"),
    "the decoder's middle": ("Decoder", "mid_block"),
    "a block of the decoder": ("Decoder", "up_blocks.0"),
    "the decoder's last layer": ("Decoder", "conv_out"),
}

Row = tuple[str, str, str, bool]


@dataclass(frozen=True)
class Case:
    place: str
    dtype: str
    seed: int

    @property
    def value(self) -> float:
        return (float("nan"), float("inf"), float("-inf"))[self.seed % 3]

    @property
    def everywhere(self) -> bool:
        return self.seed % 4 == 0

    @property
    def always(self) -> bool:
        return self.seed % 2 == 0


class Poison:
    """Spoils what a layer returns; notes of each decoding whether all of it was finite."""

    def __init__(self, case: Case) -> None:
        self.case, self.spoilt, self.finite = case, 0, True
        self.kind, self.layer = PLACES[case.place]
        self.hooked: set[int] = set()

    def enter(self, module: Any, given: tuple[Any, ...]) -> None:
        """Before any module is called: those that have the layer get a hook on it, once."""
        if type(module).__name__ != self.kind or id(module) in self.hooked:
            return
        self.hooked.add(id(module))
        named = dict(module.named_modules())
        layer = next(
            (one for name, one in named.items() if name == self.layer or name.endswith(f".{self.layer}")), None
        )
        if layer is not None:
            layer.register_forward_hook(self.spoil)

    def spoil(self, layer: Any, given: tuple[Any, ...], result: Any) -> Any:
        if self.spoilt and not self.case.always:
            return None
        self.spoilt += 1
        if isinstance(result, Tensor):
            return self._spoilt(result)
        if isinstance(result, tuple):
            return (self._spoilt(result[0]), *result[1:])
        result[next(iter(result))] = self._spoilt(next(iter(result.values())))
        return result

    def _spoilt(self, values: Tensor) -> Tensor:
        made = values.clone(memory_format=torch.contiguous_format)
        if self.case.everywhere:
            return made.fill_(self.case.value)
        made.view(-1)[self.case.seed * 31 % made.numel()] = self.case.value
        return made

    def leave(self, module: Any, given: tuple[Any, ...], result: Any) -> None:
        if type(module).__name__ == "Decoder":
            self.finite = bool(torch.isfinite(result).all())


@contextmanager
def poisoned(case: Case) -> Iterator[Poison]:
    """Through torch's own hooks: nothing of ours is replaced."""
    poison, hooks = Poison(case), torch.nn.modules.module
    with ExitStack() as stack:
        stack.callback(hooks.register_module_forward_pre_hook(poison.enter).remove)
        stack.callback(hooks.register_module_forward_hook(poison.leave).remove)
        yield poison


def plan_of(folder: Path, dtype: str) -> Plan:
    """Two images, under a plan for a GPU that is then drawn on the CPU: it has every number type."""
    request = Request(
        prompts=("a cat",), seeds=(7, 8), steps=STEPS, guidance=5.0, width=64, height=64, sampler="Euler",
        num_images=2, pins={"dtype": dtype, "execution": "eager"},
    )  # fmt: skip
    return on_the_cpu(make_plan(request, resolve.at(folder), GPU, {}))


def judged(case: Case, plan: Plan, folder: Path) -> tuple[str, list[str]]:
    """How its images ended, and what is wrong with that."""
    ends: dict[int, str] = {}
    wrong: list[str] = []
    with poisoned(case) as poison:
        for event in store(events_of(plan), destination(folder)):
            if isinstance(event, Decoded) and not poison.finite:
                wrong.append("an image that is not finite")
            if isinstance(event, Saved):
                ends[event.index] = "saved"
            if isinstance(event, Failed):
                ends[event.index] = "failed"
    if not poison.spoilt:
        wrong.append("nothing was spoilt")
    if set(ends) != {0, 1}:
        wrong.append(f"{len(ends)} of 2 images accounted for")
    if len(list(folder.glob("*.png"))) != list(ends.values()).count("saved"):
        wrong.append("a file too many, or too few")
    return " and ".join(ends[index] for index in sorted(ends)), wrong


def events_of(plan: Plan) -> Iterator[Any]:
    yield Planned(plan=plan)
    yield from local.run(plan)


def judge(cases: list[Case], root: Path) -> dict[Case, tuple[str, list[str]]]:
    torch.set_num_threads(1)
    model = make_checkpoint.write_folder(root / "model", "sd15", tiny=True)
    plans = {dtype: plan_of(model, dtype) for dtype in {case.dtype for case in cases}}
    with quiet.libraries_silenced():
        return {case: judged(case, plans[case.dtype], root / str(number)) for number, case in enumerate(cases)}


def main() -> list[Row]:
    cases = [Case(*one) for one in itertools.product(PLACES, DTYPES, range(SEEDS))]
    with tempfile.TemporaryDirectory() as made:
        ends = judge(cases, Path(made))
    rows = []
    for place in PLACES:
        of = {case: end for case, end in ends.items() if case.place == place}
        counted = Counter(end for end, _ in of.values())
        bad = [(case, wrong) for case, (_, wrong) in of.items() if wrong]
        seen = ", ".join(f"{count} {end}" for end, count in counted.most_common())
        seen += f"; first: {bad[0]}" if bad else ""
        rows.append((f"{place}: {len(of)}", seen, "no image that is not finite", not bad))
    return rows
