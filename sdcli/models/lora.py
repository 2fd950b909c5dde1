"""What a LoRA adds to: its layers, under every naming in use, matched with a model's. Only headers are read."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdcli import reading
from sdcli.errors import BadFile
from sdcli.models import keys
from sdcli.models import text as encoders
from sdcli.models.families import families
from sdcli.models.headers import Header, Tensor, read_header
from sdcli.models.kinds import TITLES, Kind, kind_of
from sdcli.models.model import ENCODERS, Model
from sdcli.models.unet import analyse
from sdcli.terminal import show

# suffixes of the two factors, of their scales, and of other kinds of adapters
ENDINGS = re.compile(
    r"(?P<module>.+?)[._](?P<part>"
    r"lora_down|lora_up|lora_mid|lora_A|lora_B|lora\.down|lora\.up|lora_linear_layer\.down|lora_linear_layer\.up"
    r"|alpha|dora_scale|lora_magnitude_vector|hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2|diff_b|diff"
    r")(?:\.default)?(?:\.weight)?$"
)
DOWN = ("lora_down", "lora_A", "lora.down", "lora_linear_layer.down")
UP = ("lora_up", "lora_B", "lora.up", "lora_linear_layer.up")
MID = "lora_mid"
# Kinds called LoRA too that add in another way; skipping them silently would draw another image.
_OTHER_KINDS = (
    ("dora_scale", "a DoRA"), ("lora_magnitude_vector", "a DoRA"), ("hada", "a LoHa"), ("lokr", "a LoKr"),
    ("diff", "a difference of whole weights"),
)  # fmt: skip
_PEFT = "base_model.model."
LARGEST_CONFIG = 1 << 20
_OLD_PROJECTIONS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
_ANOTHER = "-m sd15"

Modules = Mapping[str, Mapping[str, str]]  # module's name in the file → part → tensor's name


# --- layers of a model, by every name that a LoRA may give them


@dataclass(frozen=True)
class Layer:
    """A layer whose weight can be added to; `name` is diffusers' one within the component."""

    component: str
    name: str
    shape: tuple[int, ...]

    @property
    def shown(self) -> str:
        return self.name if self.component == "unet" else f"{self.component}.{self.name}"


def layers(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, Layer]:
    """The layers of these components: kohya's flat names, diffusers' dotted ones, and the original UNet's of both."""
    named = _unet_layers(configs["unet"]) if "unet" in configs else {}
    present = [name for name in ENCODERS if name in configs]
    for number, component in enumerate(present, 1):
        kohya = "lora_te" if len(present) == 1 else f"lora_te{number}"
        named |= _text_layers(configs[component], component, kohya)
    return named


def _unet_layers(config: Mapping[str, Any]) -> dict[str, Layer]:
    unet = analyse(config, height=64, width=64)
    shapes = {leaf.name: leaf.weight_shape for leaf in unet.leaves if leaf.kind in ("convolution", "linear")}
    original = keys.original_names(shapes)
    named: dict[str, Layer] = {}
    for name, shape in shapes.items():
        layer = Layer("unet", name, shape)
        for path in {name, original.get(name, name)}:
            flat = path.replace(".", "_")
            named |= {f"unet.{path}": layer, f"lora_unet_{flat}": layer, path: layer, f"diffusion_model.{path}": layer}
    return named


def _text_layers(config: Mapping[str, Any], component: str, kohya: str) -> dict[str, Layer]:
    named: dict[str, Layer] = {}
    for leaf in encoders.analyse(config).leaves:
        if leaf.kind != "linear":
            continue
        path = leaf.name if leaf.name.startswith(("text_model.", "text_projection")) else f"text_model.{leaf.name}"
        layer = Layer(component, path, leaf.weight_shape)
        named |= {f"{component}.{path}": layer, f"{kohya}_{path.replace('.', '_')}": layer}
        named[f"{component}.{path.removeprefix('text_model.')}"] = layer  # as transformers 5 names them
    return named


# --- layers of a LoRA


