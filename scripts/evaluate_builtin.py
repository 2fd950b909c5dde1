#!/usr/bin/env python3
"""What the built-in model draws when asked: rates with 95 % intervals, and a contact sheet.

    python scripts/evaluate_builtin.py --work FOLDER [--model sdcli/models/builtin] [--write CARD_FOLDER] [--dry]

Every picture is drawn by `sdcli generate` itself; FOLDER keeps the artwork. A picture counts as right when the
reference nearest to it (scripts/builtin_model/likeness.py) is of the thing that was asked for.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402
from PIL.PngImagePlugin import PngInfo  # noqa: E402

from scripts.builtin_model import artwork, likeness  # noqa: E402
from scripts.builtin_model.captions import Captions  # noqa: E402
from scripts.builtin_model.pictures import GROUNDS, HUES, Look, any_look, picture  # noqa: E402
from scripts.builtin_model.synonyms import HELD_OUT  # noqa: E402

SEED = 4
COLUMNS = 20


@dataclass(frozen=True)
class Asked:
    """One prompt and what its picture must show."""

    prompt: str
    thing: int
    hue: str | None = None
    ground: str | None = None


@dataclass(frozen=True)
class Row:
    what: str
    right: int
    among_five: int
    count: int
    goal: str

    def cells(self) -> list[str]:
        low, high = proportion(self.right, self.count)
        rate = f"{100 * self.right / self.count:.0f} % ({100 * low:.0f}–{100 * high:.0f})"
        five = f"{100 * self.among_five / self.count:.0f} %" if self.among_five >= 0 else ""
        return [self.what, str(self.count), rate, five, self.goal]


def main() -> int:
    asked = arguments()
    art = artwork.artwork(Path(asked.work), asked.scope, tuple(asked.styles.split(",")), asked.size)
    shown = [(thing, picture(rgba, Look())) for style in art.pictures.values() for thing, rgba in style.items()]
    references = likeness.references(shown)
    rows, pictures = [itself(references, shown)], {}
    for what, prompts, goal in questions(art):
        given = prompts[:: 25 if asked.dry else 1]
        drawn = draw(asked.model, [one.prompt for one in given])
        pictures[what] = drawn
        rows.append(judged(what, given, drawn, references, art, goal))
        print("  ".join(rows[-1].cells()), flush=True)
    text = table(rows)
    print(text)
    if asked.references:
        reference_sheet(art, shown, Path(asked.references))
    if asked.write:
        Path(asked.write, "rates.md").write_text(text + "\n", encoding="utf-8")
        sheet(pictures["names"], Path(asked.write, "sheet.png"))
    return 0


def proportion(right: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval."""
    rate, z = right / count, 1.959964
    middle, wide = rate + z * z / (2 * count), z * (rate * (1 - rate) / count + z * z / (4 * count * count)) ** 0.5
    return (middle - wide) / (1 + z * z / count), (middle + wide) / (1 + z * z / count)


def itself(references: likeness.References, shown: Sequence[tuple[int, Any]]) -> Row:
    """The measure on the references themselves, moved by a pixel and squeezed through JPEG 85."""
    right = sum(references.nearest(squeezed(np.roll(seen, (1, 1), (0, 1))), 1) == [thing] for thing, seen in shown)
    return Row("references, shifted and as JPEG 85", right, -1, len(shown), "≥ 99 %")


def squeezed(seen: Any) -> Any:
    file = io.BytesIO()
    Image.fromarray(seen).save(file, "JPEG", quality=85)
    return np.asarray(Image.open(file).convert("RGB"))


def questions(art: artwork.Artwork) -> list[tuple[str, list[Asked], str]]:
    """Fixed: the same prompts every time."""
    random = np.random.default_rng(SEED)
    names = [thing.name for thing in art.things]
    spread = [int(index) for index in random.permutation(len(names))]
    captions = Captions(art.things)
    synonyms = [Asked(f"a {word}", names.index(name)) for word, name in HELD_OUT.items() if name in names]
    hues = [(index, hue) for index, hue in zip(spread * 2, list(HUES) * 8, strict=False)][:56]
    grounds = [name for name in GROUNDS if name != "white"]
    return [
        ("names", [Asked(f"a {names[index]}", index) for index in spread[:200]], "≥ 85 %, five ≥ 95 %"),
        ("synonyms", synonyms, "≥ 70 %"),
        ("Italian", [Asked(f"un {captions.names['it'][index][0]}", index) for index in spread[:50]], "≥ 80 %"),
        ("Chinese", [Asked(f"一只{captions.names['zh'][index][0]}", index) for index in spread[:50]], "≥ 80 %"),
        ("colours", [Asked(f"a {hue} {names[index]}", index, hue=hue) for index, hue in hues], ""),
        ("grounds", [Asked(f"a {names[index]} on a {ground} background", index, ground=ground)
                     for index, ground in zip(spread[60:110], grounds * 5, strict=False)], ""),
    ]  # fmt: skip


