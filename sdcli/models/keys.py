"""Names of tensors as diffusers has them, whichever of the layouts in circulation a file is in."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from sdcli.models.families import original_places
from sdcli.models.kinds import UNET, VAE

Shape = tuple[int, ...]

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
# In this order; a name that is diffusers' already stays as it is.
_VAE_NAMES = (
    (r"\bmid\.block_1\b", "mid_block.resnets.0"), (r"\bmid\.block_2\b", "mid_block.resnets.1"),
    (r"\bmid\.attn_1\b", "mid_block.attentions.0"), (r"\bnorm_out\b", "conv_norm_out"),
    (r"\b(down|up)\.(\d+)\.block\.", r"\1.\2.resnets."), (r"\bnin_shortcut\b", "conv_shortcut"),
    (r"\bdown\.(\d+)\.downsample\b", r"down.\1.downsamplers.0"), (r"\bdown\.(\d+)\b", r"down_blocks.\1"),
    (r"\bup\.(\d+)\.upsample\b", r"up.\1.upsamplers.0"), (r"(attentions\.0)\.norm\b", r"\1.group_norm"),
    # attention as the original calls it, and as older diffusers did
    (r"(attentions\.0)\.(?:q|query)\b", r"\1.to_q"), (r"(attentions\.0)\.(?:k|key)\b", r"\1.to_k"),
    (r"(attentions\.0)\.(?:v|value)\b", r"\1.to_v"),
    (r"(attentions\.0)\.(?:proj_out|proj_attn)\b", r"\1.to_out.0"),
)  # fmt: skip
_OPEN_CLIP_NAMES = (
    ("transformer.resblocks.", "encoder.layers."), ("attn.out_proj", "self_attn.out_proj"), ("ln_1", "layer_norm1"),
    ("ln_2", "layer_norm2"), ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2"), ("ln_final", "final_layer_norm"),
    ("token_embedding.", "embeddings.token_embedding."),
    ("positional_embedding", "embeddings.position_embedding.weight"),
)  # fmt: skip


@dataclass(frozen=True)
class Origin:
    """The tensor of a file that another one is made of, and how. Nothing is computed: numbers are only laid out."""

    name: str  # as the file has it
    third: int | None = None  # OpenCLIP keeps the rows of q, k and v in one tensor: the first, second or last third
    transposed: bool = False
    flat: bool = False  # a linear layer, which the original writes as a convolution of 1×1

    def taken(self, stored: Shape) -> tuple[int, Shape]:
        """Of a tensor of this shape: the first row that is taken, and the shape of what is, transposed or not."""
        first, rows = 0, stored[:1]
        if self.third is not None and stored:
            ends = (0, stored[0] // 3, 2 * (stored[0] // 3), stored[0])
            first, rows = ends[self.third], (ends[self.third + 1] - ends[self.third],)
        shape = (*rows, *stored[1:])
        shape = without_kernel(shape) if self.flat else shape
        return first, shape[::-1] if self.transposed else shape


def without_kernel(shape: Shape) -> Shape:
    """A linear layer and a convolution of 1×1 hold the same numbers."""
    kernel = shape[2:]
    return shape[:2] if kernel and all(side == 1 for side in kernel) else shape


def rename(component: str, names: Iterable[str]) -> dict[str, Origin]:
    """diffusers' name → the tensor among `names` that it is; those of a text encoder without `text_model.`, which
    comes and goes with the versions of transformers. What is not understood keeps its name."""
    names = list(names)
    if component == "unet":
        return _unet(_bare(names, UNET, "unet.", "diffusion_model."))
    if component == "vae":
        return _vae(_bare(names, VAE, "vae."))
    places = original_places(component)
    open_clip = [place for place in places if place.endswith(".model.") and _any_in(names, place)]
    if open_clip:
        return _open_clip(_bare(names, *open_clip))
    return {name.removeprefix("text_model."): Origin(stored) for name, stored in _bare(names, *places).items()}


def _bare(names: list[str], *places: str) -> dict[str, str]:
    """Names without the place of the component in a single file, and with it; all where the file has no such place."""
    place = next((place for place in places if _any_in(names, place)), "")
    return {name[len(place) :]: name for name in names if name.startswith(place)}


def _any_in(names: list[str], place: str) -> bool:
    return any(name.startswith(place) for name in names)


# --- VAEs and text encoders


def _vae(bare: dict[str, str]) -> dict[str, Origin]:
    levels = [int(number) for name in bare for number in re.findall(r"\b(?:down|up)\.(\d+)\.", name)]
    named = {_of_vae(name, max(levels, default=0)): stored for name, stored in bare.items()}
    return {name: Origin(stored, flat=".attentions." in name) for name, stored in named.items()}


def _of_vae(name: str, last: int) -> str:
    """The original counts the decoder's levels from the image, diffusers from the latents."""
    for pattern, ours in _VAE_NAMES:
        name = re.sub(pattern, ours, name)
    return re.sub(r"\bup\.(\d+)\b", lambda match: f"up_blocks.{last - int(match[1])}", name)


def _open_clip(bare: dict[str, str]) -> dict[str, Origin]:
    found: dict[str, Origin] = {}
    for name, stored in bare.items():
        for theirs, ours in _OPEN_CLIP_NAMES:
            name = name.replace(theirs, ours)
        layer, joined, leaf = name.partition(".attn.in_proj_")
        if name == "text_projection":
            found["text_projection.weight"] = Origin(stored, transposed=True)
        elif joined:
            found |= {f"{layer}.self_attn.{part}_proj.{leaf}": Origin(stored, i) for i, part in enumerate("qkv")}
        else:
            found[name] = Origin(stored)
    return found


# --- UNets


def is_original(names: Iterable[str]) -> bool:
    return any(name.startswith(("input_blocks.", "output_blocks.")) for name in names)


def _unet(bare: dict[str, str]) -> dict[str, Origin]:
    if not is_original(bare):
        return {name: Origin(stored) for name, stored in bare.items()}
    down = _places(bare, "input_blocks", "down_blocks", "downsamplers")
    up = _places(bare, "output_blocks", "up_blocks", "upsamplers")
    added = "add_embedding" if any("transformer_blocks" in name for name in bare) else "class_embedding"
    return {_of_unet(name, down | up, added): Origin(stored) for name, stored in bare.items()}


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


def _of_unet(name: str, places: dict[str, str], added: str) -> str:
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
