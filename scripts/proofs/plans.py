"""Equal setup, equal pixels: images of random plans drawn in another order, alone, resumed, elsewhere and in batches.

`python -m scripts.proofs.plans 17` draws plan 17 alone and shows its flags, for every plan comes of its number.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
import random
import shlex
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import numpy  # noqa: E402
import typer  # noqa: E402
from PIL import Image  # noqa: E402

from scripts import make_checkpoint  # noqa: E402
from sdcli import schema  # noqa: E402
from sdcli.asking import planning  # noqa: E402
from sdcli.cli import app  # noqa: E402
from sdcli.draw import quiet  # noqa: E402
from sdcli.draw.local import Engine  # noqa: E402
from sdcli.errors import Usage  # noqa: E402
from sdcli.events import Decoded, KeptStep  # noqa: E402
from sdcli.plan.batches import Batch  # noqa: E402
from sdcli.plan.legality import legal  # noqa: E402
from sdcli.plan.plan import Plan, Setup  # noqa: E402
from sdcli.plan.planner import plan_as_recorded  # noqa: E402
from sdcli.plan.techniques import placement  # noqa: E402
from sdcli.record.runs import plan_json  # noqa: E402
from sdcli.request import options, samplers  # noqa: E402
from tests.pretend_gpu import device, pretend  # noqa: E402

NAME = "plans"
CLAIM = (
    "The images of 200 random plans for tiny SD1.5 and SDXL, every sampler and every mode among them, have the same "
    "pixels in whatever order they are drawn, alone, resumed after an interruption, under other placements and in "
    "other processes, and with --batch-invariant in batches. Without it a batch moves few values, by little."
)
PLANS = 200
MOST_MOVED, MOST_SHARE = 2, 0.001  # of 255, and of all values
FAMILIES = ("sd15", "sdxl")
SAMPLERS = [sampler.name for sampler in samplers.SAMPLERS]
LONG = "a road through the hills, " * 14 + "in the rain"  # more than the 75 tokens of one chunk
PROMPTS = ("a cat", "a (red:1.3) fox, [snow]", "two boats at dawn BREAK fog", LONG)
ON_A_GPU = 20  # one of so many plans is drawn on a pretend one, which takes ten times as long

ORDER, ALONE, RESUMED, KEPT = "in another order", "alone, at another index", "resumed", "resumed from a kept step"
PLACED, SHARED, INVARIANT = "under other placements", "a half in another process", "in batches, with --batch-invariant"
CLAIMS = (ORDER, ALONE, RESUMED, KEPT, PLACED, SHARED, INVARIANT)

GOAL = "≤ 2 of 255 on ≤ 0.1 % of values"

Pixels = dict[int, bytes]  # by the image's index
Row = tuple[str, str, str, bool]


# --- which plans

Asking = Callable[[random.Random, str], list[str]]
FROM_IMAGE = ["--image", "photo.png", "--strength", "0.75"]
TWICE = ["--hires", "1.5", "--hires-steps", "2"]


def _control(chance: random.Random, family: str) -> list[str]:
    second = ["--control", f"{family}-second=other.png:0.6:0.2-0.9"]
    more: list[list[str]] = [[], second, ["--guess-mode"], ["--control-from", "canny"], FROM_IMAGE, TWICE]
    return ["--control", f"{family}-net=photo.png:1.2", *chance.choice(more)]


def _reference(chance: random.Random, family: str) -> list[str]:
    more: list[list[str]] = [[], ["--reference", "other.png:0.5"], ["--reference-mask", "mask.png"], FROM_IMAGE, TWICE]
    adapter = f"{family}-{chance.choice(('plain', 'plus'))}.safetensors"
    return ["--reference", "photo.png:0.9", "--reference-model", adapter, *chance.choice(more)]


def _masked(chance: random.Random, family: str) -> list[str]:
    content: list[list[str]] = [[], ["--masked-content", "noise"], ["--masked-content", "fill"]]
    return [*FROM_IMAGE, "--mask", "mask.png", *chance.choice(content)]


MODES: Mapping[str, Asking] = {
    "text": lambda *_: [],
    "image": lambda *_: FROM_IMAGE,
    "two images": lambda *_: [*FROM_IMAGE, "--image", "other.png"],
    "mask": _masked,
    "only masked": lambda *_: [*FROM_IMAGE, "--mask", "mask.png", "--only-masked", "--mask-padding", "8"],
    "outpaint": lambda *_: ["--image", "photo.png", "--outpaint", "left:32"],
    "repainting model": lambda chance, family: ["-m", f"{family}-9", *_masked(chance, family)],
    "editing model": lambda _, family: ["-m", f"{family}-8", "--image", "photo.png"],
    "second pass": lambda *_: TWICE,
    "second pass, lanczos": lambda *_: [*TWICE, "--upscaler", "lanczos"],
    "second pass, by a model": lambda *_: [*TWICE, "--upscaler", "upscaler.safetensors"],
    "ControlNet": _control,
    "T2I-Adapter": lambda _, family: ["--control", f"{family}-t2i=photo.png:0.9"],
    "ControlNet Union": lambda *_: ["-m", "sdxl", "--control", "union:canny=photo.png:0.9"],
    "reference": _reference,
    "refiner": lambda *_: ["-m", "sdxl", "--refiner", "refiner@0.6"],
}


def make(folder: Path) -> None:
    """The models and images that plans draw from."""
    for family in FAMILIES:
        make_checkpoint.write_folder(folder / family, family, tiny=True)
        for channels in (8, 9):
            make_checkpoint.write_folder(folder / f"{family}-{channels}", family, tiny=True, channels=channels)
        for number, name in enumerate(("net", "second")):
            make_checkpoint.write_controlnet_folder(folder / f"{family}-{name}", family, tiny=True, seed=number)
        make_checkpoint.write_t2i_folder(folder / f"{family}-t2i", family, tiny=True)
        for kind in ("plain", "plus"):
            make_checkpoint.write_ip_adapter(folder / f"{family}-{kind}.safetensors", family, kind, tiny=True)
    make_checkpoint.write_union_folder(folder / "union", tiny=True)
    make_checkpoint.write_image_encoder(folder / "image_encoder")
    make_checkpoint.write_folder(folder / "refiner", "refiner", tiny=True, seed=3)
    make_checkpoint.write_upscaler(folder / "upscaler.safetensors", tiny=True)
    for seed, name in enumerate(("photo", "other")):
        values = numpy.random.default_rng(seed).integers(0, 256, (64, 96, 3), dtype=numpy.uint8)
        Image.fromarray(values).save(folder / f"{name}.png")
    mask = Image.new("L", (96, 64))
    mask.paste(255, (20, 10, 70, 50))
    mask.save(folder / "mask.png")


@dataclass(frozen=True)
class Case:
    """A random plan: its flags, those of its images and of its batches apart."""

    number: int
    mode: str
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    flags: tuple[str, ...]
    batch: int
    threads: int

    @property
    def on_a_gpu(self) -> bool:
        return "cuda" in self.flags

    @property
    def words(self) -> list[str]:
        return [*self.of(self.prompts, self.seeds), *self.flags]

    def of(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        return [word for prompt in prompts for word in ("-p", prompt)] + ["--seed", ",".join(map(str, seeds))]

    def __str__(self) -> str:
        return f"plan {self.number}: sdcli generate {shlex.join(self.words)} --batch-size {self.batch}"


def case_of(number: int, small: bool = False) -> Case:
    """Samplers in turn, all else drawn; drawn again where the settings do not go together. A `small` one is two images
    of two steps on a CPU."""
    chance = random.Random(number)
    while True:
        case = _drawn(number, chance, small)
        with contextlib.suppress(Usage), machine(case):
            plan = planned(case)
            planned(case, "--batch-size", str(case.batch), "--batch-invariant")
            if plan.fits:
                return case


def _drawn(number: int, chance: random.Random, small: bool) -> Case:
    family, mode, dtype = chance.choice(FAMILIES), chance.choice(list(MODES)), chance.choice(("fp32", "bf16"))
    on_a_gpu = chance.randrange(ON_A_GPU) == 0 and not small
    asked = MODES[mode](chance, family)
    flags = [*([] if "-m" in asked else ["-m", family]), *asked, "--sampler", SAMPLERS[number % len(SAMPLERS)]]
    flags += ["--steps", str(2 if small else chance.randint(2, 3 if on_a_gpu else 4))]
    flags += ["--guidance", f"{chance.choice((1, 2.5, 7, 7, 11)):g}"]
    flags += ["--size", "64x64" if small or on_a_gpu else chance.choice(("64x64", "64x64", "96x64", "64x96"))]
    flags += chance.choice(([], ["--negative-prompt", "blurry"], ["--negative-prompt", LONG]))
    flags += chance.choice(([], [], ["--clip-skip", "2"], ["--emphasis", "comfy"], ["--rng", "nv"]))
    flags += ["--dtype", dtype, "--device", "cuda" if on_a_gpu else "cpu"]
    flags += [word for pin in _pins(chance, on_a_gpu, dtype) for word in ("--pin", pin)]
    prompts = tuple(chance.sample(PROMPTS, 1 if on_a_gpu else chance.choice((1, 2))))
    batch = 2 if small or on_a_gpu else chance.randint(2, 4)
    seeds = chance.sample(range(2**32), max(1, batch // (len(prompts) * asked.count("--image") or 1)))
    threads = 2 if not on_a_gpu and chance.randrange(8) == 0 else 1
    return Case(number, mode, prompts, tuple(seeds), tuple(flags), batch, threads)


def _pins(chance: random.Random, on_a_gpu: bool, dtype: str) -> list[str]:
    execution = chance.choice(("eager", "graph") if on_a_gpu else ("eager", "packed"))
    others = {"packed": [], "eager": ["sliced"], "graph": ["sliced"]}[execution]
    attentions = ["fused", *others, *(["blocked"] if dtype == "bf16" and not on_a_gpu else [])]
    more = ["guidance=in-turn", "vae=tile-256", "vae-dtype=fp32", *(["storage=fp8"] if on_a_gpu else [])]
    pins = [f"execution={execution}", f"attention={chance.choice(attentions)}"]
    return pins + chance.choice(([], [chance.choice(more)]))


@contextlib.contextmanager
def machine(case: Case) -> Iterator[None]:
    with pretend(device("64GiB", capability="8.9")) if case.on_a_gpu else contextlib.nullcontext():
        yield


def planned(case: Case, *more: str, words: Sequence[str] | None = None) -> Plan:
    """As the command line plans it, with the case's threads."""
    plan = plan_of([*(case.words if words is None else words), *more])
    return replace(plan, setup=replace(plan.setup, threads=case.threads))


