"""What a picture may be called: names and tags in three languages, in sentences, with colours, grounds and styles."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from scripts.builtin_model.artwork import Thing
from scripts.builtin_model.pictures import GROUNDS, HUES
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


@dataclass(frozen=True)
class Meaning:
    """What a caption says, and so what a picture must show. None: not said, white, or as the artwork is."""

    thing: int | None
    hue: str | None = None
    ground: str | None = None


class Captions:
    def __init__(self, things: Sequence[Thing], fitting: Callable[[int, str], bool] = lambda thing, tag: True) -> None:
        """`fitting`: whether an English tag means this thing more than the others."""
        self.names = {language: _names(things, language) for language in LANGUAGES}
        self.names["en"] = [
            [names[0], *(name for name in names[1:] if fitting(thing, name))]
            for thing, names in enumerate(self.names["en"])
        ]

    def any(self, meaning: Meaning, random: np.random.Generator) -> str:
        """One of the ways to say it; English half of the time."""
        assert meaning.thing is not None
        language = LANGUAGES[random.choice(3, p=(0.6, 0.2, 0.2))]
        names = self.names[language][meaning.thing]
        name = names[0] if random.random() < 0.5 else names[random.integers(len(names))]
        return self.said(name, meaning, language, random)

    def said(self, name: str, meaning: Meaning, language: str, random: np.random.Generator) -> str:
        colours = COLOURS[language]
        if meaning.hue:
            pattern = COLOURED[language][random.integers(len(COLOURED[language]))]
            text = pattern.format(name=name, colour=colours[meaning.hue])
        else:
            patterns = SENTENCES[language]
            text = patterns[random.integers(len(patterns))].format(name)
        if meaning.ground:
            patterns = GROUNDED[language]
            text = patterns[random.integers(len(patterns))].format(text, colour=colours[meaning.ground])
        return text

    def words(self) -> list[str]:
        """Every word of every name and sentence."""
        found: set[str] = set()
        for language in LANGUAGES:
            texts = [name for names in self.names[language] for name in names]
            texts += [*SENTENCES[language], *COLOURED[language], *GROUNDED[language], *COLOURS[language].values()]
            pieces = [piece for text in texts for piece in re.split(r"\{\w*\}", text)]
            found |= set(pieces) if language == "zh" else {word for piece in pieces for word in piece.split()}
        plain = {word.strip(" ,，.'’“”!").lower() for word in found}
        return sorted(word for word in plain if word)


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
        found.append([name for name in dict.fromkeys(own) if name not in HELD_OUT])
    return found
