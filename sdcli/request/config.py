"""Where settings come from, in order, and where each value came from.

family < model files < user config < SDCLI_* environment < --preset < --settings-from < flags. All text, from
whichever source, is converted by one table, so that every source accepts the same spellings.
"""

from __future__ import annotations

import difflib
import os
import re
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from sdcli import data
from sdcli.errors import CannotWrite, Usage
from sdcli.request import jobs, samplers
from sdcli.request.options import OPTIONS, flag_of
from sdcli.request.request import Request
from sdcli.terminal import show

LARGEST_FILE = 1 << 20
# Not settings that stay: what to draw, and where to take settings from.
NOT_KEPT = frozenset({"prompts", "prompts_file", "settings_from", "seeds"})
SETTINGS: tuple[str, ...] = tuple(option.field for option in OPTIONS)
ORDER = ("family", "model", "user", "environment", "preset", "settings-from", "flag")


# --- one value from text


def _integer(field: str, text: str) -> int:
    if re.fullmatch(r"\s*[+-]?\d{1,18}\s*", text, re.ASCII):
        return int(text)
    raise Usage(f'{flag_of(field)}: "{show(text, 60)}" is not a whole number', hint=f"sdcli help {_topic(field)}")


def _topic(field: str) -> str:
    return "memory" if field in ("max_vram", "max_ram", "pins") else "environment"


def _number(field: str, text: str) -> float:
    if re.fullmatch(r"\s*[+-]?(\d{1,18}(\.\d{0,18})?|\.\d{1,18})\s*", text, re.ASCII):
        return float(text)
    raise Usage(f'{flag_of(field)}: "{show(text, 60)}" is not a number', hint='sdcli generate "a cat" --guidance 7')


def _yes(field: str, text: str) -> bool:
    word = text.strip().casefold()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off"):
        return False
    raise Usage(f'{flag_of(field)}: "{show(text, 60)}" is neither yes nor no', hint="sdcli help environment")


def _choice(field: str, text: str) -> str:
    choices = next(option.choices for option in OPTIONS if option.field == field)
    word = text.strip().casefold()
    if word not in choices:
        near = difflib.get_close_matches(word, choices, n=1)
        raise Usage(
            f'{flag_of(field)}: "{show(text, 60)}" is none of {", ".join(choices)}',
            hint=f'sdcli generate "a cat" {flag_of(field)} {near[0] if near else choices[0]}',
        )
    return word


def _pins(field: str, text: str) -> dict[str, str]:
    """`placement=resident`, or several with commas. Which slots and choices there are, the planner knows."""
    pins: dict[str, str] = {}
    for part in text.split(","):
        slot, equals, choice = (piece.strip() for piece in part.partition("="))
        if not equals or not slot or not choice:
            raise Usage(f'--pin: "{show(part, 60)}" is not SLOT=CHOICE', hint="sdcli help memory")
        pins[slot] = choice
    return pins


def _text(field: str, text: str) -> str:
    return text


_CONVERT: dict[str, Callable[[str, str], Any]] = {
    **dict.fromkeys(("steps", "num_images", "width", "height", "clip_skip", "batch_size"), _integer),
    **dict.fromkeys(("filmstrip", "preview_every"), _integer),
    **dict.fromkeys(("batch_invariant", "offline", "fallback", "overwrite", "compile"), _yes),
    **dict.fromkeys(("emphasis", "format", "metadata", "dtype"), _choice),
    "guidance": _number,
    "seeds": lambda field, text: jobs.parse_seeds(text),
    "size": lambda field, text: jobs.parse_sides(text),
    "max_vram": lambda field, text: jobs.parse_memory(text, "--max-vram"),
    "max_ram": lambda field, text: jobs.parse_memory(text, "--max-ram"),
    "sampler": lambda field, text: samplers.find(text).name,
    "pins": _pins,
}  # fmt: skip
_SEVERAL = frozenset({"prompts", "lora", "embeddings"})


