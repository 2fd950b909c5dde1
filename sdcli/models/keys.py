"""Names of tensors as diffusers has them, whichever of the layouts in circulation a file is in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sdcli.models.families import original_prefixes
from sdcli.models.kinds import CONTROL, UNET, VAE
from sdcli.models.model import role

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
    # attention as the original names it, and as older diffusers did
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
    """The tensor of a file that another is taken from, and how: numbers are rearranged, never computed."""

    name: str  # as in the file
    third: int | None = None  # OpenCLIP keeps the rows of q, k and v in one tensor: the first, second or last third
    transposed: bool = False
    flat: bool = False  # a linear layer, which the original stores as a 1×1 convolution
    half: int | None = None  # keys and values in one tensor: the first or last half

    def selection(self, stored: Shape) -> tuple[int, Shape]:
        """Of a tensor of this shape: the first row taken, and the shape of the result, transposed or not."""
        first, rows = 0, stored[:1]
        if self.third is not None and stored:
            ends = (0, stored[0] // 3, 2 * (stored[0] // 3), stored[0])
            first, rows = ends[self.third], (ends[self.third + 1] - ends[self.third],)
        if self.half is not None and stored:
            middle = -(-stored[0] // 2)
            first, rows = (0, (middle,)) if self.half == 0 else (middle, (stored[0] - middle,))
        shape = (*rows, *stored[1:])
        shape = without_kernel(shape) if self.flat else shape
        return first, shape[::-1] if self.transposed else shape


def without_kernel(shape: Shape) -> Shape:
    """A linear layer and a 1×1 convolution hold the same numbers."""
    kernel = shape[2:]
    return shape[:2] if kernel and all(side == 1 for side in kernel) else shape


def rename(component: str, names: Iterable[str]) -> dict[str, Origin]:
    """diffusers' name → the tensor among `names` that it is; those of a text encoder without `text_model.`, which
    comes and goes with versions of transformers. An unknown name stays as it is."""
    names, component = list(names), role(component)
    if component == "unet":
        return _unet(_bare(names, UNET, "unet.", "diffusion_model."))
    if component == "t2i_adapter":
        return _t2i_adapter(names)
    if component in ("controlnet", "controlnet_union"):
        return _controlnet(_bare(names, CONTROL))
    if component == "upscaler":
        return _upscaler(names)
    if component == "vae":
        return _vae(_bare(names, VAE, "vae."))
    if component == "image_encoder":
        return {name: Origin(name) for name in names}
    if component == "ip_adapter":
        return dict(_ip_adapter(names))
    prefixes = original_prefixes(component)
    open_clip = [prefix for prefix in prefixes if prefix.endswith(".model.") and _any_in(names, prefix)]
    if open_clip:
        return _open_clip(_bare(names, *open_clip))
    return {name.removeprefix("text_model."): Origin(stored) for name, stored in _bare(names, *prefixes).items()}


def _bare(names: list[str], *prefixes: str) -> dict[str, str]:
    """Name without the component's prefix in a single file → with it; all names where the file has no such prefix."""
    prefix = next((prefix for prefix in prefixes if _any_in(names, prefix)), "")
    return {name[len(prefix) :]: name for name in names if name.startswith(prefix)}


def _any_in(names: list[str], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in names)


# --- IP-Adapters

_REFERENCE = re.compile(r"ip_adapter\.(\d{1,4})\.to_([kv])_ip\.(.+)")
# What follows `image_proj.`: of the plain ones, of the one for whole faces, of resamplers.
_PROJECTIONS = (
    (r"proj\.(weight|bias)", r"image_embeds.\1"),
    (r"proj\.0\.", "ff.net.0.proj."), (r"proj\.2\.", "ff.net.2."), (r"proj\.3\.", "norm."),
    (r"(layers\.\d+)\.0\.norm1\.", r"\1.ln0."), (r"(layers\.\d+)\.0\.norm2\.", r"\1.ln1."),
    (r"(layers\.\d+)\.0\.to_out\.", r"\1.attn.to_out.0."), (r"(layers\.\d+)\.0\.to_", r"\1.attn.to_"),
    (r"(layers\.\d+)\.1\.0\.", r"\1.ff.0."), (r"(layers\.\d+)\.1\.1\.", r"\1.ff.1.net.0.proj."),
    (r"(layers\.\d+)\.1\.3\.", r"\1.ff.1.net.2."),
)  # fmt: skip


