"""The command line as it was typed: read the way the command reads it, and made anew with what was wrong corrected."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sdcli.errors import Usage
from sdcli.near import ANY, nearest
from sdcli.terminal import quoted, show

LONGEST = 1000  # characters; a longer line is no longer one to paste
_SAME = re.compile(r"the same command (with(?:out)?) (?=-)")
_REMARK = re.compile(r"\s{2,}\(.*\)$")


class Flag(NamedTuple):
    option: str  # the parameter's name, the same for all its flags
    takes_value: bool
    repeatable: bool


class Command(NamedTuple):
    name: str  # "bench compare"
    flags: Mapping[str, Flag]
    draws: bool  # its plain words are prompts
    on_images: bool = False  # they are images


class Piece(NamedTuple):
    """An option with its value, or a plain word (flag "")."""

    option: str = ""
    flag: str = ""
    value: str | None = None
    joined: bool = False  # --flag=value, -Wvalue

    def words(self) -> list[str]:
        if self.value is None:
            return [self.flag]
        if self.joined:
            return [f"{self.flag}{'=' if self.flag.startswith('--') else ''}{self.value}"]
        return [self.flag, self.value] if self.flag else [self.value]


# --- reading


def command_of(words: Sequence[str]) -> tuple[Command, list[str]]:
    """The command that the words begin with, and the words after it."""
    import typer

    from sdcli.cli import app

    rest = list(words)
    command: Any = typer.main.get_command(app.build(rest[0] if rest else ""))
    names: list[str] = []
    while rest and rest[0] in getattr(command, "commands", {}):
        command = command.commands[rest[0]]
        names.append(rest.pop(0))
    flags = {
        flag: Flag(one.name, not one.is_flag and not one.count, one.multiple)
        for one in command.params
        if one.param_type_name == "option"
        for flag in (*one.opts, *one.secondary_opts)
    }
    plain = [one.metavar for one in command.params if one.param_type_name == "argument"]
    return Command(" ".join(names), flags, draws="PROMPT" in plain, on_images="IMAGE" in plain), rest


def pieces(words: Sequence[str], flags: Mapping[str, Flag]) -> list[Piece]:
    return list(_pieces(list(words), flags))


def _pieces(left: list[str], flags: Mapping[str, Flag]) -> Iterator[Piece]:
    while left:
        word = left.pop(0)
        name, equals, value = word.partition("=")
        if word == "--":
            yield Piece(flag="--")
            yield from (Piece(value=plain) for plain in left)
            return
        if name in flags and equals and name.startswith("--"):
            yield Piece(flags[name].option, name, value, joined=True)
        elif word in flags and flags[word].takes_value and left:
            yield Piece(flags[word].option, word, left.pop(0))
        elif word in flags:
            yield Piece(flags[word].option, word)
        elif word[:2] in flags and not word.startswith("--"):  # -W990, -qW 990
            short = flags[word[:2]]
            if short.takes_value:
                yield Piece(short.option, word[:2], word[2:], joined=True)
            else:
                yield Piece(short.option, word[:2])
                left.insert(0, "-" + word[2:])
        elif word.startswith("-") and word != "-":
            yield Piece(flag=word)
        else:
            yield Piece(value=word)


# --- made anew


def corrected(hint: str, words: Sequence[str]) -> str:
    """The hint as a whole line to paste, where it only names what to change: `--width 992`, `"a red cat"`,
    `the same command without --preset`. Any other hint, and one that changes nothing, is left as it is."""
    same = _SAME.match(hint)
    text = hint[same.end() :] if same else hint
    if not text.startswith(("-", '"', "'")) or "\n" in text:
        return hint
    remark = _REMARK.search(text)
    aside = remark[0] if remark else ""
    try:
        changes = shlex.split(text.removesuffix(aside))
    except ValueError:
        return hint
    command, rest = command_of(words)
    typed = pieces(rest, command.flags)
    wanted = pieces(changes, {"-m": Flag("model", takes_value=True, repeatable=False), **command.flags})
    if same and any(not piece.option for piece in wanted):  # a sentence goes on behind the flags
        return hint
    if any(piece.flag not in ("", "--") and not piece.option for piece in wanted):  # no flag of this command
        return hint
    if same and same[1] == "without":
        made = [piece for piece in typed if piece.option not in {one.option for one in wanted}]
    else:
        made = _changed(typed, wanted, command, adding=bool(same))
    line = _line(command.name, made)
    return line + aside if made != typed and line else hint


def renamed(words: Sequence[str], wrong: str, right: str) -> str:
    """The line with one flag spelled as it was meant."""
    return joined([right + word.removeprefix(wrong) if _names(word, wrong) else word for word in words])


def _names(word: str, flag: str) -> bool:
    return word == flag or word.startswith(flag + "=")


def _changed(typed: list[Piece], wanted: list[Piece], command: Command, adding: bool = False) -> list[Piece]:
    """`adding`: of a repeatable option one more, instead of one in the place of what it corrects."""
    plain = [piece for piece in wanted if not piece.flag]
    made = typed
    if plain:
        first = next((number for number, piece in enumerate(typed) if not piece.flag), 0)
        kept = [piece for piece in typed if piece.flag and (piece.option != "prompts" or (piece.value or "").strip())]
        made = [*kept[:first], *plain, *kept[first:]]
    for piece in wanted:
        if piece.flag:
            made = _with(made, piece, command, adding)
    return made


def _with(typed: list[Piece], wanted: Piece, command: Command, adding: bool) -> list[Piece]:
    """`wanted` in the place of what it corrects, as that was spelled, else at the end."""
    if wanted.flag in ("-m", "--model") and not (command.draws or command.on_images):
        plain = [number for number, piece in enumerate(typed) if not piece.flag]
        if plain:  # pull, models check, inspect-unet: the model is a plain word there
            return [*typed[: plain[-1]], Piece(value=wanted.value), *typed[plain[-1] + 1 :]]
    if wanted.flag not in command.flags:
        return typed
    if wanted.option == "size":  # a side of its own would go before it
        typed = [piece for piece in typed if piece.option not in ("width", "height")]
    if wanted.option == "pins" and _key(wanted.value) == "dtype" and any(piece.option == "dtype" for piece in typed):
        wanted = Piece("dtype", "--dtype", (wanted.value or "").partition("=")[2])  # as it was spelled, which wins
    sized = _sized(typed, wanted)
    if sized is not None:
        return sized
    alike = [number for number, piece in enumerate(typed) if piece.option == wanted.option]
    if alike and command.flags[wanted.flag].repeatable:
        alike = _meant(typed, alike, wanted, adding)
    if not alike:
        end = next((number for number, piece in enumerate(typed) if piece.flag == "--"), len(typed))
        return [*typed[:end], wanted, *typed[end:]]
    last = alike[-1]
    put = wanted if wanted.value is None else typed[last]._replace(value=wanted.value)
    return [put if number == last else piece for number, piece in enumerate(typed) if number not in alike[:-1]]


def _meant(typed: list[Piece], alike: list[int], wanted: Piece, adding: bool) -> list[int]:
    """Of several --pin or --lora the one that names the same thing, else the one that is spelled most like it."""
    keys = {number: _key(typed[number].value) for number in alike}
    same = [number for number, key in keys.items() if key == _key(wanted.value)]
    if same or adding:
        return same[-1:]
    near = nearest(_key(wanted.value), keys.values(), 1, ANY)
    return [number for number, key in keys.items() if key == near[0]][-1:]


def _key(value: str | None) -> str:
    return re.split(r"[=:]", value or "")[0]


def _sized(typed: list[Piece], wanted: Piece) -> list[Piece] | None:
    """A side is corrected within --size where it came from there."""
    if wanted.option not in ("width", "height") or any(piece.option == wanted.option for piece in typed):
        return None
    for number, piece in enumerate(typed):
        sides = re.fullmatch(r"(\d+)\D(\d+)", piece.value or "") if piece.option == "size" else None
        if sides:
            text = f"{wanted.value}x{sides[2]}" if wanted.option == "width" else f"{sides[1]}x{wanted.value}"
            return [*typed[:number], piece._replace(value=text), *typed[number + 1 :]]
    return None


def _line(name: str, made: list[Piece]) -> str:
    return joined([*name.split(), *(word for piece in made for word in piece.words())])


def joined(words: Sequence[str]) -> str:
    """`sdcli` and these words, to paste; nothing where they cannot be shown as they are, or are too many."""
    line = " ".join(quoted(word) for word in ["sdcli", *words])
    return line if len(line) <= LONGEST and show(line, LONGEST) == line else ""


def with_one_prompt(words: Sequence[str]) -> list[str]:
    """What was typed without a command, as generate would take it; nothing where it does not look like prompts."""
    command, _ = command_of(["generate"])
    typed = pieces(words, command.flags)
    plain = [piece.value or "" for piece in typed if not piece.flag]
    if any(len(text.split()) > 1 for text in plain):
        return list(words)
    if not all(text.strip(",.;:!?'").isalpha() for text in plain):  # img2img x.png
        return []
    return [word for piece in _changed(typed, [Piece(value=" ".join(plain))], command) for word in piece.words()]


# --- before the command reads it


def refuse_flags_as_values(words: list[str]) -> None:
    """`--negative-prompt --engine fake` would draw without what --engine names; a value was forgotten."""
    if not any(one.startswith("-") and other.startswith("--") for one, other in itertools.pairwise(words)):
        return
    command, rest = command_of(words)
    for piece in pieces(rest, command.flags):
        if piece.value and not piece.joined and piece.flag and piece.value.partition("=")[0] in command.flags:
            at = len(words) - 1 - words[::-1].index(piece.value)  # the last: those before it may be meant
            meant = joined([*words[:at], "VALUE", *words[at:]]) or f"sdcli {command.name} --help"
            raise Usage(
                f"{piece.flag} needs a value, and {show(piece.value, 60)} is an option",
                hint=f"{meant}   (or {piece.flag}={quoted(show(piece.value))} to mean that text)",
            )


def prompts_in_order(words: list[str]) -> list[str]:
    """Prompts with and without -p are drawn as they were typed: each plain word becomes one with -p, where both are."""
    if not {"-p", "--prompt"} & {word.partition("=")[0] for word in words}:
        return words
    command, rest = command_of(words)
    typed = pieces(rest, command.flags)
    plain = [piece for piece in typed if not piece.flag]
    if not command.draws or not plain or Piece(flag="--") in typed:
        return words
    if len(plain) > 1 and all(len((piece.value or "").split()) == 1 for piece in plain):
        return words  # a sentence without quotes, which is to be refused
    made = [piece._replace(flag="-p") if piece in plain else piece for piece in typed]
    return [*command.name.split(), *(word for piece in made for word in piece.words())]
