"""Images of random settings are what `sdcli verify` draws again, and what is altered in one is named."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from PIL import Image  # noqa: E402
from PIL.PngImagePlugin import PngInfo  # noqa: E402

from scripts import make_checkpoint  # noqa: E402
from sdcli.cli.main import run  # noqa: E402
from sdcli.request import samplers  # noqa: E402

NAME = "verified"
CLAIM = (
    "sdcli verify finds 300 images of random settings identical (tiny SD1.5, SD2 and SDXL; every sampler, from images, "
    "masks, second passes, batches, png and webp), and for 100 where one thing was altered, in the record or in the "
    "model's files, names it."
)
IMAGES, ALTERED = 300, 100
FAMILIES = ("sd15", "sd2", "sdxl")
SAMPLERS = [sampler.name for sampler in samplers.EVERY if not sampler.edm]
PROMPTS = ("a cat", "a (red:1.3) fox, [snow]", "two boats at dawn", "an old map of nowhere in particular", "a [cat]")


def main(images: int = IMAGES, to_alter: int = ALTERED, seed: int = 1) -> list[tuple[str, str, str, bool]]:
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as name, _inside(Path(name)) as folder:
        _make(folder)
        seen = {"identical": 0, "drawn": 0}
        names: list[Path] = []
        number = 0
        while seen["drawn"] < images:
            made = _drawn(folder / f"{number:04d}", _flags(chance, chance.choice(FAMILIES)))
            number += 1
            for family, file, inputs in made:
                seen["drawn"] += 1
                (verdict,) = _verified(file, family, inputs)
                seen["identical"] += verdict["verdict"] == "identical" and not verdict["explained"]
                names += [file] if file.suffix == ".png" and not inputs else []
        named = [_is_named(chance, folder, chance.choice(names)) for _ in range(to_alter)]
    return [
        (
            "identical",
            f"{seen['identical']} of {seen['drawn']}",
            f"{seen['drawn']}",
            seen["identical"] == seen["drawn"],
        ),
        ("what was altered is named", f"{sum(named)} of {to_alter}", f"{to_alter}", all(named)),
    ]


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[Path]:
    before, home = os.getcwd(), os.environ.get("SDCLI_HOME")
    os.chdir(folder)
    os.environ["SDCLI_HOME"] = str(folder / "home")
    try:
        yield folder
    finally:
        os.chdir(before)
        os.environ.pop("SDCLI_HOME")
        if home is not None:
            os.environ["SDCLI_HOME"] = home


def _make(folder: Path) -> None:
    for number, family in enumerate(FAMILIES):
        make_checkpoint.write_folder(folder / family, family, tiny=True, seed=number)
        make_checkpoint.write_folder(folder / "other" / family, family, tiny=True, seed=100 + number)
    Image.effect_noise((96, 64), 90).convert("RGB").save(folder / "photo.png")
    mask = Image.new("L", (96, 64))
    mask.paste(255, (20, 10, 70, 50))
    mask.save(folder / "mask.png")


def _flags(chance: random.Random, family: str) -> list[str]:
    flags = ["-m", family, "--seed", str(chance.randrange(2**32)), "--steps", str(chance.randint(1, 5))]
    flags += ["--sampler", chance.choice(SAMPLERS), "--guidance", f"{chance.choice((1, 2.5, 7, 11)):g}"]
    flags += ["--size", chance.choice(("64x64", "64x96", "128x64"))]
    flags += chance.choice(([], ["--negative-prompt", "blurry"]))
    flags += chance.choice(([], ["--clip-skip", "2"], ["--emphasis", "comfy"]))
    flags += chance.choice(([], [], ["-n", "2"], ["-n", "3", "--batch-size", "2"]))
    flags += chance.choice(
        ([], [], ["--image", "photo.png"], ["--image", "photo.png", "--mask", "mask.png"], ["--hires", "1.5"])
    )
    flags += chance.choice((["--dtype", "fp32"], [], ["--pin", "guidance=in-turn"], ["--pin", "attention=blocked"]))
    return [*flags, "--format", chance.choice(("png", "png", "webp"))]


def _sdcli(*words: str) -> tuple[int, str, str]:
    out, error = io.StringIO(), io.StringIO()
    raw = io.BytesIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.TextIOWrapper(raw, write_through=True)):
        try:
            run(words)
        except SystemExit as left:
            return int(left.code or 0), raw.getvalue().decode() + out.getvalue(), error.getvalue()
    raise AssertionError("sdcli returned")


def _drawn(folder: Path, flags: list[str]) -> list[tuple[str, Path, list[str]]]:
    """The images, with the model and the inputs that each needs again; none where the settings do not go together."""
    code, _, error = _sdcli(
        "generate", random.Random(str(folder)).choice(PROMPTS), *flags, "-o", f"{folder}/", "-q", "--no-show"
    )
    if code == 2:
        return []
    if code not in (0, 5):
        raise AssertionError(f"{flags}: exit {code}: {error}")
    inputs = [word for flag in ("--image", "--mask") if flag in flags for word in (flag, flags[flags.index(flag) + 1])]
    files = sorted(file for file in folder.iterdir() if file.is_file())
    return [(flags[1], file, inputs) for file in files]


def _verified(file: Path, family: str, inputs: list[str]) -> list[dict[str, Any]]:
    code, out, error = _sdcli("verify", str(file), "-m", family, *inputs, "-q", "--json", "--search")
    if code not in (0, 10):
        raise AssertionError(f"{file}: exit {code}: {error or out}")
    images: list[dict[str, Any]] = json.loads(out)["images"]
    return images


# --- altered


def _job(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda record: record["job"].update({name: value})


ALTERATIONS: Mapping[str, Callable[[dict[str, Any]], None]] = {
    "seed": lambda record: record["job"].update(seed=(record["job"]["seed"] + 1) % 2**32),
    "steps": lambda record: record["job"].update(steps=record["job"]["steps"] + 1),
    "guidance": lambda record: record["job"].update(guidance=record["job"]["guidance"] + 0.5),
    "prompt": _job("prompt", "a dog"),
    "negative_prompt": _job("negative_prompt", "dogs"),
    "clip_skip": lambda record: record["job"].update(clip_skip=3 - min(record["job"]["clip_skip"], 2)),
    "sampler": lambda record: record["job"].update(
        sampler="DDIM" if record["job"]["sampler"] != "DDIM" else "Euler"
    ),
    "width": lambda record: record["job"].update(width=record["job"]["width"] + 64),
    "rng": lambda record: record["job"].update(rng="nv" if record["job"]["rng"] == "cpu" else "cpu"),
    "setup.dtype": lambda record: record["setup"].update(
        dtype="fp32" if record["setup"]["dtype"] == "bf16" else "bf16"
    ),
    "setup.isa": lambda record: record["setup"].update(isa="another"),
    "setup.device": lambda record: record["setup"].update(device="cuda:0"),
    "version": lambda record: record.update(version="0.0.1"),
    "environment.torch": lambda record: record["environment"].update(torch="1.9"),
}  # fmt: skip
WEIGHTS = ("model.unet", "model.vae", "model.text_encoder")  # whose files are exchanged; the record stays


def _is_named(chance: random.Random, folder: Path, file: Path) -> bool:
    field = chance.choice([*ALTERATIONS, *WEIGHTS])
    if field in WEIGHTS:
        return _exchanged_is_named(folder, file, field)
    with Image.open(file) as image:
        info, record = PngInfo(), json.loads(image.info["sdcli"])
        ALTERATIONS[field](record)
        info.add_itxt("sdcli", json.dumps(record))
        info.add_itxt("parameters", image.info["parameters"])
        image.save(folder / "altered.png", pnginfo=info)
    (verdict,) = _verified(folder / "altered.png", record["model"]["name"], [])
    return field in {one["field"] for one in verdict["explained"]}


def _exchanged_is_named(folder: Path, file: Path, field: str) -> bool:
    with Image.open(file) as image:
        family, part = json.loads(image.info["sdcli"])["model"]["name"], field.removeprefix("model.")
    model = folder / part / family
    if not model.exists():
        shutil.copytree(folder / family, model)
        shutil.copytree(folder / "other" / family / part, model / part, dirs_exist_ok=True)
    (verdict,) = _verified(file, f"{part}/{family}", [])
    return {one["field"] for one in verdict["explained"]} == {field}


if __name__ == "__main__":
    for row in main(
        int(sys.argv[1]) if len(sys.argv) > 1 else IMAGES, int(sys.argv[2]) if len(sys.argv) > 2 else ALTERED
    ):
        print(*row, sep=" | ")
