"""Templates of prompts: {red|blue}, {2$$a|b|c}, {3::often|seldom} and __colours__, chosen by the image's seed.

The syntax is that of dynamic prompts. Braces without a bar, and what is escaped with a backslash, are text. Nothing in
a template or a file is run, and whatever stands in them, choosing ends: depth, choices and length are bounded.
"""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from sdcli import reading
from sdcli.errors import BadFile, Usage
from sdcli.near import near_text, nearest
from sdcli.terminal import quoted, show

OFF = "off"
MOST_CHOICES = 1000
DEEPEST = 64
LARGEST_FILE = 4 << 20
MOST_FILES = 10_000
_FOLDERS_DEEP = 8

_NAME = r"__(?=[\w*])[\w*/.-]{0,100}?[\w*]__(?!_)"
_SPECIAL = re.compile(
    rf"""
    \\(?P<literal>[{{}}|]|{_NAME})
  | (?P<tag><\w+:[^<>{{}}|]*>)  # <lora:my__name__here:1> names a file
  | (?P<file>{_NAME})
  | (?P<open>\$?\{{)
  | (?P<close>\}})
  | (?P<bar>\|)
    """,
    re.VERBOSE,
)
_COUNT = re.compile(
    r"\s*(?:(?P<exactly>[0-9]{1,3})|(?P<least>[0-9]{0,3})-(?P<most>[0-9]{0,3}))\$\$(?:(?P<joint>[^{}|$]*)\$\$)?"
)
_WEIGHT = re.compile(r"\s*([0-9]{1,6}(?:\.[0-9]{0,6})?|\.[0-9]{1,6})::")


class Resolved(NamedTuple):
    """A prompt, and whether anything was chosen for it: else there was no template."""

    text: str
    chosen: bool


class _File(NamedTuple):
    name: str


class _Line(NamedTuple):
    """Of a file: a template that is looked at only if it is chosen."""

    text: str


class _Option(NamedTuple):
    weight: float
    nodes: tuple[_Node, ...]


class _Choice(NamedTuple):
    options: tuple[_Option, ...]
    least: int = 1
    most: int | None = 1  # None: all of them
    joint: str = ", "


_Node = str | _File | _Line | _Choice


def resolve(text: str, folder: Path | None, seed: int, *, of: str, longest: int) -> Resolved:
    """What the image with this seed has for the template. `of`: which of its texts, whose choices are apart. Without
    a folder __names__ are text."""
    chooser = _Chooser(text, folder, seed, of, longest)
    if len(text) > longest:
        raise _too_much(text, f"it is longer than {longest} characters")
    resolved = chooser.text(_parsed(text), 0, ())
    return Resolved(resolved, chooser.chosen)


def escaped(text: str) -> str:
    """The template whose only prompt is this text."""

    def literal(found: re.Match[str]) -> str:
        if found["tag"] or found["bar"] or found["literal"] == "|":
            return found[0]
        return "$\\{" if found[0] == "${" else "\\" + found[0]

    return _SPECIAL.sub(literal, text)


def unknown(text: str) -> tuple[str, ...]:
    """What looks like the name of a file."""
    return tuple(dict.fromkeys(found["file"] for found in _SPECIAL.finditer(text) if found["file"]))


# --- templates


@functools.lru_cache(maxsize=1024)
def _parsed(text: str) -> tuple[_Node, ...]:
    return _Template(text).nodes(0, len(text), 0)


