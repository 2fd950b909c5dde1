"""Names of a UNet's tensors in the original layout (input_blocks …) as diffusers names them (down_blocks …)."""

from __future__ import annotations

import re
from collections.abc import Iterable

RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
TOP = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    "input_blocks.0.0": "conv_in",
}
NUMBERED = re.compile(r"(input_blocks|output_blocks)\.(\d{1,3})\.(\d)\.(.+)")


def is_original(names: Iterable[str]) -> bool:
    return any(name.startswith(("input_blocks.", "output_blocks.")) for name in names)


def renamed(names: Iterable[str]) -> dict[str, str]:
    """Original name → diffusers name, worked out from the names alone; what is not understood keeps its name."""
    names = list(names)
    down = _places(names, "input_blocks", "down_blocks", "downsamplers")
    up = _places(names, "output_blocks", "up_blocks", "upsamplers")
    added = "add_embedding" if any("transformer_blocks" in name for name in names) else "class_embedding"
    return {name: _one(name, down | up, added) for name in names}


def _places(names: Iterable[str], where: str, block: str, sampler: str) -> dict[str, str]:
    """`input_blocks.4.1` → `down_blocks.1.attentions.0`, by following the list from its start."""
    parts: dict[int, dict[int, set[str]]] = {}
    for name in names:
        found = NUMBERED.match(name)
        if found and found[1] == where:
            parts.setdefault(int(found[2]), {}).setdefault(int(found[3]), set()).add(found[4].split(".")[0])
    places: dict[str, str] = {}
    level = layer = 0
    for number in sorted(parts):
        if where == "input_blocks" and number == 0:
            continue
        for part, inside in sorted(parts[number].items()):
            start = f"{where}.{number}.{part}"
            if inside & {"in_layers", "out_layers", "emb_layers", "skip_connection"}:
                places[start] = f"{block}.{level}.resnets.{layer}"
                layer += 1
            elif inside & {"op", "conv"}:
                places[start] = f"{block}.{level}.{sampler}.0"
                level, layer = level + 1, 0
            else:
                places[start] = f"{block}.{level}.attentions.{layer - 1}"
    return places


def _one(name: str, places: dict[str, str], added: str) -> str:
    stem, _, leaf = name.rpartition(".")
    if stem in TOP:
        return f"{TOP[stem]}.{leaf}"
    if stem in ("label_emb.0.0", "label_emb.0.2"):
        return f"{added}.linear_{1 if stem.endswith('0.0') else 2}.{leaf}"
    found = NUMBERED.match(name)
    if found:
        start = f"{found[1]}.{found[2]}.{found[3]}"
        if start in places:
            return f"{places[start]}.{_inside(found[4])}"
    if name.startswith("middle_block."):
        number, _, rest = name.removeprefix("middle_block.").partition(".")
        place = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}.get(number)
        if place:
            return f"mid_block.{place}.{_inside(rest)}"
    return name


def _inside(rest: str) -> str:
    for original, ours in RESNET.items():
        if rest.startswith(original + "."):
            return ours + rest[len(original) :]
    if rest.startswith("op."):
        return "conv" + rest[2:]
    return rest


def original_names(leaves: Iterable[str]) -> dict[str, str]:
    """diffusers name of a module → its name in the original layout, for UNets of the Stable Diffusion kind."""
    leaves = list(leaves)
    places: dict[str, str] = {"mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1"}
    places["mid_block.resnets.1"] = "middle_block.2"
    places |= _numbered(leaves, "down_blocks", "input_blocks", 1)
    places |= _numbered(leaves, "up_blocks", "output_blocks", 0)
    backwards = {ours: original for original, ours in (TOP | {"label_emb.0.0": "add_embedding.linear_1"}).items()}
    backwards["add_embedding.linear_2"] = "label_emb.0.2"
    inside = {ours: original for original, ours in RESNET.items()}
    names: dict[str, str] = {}
    for leaf in leaves:
        if leaf in backwards:
            names[leaf] = backwards[leaf]
            continue
        found = PLACE.match(leaf)
        if found and found[1] in places:
            place, rest = places[found[1]], found[2]
            if ".downsamplers." in leaf:
                rest = "op"
            names[leaf] = f"{place}.{inside.get(rest, rest) if '.resnets.' in leaf else rest}"
    return names


PLACE = re.compile(
    r"((?:(?:down|up)_blocks\.\d+|mid_block)\.(?:resnets|attentions|downsamplers|upsamplers)\.\d+)\.(.+)"
)


def _numbered(leaves: list[str], block: str, original: str, first: int) -> dict[str, str]:
    """`down_blocks.1.attentions.0` → `input_blocks.4.1`: one number per ResNet and one per downsampler."""
    found = {match[1] for leaf in leaves if (match := PLACE.match(leaf)) and leaf.startswith(block)}
    places: dict[str, str] = {}
    number, level = first, 0
    while any(place.startswith(f"{block}.{level}.") for place in found):
        layer = 0
        while (resnet := f"{block}.{level}.resnets.{layer}") in found:
            places[resnet] = f"{original}.{number}.0"
            attention = f"{block}.{level}.attentions.{layer}"
            part = 1
            if attention in found:
                places[attention] = f"{original}.{number}.1"
                part = 2
            last = f"{block}.{level}.resnets.{layer + 1}" not in found
            if last and f"{block}.{level}.upsamplers.0" in found:
                places[f"{block}.{level}.upsamplers.0"] = f"{original}.{number}.{part}"
            number, layer = number + 1, layer + 1
        if f"{block}.{level}.downsamplers.0" in found:
            places[f"{block}.{level}.downsamplers.0"] = f"{original}.{number}.0"
            number += 1
        level += 1
    return places
