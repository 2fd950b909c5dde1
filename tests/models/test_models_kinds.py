"""A file is named for what its tensors say it is; what they do not say is not guessed."""

from __future__ import annotations

from pathlib import Path

import model_files as make
import pytest

from sdcli.models.headers import read_header
from sdcli.models.kinds import TITLES, Kind, kind_of, kind_of_config

ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"


def kind(path: Path, shapes: make.Shapes, **options: object) -> Kind:
    return kind_of(read_header(make.file(path / "x.safetensors", shapes, **options)))  # type: ignore[arg-type]


# --- the matrix: every kind by the names that identify it


def diffusers_unet(width: int, channels: int = 4) -> dict[str, list[int]]:
    return {
        "conv_in.weight": [320, channels, 3, 3],
        "time_embedding.linear_1.weight": [1280, 320],
        f"{ATTENTION}.weight": [320, width],
    }


KINDS: dict[str, tuple[make.Shapes, str, str]] = {
    # name: tensors, kind, family
    "SD1.5": (make.checkpoint("sd15"), "sd15", "sd15"),
    "SDXL": (make.checkpoint("sdxl"), "sdxl", "sdxl"),
    "SD2": (make.checkpoint("sd2"), "sd2", "sd2"),
    "refiner": (make.checkpoint("refiner"), "refiner", "refiner"),
    "SD1.5 inpainting": (make.checkpoint("sd15", channels=9), "sd15-inpainting", "sd15"),
    "SDXL inpainting": (make.checkpoint("sdxl", channels=9), "sdxl-inpainting", "sdxl"),
    "SD2 inpainting": (make.checkpoint("sd2", channels=9), "sd2-inpainting", "sd2"),
    "InstructPix2Pix": (make.checkpoint("sd15", channels=8), "sd15-edit", "sd15"),
    "depth": (make.checkpoint("sd2", channels=5), "sd2-depth", "sd2"),
    "x4 upscaler": (make.checkpoint("sd2", channels=7), "sd2-upscaler", "sd2"),
    "Playground 2.5": (make.checkpoint("sdxl") | {"edm_mean": [4], "edm_std": [4]}, "sdxl-edm", "sdxl"),
    "CosXL": (make.checkpoint("sdxl") | {"edm_vpred.sigma_max": []}, "cosxl", ""),
    "video": (make.checkpoint("sd2") | {f"{make.UNET}input_blocks.1.0.time_stack.x": [1]}, "video", ""),
    "unusual width": (make.original_unet(999), "unknown", ""),
    "unusual input": (make.original_unet(768, channels=31), "unknown", ""),
    "UNet, original": (make.original_unet(768), "unet", "sd15"),
    "UNet, original, bare": (make.original_unet(2048, prefix=""), "unet", "sdxl"),
    "UNet, diffusers": (diffusers_unet(1024), "unet", "sd2"),
    "UNet, diffusers, inpainting": (diffusers_unet(768, 9), "unet", "sd15"),
    "VAE": (make.original_vae(prefix=""), "vae", ""),
    "VAE with prefix": (make.original_vae(), "vae", ""),
    "TAESD": ({"encoder.layers.0.weight": [64, 3, 3, 3], "decoder.layers.0.weight": [64, 4, 3, 3]}, "taesd", ""),
    "FLUX": ({"double_blocks.0.img_attn.qkv.weight": [4, 4], "single_blocks.0.linear1.weight": [4, 4]}, "flux", ""),
    "FLUX, whole": (
        {f"{make.UNET}double_blocks.0.x": [4], f"{make.UNET}single_blocks.0.x": [4], "vae.decoder.x": [1]}, "flux", ""
    ),
    "FLUX, diffusers": ({"single_transformer_blocks.0.attn.to_q.weight": [4, 4], "x_embedder.weight": [4]}, "flux", ""),
    "Hunyuan video": (
        {"double_blocks.0.x": [4], "single_blocks.0.x": [4], "txt_in.individual_token_refiner.x": [1]}, "dit", ""
    ),
    "SD3": ({f"{make.UNET}joint_blocks.0.x_block.attn.qkv.weight": [4, 4]}, "sd3", ""),
    "SD3, diffusers": (
        {"transformer_blocks.0.norm1_context.linear.weight": [4, 4], "pos_embed.proj.weight": [4, 4, 2, 2]}, "sd3", ""
    ),
    "PixArt": ({"y_embedder.y_embedding": [300, 4096], "blocks.0.attn.qkv.weight": [4, 4]}, "pixart", ""),
    "PixArt, diffusers": (
        {"caption_projection.linear_1.weight": [4], "pos_embed.proj.weight": [4], "adaln_single.linear.weight": [4]},
        "pixart", "",
    ),
    "Cascade": ({"effnet_mapper.0.weight": [4, 4]}, "cascade", ""),
    "some transformer": ({"blocks.0.attn.qkv.weight": [4, 4]}, "dit", ""),
    "ControlNet": ({"controlnet_cond_embedding.conv_in.weight": [16, 3, 3, 3], f"{ATTENTION}.weight": [320, 768],
                    "conv_in.weight": [320, 4, 3, 3]}, "controlnet", "sd15"),
    "ControlNet, original": ({"control_model.input_hint_block.0.weight": [16, 3, 3, 3]}, "controlnet", ""),
    "T2I-Adapter": ({"adapter.body.0.resnets.0.block1.weight": [4, 4, 3, 3]}, "t2i-adapter", ""),
    "IP-Adapter": ({"image_proj.proj.weight": [4, 4], "ip_adapter.1.to_k_ip.weight": [320, 768]}, "ip-adapter", "sd15"),
    "motion": ({"down_blocks.0.motion_modules.0.temporal_transformer.norm.weight": [4]}, "motion", ""),
    "ESRGAN": ({"model.1.sub.0.RDB1.conv1.0.weight": [32, 64, 3, 3]}, "upscaler", ""),
    "Real-ESRGAN": ({"body.0.rdb1.conv1.weight": [32, 64, 3, 3]}, "upscaler", ""),
    "Real-ESRGAN, compact": ({"params.body.0.weight": [64, 3, 3, 3], "params.body.1.weight": [64]}, "upscaler", ""),
    "SwinIR": ({"layers.0.residual_group.blocks.0.attn.qkv.weight": [180, 60]}, "upscaler", ""),
    "CLIP": ({"text_model.embeddings.token_embedding.weight": [49408, 768]}, "text-encoder", ""),
    "OpenCLIP": (
        {"token_embedding.weight": [49408, 1280], "transformer.resblocks.0.ln_1.weight": [1280]}, "text-encoder", ""
    ),
    "T5": ({"shared.weight": [32, 4], "encoder.block.0.layer.0.x": [4]}, "text-encoder", ""),
    "CLIP vision": ({"vision_model.embeddings.class_embedding": [1024]}, "image-encoder", ""),
    "embedding": ({"emb_params": [4, 768]}, "embedding", "sd15"),
    "embedding, one vector": ({"<cat>": [768]}, "embedding", "sd15"),
    "embedding, SD2": ({"emb_params": [4, 1024]}, "embedding", "sd2"),
    "embedding, SDXL": ({"clip_l": [2, 768], "clip_g": [2, 1280]}, "embedding", "sdxl"),
    "a linear layer of that width": ({"head.weight": [4, 768]}, "unknown", ""),
    "whole, diffusers": (
        {f"unet.{n}": s for n, s in diffusers_unet(768).items()} | make.original_vae(prefix="vae."), "pipeline", ""
    ),
    "a language model": ({"model.layers.0.self_attn.q_proj.weight": [4, 4]}, "unknown", ""),
    "nothing": ({}, "unknown", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_recognised_by_its_tensors(tmp_path: Path, name: str) -> None:
    shapes, expected, family = KINDS[name]
    seen = kind(tmp_path, shapes)
    assert (seen.kind, seen.family) == (expected, family)
    assert seen.kind in TITLES


# --- LoRAs

KOHYA = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0"
LORAS: dict[str, tuple[make.Shapes, dict[str, str], str, str]] = {
    # name: tensors, metadata, layout, family
    "kohya SD1.5": (
        {f"{KOHYA}_attn2_to_k.lora_down.weight": [4, 768], f"{KOHYA}_attn2_to_k.alpha": []}, {}, "kohya", "sd15"
    ),
    "kohya SDXL": ({"lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_v.lora_down.weight": [4, 2048]}, {},
                   "kohya", "sdxl"),
    "kohya SD2": ({f"{KOHYA}_attn2_to_k.lora_down.weight": [4, 1024]}, {}, "kohya", "sd2"),
    "LoHa": (
        {f"{KOHYA}_attn2_to_k.hada_w1_b": [4, 768], f"{KOHYA}_attn2_to_k.hada_w1_a": [320, 4]}, {}, "kohya", "sd15"
    ),
    "diffusers": ({f"unet.{ATTENTION}.lora_A.weight": [4, 2048]}, {}, "diffusers", "sdxl"),
    "diffusers, adapter named": (
        {f"base_model.model.{ATTENTION}.lora_A.default.weight": [4, 768]}, {}, "diffusers", "sd15"
    ),
    "diffusers, processors": (
        {"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora.down.weight": [4, 768]}, {},
        "diffusers", "sd15",
    ),
    "diffusers, old": ({f"unet.{ATTENTION}.lora.down.weight": [4, 768]}, {}, "diffusers", "sd15"),
    "the width outweighs what was written": (
        {f"{KOHYA}_attn2_to_k.lora_down.weight": [4, 2048]}, {"ss_base_model_version": "sd_v1"}, "kohya", "sdxl"
    ),
    "deep blocks are SDXL's": (
        {"lora_unet_down_blocks_2_attentions_0_transformer_blocks_7_attn1_to_q.lora_down.weight": [4, 1280]}, {},
        "kohya", "sdxl",
    ),
    "the second encoder is SDXL's": ({"lora_te2_text_model_x.lora_down.weight": [4, 7]}, {}, "kohya", "sdxl"),
    "the encoder alone, SD1.5": (
        {"lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": [4, 768]}, {}, "kohya", "sd15"
    ),
    "the encoder alone, diffusers: either": (
        {"text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight": [4, 768]}, {}, "diffusers", ""
    ),
    "as written by the trainer": (
        {"lora_te_x.lora_down.weight": [4, 7]}, {"ss_base_model_version": "sdxl_base_v1-0"}, "kohya", "sdxl"
    ),
    "as the modelspec says": (
        {"lora_te_x.lora_down.weight": [4, 7]}, {"modelspec.architecture": "stable-diffusion-v1/lora"}, "kohya", "sd15"
    ),
    "FLUX, kohya": ({"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": [4, 3072]}, {}, "kohya", "flux"),
    "FLUX, diffusers": (
        {"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": [4, 3072]}, {}, "diffusers", "flux"
    ),
    "another transformer": (
        {"transformer.transformer_blocks.0.attn.to_q.lora_A.weight": [4, 64]}, {}, "diffusers", "dit"
    ),
    "nothing identifies it": ({"lora_te_x.lora_down.weight": [4, 7]}, {}, "kohya", ""),
    "a base nobody knows": (
        {"lora_te_x.lora_down.weight": [4, 7]}, {"ss_base_model_version": "sd_v9"}, "kohya", ""
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LORAS)
def test_a_loras_layout_and_base_are_recognised(tmp_path: Path, name: str) -> None:
    shapes, metadata, layout, family = LORAS[name]
    seen = kind(tmp_path, shapes, metadata=metadata)
    assert (seen.kind, seen.layout, seen.family) == ("lora", layout, family)


# --- what else the header says


def test_parts_have_their_published_parameters_bytes_and_dtypes(tmp_path: Path) -> None:
    shapes = make.checkpoint("sdxl")
    vae = {name: "F32" for name in shapes if name.startswith(make.VAE)}
    parts = kind(tmp_path, shapes, dtypes=vae).parts
    assert {name: part.parameters for name, part in parts.items()} == {
        "unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840
    }  # fmt: skip
    assert {name: part.dtype for name, part in parts.items()} == {
        "unet": "fp16", "vae": "fp32", "text_encoder": "fp16", "text_encoder_2": "fp16"
    }  # fmt: skip
    assert (parts["unet"].bytes, parts["vae"].bytes) == (2 * 2_567_463_684, 4 * 83_653_863)


def test_constants_are_no_parameters_and_change_no_dtype(tmp_path: Path) -> None:
    constants = {
        "cond_stage_model.transformer.text_model.embeddings.position_ids": [1, 77],
        "model_ema.decay": [1],
    }
    seen = kind(tmp_path, make.checkpoint("sd15") | constants, dtypes=dict.fromkeys(constants, "F32"))
    assert seen.parts["text_encoder"].parameters == 123_060_480
    assert seen.parts["text_encoder"].dtype == "fp16"


def test_several_dtypes_in_one_part_are_called_mixed(tmp_path: Path) -> None:
    shapes = make.checkpoint("sd15")
    seen = kind(tmp_path, shapes, dtypes={f"{make.UNET}rest": "F8_E4M3"})
    assert (seen.parts["unet"].dtype, seen.parts["vae"].dtype) == ("mixed", "fp16")


@pytest.mark.parametrize(
    ("extra", "metadata", "prediction", "zero_snr"),
    [
        ({}, {}, "", False),
        ({"v_pred": []}, {}, "v_prediction", False),
        ({"v_pred": [], "ztsnr": []}, {}, "v_prediction", True),
        ({}, {"modelspec.prediction_type": "v"}, "v_prediction", False),
        ({}, {"modelspec.prediction_type": "epsilon"}, "epsilon", False),
        ({}, {"modelspec.prediction_type": "very odd"}, "", False),
    ],
)
def test_the_prediction_is_what_the_file_says_or_nothing(
    tmp_path: Path, extra: dict[str, list[int]], metadata: dict[str, str], prediction: str, zero_snr: bool
) -> None:
    seen = kind(tmp_path, make.checkpoint("sdxl") | extra, metadata=metadata)
    assert (seen.prediction, seen.zero_snr) == (prediction, zero_snr)


def test_a_vae_says_how_many_latent_channels_it_has(tmp_path: Path) -> None:
    assert kind(tmp_path, make.original_vae(4, "")).latent_channels == 4
    assert kind(tmp_path, make.original_vae(16, "")).latent_channels == 16
    assert kind(tmp_path, make.checkpoint("sd15")).latent_channels == 4


def test_an_unknown_file_says_what_was_seen(tmp_path: Path) -> None:
    assert kind(tmp_path, {"some.thing": [4], "other": [4]}).seen == ("some.thing", "other")
    assert kind(tmp_path, make.original_unet(999)).seen == ("a UNet with 4 input channels and text width 999",)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"cross_attention_dim": 768}, ("sd15", "sd15")),
        ({"cross_attention_dim": 768, "in_channels": 9}, ("sd15", "sd15-inpainting")),
        ({"cross_attention_dim": 1024, "in_channels": 4}, ("sd2", "sd2")),
        ({"cross_attention_dim": 2048}, ("sdxl", "sdxl")),
        ({"cross_attention_dim": 768, "time_cond_proj_dim": 256}, ("sd15", "sd15-lcm")),
        ({"cross_attention_dim": 2048, "encoder_hid_dim": 4096}, ("", "unknown")),
        ({"cross_attention_dim": 768, "in_channels": 6}, ("", "unknown")),
        ({"cross_attention_dim": 768, "in_channels": [4]}, ("", "unknown")),
        ({"cross_attention_dim": [768] * 4}, ("", "unknown")),
        ({"cross_attention_dim": 32}, ("", "unknown")),
        ({}, ("", "unknown")),
    ],
)
def test_a_config_names_its_kind(config: dict[str, object], expected: tuple[str, str]) -> None:
    assert kind_of_config(config) == expected