def _ip_adapter(names: Iterable[str]) -> Iterator[tuple[str, Origin]]:
    """What makes tokens of an image, and each layer's keys and values of these."""
    for name in names:
        if match := _REFERENCE.fullmatch(name):
            yield f"to_{match[2]}.{int(match[1]) // 2}.{match[3]}", Origin(name)
            continue
        start, _, rest = name.partition(".")
        for pattern, ours in _PROJECTIONS:
            rest, renamed = re.subn(f"^{pattern}", ours, rest)
            if renamed:
                break
        if ".to_kv." in rest:
            yield f"{start}.{rest.replace('.to_kv.', '.to_k.')}", Origin(name, half=0)
            yield f"{start}.{rest.replace('.to_kv.', '.to_v.')}", Origin(name, half=1)
        else:
            yield f"{start}.{rest}", Origin(name)


# --- VAEs and text encoders


def _vae(bare: dict[str, str]) -> dict[str, Origin]:
    levels = [int(number) for name in bare for number in re.findall(r"\b(?:down|up)\.(\d+)\.", name)]
    named = {_vae_name(name, max(levels, default=0)): stored for name, stored in bare.items()}
    return {name: Origin(stored, flat=".attentions." in name) for name, stored in named.items()}


def _vae_name(name: str, last: int) -> str:
    """The original counts the decoder's levels from the image, diffusers from the latents."""
    for pattern, ours in _VAE_NAMES:
        name = re.sub(pattern, ours, name)
    return re.sub(r"\bup\.(\d+)\b", lambda match: f"up_blocks.{last - int(match[1])}", name)


def _open_clip(bare: dict[str, str]) -> dict[str, Origin]:
    origins: dict[str, Origin] = {}
    for name, stored in bare.items():
        for theirs, ours in _OPEN_CLIP_NAMES:
            name = name.replace(theirs, ours)
        layer, joined, leaf = name.partition(".attn.in_proj_")
        if name == "text_projection":
            origins["text_projection.weight"] = Origin(stored, transposed=True)
        elif joined:
            origins |= {f"{layer}.self_attn.{part}_proj.{leaf}": Origin(stored, i) for i, part in enumerate("qkv")}
        else:
            origins[name] = Origin(stored)
    return origins


# --- UNets


def is_original(names: Iterable[str]) -> bool:
    return any(name.startswith(("input_blocks.", "output_blocks.")) for name in names)


def _unet(bare: dict[str, str]) -> dict[str, Origin]:
    if not is_original(bare):
        return {name: Origin(stored) for name, stored in bare.items()}
    down = _numbered_blocks(bare, "input_blocks", "down_blocks", "downsamplers")
    up = _numbered_blocks(bare, "output_blocks", "up_blocks", "upsamplers")
    added = "add_embedding" if any("transformer_blocks" in name for name in bare) else "class_embedding"
    return {_unet_name(name, down | up, added): Origin(stored) for name, stored in bare.items()}


def _numbered_blocks(names: Iterable[str], where: str, block: str, sampler: str) -> dict[str, str]:
    """`input_blocks.4.1` → `down_blocks.1.attentions.0`, by following the list from its start."""
    parts: dict[int, dict[int, set[str]]] = {}
    for name in names:
        match = NUMBERED.match(name)
        if match and match[1] == where:
            parts.setdefault(int(match[2]), {}).setdefault(int(match[3]), set()).add(match[4].split(".")[0])
    blocks: dict[str, str] = {}
    level = layer = 0
    for number in sorted(parts):
        if where == "input_blocks" and number == 0:
            continue
        for part, inside in sorted(parts[number].items()):
            start = f"{where}.{number}.{part}"
            if inside & {"in_layers", "out_layers", "emb_layers", "skip_connection"}:
                blocks[start] = f"{block}.{level}.resnets.{layer}"
                layer += 1
            elif inside & {"op", "conv"}:
                blocks[start] = f"{block}.{level}.{sampler}.0"
                level, layer = level + 1, 0
            else:
                blocks[start] = f"{block}.{level}.attentions.{layer - 1}"
    return blocks


