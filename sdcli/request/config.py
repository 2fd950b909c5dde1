"""Where settings come from, in order, and where each value came from.

family < model files < user config < SDCLI_* environment < --preset < --settings-from < flags. All text, from
whichever source, is converted by one table, so that every source accepts the same spellings.
"""

from __future__ import annotations

import os
import os.path
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from sdcli import data, reading
from sdcli.errors import Usage
from sdcli.files import save
from sdcli.images import canvas, control
from sdcli.images import read as images
from sdcli.images.read import InputImage
from sdcli.near import near_text, nearest
from sdcli.request import jobs, samplers
from sdcli.request.options import OPTIONS, flag_of
from sdcli.request.request import UPSCALERS, Control, Reference, Request
from sdcli.terminal import quoted, show

LARGEST_FILE = 1 << 20
# Never saved: what to draw, and where to take settings from.
NOT_KEPT = frozenset({
    "prompts", "prompts_file", "settings_from", "seeds", "image", "mask", "control", "reference", "reference_mask",
})  # fmt: skip
NO_SETTINGS = ("SDCLI_HOME", "SDCLI_API_KEY")  # variables that say something else
SETTINGS: tuple[str, ...] = tuple(option.field for option in OPTIONS)
ORDER = ("family", "model", "user", "environment", "preset", "settings-from", "flag")


# --- one value from text


def _integer(field: str, text: str) -> int:
    if re.fullmatch(r"\s*[+-]?\d{1,18}\s*", text, re.ASCII):
        return int(text)
    flag = flag_of(field)
    raise Usage(f'{flag}: "{show(text, 60)}" is not a whole number', hint=f"{flag} {_digits(text) or _usual(field)}")


def _digits(text: str) -> str:
    """What a number was probably meant to be: 30.0, 30x, ~30."""
    match = re.search(r"[1-9]\d{0,3}", text, re.ASCII)
    return match[0] if match else ""


def _usual(field: str) -> object:
    return next(f.default for f in fields(Request) if f.name == field)


def _number(field: str, text: str) -> float:
    if re.fullmatch(r"\s*[+-]?(\d{1,18}(\.\d{0,18})?|\.\d{1,18})\s*", text, re.ASCII):
        return float(text)
    raise Usage(f'{flag_of(field)}: "{show(text, 60)}" is not a number', hint=f"{flag_of(field)} 7")


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
        near = nearest(word, choices, 1)
        raise Usage(
            f'{flag_of(field)}: "{show(text, 60)}" is not one of {", ".join(choices)}',
            hint=f"{flag_of(field)} {near[0] if near else choices[0]}",
        )
    return word


def _pins(field: str, text: str) -> dict[str, str]:
    """`placement=resident`, or several with commas. The planner knows which slots and choices exist."""
    pins: dict[str, str] = {}
    for part in text.split(","):
        slot, equals, choice = (piece.strip() for piece in part.partition("="))
        if not equals or not slot or not choice:
            raise Usage(f'--pin: "{show(part, 60)}" is not SLOT=CHOICE', hint="sdcli help memory")
        pins[slot] = choice
    return pins


def _text(field: str, text: str) -> str:
    return text


def _upscaler(field: str, text: str) -> str:
    """One that needs no model, else a file or a name."""
    word = text.strip().casefold()
    return word if word in UPSCALERS else _name(field, text)


def _name(field: str, text: str) -> str:
    if not text.strip():
        flag = flag_of(field)
        raise Usage(f"{flag}: the value is empty", hint=f"the same command without {flag}")
    return text