def plan_of(words: Sequence[str]) -> Plan:
    plans: list[Plan] = []
    command = options.command(
        lambda typed: plans.append(planning.plan_for(typed, "plan").plan), options.OPTIONS, name="plan", help=""
    )
    program = typer.Typer()
    program.command(cls=app.Grouped)(command)
    app.call(program, list(words))
    return plans[0]


# --- drawing them


def drawn(plan: Plan, batches: Sequence[Batch] | None = None, kept: Mapping[int, bytes] | None = None,
          engine: Engine | None = None) -> Pixels:  # fmt: skip
    """All images, with a new engine if none is given."""
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(Engine()) if engine is None else engine
        events = engine.run(plan, batches, kept)
        return dict(_image(plan, event) for event in events if isinstance(event, Decoded))


def _image(plan: Plan, event: Decoded) -> tuple[int, bytes]:
    if event.setup != plan.setup:
        raise AssertionError(f"drawn under {event.setup}, planned was {plan.setup}")
    return event.index, event.pixels


def under(plan: Plan, setup: Setup) -> Plan:
    return replace(plan, setup=setup)


def reordered(plan: Plan, chance: random.Random, engine: Engine) -> Pixels:
    batches = plan.numbered()
    chance.shuffle(batches)
    return drawn(plan, batches, engine=engine)


