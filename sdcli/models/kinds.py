"""What a model file is, from its tensors' names and shapes alone. What it does not recognise is "unknown"."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from sdcli.models.families import families, original_prefixes
from sdcli.models.headers import NAMES, Header, Tensor

UNET = "model.diffusion_model."
VAE = "first_stage_model."
CONTROL = "control_model."
# The width of the text that a UNet reads → its family.
_WIDTHS = {family.text_width: family.name for family in families().values() if family.text_width}
_ENCODER_WIDTHS = {768: "sd15", 1024: "sd2"}  # of families with one text encoder
# Input channels → what the UNet sees beside the noise: a mask and an image, an image, a depth map.
_INPUTS = {4: "", 5: "-depth", 7: "-upscaler", 8: "-edit", 9: "-inpainting"}
_FAMILIES = tuple(family.name for family in families().values() if family.text_width)
# What a family's models are called that were trained to repaint, or to edit.
TRAINED_TO = ("-inpainting", "-edit")
EDM = "sdxl-edm"  # trained with other noise: Playground v2.5
TITLES = {
    **{family.name: family.title for family in families().values() if family.text_width},
    "sd15-inpainting": "Stable Diffusion 1.5 inpainting", "sdxl-inpainting": "SDXL inpainting",
    "sd2-inpainting": "Stable Diffusion 2 inpainting", "sd15-edit": "Stable Diffusion 1.5 for image editing",
    "sdxl-edit": "SDXL for image editing", "sd2-edit": "Stable Diffusion 2 for image editing",
    "sd2-depth": "Stable Diffusion 2 with depth",
    "sd2-upscaler": "the Stable Diffusion upscaler", "sdxl-edm": "SDXL trained with EDM", "cosxl": "CosXL",
    "sd15-lcm": "a latent consistency model", "sdxl-lcm": "an SDXL latent consistency model",
    "sd3": "Stable Diffusion 3", "flux": "FLUX", "pixart": "PixArt", "cascade": "Stable Cascade",
    "dit": "a diffusion transformer", "video": "a video model", "motion": "a motion module",
    "lora": "a LoRA", "vae": "a VAE", "taesd": "a tiny VAE for previews", "unet": "a UNet alone",
    "text-encoder": "a text encoder", "image-encoder": "an image encoder", "controlnet": "a ControlNet",
    "controlnet-union": "a ControlNet Union", "controlnet-xs": "a ControlNet-XS",
    "controlnet-difference": "a ControlNet stored as a difference to a model", "control-lora": "a Control-LoRA",
    "controllllite": "a ControlLLLite", "t2i-adapter": "a T2I-Adapter",
    "embedding": "a textual-inversion embedding", "upscaler": "an upscaler",
    "ip-adapter": "an IP-Adapter", "pipeline": "a whole pipeline in one file, under diffusers' names",
    "unknown": "of an unknown kind",
}  # fmt: skip
_VARIED = tuple(family.name for family in families().values() if family.repainting)
DRAWN = (*_FAMILIES, *[family + variant for family in _VARIED for variant in TRAINED_TO], EDM)
EMBEDDINGS = ("emb_params", "clip_l", "clip_g")  # names of learned vectors whose file does not name their word
# Constants that some files have among the weights, in a dtype of their own; not counted as parameters.
_CONSTANTS = ("position_ids", "logit_scale", ".alpha")

Tensors = Mapping[str, Tensor]
Metadata = Mapping[str, str]


class Part(NamedTuple):
    """The tensors of one component inside a file."""

    parameters: int
    bytes: int
    dtype: str  # fp16 …, or mixed


class Kind(NamedTuple):
    """`family` is what it belongs to (a LoRA's base too); `layout` how its tensors are named."""

    kind: str
    family: str = ""
    layout: str = ""  # original | diffusers | kohya
    prediction: str = ""  # epsilon | v_prediction; "" where the file does not say
    zero_snr: bool = False
    latent_channels: int = 0  # of a VAE: 4 in SD1.5 and SDXL, 16 in SD3 and FLUX
    parts: Mapping[str, Part] = MappingProxyType({})
    seen: tuple[str, ...] = ()  # of an unknown file: a few names, or the width that fits no family


def kind_of(header: Header) -> Kind:
    tensors, metadata = header.tensors, header.metadata
    for rule in (_checkpoint, _lora, _adapter, _compact_upscaler, _vae, _encoder, _embedding, _bare_unet, _foreign):
        kind = rule(tensors, metadata)
        if kind is not None:
            return kind
    return Kind(kind="unknown", seen=tuple(list(tensors)[:3]))


# --- whole checkpoints in the original layout

_PARTS: dict[str, Callable[[str], bool]] = {
    "unet": lambda name: name.startswith(UNET),
    "vae": lambda name: name.startswith(VAE),
    "text_encoder": lambda name: name.startswith(original_prefixes("text_encoder")),
    "text_encoder_2": lambda name: name.startswith(original_prefixes("text_encoder_2")),
}


def _checkpoint(tensors: Tensors, metadata: Metadata) -> Kind | None:
    if UNET + "input_blocks.0.0.weight" not in tensors:
        return None
    family, kind, seen = _unet_family(tensors, UNET)
    parts = {name: part_of((n, t) for n, t in tensors.items() if belongs(n)) for name, belongs in _PARTS.items()}
    present = {name: part for name, part in parts.items() if part is not None}
    if set(present) == {"unet"} and kind != "unknown":
        kind = "unet"
    return Kind(
        kind=kind, family=family, layout="original", prediction=_prediction(tensors, metadata),
        zero_snr="ztsnr" in tensors, parts=present, seen=seen,
        latent_channels=_latent_channels(tensors, VAE),
    )  # fmt: skip


def _unet_family(tensors: Tensors, prefix: str) -> tuple[str, str, tuple[str, ...]]:
    """(family, kind, what was seen) of a UNet, from the text's width and the input's channels."""
    keys = (t for n, t in tensors.items() if n.startswith(prefix) and n.endswith("attn2.to_k.weight"))
    width = next((t.shape[1] for t in keys if len(t.shape) == 2), 0)
    first = tensors.get(prefix + "input_blocks.0.0.weight") or tensors.get(prefix + "conv_in.weight")
    channels = first.shape[1] if first is not None and len(first.shape) == 4 else 0
    if any("time_stack" in n or "temporal" in n for n in tensors):
        return "", "video", ()
    if width == 2048 and any(n in tensors for n in ("edm_vpred.sigma_max", "edm_vpred.sigma_min")):
        return "", "cosxl", ()
    if width == 2048 and "edm_mean" in tensors and "edm_std" in tensors:
        return "sdxl", EDM, ()
    family = _WIDTHS.get(width, "")
    kind = family + _INPUTS.get(channels, "-unknown")
    if not family or kind not in TITLES:
        return "", "unknown", (f"a UNet with {channels} input channels and text width {width}",)
    return family, kind, ()


def _prediction(tensors: Tensors, metadata: Metadata) -> str:
    declared = metadata.get("modelspec.prediction_type", "").casefold()
    if "v_pred" in tensors or declared in ("v", "v_prediction", "v-prediction"):
        return "v_prediction"
    return "epsilon" if declared in ("epsilon", "eps") else ""


# --- LoRAs

_LORA = re.compile(
    r"lora_(up|down|A|B|mid)\b|lora\.(up|down)\b|lora_linear_layer|lora_magnitude|\.hada_w|\.lokr_w|\.oft_(diag|blocks)"
    r"|\.alpha$|dora_scale|\.diff(_b)?$"
)
# kohya joins with "_", diffusers with "."; older diffusers went through a processor.
_READS_TEXT = re.compile(
    r"attn2[._](?:processor[._])?to_[kv](?:_lora)?\.(?:lora_linear_layer\.)?(?:lora[_.])?(?:down|A|hada_w1_b)\b"
)
_TRANSFORMER = re.compile(r"(double_blocks|single_blocks|single_transformer_blocks)")
_DEEP = re.compile(r"(attentions|_blocks?)[._].*transformer_blocks[._]([2-9]|1\d)[._]")  # only SDXL stacks so many


def _lora(tensors: Tensors, metadata: Metadata) -> Kind | None:
    names = [name for name in tensors if _LORA.search(name)]
    if not names or len(names) * 2 < len(tensors):
        return None
    layout = "kohya" if any(n.startswith("lora_") for n in names) else "diffusers"
    return _whole("lora", _lora_base(tensors, metadata), layout, tensors, "lora")


def _lora_base(tensors: Tensors, metadata: Metadata) -> str:
    """The base model: from the width of its cross-attention, else its blocks, else the trainer's metadata."""
    for name, tensor in tensors.items():
        if _READS_TEXT.search(name) and len(tensor.shape) >= 2:
            return _WIDTHS.get(tensor.shape[1], "")
    if any(_TRANSFORMER.search(name) for name in tensors):
        return "flux"
    if any("joint_blocks" in name for name in tensors):
        return "sd3"
    if any(
        name.startswith(("transformer.", "diffusion_model.blocks", "diffusion_model.layers", "lora_transformer_"))
        for name in tensors
    ):
        return "dit"
    if any(name.startswith(("lora_te2_", "text_encoder_2.")) or _DEEP.search(name) for name in tensors):
        return "sdxl"
    return _lora_declared(metadata) or _lora_text_width(tensors)


def _lora_declared(metadata: Metadata) -> str:
    declared = metadata.get("ss_base_model_version", "") or metadata.get("modelspec.architecture", "")
    for start, family in (
        ("sdxl", "sdxl"), ("stable-diffusion-xl", "sdxl"), ("sd_v1", "sd15"), ("sd_1", "sd15"), ("sd1", "sd15"),
        ("stable-diffusion-v1", "sd15"), ("sd_v2", "sd2"), ("sd_2", "sd2"), ("stable-diffusion-v2", "sd2"),
        ("flux", "flux"), ("sd3", "sd3"), ("stable-diffusion-3", "sd3"),
    ):  # fmt: skip
        if declared.casefold().startswith(start):
            return family
    return ""


def _lora_text_width(tensors: Tensors) -> str:
    """A LoRA of the text encoder alone, by kohya: `lora_te_` has one encoder, so its width identifies the model."""
    for name, tensor in tensors.items():
        if name.startswith("lora_te_") and name.endswith("q_proj.lora_down.weight") and len(tensor.shape) == 2:
            return _ENCODER_WIDTHS.get(tensor.shape[1], "")
    return ""


# --- parts of models, and adapters


def _adapter(tensors: Tensors, metadata: Metadata) -> Kind | None:
    for kind, pattern in (
        ("motion", r"(temporal_transformer|motion_modules)\."),
        # much like ControlNets, which go by their names below
        ("control-lora", r"^lora_controlnet$"),
        ("controllllite", r"^lllite_"),
        ("controlnet-difference", r"^difference$"),
        ("controlnet-union", r"(^|\.)(task_embedding$|(control_add_embedding|transformer_layes|spatial_ch_projs)\.)"),
        ("controlnet-xs", r"(^|\.)(ctrl_to_base|base_to_ctrl|control_to_base_for_conv_in|(enc|dec)_zero_convs_\w+)\."),
        ("controlnet", r"^(control_model\.|controlnet_|.*controlnet_cond_embedding\.)|^input_hint_block\."),
        ("ip-adapter", r"^(ip_adapter|image_proj)\."),
        ("t2i-adapter", r"^(adapter\.)?body\.\d+\.(block1|resnets|in_conv)"),
        ("upscaler", r"(^|\.)(body\.\d+\.rdb1|RRDB_trunk\.\d+\.RDB1|sub\.\d+\.RDB1)\.conv1\.", ),
        ("upscaler", r"(residual_group|residual_layer\.\d+\.residual_layer|before_RG|channel_interaction)\.", ),
    ):  # fmt: skip
        if any(re.search(pattern, name) for name in tensors):
            shapes = {name: tensor.shape for name, tensor in tensors.items()}
            family = _t2i_family(shapes) if kind == "t2i-adapter" else controlnet_family(shapes)
            return _whole(kind, family, "", tensors, kind)
    return None


def _compact_upscaler(tensors: Tensors, metadata: Metadata) -> Kind | None:
    """Convolutions in a row, and between them activations that have a slope for each channel."""
    for name, tensor in tensors.items():
        if name.endswith("body.0.weight") and len(tensor.shape) == 4 and tensor.shape[1:] == (3, 3, 3):
            slopes = tensors.get(name.removesuffix("0.weight") + "1.weight")
            if slopes is not None and slopes.shape == tensor.shape[:1]:
                return _whole("upscaler", "", "", tensors, "upscaler")
    return None


def controlnet_family(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The family whose text it reads; SDXL's too where it reads none, but is told sizes."""
    return _text_family(shapes) or next(
        ("sdxl" for name, shape in shapes.items() if name.endswith(_SIZES) and shape[-1] == 2816), ""
    )


_SIZES = ("add_embedding.linear_1.weight", "label_emb.0.0.weight")


def _t2i_family(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """SD1.5's puts 8×8 pixels into the channels of its first convolution, SDXL's 16×16: of one colour or three."""
    first = next((shape for name, shape in shapes.items() if name.endswith(_FIRST) and len(shape) == 4), None)
    return {64: "sd15", 192: "sd15", 256: "sdxl", 768: "sdxl"}.get(first[1], "") if first else ""


_FIRST = ("conv_in.weight", "body.0.in_conv.weight")


def _text_family(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The family whose text a ControlNet or an IP-Adapter reads, if it reads any."""
    for name, shape in shapes.items():
        if name.endswith(("attn2.to_k.weight", "to_k_ip.weight")) and len(shape) == 2:
            return _WIDTHS.get(shape[1], "")
    return ""


def _vae(tensors: Tensors, metadata: Metadata) -> Kind | None:
    for prefix in ("", VAE, "vae."):
        channels = _latent_channels(tensors, prefix)
        if channels and any(n.startswith(f"{prefix}encoder.down") for n in tensors):
            if any(n.startswith("unet.") for n in tensors):
                return _whole("pipeline", "", "diffusers", tensors, "pipeline")
            layout = "diffusers" if any(".up_blocks." in n for n in tensors) else "original"
            total = part_of(tensors.items())
            return Kind(kind="vae", layout=layout, latent_channels=channels, parts={"vae": total} if total else {})
    if "decoder.layers.0.weight" in tensors and "encoder.layers.0.weight" in tensors:
        return _whole("taesd", "", "diffusers", tensors, "vae")
    return None


def _latent_channels(tensors: Tensors, prefix: str) -> int:
    first = tensors.get(f"{prefix}decoder.conv_in.weight")
    return first.shape[1] if first is not None and len(first.shape) == 4 else 0


def _encoder(tensors: Tensors, metadata: Metadata) -> Kind | None:
    names = tensors.keys()
    if any(n.startswith("unet.") for n in names):
        return None
    if any(n.endswith("embeddings.token_embedding.weight") for n in names) or (
        "token_embedding.weight" in names and any("resblocks" in n for n in names)
    ):
        return _whole("text-encoder", "", "diffusers", tensors, "text_encoder")
    if "shared.weight" in names and any(n.startswith("encoder.block.0.") for n in names):
        return _whole("text-encoder", "", "diffusers", tensors, "text_encoder")
    if any(n.startswith("vision_model.") for n in names):
        return _whole("image-encoder", "", "diffusers", tensors, "image_encoder")
    return None


def _embedding(tensors: Tensors, metadata: Metadata) -> Kind | None:
    """A few vectors: under A1111's name, under SDXL's two, or, if as wide as a text encoder, under the word itself."""
    if not 1 <= len(tensors) <= 2 or not all(_is_embedding(name, tensor) for name, tensor in tensors.items()):
        return None
    if "clip_g" in tensors:
        base = "sdxl"
    else:
        widths = {t.shape[-1] for t in tensors.values()}
        base = _ENCODER_WIDTHS.get(widths.pop(), "") if len(widths) == 1 else ""
    return _whole("embedding", base, "", tensors, "embedding")


def _is_embedding(name: str, tensor: Tensor) -> bool:
    wide = name in EMBEDDINGS or (bool(tensor.shape) and tensor.shape[-1] in (768, 1024, 1280))
    return wide and 1 <= len(tensor.shape) <= 2 and not name.endswith((".weight", ".bias"))


def _bare_unet(tensors: Tensors, metadata: Metadata) -> Kind | None:
    for layout, key in (("original", "input_blocks.0.0.weight"), ("diffusers", "conv_in.weight")):
        if key in tensors and any(".attn2.to_k.weight" in n or "time_embed" in n for n in tensors):
            family, kind, seen = _unet_family(tensors, "")
            total = part_of(tensors.items())
            return Kind(
                kind=kind if kind in ("video", EDM, "cosxl") else "unet", family=family, layout=layout,
                prediction=_prediction(tensors, metadata), parts={"unet": total} if total else {}, seen=seen,
            )  # fmt: skip
    return None


# --- models of other architectures


def _foreign(tensors: Tensors, metadata: Metadata) -> Kind | None:
    for kind, patterns in (
        ("dit", (r"(^|\.)(txt_in\.individual_token_refiner|distilled_guidance_layer)\.",)),  # otherwise much like FLUX
        ("flux", (r"(^|\.)double_blocks\.0\.", r"(^|\.)single_blocks\.0\.")),
        ("flux", (r"(^|\.)single_transformer_blocks\.0\.", r"(^|\.)x_embedder\.")),
        ("sd3", (r"(^|\.)joint_blocks\.0\.",)),
        ("sd3", (r"(^|\.)transformer_blocks\.0\.norm1_context\.", r"(^|\.)pos_embed\.proj\.")),
        ("pixart", (r"(^|\.)y_embedder\.y_embedding$",)),
        ("pixart", (r"(^|\.)caption_projection\.linear_1\.", r"(^|\.)pos_embed\.proj\.", r"(^|\.)adaln_single\.")),
        ("cascade", (r"(^|\.)(effnet_mapper|clip_txt_mapper|clip_txt_pooled_mapper)\.",)),
        (
            "dit",
            (r"(^|\.)(transformer_blocks|joint_transformer_blocks|blocks|layers)\.0\.(attn|attention|cross_attn)",),
        ),
    ):
        if all(any(re.search(pattern, name) for name in tensors) for pattern in patterns):
            return _whole(kind, "", "", tensors, "transformer")
    return None


def _whole(kind: str, family: str, layout: str, tensors: Tensors, part: str) -> Kind:
    total = part_of(tensors.items())
    return Kind(kind=kind, family=family, layout=layout, parts={part: total} if total else {})


def part_of(named: Iterable[tuple[str, Tensor]]) -> Part | None:
    """Parameters, bytes and dtype of these tensors; None where there are none."""
    tensors = list(named)
    if not tensors:
        return None
    weights = [t for name, t in tensors if t.dtype in NAMES and not name.endswith(_CONSTANTS)]
    dtypes = {NAMES[t.dtype] for t in weights}
    return Part(
        parameters=sum(t.parameters for t in weights),
        bytes=sum(t.size for _, t in tensors),
        dtype=dtypes.pop() if len(dtypes) == 1 else "mixed",
    )


def channels_of(kind: str) -> int:
    """What the UNet of such a kind takes in."""
    return next((count for count, ending in _INPUTS.items() if ending and kind.endswith(ending)), 4)


def kind_of_config(config: Mapping[str, Any]) -> tuple[str, str]:
    """(family, kind) of a UNet's config.json."""
    width = config.get("cross_attention_dim")
    family = _WIDTHS.get(width, "") if isinstance(width, int) else ""
    channels = config.get("in_channels", 4)
    kind = family + (_INPUTS.get(channels, "-unknown") if isinstance(channels, int) else "-unknown")
    if config.get("time_cond_proj_dim") is not None:
        kind = f"{family}-lcm"
    if not family or kind not in TITLES or config.get("encoder_hid_dim") is not None:
        return "", "unknown"
    return family, kind
