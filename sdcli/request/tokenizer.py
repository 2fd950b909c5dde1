"""CLIP's tokens without torch: for counting and chunking before anything heavy is imported."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

from sdcli import data
from sdcli.errors import Bug
from sdcli.request import prompt

VOCABULARY = 49_408
Words = Mapping[str, tuple[int, ...]]  # a word that stands for learned vectors → their numbers, VOCABULARY and up
_NO_WORDS: Words = MappingProxyType({})
# Letters in runs, digits one by one, everything else in runs; English endings apart.
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@functools.cache
def tokenize() -> Callable[[str], list[int]]:
    """Text → token ids, without start and end marks."""
    from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    folder = data.component_folder("clip")
    model = BPE.from_file(
        str(folder / "vocab.json"), str(folder / "merges.txt"),
        continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token="<|endoftext|>",
    )  # fmt: skip
    tokenizer = Tokenizer(model)
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise Bug(f"the tokenizer knows {tokenizer.get_vocab_size()} tokens instead of {VOCABULARY}")
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_WORDS), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return lambda text: list(tokenizer.encode(_encodable(text)).ids)


def _encodable(text: str) -> str:
    """A lone surrogate has no UTF-8 form, and so no token."""
    return text.encode("utf-8", "replace").decode("utf-8")


def with_words(words: Words) -> prompt.Tokenize:
    """The same, but each of `words` becomes the numbers given for it, in any case of letters. The longest wins."""
    plain = tokenize()
    ordered = sorted(words, key=len, reverse=True)
    pattern = re.compile("|".join(f"({_alone(word)})" for word in ordered), re.IGNORECASE)

    def ids(text: str) -> list[int]:
        found: list[int] = []
        done = 0
        for match in pattern.finditer(text):
            found += [*plain(text[done : match.start()]), *words[ordered[(match.lastindex or 1) - 1]]]
            done = match.end()
        return found + plain(text[done:])

    return ids if words else plain


def _alone(word: str) -> str:
    """Not inside another word; where it ends in a sign of its own, such as <cat>, that is end enough."""
    before = r"(?<!\w)" if re.match(r"\w", word) else ""
    after = r"(?!\w)" if re.search(r"\w$", word) else ""
    return before + re.escape(word) + after


def chunks(text: str, emphasis: str = "a1111", words: Words = _NO_WORDS) -> tuple[prompt.Chunk, ...]:
    whole = {ids[0]: len(ids) for ids in words.values()}
    return prompt.chunks(prompt.parse(text, emphasis), with_words(words), whole)


def count(text: str, emphasis: str = "a1111") -> int:
    return sum(len(chunk) for chunk in chunks(text, emphasis))
