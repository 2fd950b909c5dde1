"""IP-Adapters and their image encoders: a file and a folder become values; whatever does not fit is refused."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdcli.errors import BadFile, ModelMissing, Usage
from sdcli.models import configs, folder, reference_walk, unet, vision
from sdcli.models.families import find
from sdcli.models.headers import Header, read_header
from sdcli.models.kinds import TITLES, kind_of, part_of
from sdcli.models.model import Component, Model
from sdcli.models.reference_walk import FULL, HEAD, PLAIN, PLUS
from sdcli.terminal import show

PART, ENCODER = "ip_adapter", "image_encoder"  # the components
# Where in SDXL's UNet an image's style enters, and where its layout does.
_WITHIN = {"style": "up_blocks.0.attentions.1.", "layout": "down_blocks.2.attentions.1."}
_HINT = "--reference-model ip-adapter_sd15.safetensors   (an IP-Adapter or IP-Adapter Plus as .safetensors)"
_ENCODER_HINT = "--reference-encoder FOLDER   (with config.json and model.safetensors)"
# Numbers in each row and in the vector of a whole image, by which the usual encoders are known.
_ENCODERS = {(1280, 1024): "CLIP ViT-H/14", (1664, 1280): "CLIP ViT-bigG/14", (1024, 768): "CLIP ViT-L/14"}

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class IPAdapter:
    name: str  # short, fit to show
    family: str  # whose models it is for; "" where its widths are those of no published family
    component: Component

    @property
    def path(self) -> Path:
        return Path(self.component.files[0])

    @property
    def looks_at_rows(self) -> bool:
        """Whether it looks at every row of an encoded image, and not at one vector of all of it."""
        return bool(self.component.config["kind"] != PLAIN)

    @property
    def embedding(self) -> int:
        return int(self.component.config["embedding"])


@dataclass(frozen=True, kw_only=True)
class ImageEncoder:
    path: Path
    component: Component

    @property
    def title(self) -> str:
        return _ENCODERS.get((self.hidden, self.projection), "unknown")

    @property
    def hidden(self) -> int:
        return vision.analyse(self.component.config).hidden

    @property
    def projection(self) -> int:
        return vision.analyse(self.component.config).projection


# --- the adapter


def read(path: Path) -> IPAdapter:
    header = read_header(path)
    shapes = {name: tensor.shape for name, tensor in header.tensors.items()}
    if _needs_a_face(shapes):
        raise BadFile(
            f"{show(path)} is an IP-Adapter FaceID: it looks at what a face recogniser makes of an image, which sdcli "
            "has none of",
            hint=_HINT,
        )
    kind = kind_of(header)
    if kind.kind != "ip-adapter":
        seen = f"; it contains {', '.join(show(name, 80) for name in kind.seen)}" if kind.seen else ""
        raise BadFile(f"{show(path)} is {TITLES.get(kind.kind, kind.kind)}, not an IP-Adapter{seen}", hint=_HINT)
    layers = _layers(shapes, path)
    projection = {name.removeprefix("image_proj."): shape for name, shape in shapes.items() if "image_proj." in name}
    config = {**_projection(projection, layers[0][1], path), "layers": [outward for outward, _ in layers]}
    return IPAdapter(name=path.stem, family=kind.family, component=_component(header, config))


def _needs_a_face(shapes: Shapes) -> bool:
    mine = {name for name in shapes if name.startswith(("image_proj.", "ip_adapter."))}
    if any("perceiver_resampler" in name or "_lora." in name for name in mine):
        return True
    names = {"image_proj.proj.0.weight", "image_proj.norm.weight"}
    return names <= mine and "image_proj.proj.3.weight" not in mine


_KEYS = re.compile(r"ip_adapter\.(\d{1,4})\.to_k_ip\.weight")


def _layers(shapes: Shapes, path: Path) -> list[tuple[int, int]]:
    """The shape of each layer's keys and values. They are numbered 1, 3, 5 …: the even ones attend to no text."""
    numbers = sorted(int(match[1]) for name in shapes if (match := _KEYS.fullmatch(name)))
    found = []
    for place, number in enumerate(numbers):
        key, value = (shapes.get(f"ip_adapter.{number}.to_{part}_ip.weight", ()) for part in "kv")
        if number != 2 * place + 1 or len(key) != 2 or key != value or key[1] != shapes[_first(numbers)][1]:
            raise _incomplete(path)
        found.append((key[0], key[1]))
    if not found:
        raise _incomplete(path)
    return found


def _first(numbers: Sequence[int]) -> str:
    return f"ip_adapter.{numbers[0]}.to_k_ip.weight"


def _incomplete(path: Path) -> BadFile:
    return BadFile(f"{show(path)} is an incomplete IP-Adapter", hint=_HINT)