def convert(field: str, given: Any) -> Any:
    """A setting's value from what a source holds: text, a list of texts, or TOML's own types."""
    if field in _SEVERAL:
        return tuple(str(item) for item in given) if isinstance(given, (list, tuple)) else (str(given),)
    if field == "pins" and isinstance(given, (list, tuple)):
        return {slot: choice for item in given for slot, choice in _pins(field, str(item)).items()}
    if field == "pins" and isinstance(given, Mapping):
        return {str(slot): str(choice) for slot, choice in given.items()}
    if isinstance(given, (dict, list, tuple)):
        text = ",".join(str(item) for item in given) if field == "seeds" else ""
        if not text:
            raise Usage(f"{field}: expected one value, got {type(given).__name__}", hint="sdcli config show")
        return jobs.parse_seeds(text)
    if isinstance(given, bool) and _CONVERT.get(field) is not _yes:
        raise Usage(f"{field}: expected a value, got {str(given).lower()}", hint="sdcli config show")
    return _CONVERT.get(field, _text)(field, str(given))


# --- sources


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Each source as field → value, already converted. `family` and `model` follow once the model is known."""

    user: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    preset: Mapping[str, Any] = field(default_factory=dict)
    settings_from: Mapping[str, Any] = field(default_factory=dict)
    flag: Mapping[str, Any] = field(default_factory=dict)


def resolve(
    sources: Sources, *, family: Mapping[str, Any], model: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Every Request field that some source sets, and where from. Pins are merged slot by slot; the rest is replaced."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    layers = (family, model, sources.user, sources.environment, sources.preset, sources.settings_from, sources.flag)
    known = {f.name for f in fields(Request)}
    for origin, layer in zip(ORDER, layers, strict=True):
        for name, value in unfolded(layer).items():
            if name in known:
                values[name] = {**values.get(name, {}), **value} if name == "pins" else value
                origins[name] = origin
    return values, origins


def unfolded(layer: Mapping[str, Any]) -> dict[str, Any]:
    """Shorthands into the fields they stand for: size, dtype, compile."""
    values = {name: value for name, value in layer.items() if name not in ("size", "dtype", "compile")}
    if "size" in layer:
        width, height = layer["size"]
        values = {"width": width, "height": height, **values}
    pins = dict(values.get("pins", {}))
    if "dtype" in layer:
        pins["dtype"] = layer["dtype"]
    if layer.get("compile"):
        pins["execution"] = "compile"
    return {**values, "pins": pins} if pins else values


def from_flags(typed: Mapping[str, Any]) -> dict[str, Any]:
    return {name: convert(name, given) for name, given in typed.items() if name in SETTINGS}


def from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """SDCLI_STEPS=30 and the like. An unknown SDCLI_ name is a mistake worth stopping for."""
    kept = {f"SDCLI_{name.upper()}": name for name in SETTINGS if name not in NOT_KEPT}
    values: dict[str, Any] = {}
    for variable, text in environment.items():
        if not variable.startswith("SDCLI_") or variable == "SDCLI_HOME":
            continue
        if variable not in kept:
            near = difflib.get_close_matches(variable, kept, n=1)
            tail = f"; near: {near[0]}" if near else ""
            raise Usage(f"{show(variable, 60)} is no setting{tail}", hint="sdcli help environment")
        values[kept[variable]] = convert(kept[variable], text)
    return values


def from_table(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The settings of a TOML table; `where` is its file, for messages."""
    values: dict[str, Any] = {}
    for name, given in table.items():
        if name not in SETTINGS or name in NOT_KEPT:
            near = difflib.get_close_matches(name, [n for n in SETTINGS if n not in NOT_KEPT], n=1)
            tail = f"; near: {near[0]}" if near else ""
            raise Usage(f'{show(where)}: no setting "{show(name, 60)}"{tail}', hint="sdcli config show")
        try:
            values[name] = convert(name, given)
        except Usage as error:
            raise Usage(f"{show(where)}: {error.message}", hint="sdcli config show") from None
    return values


