"""Settings as other programs store them: read as data, bounded, and with what has no counterpart shown, not used."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from sdcli.errors import BadFile
from sdcli.record.metadata.read import LONGEST_TEXT, read
from sdcli.request import samplers

GRAPH: dict[str, Any] = {
    "3": {"class_type": "KSampler", "inputs": {
        "seed": 42, "steps": 20, "cfg": 7.5, "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1.0,
        "model": ["10", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]}},
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd/v1-5-pruned.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 768, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat", "clip": ["11", 0]}, "is_changed": [None]},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["11", 0]}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
    "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "ComfyUI", "images": ["8", 0]}},
    "10": {"class_type": "LoraLoader", "inputs": {
        "lora_name": "ink.safetensors", "strength_model": 0.8, "strength_clip": 0.5, "model": ["4", 0],
        "clip": ["4", 1]}},
    "11": {"class_type": "CLIPSetLastLayer", "inputs": {"stop_at_clip_layer": -2, "clip": ["10", 1]}},
}  # fmt: skip
INVOKE: dict[str, Any] = {
    "app_version": "4.2.0", "generation_mode": "txt2img", "positive_prompt": "a cat", "negative_prompt": "blurry",
    "width": 512, "height": 768, "seed": 42, "rand_device": "cpu", "cfg_scale": 7.5, "steps": 20,
    "scheduler": "dpmpp_2m_k", "clip_skip": 1,
    "model": {"key": "6a", "hash": "blake3:1", "name": "dreamshaper", "base": "sd-1", "type": "main"},
    "loras": [{"model": {"name": "ink"}, "weight": 0.8}],
}  # fmt: skip
INVOKE_2: dict[str, Any] = {
    "model": "stable diffusion", "model_weights": "sd-v1-4", "app_version": "2.3.5",
    "image": {
        "prompt": [{"prompt": "a cat [blurry]", "weight": 1.0}], "steps": 20, "cfg_scale": 7.5, "height": 768,
        "width": 512, "seed": 42, "sampler": "k_euler_a", "type": "txt2img", "variations": []},
}  # fmt: skip
MFLUX: dict[str, Any] = {
    "mflux_version": "0.9.0", "model": "black-forest-labs/FLUX.1-dev", "seed": 42, "steps": 20, "guidance": 3.5,
    "width": 512, "height": 768, "precision": "mlx.core.bfloat16", "quantize": 8, "prompt": "a cat: red, big",
    "lora_paths": ["/home/a/ink.safetensors"],
}  # fmt: skip
SDCPP = (
    "a cat\nNegative prompt: blurry\nSteps: 20, CFG scale: 7.5, Guidance: 3.5, Eta: 0, Seed: 42, Size: 512x768, "
    "Model: v1-5-pruned.safetensors, RNG: cuda, Sampler: dpm++2m karras, Version: stable-diffusion.cpp"
)
FORGE = (
    "a cat\nNegative prompt: blurry\nSteps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 42, "
    "Size: 512x768, Model: v1-5, RNG: CPU, Version: f2.0.1v1.10.1-previous-1"
)


def png(path: Path, **texts: Any) -> Path:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, text in texts.items():
        info.add_itxt(key.replace("sd_", "sd-"), text if isinstance(text, str) else json.dumps(text))
    Image.new("RGB", (4, 4)).save(path, pnginfo=info)
    return path


def with_comment(path: Path, comment: bytes) -> Path:
    from PIL import Image

    tags = Image.Exif()
    tags.get_ifd(0x8769)[0x9286] = comment
    Image.new("RGB", (4, 4)).save(path, exif=tags.tobytes())  # Pillow takes an Exif of inner tags alone for empty
    return path


def graph(**changes: Any) -> dict[str, Any]:
    """The sampler's inputs changed."""
    copy: dict[str, Any] = json.loads(json.dumps(GRAPH))
    copy["3"]["inputs"] |= changes
    return copy


def test_comfyuis_graph_is_followed_from_the_image_that_was_saved(tmp_path: Path) -> None:
    found = read(png(tmp_path / "a.png", prompt=json.dumps(GRAPH).replace("[null]", "[NaN]"), workflow={"nodes": []}))
    assert found.dialect == "comfyui"
    assert found.values == {
        "seeds": (42,), "steps": 20, "guidance": 7.5, "sampler": "DPM++ 2M Karras", "prompts": ("a cat",),
        "negative_prompt": "blurry", "emphasis": "comfy", "width": 512, "height": 768, "model": "v1-5-pruned",
        "lora": ("ink:0.8",), "clip_skip": 2,
    }  # fmt: skip
    assert found.unknown == {"strength_clip 1": "0.5"}


