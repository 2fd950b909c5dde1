"""What a model file is, from its tensors' names and shapes alone. What is not recognised is called unknown."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sdcli.models.headers import NAMES, Header, Tensor

UNET = "model.diffusion_model."
VAE = "first_stage_model."
# Cross-attention width → family. 1280 is the refiner's; 2048 is both of SDXL's encoders side by side.
_WIDTHS = {768: "sd15", 1024: "sd2", 1280: "refiner", 2048: "sdxl"}
DRAWN = ("sd15", "sdxl")
TITLES = {
    "sd15": "Stable Diffusion 1.5", "sdxl": "SDXL", "sd2": "Stable Diffusion 2", "refiner": "the SDXL refiner",
    "sd15-inpainting": "Stable Diffusion 1.5 inpainting", "sdxl-inpainting": "SDXL inpainting",
    "sd2-inpainting": "Stable Diffusion 2 inpainting", "sd3": "Stable Diffusion 3", "flux": "FLUX",
    "dit": "a diffusion transformer", "lora": "a LoRA", "vae": "a VAE", "unet": "a UNet alone",
    "text-encoder": "a text encoder", "controlnet": "a ControlNet", "embedding": "a textual-inversion embedding",
    "upscaler": "an upscaler", "ip-adapter": "an IP-Adapter", "unknown": "of an unknown kind",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Part:
    """The tensors of one component inside a file."""

    parameters: int
    bytes: int
    dtype: str  # fp16 …, or mixed


@dataclass(frozen=True, kw_only=True)
class Kind:
    """`family` is what it belongs to (a LoRA's base too); `layout` how its tensors are called."""

    kind: str
    family: str = ""
    layout: str = ""  # original | diffusers | kohya
    prediction: str = ""  # epsilon | v_prediction; "" where the file does not say
    zero_snr: bool = False
    ema: bool = False
    parts: Mapping[str, Part] = field(default_factory=dict)
    seen: tuple[str, ...] = ()  # a few names, for saying what an unknown file holds


def kind_of(header: Header) -> Kind:
    tensors = header.tensors
    for rule in (_checkpoint, _lora, _small_parts, _bare_unet, _foreign):
        found = rule(tensors, header.metadata)
        if found is not None:
            return found
    return Kind(kind="unknown", seen=tuple(list(tensors)[:3]))


# --- whole checkpoints in the original layout

_PARTS: dict[str, Callable[[str], bool]] = {
    "unet": lambda name: name.startswith(UNET),
    "vae": lambda name: name.startswith(VAE),
    "text_encoder": lambda name: name.startswith(
        ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.", "cond_stage_model.model.")
    ),
    "text_encoder_2": lambda name: name.startswith("conditioner.embedders.1.model."),
}


def _checkpoint(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Kind | None:
    if UNET + "input_blocks.0.0.weight" not in tensors:
        return None
    family, kind = _unet_family(tensors, UNET)
    parts = {name: _part(t for n, t in tensors.items() if belongs(n)) for name, belongs in _PARTS.items()}
    if family == "refiner":  # its only encoder is OpenCLIP's, under the first place
        parts["text_encoder_2"] = _part(t for n, t in tensors.items() if n.startswith("conditioner.embedders.0."))
        parts["text_encoder"] = None
    found = {name: part for name, part in parts.items() if part is not None}
    if set(found) == {"unet"}:
        kind = "unet"
    return Kind(
        kind=kind, family=family, layout="original", prediction=_prediction(tensors, metadata),
        zero_snr="ztsnr" in tensors, ema=any(n.startswith("model_ema.") for n in tensors), parts=found,
    )  # fmt: skip


def _unet_family(tensors: Mapping[str, Tensor], prefix: str) -> tuple[str, str]:
    """(family, kind) of a UNet in the original layout."""
    width = next(
        (t.shape[1] for n, t in tensors.items() if n.startswith(prefix) and n.endswith("attn2.to_k.weight")), 0
    )
    family = _WIDTHS.get(width, "")
    first = tensors.get(prefix + "input_blocks.0.0.weight") or tensors.get(prefix + "conv_in.weight")
    channels = first.shape[1] if first is not None and len(first.shape) == 4 else 4
    if not family or channels not in (4, 9):
        return "", "unknown"
    return family, f"{family}-inpainting" if channels == 9 else family


def _prediction(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    said = metadata.get("modelspec.prediction_type", "").casefold()
    if "v_pred" in tensors or said.startswith("v"):
        return "v_prediction"
    return "epsilon" if said == "epsilon" else ""


# --- LoRAs

_LORA = re.compile(r"(lora_(up|down|A|B|mid)\b|lora\.(up|down)|lora_magnitude|hada_w1|lokr_w|\.alpha$|dora_scale)")


def _lora(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Kind | None:
    names = [name for name in tensors if _LORA.search(name)]
    if not names or len(names) < len(tensors) * 0.5:
        return None
    layout = "kohya" if any(n.startswith("lora_") for n in names) else "diffusers"
    total = _part(tensors.values())
    return Kind(kind="lora", family=_lora_base(tensors, metadata), layout=layout,
                parts={"lora": total} if total else {})  # fmt: skip


def _lora_base(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """The base model, from the width its cross-attention reads; else what the trainer wrote down."""
    for name, tensor in tensors.items():
        if re.search(r"attn2[._]to_[kv]\b.*(down|lora_A)", name) and len(tensor.shape) >= 2:
            return _WIDTHS.get(tensor.shape[1], "")
    if any(re.search(r"(double_blocks|single_transformer_blocks|joint_blocks)", name) for name in tensors):
        return "flux"
    said = metadata.get("ss_base_model_version", "").casefold()
    for start, family in (("sdxl", "sdxl"), ("sd_v1", "sd15"), ("sd_1", "sd15"), ("sd_v2", "sd2"), ("flux", "flux")):
        if said.startswith(start):
            return family
    if any(name.startswith(("lora_te2_", "text_encoder_2.")) for name in tensors):
        return "sdxl"
    return ""


# --- parts, and models of other architectures


def _small_parts(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Kind | None:
    names = tensors.keys()
    bare = [name.removeprefix(VAE).removeprefix("vae.") for name in names]
    if "decoder.conv_in.weight" in bare and any(n.startswith("encoder.down") for n in bare):
        layout = "diffusers" if any("up_blocks" in n for n in bare) else "original"
        return _whole("vae", "", layout, tensors, "vae")
    if "controlnet_cond_embedding.conv_in.weight" in names or any(
        n.startswith(("control_model.", "controlnet_down_blocks.")) for n in names
    ):
        return _whole("controlnet", "", "", tensors, "controlnet")
    if any(n.startswith(("ip_adapter.", "image_proj.")) for n in names):
        return _whole("ip-adapter", "", "", tensors, "ip-adapter")
    if any(n.endswith("embeddings.token_embedding.weight") for n in names):
        return _whole("text-encoder", "", "diffusers", tensors, "text_encoder")
    if any(n in names for n in ("emb_params", "clip_l", "clip_g")) or (
        len(names) <= 2
        and all(len(t.shape) <= 2 and t.shape[-1:] in ((768,), (1024,), (1280,)) for t in tensors.values())
    ):
        return _whole("embedding", _embedding_base(tensors), "", tensors, "embedding")
    if any("RDB1.conv1.weight" in n or "rdb1.conv1.weight" in n for n in names):
        return _whole("upscaler", "", "", tensors, "upscaler")
    return None


def _embedding_base(tensors: Mapping[str, Tensor]) -> str:
    if "clip_g" in tensors:
        return "sdxl"
    widths = {t.shape[-1] for t in tensors.values() if t.shape}
    return {768: "sd15", 1024: "sd2"}.get(min(widths, default=0), "")


def _bare_unet(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Kind | None:
    for layout, key in (("original", "input_blocks.0.0.weight"), ("diffusers", "conv_in.weight")):
        if key in tensors and any(".attn2.to_k.weight" in n or "time_embed" in n for n in tensors):
            family, _ = _unet_family(tensors, "")
            return _whole("unet", family, layout, tensors, "unet", _prediction(tensors, metadata))
    if any(n.startswith("unet.") for n in tensors) and any(n.startswith("vae.") for n in tensors):
        return Kind(kind="unknown", seen=tuple(list(tensors)[:3]))
    return None


def _foreign(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Kind | None:
    for kind, pattern in (
        ("flux", r"(^|\.)double_blocks\.0\.|^single_transformer_blocks\.0\."),
        ("sd3", r"(^|\.)joint_blocks\.0\."),
        ("dit", r"(^|\.)(transformer_blocks|blocks|layers)\.0\.(attn|attention|cross_attn)"),
    ):
        if any(re.search(pattern, name) for name in tensors):
            return _whole(kind, "", "", tensors, "transformer")
    return None


def _whole(kind: str, family: str, layout: str, tensors: Mapping[str, Tensor], part: str, prediction: str = "") -> Kind:
    total = _part(tensors.values())
    return Kind(kind=kind, family=family, layout=layout, prediction=prediction, parts={part: total} if total else {})


def _part(tensors: Iterable[Tensor]) -> Part | None:
    held = list(tensors)
    if not held:
        return None
    dtypes = {t.dtype for t in held if t.dtype in NAMES}
    dtype = NAMES[dtypes.pop()] if len(dtypes) == 1 else "mixed"
    counted = [t for t in held if t.dtype in NAMES]
    return Part(parameters=sum(t.parameters for t in counted), bytes=sum(t.size for t in held), dtype=dtype)


def kind_of_config(config: Mapping[str, Any]) -> tuple[str, str]:
    """(family, kind) of a UNet's config.json."""
    family = _WIDTHS.get(
        config.get("cross_attention_dim", 0) if isinstance(config.get("cross_attention_dim"), int) else 0, ""
    )
    if not family:
        return "", "unknown"
    return family, f"{family}-inpainting" if config.get("in_channels") == 9 else family