def read_toml(path: Path) -> dict[str, Any]:
    """The file's table, empty if there is no file; a mistake in it is Usage with its line."""
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise Usage(f"{show(path)} cannot be read: {show(error.strerror or error)}", hint="sdcli config path") from None
    if len(raw) > LARGEST_FILE:
        raise Usage(f"{show(path)} is larger than 1 MiB", hint="sdcli config path")
    try:
        return tomllib.loads(raw.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise Usage(f"{show(path)}: {show(error, 200)}", hint="sdcli config path") from None


def from_user(path: Path) -> dict[str, Any]:
    table = read_toml(path)
    table.pop("folders", None)  # model folders: read by whoever looks for models
    return from_table(table, str(path))


# --- presets


@dataclass(frozen=True, kw_only=True)
class Preset:
    name: str
    description: str
    path: Path


def presets(user_folder: Path) -> tuple[Preset, ...]:
    """The user's own first: a name of theirs hides a shipped one."""
    found: dict[str, Preset] = {}
    for folder in (user_folder, data.presets()):
        for path in sorted(folder.glob("*.toml")) if folder.is_dir() else ():
            if path.stem not in found:
                description = str(read_toml(path).get("description", ""))
                found[path.stem] = Preset(name=path.stem, description=description, path=path)
    return tuple(found[name] for name in sorted(found))


def from_preset(name: str, user_folder: Path) -> dict[str, Any]:
    known = {preset.name: preset for preset in presets(user_folder)}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or sorted(known)
        raise Usage(
            f'no preset "{show(name, 60)}"; there is {", ".join(near)}',
            hint=f'sdcli generate "a cat" --preset {near[0]}' if near else "sdcli config path",
        )
    table = read_toml(known[name].path)
    table.pop("description", None)
    return from_table(table, str(known[name].path))


# --- changing the user's file


def set_value(path: Path, name: str, text: str) -> None:
    """Keep `name`; other lines and comments of the file stay as they are."""
    value = from_table({name: text}, str(path))[name]
    _rewrite(path, name, f"{name} = {_toml(name, value, text)}")


def unset_value(path: Path, name: str) -> None:
    if name not in read_toml(path):
        raise Usage(f'"{show(name, 60)}" is not set in {show(path)}', hint="sdcli config show")
    _rewrite(path, name, None)


def folders(path: Path) -> tuple[Path, ...]:
    """The folders with models that were added, from the key `folders` of the user's file."""
    held = read_toml(path).get("folders", [])
    if not isinstance(held, list) or not all(isinstance(item, str) and item for item in held):
        raise Usage(f"{show(path)}: folders is no list of folders", hint="sdcli config path")
    return tuple(Path(item).expanduser() for item in held)


def set_folders(path: Path, wanted: Iterable[Path]) -> None:
    """Keep these folders, and no others."""
    quoted = ['"' + "".join(_escaped(character) for character in str(folder)) + '"' for folder in wanted]
    if quoted or "folders" in read_toml(path):
        _rewrite(path, "folders", f"folders = [{', '.join(quoted)}]" if quoted else None)


def _toml(name: str, value: Any, text: str) -> str:
    """Numbers and switches plainly, all else as the text that was given: it is converted again when read."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)) and name not in ("max_vram", "max_ram"):
        return repr(value)
    escaped = "".join(_escaped(character) for character in text)
    return f'"{escaped}"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if ord(character) < 0x20 or 0x7F <= ord(character) < 0xA0:
        return f"\\u{ord(character):04x}"
    if 0xD800 <= ord(character) < 0xE000:
        raise Usage("the value is not text", hint="sdcli config show")
    return character


def _rewrite(path: Path, name: str, line: str | None) -> None:
    before = read_toml(path)
    lines = path.read_text(encoding="utf-8").splitlines() if before or path.exists() else []
    kept: list[str] = []
    at: int | None = None
    for old in lines:
        if re.match(rf'\s*(?:{name}|"{name}")\s*=', old):
            at = len(kept) if at is None else at
        else:
            kept.append(old)
    if line is not None:
        first_table = next((i for i, old in enumerate(kept) if re.match(r"\s*\[", old)), len(kept))
        kept.insert(at if at is not None else first_table, line)
    text = "\n".join(kept) + "\n" if kept else ""
    _refuse_broken(text, name, line, before)
    _replace(path, text)


def _refuse_broken(text: str, name: str, line: str | None, before: Mapping[str, Any]) -> None:
    """A value over several lines cannot be edited line by line; then the file is left as it is."""
    try:
        after = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        after = None
    others = {key: value for key, value in before.items() if key != name}
    if (
        after is None
        or {k: v for k, v in after.items() if k != name} != others
        or (name in after) != (line is not None)
    ):
        raise Usage(f'"{show(name, 60)}" spans several lines; edit the file yourself', hint="sdcli config path")


def _replace(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".config-", suffix=".part")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise CannotWrite(f"{show(path)}: {show(error.strerror or error)}", hint="sdcli config path") from None
