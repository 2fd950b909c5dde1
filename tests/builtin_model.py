"""A model of the built-in one's shape with random weights: what the folder at sdcli/models/builtin/ looks like."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

from sdcli import data
from sdcli.asking.unknown_words import WORDS as WORDS_FILE
from sdcli.models.folder import read
from sdcli.models.shipped import parameters_of
from sdcli.models.vae import scale
from sdcli.request import samplers

TOKENS = 4096
START, END = TOKENS - 2, TOKENS - 1
SIDE = 128
UNET_PARAMETERS = 14_397_992

UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel", "sample_size": 16, "in_channels": 8, "out_channels": 8,
    "block_out_channels": [80, 144, 208], "layers_per_block": 1, "norm_num_groups": 16,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "cross_attention_dim": 256, "attention_head_dim": 8, "addition_embed_type": "text",
    "addition_embed_type_num_heads": 8, "resnet_time_scale_shift": "scale_shift",
}  # fmt: skip
VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL", "sample_size": SIDE, "in_channels": 3, "out_channels": 3, "latent_channels": 8,
    "block_out_channels": [16, 32, 64, 128], "layers_per_block": 1, "norm_num_groups": 8, "scaling_factor": 1.0,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4, "force_upcast": False,
}  # fmt: skip
TEXT: dict[str, Any] = {
    "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "vocab_size": TOKENS, "hidden_size": 256,
    "intermediate_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 77,
    "bos_token_id": START, "eos_token_id": END, "pad_token_id": END, "hidden_act": "quick_gelu",
}  # fmt: skip
SCHEDULER: dict[str, Any] = {
    "_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing", "clip_sample": False, "set_alpha_to_one": True, "steps_offset": 1,
}  # fmt: skip
INDEX: dict[str, Any] = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None], "image_encoder": [None, None], "safety_checker": [None, None],
    "requires_safety_checker": False,
    "scheduler": ["diffusers", "DDIMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "sdcli": {
        "width": SIDE, "height": SIDE, "steps": 18, "guidance": 3.5, "sampler": "Euler",
        "preview": [[0.3, 0.2, 0.1]] * 8 + [[0.5, 0.5, 0.5]],
    },
}  # fmt: skip
WORDS = ("a", "an", "and", "apple", "blue", "caffè", "cat", "gatto", "of", "red", "t-shirt", "un", "一", "只", "猫")


def write(folder: Path, *, hollow: bool = False) -> Path:
    """The whole folder; `hollow`: its weights are holes on the disk, for where nothing is drawn."""
    for part, config in (("unet", UNET), ("vae", VAE), ("text_encoder", TEXT)):
        _json(folder / part / "config.json", config)
        stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        (_hole if hollow else _weights)(folder / part / f"{stem}.safetensors", part, config)
    _json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    _json(folder / "model_index.json", INDEX)
    _tokenizer(folder / "tokenizer")
    (folder / WORDS_FILE).write_text("".join(f"{word}\n" for word in WORDS), encoding="utf-8")
    return folder


def faults(folder: Path) -> list[str]:
    """What keeps a folder from being a built-in model, whoever wrote it; by its files alone."""
    model = read(folder, family="builtin")
    index, scheduler = _read(folder / "model_index.json"), _read(folder / "scheduler" / "scheduler_config.json")
    tokens = _read(folder / "tokenizer" / "vocab.json")
    words = (folder / WORDS_FILE).read_text(encoding="utf-8").splitlines()
    asked = index.get("sdcli", {})
    side = model.components["unet"].config["sample_size"] * scale(model.components["vae"].config)
    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    table = _read(folder / "tokenizer" / "tokenizer_config.json")
    checks = {
        "the index asks for size, steps, guidance and sampler": {"width", "height", "steps", "guidance", "sampler"}
        <= set(model.defaults) & set(asked),
        "its size is its UNet's": (asked.get("width"), asked.get("height")) == (side, side),
        "20 steps at most": 1 <= asked.get("steps", 0) <= 20,
        "its sampler can start from pure noise": asked.get("sampler") in samplers.ZERO_SNR,
        "a colour for each latent channel": len(model.preview) >= model.components["unet"].config["in_channels"],
        "zero terminal SNR, trailing, v-prediction": model.zero_snr
        and model.prediction == "v_prediction"
        and scheduler.get("timestep_spacing") == "trailing",
        "what diffusers would change of the scheduler": scheduler.get("steps_offset") == 1
        and scheduler.get("clip_sample") is False,
        "numbers 0 to the encoder's last, the marks at the end": sorted(tokens.values())
        == list(range(model.components["text_encoder"].config["vocab_size"]))
        and [tokens.get("<|startoftext|>"), tokens.get("<|endoftext|>")] == [len(tokens) - 2, len(tokens) - 1],
        "padding is the end mark": _content(table.get("pad_token", "<|endoftext|>")) == "<|endoftext|>",
        "75 words a chunk": model.components["text_encoder"].config["max_position_embeddings"] == 77,
        "words in small letters, composed, sorted, each once": words == sorted(set(words))
        and all(word == unicodedata.normalize("NFC", word).lower().strip() != "" for word in words),
        "fp16": {part.stored_dtype for part in model.components.values()} == {"fp16"},
        "40 MB at most": size <= 40_000_000,
    }
    return [name for name, holds in checks.items() if not holds]


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _read(path: Path) -> dict[str, Any]:
    held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return held


def _tokenizer(folder: Path) -> None:
    """A vocabulary of its own: the first of CLIP's merges, numbered backwards, so that no id is what CLIP's is."""
    clip = data.component_folder("clip")
    known = sorted(json.loads((clip / "vocab.json").read_text(encoding="utf-8")).items(), key=lambda item: item[1])
    merges = (clip / "merges.txt").read_text(encoding="utf-8").splitlines()[: 1 + START - 512]
    tokens = [token for token, _ in known[:START]]
    assert tokens[-1] == merges[-1].replace(" ", "")
    numbered = enumerate([*tokens[::-1], "<|startoftext|>", "<|endoftext|>"])
    _json(folder / "vocab.json", {token: number for number, token in numbered})
    (folder / "merges.txt").write_text("".join(f"{line}\n" for line in merges), encoding="utf-8")
    _json(folder / "tokenizer_config.json", {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>",
    })  # fmt: skip


def _weights(path: Path, part: str, config: dict[str, Any]) -> None:
    from scripts.make_checkpoint import planned, write_safetensors, write_sharded

    if part == "unet":  # as the real one: no file above 16 MiB
        write_sharded(path.parent, path.stem, "", planned(part, config, 0), "fp16", 2)
    else:
        write_safetensors(path, planned(part, config, 0), "fp16")


def _hole(path: Path, part: str, config: dict[str, Any]) -> None:
    count = parameters_of(part, config)
    table = json.dumps({"all": {"dtype": "F16", "shape": [count], "data_offsets": [0, 2 * count]}}).encode()
    with path.open("wb") as file:
        file.write(len(table).to_bytes(8, "little") + table)
        file.truncate(8 + len(table) + 2 * count)


def _json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