def test_sdxls_encoder_and_the_advanced_sampler_are_read(tmp_path: Path) -> None:
    copy = graph(noise_seed=7, add_noise="enable", start_at_step=0, end_at_step=15)
    copy["3"]["class_type"] = "KSamplerAdvanced"
    copy["6"] = {"class_type": "CLIPTextEncodeSDXL", "inputs": {"text_g": "a dog", "text_l": ["20", 0], "clip": 1}}
    copy["20"] = {"class_type": "PrimitiveString", "inputs": {"value": "a dog"}}
    found = read(png(tmp_path / "a.png", prompt=copy))
    assert (found.values["prompts"], found.values["seeds"]) == (("a dog",), (7,))
    assert found.unknown["end_at_step"] == "15" and found.unknown["nodes"] == "PrimitiveString"


def test_a_comfyui_webp_keeps_its_prompt_in_exif(tmp_path: Path) -> None:
    from PIL import Image

    tags = Image.Exif()
    tags[0x0110] = f"prompt:{json.dumps(GRAPH)}"
    Image.new("RGB", (4, 4)).save(tmp_path / "a.webp", exif=tags)
    assert read(tmp_path / "a.webp").values["prompts"] == ("a cat",)


def test_of_a_seed_of_64_bits_those_are_taken_that_draw_the_noise(tmp_path: Path) -> None:
    found = read(png(tmp_path / "a.png", prompt=graph(seed=5 * 2**32 + 7)))
    assert found.values["seeds"] == (7,) and "Seed" not in found.unknown


def test_a_seed_or_sampler_without_counterpart_is_left(tmp_path: Path) -> None:
    copy = graph(seed=2**64, sampler_name="res_multistep", scheduler="beta", denoise=0.5)
    found = read(png(tmp_path / "a.png", prompt=copy))
    assert not {"seeds", "sampler"} & set(found.values)
    assert found.unknown == {
        "Seed": str(2**64), "Sampler": "res_multistep", "Schedule type": "beta", "denoise": "0.5",
        "strength_clip 1": "0.5",
    }  # fmt: skip


def test_plain_text_called_prompt_is_no_graph(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="no settings"):
        read(png(tmp_path / "a.png", prompt="a cat", seed="5"))


def test_invokeais_settings_are_read(tmp_path: Path) -> None:
    found = read(png(tmp_path / "a.png", invokeai_metadata=INVOKE))
    assert found.dialect == "invokeai"
    assert found.values == {
        "seeds": (42,), "steps": 20, "guidance": 7.5, "sampler": "DPM++ 2M Karras", "prompts": ("a cat",),
        "negative_prompt": "blurry", "width": 512, "height": 768, "model": "dreamshaper", "lora": ("ink:0.8",),
        "clip_skip": 2, "rng": "cpu",
    }  # fmt: skip
    assert found.unknown == {"app_version": "4.2.0", "generation_mode": "txt2img"}


def test_version_3_names_models_and_loras_otherwise(tmp_path: Path) -> None:
    older = {**INVOKE, "model": {"model_name": "deliberate"}, "loras": [{"lora": {"model_name": "ink"}, "weight": 1}]}
    values = read(png(tmp_path / "a.png", invokeai_metadata=older)).values
    assert (values["model"], values["lora"]) == ("deliberate", ("ink:1",))


def test_version_2_has_the_negative_prompt_in_brackets(tmp_path: Path) -> None:
    found = read(png(tmp_path / "a.png", sd_metadata=INVOKE_2))
    assert found.values == {
        "seeds": (42,), "steps": 20, "guidance": 7.5, "sampler": "Euler a", "prompts": ("a cat",),
        "negative_prompt": "blurry", "width": 512, "height": 768, "model": "sd-v1-4",
    }  # fmt: skip


@pytest.mark.parametrize("code", [b"", b"ASCII\0\0\0"])
@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_mfluxs_comment_is_read_but_not_its_model(tmp_path: Path, name: str, code: bytes) -> None:
    found = read(with_comment(tmp_path / name, code + json.dumps(MFLUX).encode()))
    assert found.dialect == "mflux"
    assert found.values == {
        "seeds": (42,), "steps": 20, "guidance": 3.5, "prompts": ("a cat: red, big",), "negative_prompt": "",
        "width": 512, "height": 768,
    }  # fmt: skip
    assert {"model", "lora_paths", "quantize"} <= set(found.unknown)


@pytest.mark.parametrize("end", ["", '-1, SDCPP: {"schema":"x", "Seed: 9": "Steps: 1, Size: 8x8"}'])
def test_stable_diffusion_cpps_own_names_are_understood(tmp_path: Path, end: str) -> None:
    found = read(png(tmp_path / "a.png", parameters=SDCPP + end))
    assert found.dialect == "stable-diffusion.cpp"
    assert found.values == {
        "seeds": (42,), "steps": 20, "guidance": 7.5, "sampler": "DPM++ 2M Karras", "prompts": ("a cat",),
        "negative_prompt": "blurry", "width": 512, "height": 768, "model": "v1-5-pruned", "rng": "nv",
    }  # fmt: skip
    assert ("SDCPP" in found.unknown) == bool(end) and found.unknown["Guidance"] == "3.5"


