#!/usr/bin/env python3
"""What the built-in model draws when asked: rates with 95 % intervals, and a contact sheet.

    python scripts/evaluate_builtin.py --work FOLDER [--model sdcli/models/builtin] [--write CARD_FOLDER] [--dry]

Every image is drawn by `sdcli generate` itself; FOLDER keeps the artwork. An image counts as right when the
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
from scripts.builtin_model.captions import STYLES, Captions, several  # noqa: E402
from scripts.builtin_model.images import COLOURED_GROUNDS, GROUNDS, HUES, PLACES, Look, image  # noqa: E402
from scripts.builtin_model.synonyms import HELD_OUT, named  # noqa: E402
from scripts.builtin_model.things import everyday  # noqa: E402

SEED = 4
COLUMNS = 20
AGAIN, OTHERS = 50, 1001  # names drawn with another seed as well, and the first of these seeds
SIZE = 256
VISIBLE = 10.0  # the mean CIE76 difference from which two images count as different to the eye
NUMBERS = {2: "two", 3: "three", 4: "four"}
Named = tuple[int, str]  # thing, style


@dataclass(frozen=True)
class Asked:
    """One prompt and what its image must show: one of `things`, or all of `places`, each in its own."""

    prompt: str
    things: tuple[int, ...] = ()
    style: str | None = None
    hue: str | None = None
    ground: str | None = None
    places: tuple[int, ...] = ()


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
    art = artwork.artwork(Path(asked.work), "all", STYLES, SIZE)
    shown = [((thing, style), image(rgba, Look())) for style, every in art.images.items()
             for thing, rgba in every.items()]  # fmt: skip
    references = likeness.references(shown, lambda name: name[0] in art.sided)
    rows, kept = [itself(references, shown)], {}
    for what, prompts, goal in questions(art, asked.things):
        given = prompts[:: 25 if asked.dry else 1]
        drawn = draw(asked.model, [one.prompt for one in given])
        kept[what] = given, drawn
        rows += judged(what, given, drawn, references, art, goal)
        print("  ".join(rows[-1].cells()), flush=True)
    rows += another_seed(asked.model, *kept["names"], references, art)
    text = table(rows)
    print(text)
    if asked.references:
        reference_sheet(art, dict(shown), Path(asked.references))
    if asked.write:
        Path(asked.write, "rates.md").write_text(text + "\n", encoding="utf-8")
        sheet(kept["names"][1], Path(asked.write, "sheet.png"))
    return 0


def proportion(right: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval."""
    rate, z = right / count, 1.959964
    middle, wide = rate + z * z / (2 * count), z * (rate * (1 - rate) / count + z * z / (4 * count * count)) ** 0.5
    return (middle - wide) / (1 + z * z / count), (middle + wide) / (1 + z * z / count)


