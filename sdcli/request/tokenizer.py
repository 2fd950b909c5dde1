"""CLIP's tokens without torch: for counting and chunking before anything heavy is imported."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from sdcli import data
from sdcli.errors import BadFile, names_memory
from sdcli.request import prompt
from sdcli.terminal import show

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Words = Mapping[str, tuple[int, ...]]  # a word that stands for learned vectors → their numbers, a vocabulary's size up
_NO_WORDS: Words = MappingProxyType({})
# Letters in runs, digits one by one, everything else in runs; English endings apart.
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class Vocabulary(NamedTuple):
    """The tokens a text encoder was trained with. `size` is the first number that is none of them."""

    tokenize: Callable[[str], list[int]]  # without start and end marks
    size: int
    start: int
    end: int


@functools.cache
def vocabulary(folder: str | None = None) -> Vocabulary:
    """The vocabulary in a model's own folder; else CLIP's, which Stable Diffusion 1.5 and XL share."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    path = Path(folder) if folder else data.component_folder("clip")
    try:
        model = BPE.from_file(
            str(path / "vocab.json"), str(path / "merges.txt"),
            continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token="<|endoftext|>",
        )  # fmt: skip
    except Exception as error:  # the library raises nothing more exact
        if names_memory(str(error)):
            raise MemoryError(str(error)) from None
        raise BadFile(f"{show(path)} is damaged: {show(error, 120)}") from None
    tokenizer = cut_as_clip_does(Tokenizer(model))
    start, end = tokenizer.token_to_id("<|startoftext|>"), tokenizer.token_to_id("<|endoftext|>")
    if start is None or end is None:
        raise BadFile(f"{show(path / 'vocab.json')} has no start or no end mark")

    def tokenize(text: str) -> list[int]:  # a lone surrogate has no UTF-8 form, and so no token
        return list(tokenizer.encode(text.encode("utf-8", "replace").decode("utf-8")).ids)

    return Vocabulary(tokenize, tokenizer.get_vocab_size(), start, end)


def cut_as_clip_does(tokenizer: Tokenizer) -> Tokenizer:
    """Lower case, single spaces, words and their bytes: before any vocabulary."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_WORDS), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


def with_words(words: Words, folder: str | None = None) -> prompt.Tokenize:
    """The vocabulary's tokens, but each of `words` becomes its numbers, in upper or lower case. The longest
    wins."""
    plain = vocabulary(folder).tokenize
    ordered = sorted(words, key=len, reverse=True)
    pattern = re.compile("|".join(f"({_alone(word)})" for word in ordered), re.IGNORECASE)

    def ids(text: str) -> list[int]:
        numbers: list[int] = []
        done = 0
        for match in pattern.finditer(text):
            numbers += [*plain(text[done : match.start()]), *words[ordered[(match.lastindex or 1) - 1]]]
            done = match.end()
        return numbers + plain(text[done:])

    return ids if words else plain


def alone(word: str) -> re.Pattern[str]:
    """Where `with_words` finds this word in a text."""
    return re.compile(_alone(word), re.IGNORECASE)


def _alone(word: str) -> str:
    """Not inside another word; a word that ends in a symbol, such as <cat>, needs no boundary there."""
    before = r"(?<!\w)" if re.match(r"\w", word) else ""
    after = r"(?!\w)" if re.search(r"\w$", word) else ""
    return before + re.escape(word) + after


def chunks(
    text: str, emphasis: str = "a1111", words: Words = _NO_WORDS, folder: str | None = None
) -> tuple[prompt.Chunk, ...]:
    whole = {ids[0]: len(ids) for ids in words.values()}
    return prompt.chunks(prompt.parse(text, emphasis), with_words(words, folder), whole)