class _Template:
    """Finds what belongs together in one pass, so that ten thousand braces cost no more than as many letters."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._marks = list(_SPECIAL.finditer(text))
        self._closing: dict[int, int] = {}  # of each opening brace that is closed, by number of the mark
        self._bars: dict[int, list[int]] = {}
        waiting: list[int] = []
        bars: dict[int, list[int]] = {}
        for number, mark in enumerate(self._marks):
            if mark["open"]:
                waiting.append(number)
            elif mark["close"] and waiting:
                opened = waiting.pop()
                self._closing[opened], self._bars[opened] = number, bars.pop(opened, [])
            elif mark["bar"] and waiting:
                bars.setdefault(waiting[-1], []).append(number)
        self._starts = [mark.start() for mark in self._marks]

    def nodes(self, start: int, end: int, depth: int, inside: bool = False) -> tuple[_Node, ...]:
        if depth > DEEPEST:
            raise _too_much(self._text, f"braces are nested deeper than {DEEPEST}")
        from bisect import bisect_left

        made: list[_Node] = []
        number, at = bisect_left(self._starts, start), start
        while number < len(self._marks) and self._starts[number] < end:
            mark = self._marks[number]
            made.append(self._text[at : mark.start()])
            at = mark.end()
            if mark["literal"]:
                made.append(mark[0] if mark["literal"] == "|" and not inside else mark["literal"])
            elif mark["file"]:
                made.append(_File(mark["file"][2:-2]))
            elif number in self._closing:
                closing = self._closing[number]
                made += self._braces(number, closing, depth + 1)
                number, at = closing, self._marks[closing].end()
            else:
                made.append(mark[0])
            number += 1
        made.append(self._text[at:end])
        return tuple(node for node in made if node != "")

    def _braces(self, opening: int, closing: int, depth: int) -> tuple[_Node, ...]:
        start, end = self._marks[opening].end(), self._marks[closing].start()
        bars = [self._marks[number] for number in self._bars[opening]]
        count = _COUNT.match(self._text, start, end)
        if self._marks[opening][0] == "${" or not (bars or count):
            return (self._marks[opening][0], *self.nodes(start, end, depth), "}")
        edges = [count.end() if count else start, *(edge for bar in bars for edge in bar.span()), end]
        sides = zip(edges[::2], edges[1::2], strict=True)
        options = tuple(self._option(start, end, depth) for start, end in sides)
        return (_choice(options, count),)

    def _option(self, start: int, end: int, depth: int) -> _Option:
        weight = _WEIGHT.match(self._text, start, end)
        start = weight.end() if weight else start
        nodes = _stripped(self.nodes(start, end, depth, inside=True))
        return _Option(float(weight[1]) if weight else 1.0, nodes)


def _choice(options: tuple[_Option, ...], count: re.Match[str] | None) -> _Choice:
    if count is None:
        return _Choice(options)
    joint = ", " if count["joint"] is None else count["joint"]
    if count["exactly"]:
        return _Choice(options, int(count["exactly"]), int(count["exactly"]), joint)
    return _Choice(options, int(count["least"] or 1), int(count["most"]) if count["most"] else None, joint)


def _stripped(nodes: tuple[_Node, ...]) -> tuple[_Node, ...]:
    """Blanks around an option are there to be read."""
    listed = list(nodes)
    if listed and isinstance(listed[0], str):
        listed[0] = listed[0].lstrip()
    if listed and isinstance(listed[-1], str):
        listed[-1] = listed[-1].rstrip()
    return tuple(node for node in listed if node != "")


def _too_much(text: str, why: str) -> Usage:
    return Usage(f'the template "{show(text, 60)}" is refused: {why}', hint='"a {red|blue} ball"', field="prompts")


# --- choosing


class _Chooser:
    """Choices in the order in which they come up, each a number from the seed and its place: the same everywhere."""

    def __init__(self, template: str, folder: Path | None, seed: int, of: str, longest: int) -> None:
        self.chosen = False
        self._choices = 0
        self._template, self._folder, self._longest = template, folder, longest
        self._of = f"sdcli wildcards 1\0{of}\0{seed}\0".encode()
        self._length = 0
        self._known: Mapping[str, Path] | None = None  # the folder's files, looked for once
        self._options: dict[str, tuple[_Option, ...]] = {}

    def _number(self) -> float:
        """From 0 up to 1."""
        self._choices += 1
        if self._choices > MOST_CHOICES:
            raise _too_much(self._template, f"it takes more than {MOST_CHOICES} choices")
        drawn = hashlib.sha256(self._of + str(self._choices).encode()).digest()
        return (int.from_bytes(drawn[:8]) >> 11) / 2**53

    def text(self, nodes: Iterable[_Node], depth: int, within: tuple[str, ...]) -> str:
        if depth > DEEPEST:
            raise _too_much(self._template, f"choices lead deeper than {DEEPEST}")
        parts = []
        for node in nodes:
            if isinstance(node, str):
                self._length += len(node)
                self._check_length(self._length)
                parts.append(node)
            elif isinstance(node, _Line):
                self._check_length(len(node.text))
                parts.append(self.text(_parsed(node.text), depth + 1, within))
            elif isinstance(node, _File):
                parts.append(self._of_file(node, depth, within))
            else:
                parts.append(self._of_choice(node, depth, within))
        return "".join(parts)

    def _check_length(self, length: int) -> None:
        if length > self._longest:
            raise _too_much(self._template, f"it makes more than {self._longest} characters")

    def _of_file(self, file: _File, depth: int, within: tuple[str, ...]) -> str:
        if self._folder is None:
            return f"__{file.name}__"
        self.chosen = True
        options = self._lines(file, within)
        return self.text(options[self._place(options)].nodes, depth + 1, (*within, file.name))

    def _of_choice(self, choice: _Choice, depth: int, within: tuple[str, ...]) -> str:
        self.chosen = True
        options, inner = list(choice.options), within
        only = options[0].nodes if len(options) == 1 else ()
        if len(only) == 1 and isinstance(only[0], _File) and self._folder is not None:
            options, inner = list(self._lines(only[0], within)), (*within, only[0].name)
        most = len(options) if choice.most is None else choice.most
        least, most = min(choice.least, most), max(choice.least, most)
        count = least if least == most else least + int(self._number() * (most - least + 1))
        chosen = []
        for _ in range(min(count, len(options))):
            option = options.pop(self._place(options))
            chosen.append(self.text(option.nodes, depth + 1, inner))
        return choice.joint.join(chosen)

    def _place(self, options: Sequence[_Option]) -> int:
        """As often as its weight says; where all weigh nothing, each as often."""
        weights = [option.weight for option in options]
        total = sum(weights)
        weights, total = (weights, total) if total > 0 else ([1.0] * len(weights), float(len(weights)))
        left = self._number() * total
        for place, weight in enumerate(weights):
            left -= weight
            if left < 0:
                return place
        return max(place for place, weight in enumerate(weights) if weight > 0)  # rounded away

    def _lines(self, file: _File, within: tuple[str, ...]) -> tuple[_Option, ...]:
        assert self._folder is not None
        if file.name in within:
            raise _too_much(self._template, f"the wildcard __{show(file.name, 60)}__ leads back to itself")
        if self._known is None:
            self._known = _listed(self._folder)
        if file.name not in self._options:
            paths = _paths(self._known, file.name, self._template)
            self._options[file.name] = tuple(option for path in paths for option in _options(path))
        return self._options[file.name]


# --- files


def _paths(known: Mapping[str, Path], name: str, template: str) -> list[Path]:
    """The files of that name; an asterisk stands for any letters."""
    if "*" in name:
        paths = [known[other] for other in sorted(known) if fnmatch.fnmatchcase(other, name.casefold())]
    else:
        paths = [known[name.casefold()]] if name.casefold() in known else []
    if not paths:
        near = nearest(name.casefold(), known, 3)
        listed = near_text(f"__{show(one, 60)}__" for one in near)
        raise Usage(
            f"no wildcard __{show(name, 60)}__{listed}",  # requests over HTTP learn no paths
            hint=_corrected(template, name, near[0] if near else ""),
            field="prompts",
            near=list(near),
        )
    return paths


def _corrected(template: str, name: str, near: str) -> str:
    """The prompt with the name that was probably meant; without one, with what is text then."""
    better = template.replace(f"__{name}__", f"__{near}__" if near else f"\\__{name}__")
    line = quoted(better)
    return line if better != template and len(line) <= 300 and show(line, 300) == line else "sdcli help prompts"


def _listed(folder: Path) -> Mapping[str, Path]:
    """Text files by their names, those in folders with these before. A link to a folder is not followed."""
    known: dict[str, Path] = {}
    for number, (name, path) in enumerate(_walked(folder, "", 0)):
        if number >= MOST_FILES:
            raise Usage(f"{show(folder.name, 200)} holds more than {MOST_FILES} wildcards", hint="--wildcards FOLDER")
        known.setdefault(name.casefold(), path)
    return known


def _walked(folder: Path, before: str, depth: int) -> Iterator[tuple[str, Path]]:
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise Usage(
            f"--wildcards: {show(folder.name, 200)} cannot be read: {show(error.strerror or error)}",
            hint="--wildcards FOLDER",
        ) from None
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            if depth < _FOLDERS_DEEP:
                yield from _walked(Path(entry.path), f"{before}{entry.name}/", depth + 1)
        elif entry.name.casefold().endswith(".txt"):
            yield before + entry.name[:-4], Path(entry.path)


def _options(path: Path) -> tuple[_Option, ...]:
    try:
        stat = path.stat()
        return _read(path, stat.st_mtime_ns, stat.st_size)
    except OSError as error:
        raise reading.cannot_read(path.name, error, hint="--wildcards FOLDER") from None


@functools.lru_cache(maxsize=256)
def _read(path: Path, changed: int, size: int) -> tuple[_Option, ...]:
    """A line is an option, which may be a template; it may begin with a weight. # and a space begin a comment."""
    try:
        text = reading.whole(path, LARGEST_FILE).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadFile(f"{show(path.name)} is not UTF-8 text", hint="--wildcards FOLDER") from None
    lines = (line.strip() for line in text.splitlines())
    options = tuple(_option(line) for line in lines if line and not re.match(r"#+(\s|$)", line))
    if not options:
        raise BadFile(f"{show(path.name)} has no line to choose", hint="--wildcards FOLDER")
    return options


def _option(line: str) -> _Option:
    weight = _WEIGHT.match(line)
    text = line[weight.end() :].strip() if weight else line
    return _Option(float(weight[1]) if weight else 1.0, (_Line(text),))


def folder_of(text: str | None) -> Path | None:
    """What --wildcards names; it must exist."""
    if text is None:
        return None
    path = Path(os.path.expanduser(text))
    if not path.is_dir():
        raise Usage(f"--wildcards: there is no folder {quoted(show(path, 200))}", hint="--wildcards FOLDER")
    return path