def _projection(shapes: Shapes, width: int, path: Path) -> dict[str, Any]:
    """What turns an encoded image into tokens, from its tensors."""

    def shape(name: str, sides: int) -> tuple[int, ...]:
        found = shapes.get(name, ())
        if len(found) != sides:
            raise _incomplete(path)
        return found

    if "proj.weight" in shapes:
        outward, inward = shape("proj.weight", 2)
        if outward % width:
            raise _incomplete(path)
        return {"kind": PLAIN, "embedding": inward, "tokens": outward // width, "width": width}
    if "proj.3.weight" in shapes:
        return {"kind": FULL, "embedding": shape("proj.0.weight", 2)[1], "tokens": 1, "width": width}
    _, tokens, hidden = shape("latents", 3)
    numbers = {int(match[1]) for name in shapes if (match := re.match(r"layers\.(\d{1,3})\.", name))}
    inner = shape("layers.0.0.to_q.weight", 2)[0]
    if shape("proj_out.weight", 2)[0] != width or inner % HEAD:
        raise _incomplete(path)
    return {
        "kind": PLUS, "embedding": shape("proj_in.weight", 2)[1], "tokens": tokens, "width": width,
        "hidden": hidden, "heads": inner // HEAD, "depth": max(numbers) + 1, "positions": 1,
    }  # fmt: skip


def _component(header: Header, config: Mapping[str, Any]) -> Component:
    used = {name: tensor for name, tensor in header.tensors.items() if name.startswith(("image_proj.", "ip_adapter."))}
    stored, described = part_of(used.items()), reference_walk.parameters(config)
    if stored is None or stored.parameters < described:
        raise BadFile(
            f"{show(header.path)} is an incomplete IP-Adapter: it has "
            f"{(stored.parameters if stored else 0) / 1e6:,.1f} of {described / 1e6:,.1f} million parameters",
            hint=_HINT,
        )
    return Component(
        parameters=described, stored_bytes=stored.bytes, stored_dtype=stored.dtype, config=config,
        files=(str(header.path),),
    )  # fmt: skip


# --- and the model


def cross_attentions(config: Mapping[str, Any]) -> tuple[tuple[str, int], ...]:
    """The layers of a UNet that attend to text, and their widths, in the order in which IP-Adapters number them: the
    middle's come last."""
    leaves = unet.analyse(config, height=64, width=64).leaves
    found = [(leaf.name.removesuffix(".to_k"), leaf.weight_shape[0]) for leaf in leaves if _reads_text(leaf.name)]
    return tuple(sorted(found, key=lambda one: one[0].startswith("mid_block.")))


def _reads_text(name: str) -> bool:
    return name.endswith(".attn2.to_k")


def check_fits(adapter: IPAdapter, model: Model) -> None:
    """That it was made for models such as this one."""
    config, own = model.components["unet"].config, adapter.component.config
    expected = [width for _, width in cross_attentions(config)], config.get("cross_attention_dim")
    if (own["layers"], own["width"]) == expected:
        return
    if adapter.family and adapter.family != model.family:
        raise BadFile(
            f"{show(adapter.name, 80)} is an IP-Adapter for {_title(adapter.family)}; {show(model.name, 80)} is "
            f"{_title(model.family)}",
            hint=f"an IP-Adapter for {_title(model.family)}",
        )
    raise BadFile(
        f"{show(adapter.name, 80)} was made for another UNet than that of {show(model.name, 80)}: its tokens have "
        f"{own['width']} numbers and enter {len(own['layers'])} layers, not {show(expected[1], 20)} and "
        f"{len(expected[0])}",
        hint=f"an IP-Adapter for {_title(model.family)}",
    )


def _title(family: str) -> str:
    return TITLES.get(family) or find(family).title


def acts_in(layers: str, name: str) -> bool:
    """Whether a layer of the UNet is one of `all`, of those of `style` or of `layout`."""
    return layers == "all" or name.startswith(_WITHIN[layers])


def check_layers(layers: str, model: Model) -> None:
    if layers != "all" and model.family != "sdxl":
        raise Usage(
            f"where in a UNet an image's {layers} enters is known for SDXL only; {show(model.name, 80)} is "
            f"{_title(model.family)}",
            hint="--reference-layers all",
        )
    if not any(acts_in(layers, name) for name, _ in cross_attentions(model.components["unet"].config)):
        raise Usage(
            f"{show(model.name, 80)} has no layer where an image's {layers} enters", hint="--reference-layers all"
        )


# --- the image encoder


def with_encoder(adapter: IPAdapter, given: Path | None) -> tuple[IPAdapter, ImageEncoder]:
    """The encoder that was named, or the one beside the adapter, checked to be the one that it was trained with; and
    the adapter, for as many rows as that gives."""
    encoder = _located(adapter) if given is None else read_encoder(given)
    if not _suits(adapter, encoder):
        raise BadFile(
            f"{show(adapter.name, 80)} takes {adapter.embedding} numbers {_of(adapter)}, {_wanted(adapter)}; "
            f"{show(encoder.path)} is {_described(encoder)}, which gives {_gives(adapter, encoder)}",
            hint=_ENCODER_HINT,
        )
    rows = vision.analyse(encoder.component.config).positions
    changes = {"positions": rows, **({"tokens": rows} if adapter.component.config["kind"] == FULL else {})}
    component = replace(adapter.component, config={**adapter.component.config, **changes})
    return replace(adapter, component=component), encoder


def _suits(adapter: IPAdapter, encoder: ImageEncoder) -> bool:
    return adapter.embedding == _gives(adapter, encoder)


def _gives(adapter: IPAdapter, encoder: ImageEncoder) -> int:
    """1280 is the width of ViT-H's rows and of ViT-bigG's vectors: the kind of adapter says which is meant."""
    return encoder.hidden if adapter.looks_at_rows else encoder.projection


def _described(encoder: ImageEncoder) -> str:
    return encoder.title if encoder.title != "unknown" else "another encoder"


def _of(adapter: IPAdapter) -> str:
    return "for each part of an image" if adapter.looks_at_rows else "for an image"


def _wanted(adapter: IPAdapter) -> str:
    known = {pair[0 if adapter.looks_at_rows else 1]: title for pair, title in _ENCODERS.items()}
    title = known.get(adapter.embedding)
    return f"as {title} gives them" if title else "as none of the usual encoders gives them"


def _located(adapter: IPAdapter) -> ImageEncoder:
    """In the folders around the file, as IP-Adapter's own repository has them."""
    found = [read_encoder(path) for path in _around(adapter.path) if os.path.isfile(path / "config.json")]
    if not found:
        raise ModelMissing(
            f"no image encoder lies beside {show(adapter.path)}: it takes {adapter.embedding} numbers {_of(adapter)}, "
            f"{_wanted(adapter)}",
            hint=_ENCODER_HINT,
        )
    return next((encoder for encoder in found if _suits(adapter, encoder)), found[0])


def _around(file: Path) -> Iterator[Path]:
    beside, above = file.parent, file.parent.parent
    yield beside / "image_encoder"
    yield from (above / name / "image_encoder" for name in ("models", "sdxl_models") if above / name != beside)
    yield above / "image_encoder"


def read_encoder(path: Path) -> ImageEncoder:
    """A folder of transformers' CLIPVisionModelWithProjection; of the usual ones also their weights alone."""
    if os.path.isfile(path):
        return _encoder_alone(path)
    if not os.path.isdir(path):
        raise ModelMissing(f"there is no folder {show(path)}", hint=_ENCODER_HINT)
    config = folder.read_json(path / "config.json")
    named = config.get("_class_name") or next(iter(config.get("architectures") or ()), vision.CLASS)
    if named != vision.CLASS:
        raise BadFile(f"{show(path)} is a {show(named, 60)}, not a {vision.CLASS}", hint=_ENCODER_HINT)
    configs.check(ENCODER, config, path / "config.json")
    return ImageEncoder(path=path, component=folder.component_at(path, ENCODER, config))


def _encoder_alone(path: Path) -> ImageEncoder:
    header = read_header(path)
    kind = kind_of(header)
    if kind.kind != "image-encoder":
        raise BadFile(f"{show(path)} is {TITLES.get(kind.kind, kind.kind)}, not an image encoder", hint=_ENCODER_HINT)
    config = _usual_config({name: tensor.shape for name, tensor in header.tensors.items()})
    stored = part_of(header.tensors.items())
    if config is None or stored is None or stored.parameters < vision.parameters(config):
        raise BadFile(
            f"{show(path)} is none of the image encoders that sdcli knows by their weights alone", hint=_ENCODER_HINT
        )
    component = Component(
        parameters=vision.parameters(config), stored_bytes=stored.bytes, stored_dtype=stored.dtype, config=config,
        files=(str(path),),
    )  # fmt: skip
    return ImageEncoder(path=path, component=component)


def _usual_config(shapes: Shapes) -> dict[str, Any] | None:
    """What tensors do not say, heads and activation, is known of the usual encoders."""

    def side(name: str, which: int) -> int:
        shape = shapes.get(name, ())
        return shape[which] if len(shape) > which else 0

    start = "vision_model."
    hidden, projection = side(f"{start}embeddings.class_embedding", 0), side("visual_projection.weight", 0)
    patch, rows = (side(f"{start}embeddings.{name}_embedding.weight", which) for name, which in _SIDES)
    if (hidden, projection) not in _ENCODERS or not patch or not rows:
        return None
    layers = {match[1] for name in shapes if (match := re.match(r"vision_model\.encoder\.layers\.(\d{1,3})\.", name))}
    return {
        "architectures": [vision.CLASS], "hidden_size": hidden, "projection_dim": projection, "patch_size": patch,
        "image_size": math.isqrt(rows - 1) * patch, "num_hidden_layers": max(1, len(layers)), "num_attention_heads": 16,
        "intermediate_size": max(1, side(f"{start}encoder.layers.0.mlp.fc1.weight", 0)), "num_channels": 3,
        "hidden_act": "quick_gelu" if hidden == 1024 else "gelu", "layer_norm_eps": 1e-5,
    }  # fmt: skip


_SIDES = (("patch", 3), ("position", 0))