def modules(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Names of tensors by the layer they belong to, without the prefixes of wrappers."""
    by_module: dict[str, dict[str, str]] = {}
    for name in names:
        ending = ENDINGS.match(name)
        module, part = (ending["module"], ending["part"]) if ending else (name, "other")
        by_module.setdefault(_path(module), {})[part] = name
    return by_module


def _path(module: str) -> str:
    """Without the prefixes of training wrappers and the extra levels of old attention processors."""
    module = module.removeprefix(_PEFT).removeprefix("transformer.")
    old = re.fullmatch(r"(.+)\.processor\.(to_q|to_k|to_v|to_out)(?:_lora)?", module)
    if old:
        return f"{old[1]}.{'to_out.0' if old[2] == 'to_out' else old[2]}"
    old = re.fullmatch(r"(.+\.self_attn)\.(to_q|to_k|to_v|to_out)(?:_lora)?", module)
    return f"{old[1]}.{_OLD_PROJECTIONS[old[2]]}" if old else module


def factors(parts: Mapping[str, Tensor]) -> tuple[Tensor | None, Tensor | None]:
    """(down, up)"""
    down = next((parts[part] for part in DOWN if part in parts), None)
    up = next((parts[part] for part in UP if part in parts), None)
    return down, up


def fits(parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> bool:
    """Whether both factors are there and their product has the layer's shape; other adapters go by name alone."""
    down, up = factors(parts)
    if "alpha" in parts and parts["alpha"].parameters != 1:
        return False
    if down is None and up is None:
        return any(part.startswith(("hada", "lokr", "diff")) for part in parts)
    if down is None or up is None or len(down.shape) < 2 or len(up.shape) < 2:
        return False
    chained = down.shape[1] == shape[1] and up.shape[0] == shape[0] and down.shape[0] == up.shape[1]
    if not chained or not down.shape[0] or any(side != 1 for side in up.shape[2:]):
        return False
    middle = parts.get(MID)
    if middle is None:
        return _kernel(down.shape) == _kernel(shape)
    rank = down.shape[0]
    return middle.shape[:2] == (rank, rank) and _kernel(middle.shape) == _kernel(shape) and _kernel(down.shape) == ()


def _kernel(shape: tuple[int, ...]) -> tuple[int, ...]:
    """() for a linear layer and a 1×1 convolution: they are the same product."""
    kernel = shape[2:]
    return () if all(side == 1 for side in kernel) else kernel


# --- a LoRA matched with a model


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """One layer of the LoRA and the layer of the model it adds to. `parts` are the names of its tensors."""

    layer: Layer
    parts: Mapping[str, str]
    rank: int
    alpha: float | None = None  # from peft's settings; a tensor `alpha` among the parts wins, neither means the rank
    root: bool = False  # divided by the root of the rank (rsLoRA)

    def scaling(self, alpha: float | None) -> float:
        """What the product of the factors is multiplied by; `alpha` as the tensor says, if there is one."""
        alpha = self.alpha if alpha is None else alpha
        if alpha is None:
            return 1.0
        return alpha / (math.sqrt(self.rank) if self.root else self.rank)


@dataclass(frozen=True, kw_only=True)
class Match:
    path: Path
    layout: str  # diffusers | kohya
    fitted: tuple[Fitted, ...]
    unmatched: tuple[str, ...] = ()

    @property
    def of(self) -> int:
        return len(self.fitted) + len(self.unmatched)


@dataclass(frozen=True, kw_only=True)
class _PeftSettings:
    """What newer diffusers store as metadata instead of alpha tensors."""

    alphas: Mapping[str, float] = field(default_factory=dict)  # component → alpha
    patterns: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # component → layer's name → alpha
    root: frozenset[str] = frozenset()
    decomposed: bool = False

    def alpha(self, layer: Layer) -> float | None:
        for name, alpha in self.patterns.get(layer.component, {}).items():
            if layer.name == name or layer.name.endswith(f".{name}"):
                return alpha
        return self.alphas.get(layer.component)


def match(path: Path, model: Model) -> Match:
    """The LoRA's layers and where they go in `model`. One that fits nothing, or another family's, is BadFile."""
    header = read_header(path)
    settings = _peft_settings(header)
    check(header, model, decomposed=settings.decomposed)
    parts_by_module = modules(header.tensors)
    named = layers({name: component.config for name, component in model.components.items() if name != "vae"})
    fitted, unmatched = [], []
    for name, parts in parts_by_module.items():
        layer = named.get(name)
        tensors = {part: header.tensors[tensor] for part, tensor in parts.items()}
        if layer is None or not fits(tensors, layer.shape):
            unmatched.append(name)
            continue
        down, _ = factors(tensors)
        rank = down.shape[0] if down is not None else 0
        root = layer.component in settings.root
        fitted.append(Fitted(layer=layer, parts=parts, rank=rank, alpha=settings.alpha(layer), root=root))
    if not fitted:
        raise _nothing_fits(path, kind_of(header), model, unmatched)
    return Match(path=path, layout=kind_of(header).layout, fitted=tuple(fitted), unmatched=tuple(unmatched))


def check(header: Header, model: Model, *, decomposed: bool = False) -> None:
    """Refuse what is not a LoRA, or is one for another family, by its header alone."""
    _check_kind(header.path, kind_of(header), model)
    _check_other_kinds(header.path, modules(header.tensors), decomposed)


def _check_kind(path: Path, kind: Kind, model: Model) -> None:
    if kind.kind != "lora":
        title = TITLES.get(kind.kind, kind.kind)
        raise BadFile(f"{show(path)} is {title}, not a LoRA", hint="sdcli help formats")
    # names are not enough: two thirds of the layers of a Stable Diffusion 2 LoRA fit one in 1.5
    if kind.family and model.family in TITLES and kind.family != model.family:
        raise wrong_family(path, "a LoRA", kind.family, model)


def wrong_family(path: Path, what: str, family: str, model: Model) -> BadFile:
    base, other = TITLES.get(family, family), TITLES.get(model.family, model.family)
    known = families()[family].known if family in families() else None
    hint = f"-m {known.alias}" if known is not None else _ANOTHER
    return BadFile(f"{show(path)} is {what} for {base}; {show(model.name, 80)} is {other}", hint=hint)


def _nothing_fits(path: Path, kind: Kind, model: Model, unmatched: list[str]) -> BadFile:
    base = f" for {TITLES[kind.family]}" if kind.family in TITLES else ""
    title = TITLES.get(model.family, "of another kind")
    seen = f", such as {show(unmatched[0], 100)}" if unmatched else ""
    return BadFile(
        f"{show(path)} is a LoRA{base}; none of its {len(unmatched)} layers{seen}, fits {show(model.name, 80)}, "
        f"which is {title}",
        hint=f'sdcli inspect-unet sd15 --lora "{show(path, 300)}"',
    )


def _check_other_kinds(path: Path, by_module: Modules, decomposed: bool) -> None:
    parts = {part for one in by_module.values() for part in one}
    title = next((title for start, title in _OTHER_KINDS if any(part.startswith(start) for part in parts)), None)
    title = title or ("a DoRA" if decomposed else None)
    if title:
        raise BadFile(
            f"{show(path)} is {title}, a variant of LoRA that sdcli does not support yet",
            hint=f'sdcli inspect-unet sd15 --lora "{show(path, 300)}"',
        )


def _peft_settings(header: Header) -> _PeftSettings:
    """peft's settings: `lora_adapter_metadata` in the file, each key with the component in front; or, as peft itself
    saves a UNet's, in adapter_config.json beside it."""
    data = _json(header.metadata.get("lora_adapter_metadata", "{}"), f"{show(header.path)}: its lora_adapter_metadata")
    file = header.path.parent / "adapter_config.json"
    if any(name.startswith(_PEFT) for name in header.tensors) and file.is_file():
        data |= {f"unet.{key}": value for key, value in _settings_in(file).items()}
    components = ("unet", *ENCODERS)
    alphas = {name: alpha for name in components if (alpha := _number(data.get(f"{name}.lora_alpha"))) is not None}
    patterns = {name: _numbers(data.get(f"{name}.alpha_pattern")) for name in components}
    return _PeftSettings(
        alphas=alphas,
        patterns=patterns,
        root=frozenset(name for name in components if data.get(f"{name}.use_rslora") is True),
        decomposed=any(data.get(f"{name}.use_dora") is True for name in components),
    )


def _settings_in(path: Path) -> dict[str, Any]:
    try:
        return _json(reading.whole(path, LARGEST_CONFIG), show(path))
    except OSError as error:
        raise reading.cannot_read(path, error) from None


def _json(text: str | bytes, what: str) -> dict[str, Any]:
    try:
        data = reading.parse(text)
    except reading.NotJson as error:
        raise BadFile(f"{what} is damaged: it {error}") from None
    return data if isinstance(data, dict) else {}


def _number(value: Any) -> float | None:
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else None


def _numbers(value: Any) -> dict[str, float]:
    if not isinstance(value, dict):
        return {}
    return {name: number for name, item in value.items() if (number := _number(item)) is not None}