_BY_TYPE: dict[str, Callable[[str, str], Any]] = {"int": _integer, "float": _number, "bool": _yes}
# A field's own type says how its text is read; those below have a spelling of their own.
_CONVERT: dict[str, Callable[[str, str], Any]] = {
    **{field.name: _BY_TYPE[str(field.type)] for field in fields(Request) if str(field.type) in _BY_TYPE},
    **{option.field: _choice for option in OPTIONS if option.choices},
    "seeds": lambda field, text: jobs.parse_seeds(text),
    "size": lambda field, text: jobs.parse_sides(text),
    "max_vram": lambda field, text: jobs.parse_memory(text, "--max-vram"),
    "max_ram": lambda field, text: jobs.parse_memory(text, "--max-ram"),
    "strength": _number, "hires": _number, "hires_strength": _number, "hires_steps": _integer,
    "outpaint": lambda field, text: jobs.parse_outpaint(text),
    "refiner": lambda field, text: jobs.parse_refiner(_name(field, text)),
    "sampler": lambda field, text: samplers.find(text).name,
    "scheduler": lambda field, text: samplers.find_schedule(text),
    "upscaler": _upscaler,
    "pins": _pins,
    **dict.fromkeys(("model", "revision", "vae_file", "device", "output", "preset", "wildcards"), _name),
    **dict.fromkeys(("settings_from", "prompts_file", "reference_model", "reference_encoder"), _name),
}  # fmt: skip
_SEVERAL = frozenset({"prompts", "lora", "embeddings"})


def convert(field: str, value: Any) -> Any:
    """A setting's value from what a source holds: text, a list of texts, or TOML's own types."""
    if field == "image":
        return _images(_texts(field, value))
    if field == "control":
        return tuple(_control(text) for text in _texts(field, value))
    if field == "reference":
        return tuple(_reference(_name(field, text)) for text in _texts(field, value))
    if field == "reference_mask":
        return tuple(_mask(_name(field, text)) for text in _texts(field, value))
    if field == "mask" and isinstance(value, str):
        return _mask(_name(field, value))
    if field in _SEVERAL:
        return _texts(field, value) if field == "prompts" else tuple(_name(field, one) for one in _texts(field, value))
    if field == "pins" and isinstance(value, Mapping):
        return dict(zip(_texts(field, tuple(value)), _texts(field, tuple(value.values())), strict=True))
    if field == "pins":
        return {slot: choice for item in _texts(field, value) for slot, choice in _pins(field, item).items()}
    if isinstance(value, (dict, list, tuple)):
        text = ",".join(str(item) for item in value) if field == "seeds" else ""
        if not text:
            raise Usage(f"{field}: expected one value, got {type(value).__name__}", hint="sdcli config show")
        return jobs.parse_seeds(text)
    if isinstance(value, bool) and _CONVERT.get(field) is not _yes:
        raise Usage(f"{field}: expected a value, got {str(value).lower()}", hint="sdcli config show")
    return _CONVERT.get(field, _text)(field, str(value))


def _texts(field: str, value: Any) -> tuple[str, ...]:
    items = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if not all(isinstance(item, str) for item in items):
        raise Usage(f"{field}: expected text or a list of texts", hint="sdcli config show")
    return items


def _images(texts: Sequence[str]) -> tuple[InputImage, ...]:
    """What each file is; a folder or a pattern stands for its files."""
    return tuple(images.look(file) for text in texts for file in images.files_of(_name("image", text)))


_CONTROL = re.compile(
    r"(?P<net>[^=]+)=(?P<image>.+?)(?::(?P<weight>\d{0,3}(?:\.\d{1,6})?))?(?::(?P<start>\d(?:\.\d{1,6})?)-(?P<end>\d(?:\.\d{1,6})?))?",
    re.ASCII,
)


def _control(text: str) -> Control:
    """`canny.safetensors=room.png:0.8:0-0.6`; of a ControlNet Union `union.safetensors:canny=room.png`."""
    found = _CONTROL.fullmatch(text.strip())
    if found is None:
        raise Usage(f'--control: "{show(text, 80)}" is not MODEL=FILE', hint="--control canny.safetensors=room.png:0.8")
    net, shows = _told(found["net"])
    start, end = float(found["start"] or 0), float(found["end"] or 1)
    if not 0 <= start < end <= 1:
        raise Usage(
            f"--control: {start:g}-{end:g} is not a part of 0-1", hint=f"--control {quoted(found['net'])}=FILE:1:0-0.6"
        )
    return Control(
        net=net, image=images.look(found["image"]), weight=float(found["weight"] or 1), start=start, end=end,
        shows=shows,
    )  # fmt: skip