def alone(case: Case, plan: Plan, chance: random.Random, engine: Engine) -> Pixels:
    """One image, not the first, in a run of its own, as the first."""
    job = chance.choice(plan.jobs[1:])
    one = under(planned(case, words=[*case.of([job.prompt], [job.seed]), *case.flags]), plan.setup)
    same = next(other for other in one.jobs if replace(other, index=job.index) == job)
    return {job.index: drawn(one, engine=engine)[same.index]}


def resumed(plan: Plan, chance: random.Random, engine: Engine) -> tuple[Pixels, Pixels]:
    """Interrupted after some step, and brought to its end by another engine from what a journal has: what is unfinished
    drawn anew, and gone on with from its last kept step."""
    plan = replace(plan, request=replace(plan.request, keep_steps=True))
    first_passes = sum(jobs[0].unet_calls for _, jobs in plan.numbered())
    images, kept = interrupted(plan, chance.randint(1, first_passes), engine)
    journal = json.dumps(plan_json(plan, whole=True))
    again = plan_as_recorded(schema.from_json(Plan, json.loads(journal), whole=True), plan.hardware, {})
    left = [(number, jobs) for number, jobs in again.numbered() if any(job.index not in images for job in jobs)]
    with Engine() as other:
        anew, gone_on = drawn(again, left, engine=other), drawn(again, left, kept, other)
    return anew | images, gone_on | images