def _controlnet(bare: dict[str, str]) -> dict[str, Origin]:
    """The down half of a UNet, what embeds an image, and a convolution for every result."""
    if not is_original(bare):
        return {name: Origin(stored) for name, stored in bare.items()}
    down = _numbered_blocks(bare, "input_blocks", "down_blocks", "downsamplers")
    last = max((int(match[1]) for name in bare if (match := _HINT.match(name))), default=0)
    return {_controlnet_name(name, down, last): Origin(stored) for name, stored in bare.items()}


_HINT = re.compile(r"input_hint_block\.(\d{1,3})\.(.+)")
_ZERO = re.compile(r"zero_convs\.(\d{1,3})\.0\.(.+)")


def _controlnet_name(name: str, blocks: dict[str, str], last: int) -> str:
    """`last`: the number of the last convolution that embeds the image; every second one is an activation."""
    if match := _ZERO.match(name):
        return f"controlnet_down_blocks.{match[1]}.{match[2]}"
    if match := _HINT.match(name):
        number = int(match[1])
        layer = "conv_in" if number == 0 else "conv_out" if number == last else f"blocks.{number // 2 - 1}"
        return f"controlnet_cond_embedding.{layer}.{match[2]}"
    if name.startswith("middle_block_out.0."):
        return name.replace("middle_block_out.0.", "controlnet_mid_block.", 1)
    return _unet_name(name, blocks, "add_embedding")


def _unet_name(name: str, blocks: dict[str, str], added: str) -> str:
    stem, _, leaf = name.rpartition(".")
    if stem in TOP:
        return f"{TOP[stem]}.{leaf}"
    if stem in ("label_emb.0.0", "label_emb.0.2"):
        return f"{added}.linear_{1 if stem.endswith('0.0') else 2}.{leaf}"
    match = NUMBERED.match(name)
    if match:
        start = f"{match[1]}.{match[2]}.{match[3]}"
        if start in blocks:
            return f"{blocks[start]}.{_inside(match[4])}"
    if name.startswith("middle_block."):
        number, _, rest = name.removeprefix("middle_block.").partition(".")
        layer = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}.get(number)
        if layer:
            return f"mid_block.{layer}.{_inside(rest)}"
    return name


def _inside(rest: str) -> str:
    for original, ours in RESNET.items():
        if rest.startswith(original + "."):
            return ours + rest[len(original) :]
    if rest.startswith("op."):
        return "conv" + rest[2:]
    return rest


# --- upscalers

# What wraps the net in a file; where a training left its weights twice, the averaged ones come first.
_WRAPPERS = ("params_ema.", "params.", "module.", "net_g.", "generator.", "model.")
_TRUNK = re.compile(r"(?:RRDB_trunk|1\.sub)\.(\d{1,3})\.RDB(\d)\.(conv\d)(?:\.0)?\.(\w+)")
_BODY_END = re.compile(r"(?:trunk_conv|1\.sub\.\d{1,3})\.(\w+)")
_LISTED = re.compile(r"(\d{1,2})\.(\w+)")


def _upscaler(names: list[str]) -> dict[str, Origin]:
    """As Real-ESRGAN has them; ESRGAN's second code and its first, which only numbered its layers, had others."""
    bare = {name: name for name in names}
    for prefix in _WRAPPERS:
        inside = {name[len(prefix) :]: stored for name, stored in bare.items() if name.startswith(prefix)}
        bare = inside or bare
    last = max((int(match[1]) for name in bare if (match := _LISTED.fullmatch(name))), default=0)
    return {_upscaler_name(name, last): Origin(stored) for name, stored in bare.items()}


def _upscaler_name(name: str, last: int) -> str:
    """`last`: the number of the last layer. Before it an activation, before that a convolution, and three layers for
    each time that the size doubles."""
    if match := _TRUNK.fullmatch(name):
        return f"body.{match[1]}.rdb{match[2]}.{match[3]}.{match[4]}"
    if match := _BODY_END.fullmatch(name):
        return f"conv_body.{match[1]}"
    if match := _LISTED.fullmatch(name):
        number = int(match[1])
        if number == 0:
            return f"conv_first.{match[2]}"
        end = {last: "conv_last", last - 2: "conv_hr"}.get(number)
        return f"{end or f'conv_up{number // 3}'}.{match[2]}"
    return re.sub(r"^upconv(?=\d\.)", "conv_up", name).replace("HRconv.", "conv_hr.", 1)