def _told(text: str) -> tuple[str, str]:
    """A net, and what its image shows where the text ends with that. A path may have colons of its own."""
    net, colon, shows = text.rpartition(":")
    if not colon or len(net) < 2 or re.search(r"[\\/]", shows) or os.path.exists(os.path.expanduser(text)):
        return text, ""
    known = control.shown_by(shows)
    if known is None:
        near = nearest(shows, control.SHOWN, 1) or ("canny",)
        raise Usage(
            f'--control: "{show(shows, 40)}" is not one of {", ".join(control.SHOWN)}',
            hint=f"--control {quoted(net)}:{near[0]}=FILE",
        )
    return net, known


def _mask(path: str) -> InputImage:
    mask = images.look(path)
    canvas.check_mask(mask)
    return mask


_WEIGHT = re.compile(r"\d{1,3}(?:\.\d{0,6})?|\.\d{1,6}", re.ASCII)


def _reference(text: str) -> Reference:
    """`face.png:0.6`. A path that exists wins, whatever colons it has."""
    name, _, weight = text.rpartition(":")
    if name and _WEIGHT.fullmatch(weight.strip()) and not os.path.isfile(text):
        return Reference(image=images.look(os.path.expanduser(name)), weight=float(weight))
    return Reference(image=images.look(os.path.expanduser(text)))


# --- sources


_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Sources(NamedTuple):
    """Each source as field → value, already converted. `family` and `model` follow once the model is known."""

    user: Mapping[str, Any] = _NOTHING
    environment: Mapping[str, Any] = _NOTHING
    preset: Mapping[str, Any] = _NOTHING
    settings_from: Mapping[str, Any] = _NOTHING
    not_taken: Mapping[str, Any] = _NOTHING  # what else that image holds, to be reported
    flag: Mapping[str, Any] = _NOTHING