def interrupted(plan: Plan, moment: int, engine: Engine) -> tuple[Pixels, dict[int, bytes]]:
    """What was drawn until so many steps were kept, and the last of each batch."""
    images: Pixels = {}
    kept: dict[int, bytes] = {}
    events = engine.run(plan)
    for event in events:
        if isinstance(event, KeptStep):
            kept[event.batch] = event.state
            moment -= 1
        if isinstance(event, Decoded):
            images |= [_image(plan, event)]
        if moment == 0:
            with contextlib.suppress(KeyboardInterrupt):
                events.throw(KeyboardInterrupt())  # type: ignore[attr-defined]
            return images, kept
    raise AssertionError(f"never interrupted: {moment} steps left")


def placements(plan: Plan) -> list[Setup]:
    """The same setup with everything else in memory, as far as that is legal."""
    setups = [replace(plan.setup, placement=choice) for choice in placement.TECHNIQUE.choices]
    return [one for one in setups if one != plan.setup and legal(one, plan.hardware, plan.model) is None]


def half(number: int, small: bool = False) -> dict[int, str]:
    """Every second of a plan's images, by a new engine: the hashes of their pixels."""
    case = case_of(number, small)
    with quiet.libraries_silenced(), machine(case):
        plan = planned(case)
        found = hashed(drawn(plan, plan.numbered()[1::2]))
    collected()
    return found


def hashed(images: Pixels) -> dict[int, str]:
    return {index: hashlib.sha256(pixels).hexdigest() for index, pixels in images.items()}


# --- what is seen


@dataclass(frozen=True)
class Moved:
    """Values of a batch's images beside those of the same images drawn one by one."""

    values: int = 0
    differing: int = 0
    beyond: int = 0  # by more than MOST_MOVED
    largest: int = 0

    def __add__(self, other: Moved) -> Moved:
        return Moved(
            self.values + other.values, self.differing + other.differing, self.beyond + other.beyond,
            max(self.largest, other.largest),
        )  # fmt: skip

    @property
    def share(self) -> float:
        return self.differing / max(1, self.values)

    @property
    def few(self) -> bool:
        return self.largest <= MOST_MOVED and self.share <= MOST_SHARE

    def __str__(self) -> str:
        return (
            f"{self.share:.4%} of {self.values:,} values differ, {self.beyond:,} by more than 2, most by {self.largest}"
        )


def moved(images: Pixels, expected: Pixels) -> Moved:
    found = Moved()
    for index, pixels in expected.items():
        pair = [numpy.frombuffer(one, numpy.uint8).astype(int) for one in (pixels, images[index])]
        away = numpy.abs(pair[0] - pair[1])
        found += Moved(away.size, int((away > 0).sum()), int((away > MOST_MOVED).sum()), int(away.max()))
    return found


@dataclass(frozen=True)
class Seen:
    case: Case
    setup: Setup
    family: str
    sampler: str
    images: Mapping[int, str]  # hashes
    equal: Mapping[str, tuple[int, int]]  # by claim: images with the pixels to expect, and images
    moved: Moved = field(default_factory=Moved)

    @property
    def wrong(self) -> list[str]:
        return [claim for claim, (equal, images) in self.equal.items() if equal != images or not images]


def judged(number: int, small: bool = False) -> Seen:
    """A plan drawn in every way but in another process."""
    case = case_of(number, small)
    try:
        return _judged(case)
    except Exception as error:
        error.add_note(str(case))
        raise
    finally:
        collected()


def _judged(case: Case) -> Seen:
    chance = random.Random(case.number)
    with quiet.libraries_silenced(), machine(case), Engine() as engine:
        plan = planned(case)
        expected = drawn(plan, engine=engine)
        together = under(planned(case, "--batch-size", str(case.batch)), plan.setup)
        invariant = under(planned(case, "--batch-size", str(case.batch), "--batch-invariant"), plan.setup)
        batched = drawn(together, engine=engine)
        equal: dict[str, tuple[int, int]] = {}

        def compare(claim: str, images: Pixels, right: Pixels = expected, whole: bool = True) -> None:
            among = right if whole else images
            equal[claim] = sum(images.get(index) == right[index] for index in among), len(among)

        compare(ORDER, reordered(plan, chance, engine))
        compare(ALONE, alone(case, plan, chance, engine), whole=False)
        compare(INVARIANT, drawn(invariant, engine=engine))
        which, right = chance.choice(((plan, expected), (together, batched)))
        for claim, images in zip((RESUMED, KEPT), resumed(which, chance, engine), strict=True):
            compare(claim, images, right)
        compare(PLACED, drawn(under(plan, chance.choice(placements(plan))), engine=engine))
    return Seen(
        case, plan.setup, plan.model.family, plan.request.sampler, hashed(expected),
        equal, moved(batched, expected),
    )  # fmt: skip


