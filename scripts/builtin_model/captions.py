"""What an image may be called: names and tags in three languages, in sentences, with colours, grounds and styles."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from scripts.builtin_model.artwork import Thing
from scripts.builtin_model.images import GROUNDS, HUES
from scripts.builtin_model.synonyms import HELD_OUT

LANGUAGES = ("en", "it", "zh")
SENTENCES = {
    "en": (
        "{}", "a {}", "a {}", "a {}", "an {}", "the {}", "{} emoji", "a picture of a {}", "a drawing of a {}",
        "one {}", "a cute {}", "draw a {}", "an emoji of a {}", "a photo of a {}", "a small {}", "my {}",
    ),
    "it": ("{}", "un {}", "una {}", "il {}", "la {}", "un'{}", "emoji di {}", "disegno di {}", "uno {}"),
    "zh": ("{}", "一只{}", "一个{}", "一辆{}", "一朵{}", "一张{}的图片", "一棵{}", "一条{}", "{}表情"),
}  # fmt: skip
COLOURS = {
    "en": {name: name for name in (*HUES, *GROUNDS)},
    "it": {
        "red": "rosso", "orange": "arancione", "yellow": "giallo", "green": "verde", "blue": "blu", "purple": "viola",
        "pink": "rosa", "brown": "marrone", "grey": "grigio", "black": "nero", "white": "bianco",
    },
    "zh": {
        "red": "红色", "orange": "橙色", "yellow": "黄色", "green": "绿色", "blue": "蓝色", "purple": "紫色",
        "pink": "粉色", "brown": "棕色", "grey": "灰色", "black": "黑色", "white": "白色",
    },
}  # fmt: skip
COLOURED = {
    "en": ("a {colour} {name}", "{colour} {name}", "one {colour} {name}"),
    "it": ("un {name} {colour}", "una {name} {colour}", "{name} {colour}"),
    "zh": ("{colour}的{name}", "一只{colour}{name}", "{colour}{name}"),
}
GROUNDED = {
    "en": ("{} on a {colour} ground", "{} on a {colour} background", "{}, {colour} background", "{} on {colour}"),
    "it": ("{} su sfondo {colour}", "{}, sfondo {colour}"),
    "zh": ("{colour}背景的{}", "{}，{colour}背景"),
}
STYLES = ("flat", "3d", "noto")
STYLED = {
    "en": ("{name}, {style}", "{name}, {style}", "{style} {name}", "{name} in {style} style", "{name}, {style} style"),
    "it": ("{name}, {style}", "{name} {style}", "{name}, stile {style}"),
    "zh": ("{name}, {style}", "{name}，{style}", "{style}{name}"),
}
COUNTED = {
    "en": {2: ("two {}", "2 {}", "a pair of {}"), 3: ("three {}", "3 {}"), 4: ("four {}", "4 {}")},
    "it": {2: ("due {}", "2 {}"), 3: ("tre {}", "3 {}"), 4: ("quattro {}", "4 {}")},
    "zh": {2: ("两个{}", "两只{}"), 3: ("三个{}", "三只{}"), 4: ("四个{}", "四只{}")},
}
PAIRED = {
    "en": ("a {} and a {}", "{} and {}", "a {} next to a {}", "a {} beside a {}", "{} with {}"),
    "it": ("un {} e un {}", "una {} e un {}", "{} e {}", "un {} accanto a un {}"),
    "zh": ("{}和{}", "一只{}和一只{}", "一个{}和一个{}"),
}


@dataclass(frozen=True)
class Meaning:
    """What a caption says, and so what an image must show. None: up to the seed, alone, or as the artwork is."""

    thing: int
    style: str | None = None
    hue: str | None = None
    ground: str | None = None
    count: int = 1
    beside: int | None = None

    def plain(self) -> bool:
        return self.kind() == "plain"

    def kind(self) -> str:
        said = {
            "hue": self.hue is not None, "ground": self.ground is not None, "beside": self.beside is not None,
            "count": self.count > 1,
        }  # fmt: skip
        return next((kind for kind, given in said.items() if given), "plain")


class Captions:
    def __init__(
        self, things: Sequence[Thing], usual: Callable[[int], str],
        fitting: Callable[[int, str], bool] = lambda thing, tag: True,
    ) -> None:  # fmt: skip
        """`usual`: the style when none is named; `fitting`: whether a tag means this thing more than the others."""
        self.usual = usual
        self.names = {language: _names(things, language) for language in LANGUAGES}
        self.names["en"] = [
            [names[0], *(name for name in names[1:] if fitting(thing, name))]
            for thing, names in enumerate(self.names["en"])
        ]

    def any(self, meaning: Meaning, random: np.random.Generator) -> str:
        """One of the ways to say it; English most of the time."""
        language = LANGUAGES[random.choice(3, p=(0.6, 0.2, 0.2))]
        name = self.name(meaning.thing, language, random)
        beside = None if meaning.beside is None else self.name(meaning.beside, language, random)
        return self.said(name, meaning, language, random, beside)

    def name(self, thing: int, language: str, random: np.random.Generator) -> str:
        names = self.names[language][thing]
        return names[0] if random.random() < 0.6 else names[random.integers(len(names))]

    def said(
        self, name: str, meaning: Meaning, language: str, random: np.random.Generator, beside: str | None = None
    ) -> str:
        """The usual style is named now and then, another one always."""

        def one(patterns: Sequence[str]) -> str:
            return patterns[random.integers(len(patterns))]

        colours = COLOURS[language]
        if beside is not None:
            text = one(PAIRED[language]).format(name, beside)
        elif meaning.count > 1:
            text = one(COUNTED[language][meaning.count]).format(several(name) if language == "en" else name)
        elif meaning.hue:
            text = one(COLOURED[language]).format(name=name, colour=colours[meaning.hue])
        else:
            text = one(SENTENCES[language]).format(name)
        if meaning.ground:
            text = one(GROUNDED[language]).format(text, colour=colours[meaning.ground])
        if meaning.style and (meaning.style != self.usual(meaning.thing) or random.random() < 0.25):
            text = one(STYLED[language]).format(name=text, style=meaning.style)
        return text

    def words(self) -> list[str]:
        """Every word of every name and sentence."""
        found: set[str] = set()
        for language in LANGUAGES:
            texts = [name for names in self.names[language] for name in names]
            texts += [*SENTENCES[language], *COLOURED[language], *GROUNDED[language], *COLOURS[language].values()]
            texts += [*STYLED[language], *STYLES, *PAIRED[language]]
            texts += [pattern for patterns in COUNTED[language].values() for pattern in patterns]
            if language == "en":
                texts += [several(names[0]) for names in self.names[language]]
            pieces = [piece for text in texts for piece in re.split(r"\{\w*\}", text)]
            found |= set(pieces) if language == "zh" else {word for piece in pieces for word in piece.split()}
        plain = {word.strip(" ,，.'’“”!").lower() for word in found}
        return sorted(word for word in plain if word)


def several(name: str) -> str:
    """The plural of an English name, by its last word."""
    if name.endswith(("s", "x", "z", "ch", "sh")):
        return name if name.endswith("s") and not name.endswith("ss") else name + "es"
    if name.endswith("y") and name[-2:-1] not in "aeiou":
        return name[:-1] + "ies"
    return name + "s"


def _names(things: Sequence[Thing], language: str) -> list[list[str]]:
    """The label first, then its last word and the tags, where no other thing has them."""
    colours = {word for table in COLOURS.values() for word in table.values()}
    shared = Counter(tag.lower() for thing in things for tag in {*thing.tags[language]})
    labels = Counter(word for thing in things for word in {*thing.names.get(language, thing.name).lower().split()})
    found = []
    for thing in things:
        label = thing.names.get(language, thing.name).replace("’", "'").lower()
        own = [label]
        words = label.split()
        for word in (words[0], words[-1]) if language == "it" else (words[-1],):
            if len(words) > 1 and labels[word] == 1 and not shared[word] and word not in colours:
                own.append(word)
        own += [tag.lower() for tag in thing.tags[language] if shared[tag.lower()] == 1 and tag.lower() not in colours]
        found.append([label, *(name for name in dict.fromkeys(own[1:]) if name not in HELD_OUT and name != label)])
    return found
