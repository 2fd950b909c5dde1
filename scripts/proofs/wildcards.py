"""Templates of prompts, hostile and plain: every one ends soon, as a prompt or a refusal, and always as the same."""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from sdcli.errors import SdcliError  # noqa: E402
from sdcli.request import wildcards  # noqa: E402
from sdcli.request.jobs import LONGEST_PROMPT  # noqa: E402

NAME = "wildcards"
CLAIM = (
    "5,000 hostile templates (files that lead back to themselves or double at each of 40 names, braces by the "
    "thousand, code, paths, broken syntax) end within a second each, as a prompt or a typed refusal, twice the same."
)
TEMPLATES, SLOWEST = 5000, 1.0
PIECES = (
    "{", "}", "|", "$$", "2$$", "1-2$$", "999$$", "-$$", "1.5::", "0::", "__colours__", "__double/39__", "__round/a__",
    "__*__", "__double/*__", "__../../etc/passwd__", "__/etc/passwd__", "__binary__", "__long__", "__", "\\", "a",
    "(b:1.2)", "[c]", ",", "$", "${x}", "{{__import__('os').system('x')}}", "{% for x in y %}", "%s%n", "`x`", "$(x)",
    "<lora:x__colours__y:1>", "\n", "\r", "\x00", "\x1b[2J", " ", "é", "\u202e", "\ud800", "9" * 400, "x" * 5000,
)  # fmt: skip


def main() -> list[tuple[str, str, str, bool | None]]:
    choose = random.Random(28)
    with tempfile.TemporaryDirectory() as base:
        folder = Path(base)
        _files(folder)
        ended: Counter[str] = Counter()
        wrong: list[str] = []
        slowest = 0.0
        for number in range(TEMPLATES):
            template = _template(choose)
            began = time.perf_counter()
            first = _drawn(template, folder, number)
            slowest = max(slowest, time.perf_counter() - began)
            if first != _drawn(template, folder, number):
                wrong.append(template)
            ended["a prompt" if isinstance(first, wildcards.Resolved) else "a refusal"] += 1
        plain = sum(_as_it_was(choose, folder) for _ in range(TEMPLATES))
    return [
        ("templates", ", ".join(f"{count} {what}" for what, count in sorted(ended.items())), "5,000, nothing else",
         sum(ended.values()) == TEMPLATES and len(ended) == 2),
        ("drawn twice", f"{len(wrong)} differ", "none", not wrong),
        ("the slowest", f"{slowest * 1000:.0f} ms", f"≤ {SLOWEST:.0f} s", slowest <= SLOWEST),
        ("escaped, as settings of an image are", f"{plain} of {TEMPLATES} are the text", "all", plain == TEMPLATES),
    ]  # fmt: skip


def _drawn(template: str, folder: Path, seed: int) -> wildcards.Resolved | str:
    try:
        return wildcards.resolve(template, folder, seed, of="prompt", longest=LONGEST_PROMPT)
    except SdcliError as error:
        return error.message


def _as_it_was(choose: random.Random, folder: Path) -> bool:
    text = "".join(choose.choices(PIECES[:-2], k=choose.randrange(30)))
    return _drawn(wildcards.escaped(text), folder, 1) == (text, False)


def _template(choose: random.Random) -> str:
    some = choose.sample(PIECES, choose.randrange(2, 12))
    text = "".join(choose.choices(some, k=choose.randrange(1, 60)))
    if choose.random() < 0.1:
        deep = choose.choice((10, 63, 64, 65, 3000))
        text = "{a|" * deep + text + "}" * choose.choice((0, deep - 1, deep, deep + 1))
    if choose.random() < 0.1:
        text *= choose.choice((2, 50))
    return text


def _files(folder: Path) -> None:
    texts = {
        "colours": "red\n2::green\n# none\nblue {pale|dark}\n", "double/0": "x\n", "round/a": "__round/b__\n",
        "round/b": "{__round/a__|__round/a__}\n", "long": "\n".join("y" * 10_000 for _ in range(50)),
        **{f"double/{n}": f"__double/{n - 1}__ __double/{n - 1}__\n" for n in range(1, 40)},
    }  # fmt: skip
    for name, text in texts.items():
        path = folder / f"{name}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (folder / "binary.txt").write_bytes(bytes(range(256)))