def test_forge_is_a1111s_relative(tmp_path: Path) -> None:
    found = read(png(tmp_path / "a.png", parameters=FORGE))
    assert (found.dialect, found.values["sampler"], found.values["rng"]) == ("a1111", "DPM++ 2M Karras", "cpu")


def cycle() -> Any:
    copy = graph(positive=["30", 0], model=["10", 0])
    copy["10"]["inputs"]["model"] = ["10", 0]
    copy["30"] = {"class_type": "ConditioningCombine", "inputs": {"conditioning_1": ["31", 0]}}
    copy["31"] = {"class_type": "ConditioningCombine", "inputs": {"conditioning_1": ["30", 0]}}
    return copy


def test_a_cycle_or_a_link_to_nothing_is_an_end(tmp_path: Path) -> None:
    values = read(png(tmp_path / "a.png", prompt=cycle())).values
    assert "prompts" not in values and "model" not in values and values["steps"] == 20
    values = read(png(tmp_path / "b.png", prompt=graph(model=["99", 0], latent_image=[[], {}], steps=["3", 0]))).values
    assert not {"model", "width", "steps"} & set(values) and values["prompts"] == ("a cat",)


HOSTILE = {
    "deep": '{"a":' * 100 + "1" + "}" * 100,
    "deeper": '{"a":' * 100_000,
    "digits": '{"3": {"class_type": "KSampler", "inputs": {"seed": ' + "9" * 5000 + "}}}",
    "twice": '{"a": 1, "a": 2}',
    "half": json.dumps(GRAPH)[:-9],
    "many": json.dumps({str(n): {"class_type": "N", "inputs": {}} for n in range(6000)}),
    "empty": "{}",
    "no sampler": json.dumps({"4": GRAPH["4"]}),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_graph_is_refused_with_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(BadFile, match="the comfyui settings of") as error:
        read(png(tmp_path / "a.png", prompt=text))
    assert "\n" not in error.value.message and len(error.value.message) < 400


def test_names_that_lead_elsewhere_are_not_taken(tmp_path: Path) -> None:
    for name in ("../../etc/passwd", "https://example.org/x", "-o", "..", "a\nb"):
        found = read(png(tmp_path / "a.png", invokeai_metadata={**INVOKE, "model": name, "loras": []}))
        taken = found.values.get("model", "")
        assert not set(taken) & set("/\\:\n") and not taken.startswith((".", "-")), name


def mutated(value: Any, dice: random.Random) -> Any:
    """One value anywhere in it replaced by what does not belong there."""
    odd = [
        None, True, -1, 2**70, 1e308, -0.5, "", "\ud800\0\x1b[2J", "x" * 5000, [], {}, ["3", 0], [["a"]], {"name": {}},
        ["6", 1], {"a": [1, {"b": 2}]},
    ]  # fmt: skip
    if not isinstance(value, dict | list) or not value or dice.random() < 0.15:
        return dice.choice(odd)
    if isinstance(value, list):
        at = dice.randrange(len(value))
        return [*value[:at], mutated(value[at], dice), *value[at + 1 :]]
    key = dice.choice(sorted(value))
    return {**value, key: mutated(value[key], dice)}


@pytest.mark.parametrize(("key", "start"), [("prompt", GRAPH), ("invokeai_metadata", INVOKE), ("sd_metadata", INVOKE_2),
                                           ("mflux", MFLUX)])  # fmt: skip
def test_mutations_stay_typed_and_bounded(tmp_path: Path, key: str, start: Any) -> None:
    dice, path, readable = random.Random(24), tmp_path / "a.png", 0
    for _ in range(150):
        changed = start
        for _ in range(dice.randint(1, 4)):
            changed = mutated(changed, dice)
        text = json.dumps(changed)
        try:
            found = read(with_comment(path, text.encode()) if key == "mflux" else png(path, **{key: text}))
        except BadFile:
            continue
        readable += 1
        check(found.values)
        assert all(isinstance(one, str) and len(one) <= 1000 for one in found.unknown.values())
    assert readable > 50


def check(values: Any) -> None:
    kinds = {
        "steps": int, "guidance": float, "width": int, "height": int, "clip_skip": int, "model": str, "sampler": str,
        "negative_prompt": str, "emphasis": str, "rng": str, "prompts": tuple, "seeds": tuple, "lora": tuple,
    }  # fmt: skip
    assert {name: type(value) for name, value in values.items()} == {name: kinds[name] for name in values}
    assert all(0 <= seed < 2**32 for seed in values.get("seeds", ()))
    assert samplers.find(values.get("sampler", "DDIM"))
    "".join((*values.get("prompts", ()), values.get("negative_prompt", ""))).encode()


def test_a_text_beyond_the_bound_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(BadFile):
        read(png(tmp_path / "a.png", prompt=graph(text="x" * LONGEST_TEXT)))
