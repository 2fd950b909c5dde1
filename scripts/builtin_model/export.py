"""The trained parts as a plain diffusers folder in fp16, with what sdcli needs beside it."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel

from scripts.builtin_model.denoiser import SCHEDULER

SHARD = "15MB"


def export(
    folder: Path, *, autoencoder: AutoencoderKL, encoder: CLIPTextModel, tokenizer: Path,
    denoiser: UNet2DConditionModel, words: Sequence[str], defaults: dict[str, Any],
) -> None:  # fmt: skip
    """Written anew each time; the card is left."""
    for name in ("vae", "text_encoder", "unet", "tokenizer", "scheduler"):
        shutil.rmtree(folder / name, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    for part, name in ((autoencoder, "vae"), (encoder, "text_encoder"), (denoiser, "unet")):
        copy.deepcopy(part).half().save_pretrained(folder / name, safe_serialization=True, max_shard_size=SHARD)
        _without_origin(folder / name / "config.json")
    (folder / "tokenizer").mkdir()
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
        if (tokenizer / name).exists():
            shutil.copyfile(tokenizer / name, folder / "tokenizer" / name)
    DDIMScheduler(**SCHEDULER).save_pretrained(folder / "scheduler")
    (folder / "words.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    index = {
        "_class_name": "StableDiffusionPipeline", "feature_extractor": [None, None], "image_encoder": [None, None],
        "requires_safety_checker": False, "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"], "sdcli": defaults,
    }  # fmt: skip
    for weights in folder.rglob("*.safetensors"):
        weights.chmod(0o644)
    (folder / "model_index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _without_origin(config: Path) -> None:
    """diffusers writes down from which folder of this machine a part was read."""
    said = json.loads(config.read_text(encoding="utf-8"))
    said.pop("_name_or_path", None)
    config.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