def original_names(leaves: Iterable[str]) -> dict[str, str]:
    """diffusers name of a module → its name in the original layout, for UNets of the Stable Diffusion kind."""
    leaves = list(leaves)
    blocks: dict[str, str] = {"mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1"}
    blocks["mid_block.resnets.1"] = "middle_block.2"
    blocks |= _block_numbers(leaves, "down_blocks", "input_blocks", 1)
    blocks |= _block_numbers(leaves, "up_blocks", "output_blocks", 0)
    backwards = {ours: original for original, ours in (TOP | {"label_emb.0.0": "add_embedding.linear_1"}).items()}
    backwards["add_embedding.linear_2"] = "label_emb.0.2"
    inside = {ours: original for original, ours in RESNET.items()}
    names: dict[str, str] = {}
    for leaf in leaves:
        if leaf in backwards:
            names[leaf] = backwards[leaf]
            continue
        match = BLOCK.match(leaf)
        if match and match[1] in blocks:
            block, rest = blocks[match[1]], match[2]
            if ".downsamplers." in leaf:
                rest = "op"
            names[leaf] = f"{block}.{inside.get(rest, rest) if '.resnets.' in leaf else rest}"
    return names


BLOCK = re.compile(
    r"((?:(?:down|up)_blocks\.\d+|mid_block)\.(?:resnets|attentions|downsamplers|upsamplers)\.\d+)\.(.+)"
)


def _block_numbers(leaves: list[str], block: str, original: str, first: int) -> dict[str, str]:
    """`down_blocks.1.attentions.0` → `input_blocks.4.1`: one number per ResNet and one per downsampler."""
    present = {match[1] for leaf in leaves if (match := BLOCK.match(leaf)) and leaf.startswith(block)}
    numbers: dict[str, str] = {}
    number, level = first, 0
    while any(name.startswith(f"{block}.{level}.") for name in present):
        layer = 0
        while (resnet := f"{block}.{level}.resnets.{layer}") in present:
            numbers[resnet] = f"{original}.{number}.0"
            attention = f"{block}.{level}.attentions.{layer}"
            part = 1
            if attention in present:
                numbers[attention] = f"{original}.{number}.1"
                part = 2
            last = f"{block}.{level}.resnets.{layer + 1}" not in present
            if last and f"{block}.{level}.upsamplers.0" in present:
                numbers[f"{block}.{level}.upsamplers.0"] = f"{original}.{number}.{part}"
            number, layer = number + 1, layer + 1
        if f"{block}.{level}.downsamplers.0" in present:
            numbers[f"{block}.{level}.downsamplers.0"] = f"{original}.{number}.0"
            number += 1
        level += 1
    return numbers


# --- T2I-Adapters


_RESIDUAL = re.compile(r"body\.(\d{1,3})\.(block[12]|in_conv)\.(.+)")
_LEVELS = 4  # of the original code's, whose blocks are one list


def _t2i_adapter(names: list[str]) -> dict[str, Origin]:
    """Full ones count the blocks of all levels as one, light ones call a level's `body` too."""
    if any(name.startswith("adapter.") for name in names):
        return {name: Origin(name) for name in names}
    full = "conv_in.weight" in names
    numbers = [int(match[1]) for name in names if (match := _RESIDUAL.match(name))]
    each = max(1, (max(numbers, default=0) + 1) // _LEVELS)
    return {"adapter." + (_full(name, each) if full else _light(name)): Origin(name) for name in names}


def _full(name: str, each: int) -> str:
    match = _RESIDUAL.fullmatch(name)
    if match is None:
        return name
    level, layer = divmod(int(match[1]), each)
    inside = match[2] if match[2] == "in_conv" else f"resnets.{layer}.{match[2]}"
    return f"body.{level}.{inside}.{match[3]}"


def _light(name: str) -> str:
    return re.sub(r"^body\.(\d{1,3})\.body\.", r"body.\1.resnets.", name)