def collected() -> None:
    """Once: the libraries' million objects would be looked through again and again."""
    if not gc.get_freeze_count():
        gc.collect()
        gc.freeze()


def with_half(seen: Seen, images: Mapping[int, str]) -> Seen:
    equal = sum(seen.images[index] == pixels for index, pixels in images.items())
    return replace(seen, equal={**seen.equal, SHARED: (equal, len(images))})


def rows_of(seen: Sequence[Seen]) -> list[Row]:
    rows = [_coverage(seen)]
    for claim in CLAIMS:
        wrong = [one for one in seen if claim in one.wrong]
        equal, images = (sum(one.equal[claim][n] for one in seen) for n in (0, 1))
        first = f"; first {wrong[0].case}" if wrong else ""
        text = f"{len(seen) - len(wrong)} of {len(seen)} plans, {equal:,} of {images:,} images{first}"
        rows.append((claim, text, "all", not wrong))
    for dtype in sorted({one.setup.dtype for one in seen}, reverse=True):
        of = [one for one in seen if one.setup.dtype == dtype]
        total = sum((one.moved for one in of), Moved())
        rows.append((f"in batches of 2 to 4, {dtype}", str(total), GOAL, total.few))
    return rows


def _coverage(seen: Sequence[Seen]) -> Row:
    """What the plans are of; and that no two of a plan's images are the same."""
    counts = {
        "family": Counter(one.family for one in seen),
        "dtype": Counter(one.setup.dtype for one in seen),
        "device": Counter(one.setup.device for one in seen),
        "execution": Counter(one.setup.execution for one in seen),
        "mode": Counter(one.case.mode for one in seen),
    }
    text = "; ".join(", ".join(f"{count} {what}" for what, count in one.most_common()) for one in counts.values())
    found = {one.sampler for one in seen}
    distinct = all(len(set(one.images.values())) == len(one.images) for one in seen)
    holds = found == set(SAMPLERS) and set(counts["mode"]) == set(MODES) and set(counts["family"]) == set(FAMILIES)
    images = sum(len(one.images) for one in seen)
    seen_text = f"{images:,} images, {'all' if distinct else 'not all'} of a plan unlike; {len(found)} samplers; {text}"
    return f"{len(seen)} plans", seen_text, "18 samplers, both families, every mode", holds and distinct


# --- a model that was trained


def of_the_builtin_model(dtype: str) -> Row:
    """Its images in batches of four beside the same ones drawn one by one: rounding grows in it less, or more, than in
    random weights."""
    found = Moved()
    for execution in ("eager", "packed"):
        words = ["-p", "a cat", "-p", "two red apples", "--seed", "1,2,3,4", "--dtype", dtype, "--size", "128x128"]
        words += ["--steps", "8", "--device", "cpu", "--pin", f"execution={execution}"]
        plan = plan_of(words)
        together = under(plan_of([*words, "--batch-size", "4"]), plan.setup)
        with quiet.libraries_silenced(), Engine() as engine:
            found += moved(drawn(together, engine=engine), drawn(plan, engine=engine))
    return f"in batches of 4, the built-in model in {dtype}", str(found), GOAL, found.few


# --- the command


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Plans name their files as they lie here."""
    with contextlib.chdir(folder):
        before = os.environ.get("SDCLI_HOME")
        os.environ["SDCLI_HOME"] = str(folder / "home")
        try:
            yield
        finally:
            os.environ.pop("SDCLI_HOME")
            if before is not None:
                os.environ["SDCLI_HOME"] = before


def main(plans: int = PLANS) -> list[Row]:
    with tempfile.TemporaryDirectory() as made, inside(Path(made)):
        make(Path(made))
        # Processes are started afresh: torch's threads do not survive a fork.
        with ProcessPoolExecutor(mp_context=get_context("spawn")) as workers:
            seen = list(workers.map(judged, range(plans)))
        with ProcessPoolExecutor(mp_context=get_context("spawn")) as workers:
            halves = list(workers.map(half, range(plans), chunksize=4))
            trained = list(workers.map(of_the_builtin_model, ("fp32", "bf16")))
    return rows_of([with_half(*one) for one in zip(seen, halves, strict=True)]) + trained


def shown(number: int) -> Seen:
    """One plan, told of on the way; its processes are this one."""
    print(case_of(number))
    seen = with_half(judged(number), half(number))
    for claim, (equal, images) in seen.equal.items():
        print(f"  {claim}: {equal} of {images}")
    print(f"  in a batch: {seen.moved}")
    return seen


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made, inside(Path(made)):
        make(Path(made))
        for word in sys.argv[1:]:
            shown(int(word))
