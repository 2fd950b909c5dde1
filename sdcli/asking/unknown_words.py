"""The words that the built-in model was not trained with."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

from sdcli.models.model import Model
from sdcli.plan.plan import Adapter, PlanWarning
from sdcli.request.request import Job
from sdcli.terminal import show

CODE = "unknown-words"
WORDS = "words.txt"  # in its folder: the words it was trained with, one a line, in small letters
MOST_NAMED = 3


def unknown_words(model: Model, jobs: Iterable[Job], adapters: Iterable[Adapter] = ()) -> tuple[PlanWarning, ...]:
    """The words of the prompts that the built-in model was not trained with; of any other model nothing is known."""
    vocabulary = _words_of(model)
    if not vocabulary:
        return ()
    from sdcli.request import words  # not for other models

    for adapter in adapters:
        if adapter.kind == "embedding":
            vocabulary |= set(words.unknown(adapter.word or adapter.name, vocabulary, "none"))
    prompts = dict.fromkeys((job.prompt, job.emphasis) for job in jobs)
    unknown = dict.fromkeys(word for text, emphasis in prompts for word in words.unknown(text, vocabulary, emphasis))
    if not unknown:
        return ()
    message = f"the built-in model does not know {_listed(list(unknown))}; it will guess"
    return (PlanWarning(code=CODE, message=message),)


def _words_of(model: Model) -> frozenset[str]:
    if model.kind != "builtin" or model.path is None:
        return frozenset()
    return _words_in(model.path)


@cache
def _words_in(folder: str) -> frozenset[str]:
    try:
        return frozenset((Path(folder) / WORDS).read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError):
        return frozenset()


def _listed(unknown: list[str]) -> str:
    named = [f"“{show(word, 40)}”" for word in unknown[:MOST_NAMED]]
    more = len(unknown) - len(named)
    if more:
        return ", ".join(named) + f" and {more} more"
    return named[0] if len(named) == 1 else ", ".join(named[:-1]) + f" and {named[-1]}"