def itself(references: likeness.References, shown: Sequence[tuple[Named, Any]]) -> Row:
    """The measure on the references themselves, moved by a pixel and squeezed through JPEG 85."""
    tried = [(name, squeezed(np.roll(seen, (1, 1), (0, 1)))) for name, seen in shown[:: len(shown) // 1200]]
    right = sum(things(references, seen)[0] == thing for (thing, _), seen in tried)
    return Row("references, shifted and as JPEG 85", right, -1, len(tried), "≥ 99 %")


def things(references: likeness.References, seen: Any) -> list[int]:
    """The five nearest things, in whatever style."""
    return list(dict.fromkeys(thing for thing, _ in references.nearest(seen, 15)))[:5]


def squeezed(seen: Any) -> Any:
    file = io.BytesIO()
    Image.fromarray(seen).save(file, "JPEG", quality=85)
    return np.asarray(Image.open(file).convert("RGB"))


def questions(art: artwork.Artwork, asked: str) -> list[tuple[str, list[Asked], str]]:
    """Fixed: the same prompts every time."""
    random = np.random.default_rng(SEED)
    names = [thing.name for thing in art.things]
    known = [index for index, name in enumerate(names) if asked == "all" or name in set(everyday())]
    common = [int(index) for index in random.permutation(known)]
    captions = Captions(art.things, art.usual)
    synonyms = [Asked(f"a {word}", tuple(names.index(name) for name in named(word) if name in names))
                for word in HELD_OUT]  # fmt: skip
    styles = [(index, style) for index, style in zip(common, STYLES * 20, strict=False) if index in art.images[style]]
    hues = list(HUES) * 8
    grounds = COLOURED_GROUNDS * 5
    counts = [(index, number) for index, number in zip(common[60:96], (2, 3, 4) * 12, strict=True)]
    return [
        ("names", [Asked(f"a {names[index]}", (index,)) for index in common[:200]], "≥ 85 %, five ≥ 95 %"),
        ("synonyms", synonyms, "≥ 70 %"),
        ("Italian", [Asked(f"un {captions.names['it'][index][0]}", (index,)) for index in common[:50]], "≥ 80 %"),
        ("Chinese", [Asked(f"一只{captions.names['zh'][index][0]}", (index,)) for index in common[:50]], "≥ 80 %"),
        ("styles", [Asked(f"{names[index]}, {style}", (index,), style=style) for index, style in styles], "≥ 90 %"),
        ("colours", [Asked(f"a {hue} {names[index]}", (index,), hue=hue)
                     for index, hue in zip(common[:42], hues, strict=False)], ""),
        ("grounds", [Asked(f"a {names[index]} on a {ground} background", (index,), ground=ground)
                     for index, ground in zip(common[100:140], grounds, strict=False)], ""),
        ("counts", [Asked(f"{NUMBERS[number]} {several(names[index])}", places=(index,) * number)
                    for index, number in counts], ""),
        ("two things", [Asked(f"a {names[left]} and a {names[right]}", places=(left, right))
                        for left, right in zip(common[:36], common[36:72], strict=True)], ""),
    ]  # fmt: skip


def draw(model: str, prompts: Sequence[str], first: int = 1) -> list[Any]:
    """All in one run of the program, each with a seed of its own, counted from the first."""
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder, "prompts.jsonl")
        lines = [json.dumps({"prompt": prompt, "seed": seed}) for seed, prompt in enumerate(prompts, first)]
        listed.write_text("\n".join(lines) + "\n", encoding="utf-8")
        out = Path(folder, "drawn", "{index:05d}.png")
        command = [sys.executable, "-P", "-m", "sdcli", "generate", "-m", model]
        # A home of its own: settings and measurements of whoever runs this would decide what is drawn.
        around = {**os.environ, "PYTHONPATH": str(ROOT), "SDCLI_HOME": str(Path(folder, "home"))}
        command += ["--prompts", str(listed), "-o", str(out), "-q"]
        subprocess.run(command, check=True, cwd=ROOT, env=around, stdout=subprocess.DEVNULL)
        return [np.asarray(Image.open(path).convert("RGB")) for path in sorted(out.parent.glob("*.png"))]


def judged(
    what: str, prompts: Sequence[Asked], drawn: Sequence[Any], references: likeness.References, art: artwork.Artwork,
    goal: str,
) -> list[Row]:  # fmt: skip
    right = five = styled = 0
    recoloured = {hue: coloured(art, hue) for hue in {one.hue for one in prompts if one.hue}}
    for one, seen in zip(prompts, drawn, strict=True):
        if one.places:
            near = [things(references, cell) for cell in cells(seen, len(one.places))]
            right += all(found[0] == thing for found, thing in zip(near, one.places, strict=True))
            five += all(thing in found for found, thing in zip(near, one.places, strict=True))
            continue
        among = recoloured.get(one.hue or "", references)
        found = things(among, seen)
        fits = (one.hue is None or hue_of(seen) == one.hue) and (one.ground is None or ground_of(seen) == one.ground)
        right += found[0] in one.things and fits
        five += bool(set(one.things) & set(found)) and fits
        styled += one.style == among.nearest(seen, 1)[0][1]
    rows = [Row(what, right, five, len(prompts), goal)]
    if prompts[0].style:
        rows = [Row("styles: the thing", right, five, len(prompts), ""),
                Row("styles: the style", styled, -1, len(prompts), goal)]  # fmt: skip
    return rows


def another_seed(
    model: str, names: Sequence[Asked], drawn: Sequence[Any], references: likeness.References, art: artwork.Artwork
) -> list[Row]:
    """The first names once more with other seeds: still the thing, and to the eye another image."""
    names, drawn = names[:AGAIN], drawn[:AGAIN]
    again = draw(model, [one.prompt for one in names], first=OTHERS)
    right = judged("names", names, again, references, art, "")[0].right
    other = sum(difference(one, two) >= VISIBLE for one, two in zip(drawn, again, strict=True))
    return [Row("another seed: the thing", right, -1, len(names), ""),
            Row("another seed: another image", other, -1, len(names), "visible")]  # fmt: skip


def difference(one: Any, two: Any) -> float:
    """Mean of the distance in CIELAB, over all pixels."""
    return float(np.linalg.norm(_lab(one) - _lab(two), axis=-1).mean())


def _lab(seen: Any) -> Any:
    light = seen / 255
    light = np.where(light > 0.04045, ((light + 0.055) / 1.055) ** 2.4, light / 12.92)
    xyz = light @ np.array([[0.4339, 0.2126, 0.0177], [0.3762, 0.7152, 0.1095], [0.1899, 0.0722, 0.8728]])  # of white
    x, y, z = np.moveaxis(np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def cells(seen: Any, count: int) -> list[Any]:
    """Where each of several things stands."""
    half = seen.shape[0] // 2
    corners = [(round(across * half), round(down * half)) for across, down in PLACES[count]]
    return [seen[y : y + half, x : x + half] for x, y in corners]


def coloured(art: artwork.Artwork, hue: str) -> likeness.References:
    """The everyday things, of which colours are asked, in one."""
    look = Look(hue=HUES[hue])
    every = [((thing, style), image(rgba, look)) for style, found in art.images.items()
             for thing, rgba in found.items() if art.things[thing].name in set(everyday())]  # fmt: skip
    return likeness.references(every, lambda name: name[0] in art.sided)


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
    side = drawn[0].shape[0] // 4
    whole = Image.new("RGB", (columns * side, -(-len(drawn) // columns) * side), "white")
    for number, seen in enumerate(drawn):
        small = Image.fromarray(seen).resize((side, side), Image.Resampling.LANCZOS)
        whole.paste(small, (number % columns * side, number // columns * side))
    whole.quantize(256).save(path, optimize=True)


def reference_sheet(art: artwork.Artwork, shown: dict[Named, Any], path: Path) -> None:
    """The everyday things in small, with their names inside the file: what the tests of the shipped model use."""
    names = [art.things[thing].name for thing, style in shown if style == STYLES[0]]
    chosen = [number for number, name in enumerate(names) if name in set(everyday())]
    flat = [seen for (_, style), seen in shown.items() if style == STYLES[0]]
    held = PngInfo()
    held.add_text("names", json.dumps([names[number] for number in chosen]))
    side = likeness.SIDE
    whole = Image.new("RGB", (COLUMNS * side, -(-len(chosen) // COLUMNS) * side), "white")
    for place, number in enumerate(chosen):
        small = Image.fromarray(flat[number]).resize((side, side), Image.Resampling.BOX)
        whole.paste(small, (place % COLUMNS * side, place // COLUMNS * side))
    whole.quantize(128).save(path, pnginfo=held, optimize=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--things", choices=("everyday", "all"), default="everyday", help="what it is to know")
    parser.add_argument("--write", help="folder for rates.md and sheet.png")
    parser.add_argument("--references", help="file for the references in small, for the tests")
    parser.add_argument("--dry", action="store_true", help="a few prompts of each kind")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