def draw(model: str, prompts: Sequence[str], seed: int = 1) -> list[Any]:
    """All in one run of the program, each with this seed."""
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder, "prompts.txt")
        listed.write_text("\n".join(prompts) + "\n", encoding="utf-8")
        out = Path(folder, "drawn", "{index:05d}.png")
        command = [sys.executable, "-P", "-m", "sdcli", "generate", "-m", model, "--seed", str(seed)]
        around = {**os.environ, "PYTHONPATH": str(ROOT)}
        command += ["--prompts", str(listed), "-o", str(out), "-q"]
        subprocess.run(command, check=True, cwd=ROOT, env=around, stdout=subprocess.DEVNULL)
        return [np.asarray(Image.open(path).convert("RGB")) for path in sorted(out.parent.glob("*.png"))]


def judged(
    what: str, prompts: Sequence[Asked], drawn: Sequence[Any], references: likeness.References, art: artwork.Artwork,
    goal: str,
) -> Row:  # fmt: skip
    right = five = 0
    recoloured = {hue: coloured(art, hue) for hue in {one.hue for one in prompts if one.hue}}
    for one, seen in zip(prompts, drawn, strict=True):
        near = recoloured.get(one.hue or "", references).nearest(seen)
        fits = (one.hue is None or hue_of(seen) == one.hue) and (one.ground is None or ground_of(seen) == one.ground)
        right += near[0] == one.thing and fits
        five += one.thing in near and fits
    return Row(what, right, five, len(prompts), goal)


def coloured(art: artwork.Artwork, hue: str) -> likeness.References:
    look = any_look(np.random.default_rng(0), hue=HUES[hue])
    every = [(thing, picture(rgba, look)) for style in art.pictures.values() for thing, rgba in style.items()]
    return likeness.references(every)


def hue_of(seen: Any) -> str:
    """The colour that most of the coloured pixels have."""
    hsv = np.asarray(Image.fromarray(seen).convert("HSV")).astype(float) / 255
    strong = hsv[(hsv[..., 1] > 0.3) & (hsv[..., 2] > 0.2)]
    if not len(strong):
        return ""
    far = {name: np.abs((strong[:, 0] - hue + 0.5) % 1 - 0.5) for name, hue in HUES.items()}
    nearest = np.stack(list(far.values())).argmin(0)
    return list(far)[int(np.bincount(nearest, minlength=len(far)).argmax())]


def ground_of(seen: Any) -> str:
    back = likeness.ground(seen)
    return min(GROUNDS, key=lambda name: float(np.square(back - np.array(GROUNDS[name])).sum()))


def table(rows: Sequence[Row]) -> str:
    lines = ["| asked for | prompts | nearest is right | among five | goal |", "| --- | --- | --- | --- | --- |"]
    return "\n".join([*lines, *("| " + " | ".join(row.cells()) + " |" for row in rows)])


def sheet(drawn: Sequence[Any], path: Path, columns: int = COLUMNS) -> None:
    side = drawn[0].shape[0] // 2
    whole = Image.new("RGB", (columns * side, -(-len(drawn) // columns) * side), "white")
    for number, seen in enumerate(drawn):
        small = Image.fromarray(seen).resize((side, side), Image.Resampling.LANCZOS)
        whole.paste(small, (number % columns * side, number // columns * side))
    whole.quantize(256).save(path, optimize=True)


def reference_sheet(art: artwork.Artwork, shown: Sequence[tuple[int, Any]], path: Path) -> None:
    """The references in small, with their names inside the file: what the tests of the shipped model compare with."""
    held = PngInfo()
    held.add_text("names", json.dumps([art.things[thing].name for thing, _ in shown]))
    side = likeness.SIDE
    whole = Image.new("RGB", (COLUMNS * side, -(-len(shown) // COLUMNS) * side), "white")
    for number, (_, seen) in enumerate(shown):
        small = Image.fromarray(seen).resize((side, side), Image.Resampling.BOX)
        whole.paste(small, (number % COLUMNS * side, number // COLUMNS * side))
    whole.quantize(128).save(path, pnginfo=held, optimize=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--scope", default="everyday")
    parser.add_argument("--styles", default="flat")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--write", help="folder for rates.md and sheet.png")
    parser.add_argument("--references", help="file for the references in small, for the tests")
    parser.add_argument("--dry", action="store_true", help="a few prompts of each kind")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