def resolve(
    sources: Sources, *, family: Mapping[str, Any], model: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Every Request field that some source sets, and where from. Pins are merged slot by slot; the rest is replaced.

    A list of seeds decides the number of images, unless the same or a later source says that too.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    layers = (family, model, sources.user, sources.environment, sources.preset, sources.settings_from, sources.flag)
    names = {f.name for f in fields(Request)}
    schedule = None
    for origin, layer in zip(ORDER, layers, strict=True):
        if "scheduler" in layer:
            schedule, origins["sampler"] = layer["scheduler"], origin
        elif layer.get("sampler") and samplers.names_schedule(layer["sampler"]):
            schedule = None
        for name, value in unfolded(layer).items():
            if name in names:
                values[name] = {**values.get(name, {}), **value} if name == "pins" else value
                origins[name] = origin
        if "num_images" not in layer and len(layer.get("seeds", ())) > 1:
            values["num_images"], origins["num_images"] = len(layer["seeds"]), origin
    if schedule is not None and values.get("sampler"):
        values["sampler"] = samplers.with_schedule(values["sampler"], schedule).name
    return values, origins


def unfolded(layer: Mapping[str, Any]) -> dict[str, Any]:
    """Shorthands into the fields they stand for: size, dtype. A schedule is the sampler's, whichever layer names it."""
    values = {name: value for name, value in layer.items() if name not in ("size", "dtype", "scheduler")}
    if "size" in layer:
        width, height = layer["size"]
        values = {"width": width, "height": height, **values}
    pins = dict(values.get("pins", {}))
    if "dtype" in layer:
        pins["dtype"] = layer["dtype"]
    return {**values, "pins": pins} if pins else values


def from_flags(typed: Mapping[str, Any]) -> dict[str, Any]:
    return {name: convert(name, value) for name, value in typed.items() if name in SETTINGS}


def from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """SDCLI_STEPS=30 and the like. An unknown SDCLI_ name is a mistake worth stopping for."""
    variables = {f"SDCLI_{name.upper()}": name for name in SETTINGS if name not in NOT_KEPT}
    values: dict[str, Any] = {}
    for variable, text in environment.items():
        if not variable.startswith("SDCLI_") or variable in NO_SETTINGS or not text:
            continue
        if variable not in variables:
            near = near_text(nearest(variable, variables, 1))
            raise Usage(f"{show(variable, 60)} is not a setting{near}", hint="sdcli help environment")
        try:
            values[variables[variable]] = convert(variables[variable], text)
        except Usage as error:
            raise Usage(f"{variable}: {error.message}", hint="sdcli help environment") from None
    return values


def from_table(table: Mapping[str, Any], path: Path | None = None) -> dict[str, Any]:
    """The settings of a TOML table; with `path`, its file, a mistake is reported with its line."""
    values: dict[str, Any] = {}
    for name, value in table.items():
        hint = "sdcli config show" if path is None else _correction(name, value)
        if name not in SETTINGS or name in NOT_KEPT:
            near = near_text(nearest(name, [setting for setting in SETTINGS if setting not in NOT_KEPT], 1))
            raise Usage(f'{_position(path, name)}no setting "{show(name, 60)}"{near}', hint=hint)
        try:
            values[name] = convert(name, value)
        except Usage as error:
            raise Usage(f"{_position(path, name)}{error.message}", hint=hint) from None
    return values


def _correction(name: str, value: Any) -> str:
    """The command that removes a wrong line from the user's file; a table is more than a line."""
    return "sdcli config path" if isinstance(value, Mapping) else f"sdcli config unset {quoted(show(name, 60))}"


def _position(path: Path | None, name: str) -> str:
    """`config.toml:3: ` to begin a message with; without the line where the key is not easily found."""
    if path is None:
        return ""
    lines = _text_of(path).split("\n")
    number = next((number for number, line in enumerate(lines, 1) if _sets(line, name)), None)
    return f"{show(path)}:{number}: " if number else f"{show(path)}: "


def _sets(line: str, name: str) -> bool:
    """Whether a line of TOML looks like setting this key; only a parser knows for sure."""
    key = re.escape(name)
    return re.match(rf"""\s*(?:{key}|"{key}"|'{key}')\s*[=.]|\s*\[\s*{key}\s*\]""", line) is not None


def read_toml(path: Path) -> dict[str, Any]:
    """The file's table, empty if there is no file; a mistake in it is Usage with its line."""
    text = _text_of(path)
    if not text:
        return {}
    import tomllib

    try:
        return tomllib.loads(text)
    except RecursionError:
        raise Usage(f"{show(path)}: nested too deeply", hint="sdcli config path") from None
    except ValueError as error:  # TOMLDecodeError, and numbers too long for Python
        line = re.search(r"\(at line (\d{1,9}), column \d+\)$", str(error))
        message = str(error)[: line.start()].rstrip() if line else str(error)
        position = f"{show(path)}:{line[1]}" if line else show(path)
        raise Usage(f"{position}: {show(message, 200)}", hint="sdcli config path") from None


def _text_of(path: Path) -> str:
    """The file as it is, line endings included; empty if there is none."""
    try:
        raw = reading.whole(path, LARGEST_FILE)
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        raise Usage(
            f"{show(path)} cannot be read: {show(getattr(error, 'strerror', None) or error)}", hint="sdcli config path"
        ) from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise Usage(f"{show(path)}:{line}: not UTF-8 text", hint="sdcli config path") from None


def from_user(path: Path) -> dict[str, Any]:
    table = read_toml(path)
    table.pop("folders", None)  # model folders: read where models are looked for
    return from_table(table, path)


# --- presets


class Preset(NamedTuple):
    name: str
    description: str
    path: Path


def presets(user_folder: Path) -> tuple[Preset, ...]:
    """All presets, by name. A user's own hides a shipped one of the same name."""
    return tuple(
        Preset(name=name, description=str(read_toml(path).get("description", "")), path=path)
        for name, path in sorted(_preset_files(user_folder).items())
    )


def _preset_files(user_folder: Path) -> dict[str, Path]:
    return {path.stem: path for folder in (data.presets(), user_folder) for path in sorted(folder.glob("*.toml"))}


_WITHOUT_PRESET = "the same command without --preset   (or fix its file)"


def from_preset(name: str, user_folder: Path) -> dict[str, Any]:
    """What a preset sets; only its own file is read."""
    files = _preset_files(user_folder)
    if name not in files:
        near = nearest(name, files) or sorted(files)
        raise Usage(
            f'no preset "{show(name, 60)}"; available: {", ".join(show(name, 60) for name in near)}',
            hint=f"--preset {quoted(near[0])}" if near else "sdcli config path",
        )
    table = read_toml(files[name])
    table.pop("description", None)
    if "preset" in table:
        raise Usage(f"{_position(files[name], 'preset')}a preset cannot name another", hint=_WITHOUT_PRESET)
    try:
        return from_table(table, files[name])
    except Usage as error:
        raise Usage(error.message, hint=_WITHOUT_PRESET) from None


# --- changing the user's file


def set_value(path: Path, name: str, text: str) -> None:
    """Save `name`; other lines and comments of the file stay as they are."""
    if any(0xD800 <= ord(character) < 0xE000 for character in text):
        raise Usage("the value is not valid Unicode text", hint="sdcli config show")
    value = from_table({name: text})[name]
    jobs.check(Request(prompts=("a cat",), **_of_request({name: value})))
    number = isinstance(value, (int, float)) and name not in ("max_vram", "max_ram")
    _rewrite(path, name, value if number else text)  # text as it was typed: it is converted again when read


def _of_request(layer: Mapping[str, Any]) -> dict[str, Any]:
    names = {f.name for f in fields(Request)}
    return {name: value for name, value in unfolded(layer).items() if name in names}


def unset_value(path: Path, name: str) -> None:
    if name not in read_toml(path):
        raise Usage(f'"{show(name, 60)}" is not set in {show(path)}', hint="sdcli config show")
    _rewrite(path, name, None)


def folders(path: Path) -> tuple[Path, ...]:
    """The model folders the user added: the key `folders` of the user's file."""
    listed = read_toml(path).get("folders", [])
    if not isinstance(listed, list) or not all(isinstance(item, str) and item for item in listed):
        raise Usage(f"{show(path)}: folders is not a list of folders", hint="sdcli config path")
    return tuple(Path(os.path.expanduser(item)) for item in listed)


def set_folders(path: Path, paths: Iterable[Path]) -> None:
    """Save these folders, and no others."""
    listed = [str(folder) for folder in paths]
    if listed or "folders" in read_toml(path):
        _rewrite(path, "folders", listed or None)


def _rewrite(path: Path, name: str, value: Any) -> None:
    """The file with this value of this key, or without the key; everything else in it stays as it is."""
    import tomllib

    import tomlkit  # slow, and few runs change settings
    from tomlkit.exceptions import TOMLKitError

    before, text = read_toml(path), _text_of(path)
    expected = {key: item for key, item in before.items() if key != name} | ({} if value is None else {name: value})
    try:
        document = tomlkit.parse(text)
        if value is None:
            document.remove(name)
        else:
            item = tomlkit.item(value)
            item.trivia.trail = "\r\n" if "\r\n" in text else "\n"
            document[name] = item
        after = tomlkit.dumps(document)
        as_expected = tomllib.loads(after) == expected
    except (TOMLKitError, ValueError, RecursionError):
        as_expected = False
    if not as_expected:
        raise Usage(f'"{show(name, 60)}" cannot be changed here; edit the file yourself', hint="sdcli config path")
    save(path, after, hint="sdcli config path")
