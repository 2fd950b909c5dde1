"""Names of LoRA layers against the layers of SD1.5 and SDXL at full size; what a file must be; families kept apart."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from model_files import checkpoint, file

from scripts.make_checkpoint import original_unet_name
from sdcli import data
from sdcli.errors import BadFile, Unsafe
from sdcli.models import lora
from sdcli.models.lora import Layer
from sdcli.models.model import Component, Model
from sdcli.models.shipped import component_of
from sdcli.models.unet import analyse

PARTS = {"sd15": ("unet", "text_encoder", "vae"), "sdxl": ("unet", "text_encoder", "text_encoder_2", "vae")}
LAYERS = {"sd15": (282, 72), "sdxl": (794, 265)}  # in the UNet, in the text encoders


def model(family: str) -> Model:
    components = {name: component_of(family, name, "fp16") for name in PARTS[family]}
    return Model(name=f"my {family}", kind=family, family=family, source="folder", components=components)


def layers(family: str) -> dict[str, Layer]:
    return lora.layers({name: data.component_config(family, name) for name in PARTS[family] if name != "vae"})


def kohya(family: str, *, sgm: bool = False) -> dict[str, Layer]:
    """Every layer under kohya's name, made from its diffusers name by kohya's own rule: dots become underscores."""
    config = data.component_config(family, "unet")
    named: dict[str, Layer] = {}
    for layer in set(layers(family).values()):
        if layer.component != "unet":
            number = {"text_encoder": "1", "text_encoder_2": "2"}[layer.component] if family == "sdxl" else ""
            named[f"lora_te{number}_" + layer.name.replace(".", "_")] = layer
        elif sgm:
            original = original_unet_name(f"{layer.name}.weight", config).removesuffix(".weight")
            named["lora_unet_" + original.replace(".", "_")] = layer
        else:
            named["lora_unet_" + layer.name.replace(".", "_")] = layer
    return named


def tensors(layer: str, shape: tuple[int, ...], rank: int = 4, *, kernel: bool = True) -> dict[str, list[int]]:
    """A LoRA's three tensors for one layer, as kohya writes them."""
    ones = [1] * (len(shape) - 2)
    down = [rank, shape[1], *shape[2:]] if kernel else [rank, shape[1], *ones]
    return {
        f"{layer}.alpha": [],
        f"{layer}.lora_down.weight": down,
        f"{layer}.lora_up.weight": [shape[0], rank, *ones],
    }


def every(named: dict[str, Layer]) -> dict[str, list[int]]:
    return {name: shape for module, layer in named.items() for name, shape in tensors(module, layer.shape).items()}


# --- names


@pytest.mark.parametrize("sgm", [False, True])
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_kohya_names_of_every_layer_map_one_to_one(family: str, sgm: bool, tmp_path: Path) -> None:
    named = kohya(family, sgm=sgm)
    assert len(named) == sum(LAYERS[family]), "two layers have the same name"
    match = lora.match(file(tmp_path / "all.safetensors", every(named)), model(family))
    assert match.unmatched == () and match.layout == "kohya"
    assert {one.layer for one in match.fitted} == set(named.values())
    counted = Counter(one.layer.component == "unet" for one in match.fitted)
    assert (counted[True], counted[False]) == LAYERS[family]
    for one in match.fitted:
        module = one.parts["lora_down"].removesuffix(".lora_down.weight")
        assert named[module] == one.layer and one.rank == 4


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_every_convolution_and_linear_of_the_unet_can_be_added_to(family: str) -> None:
    leaves = analyse(data.component_config(family, "unet"), height=64, width=64).leaves
    expected = {leaf.name: leaf.weight_shape for leaf in leaves if leaf.kind in ("convolution", "linear")}
    assert {layer.name: layer.shape for layer in layers(family).values() if layer.component == "unet"} == expected


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
@pytest.mark.parametrize(
    ("prefix", "down", "up"),
    [("", "lora_A.weight", "lora_B.weight"), ("", "lora.down.weight", "lora.up.weight"),
     ("", "lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
     ("base_model.model.", "lora_A.default.weight", "lora_B.default.weight")],
)  # fmt: skip
def test_diffusers_names_of_every_layer_map_one_to_one(
    family: str, prefix: str, down: str, up: str, tmp_path: Path
) -> None:
    shapes: dict[str, list[int]] = {}
    expected = set(layers(family).values())
    for layer in expected:
        module = f"{prefix}{layer.component}.{layer.name}"
        ones = [1] * (len(layer.shape) - 2)
        shapes[f"{module}.{down}"] = [8, *layer.shape[1:]]
        shapes[f"{module}.{up}"] = [layer.shape[0], 8, *ones]
    match = lora.match(file(tmp_path / "all.safetensors", shapes), model(family))
    assert match.unmatched == () and {one.layer for one in match.fitted} == expected
    assert len(match.fitted) == len(expected)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora", "to_out.0"),
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora", "to_q"),
        ("text_encoder.text_model.encoder.layers.3.self_attn.to_out_lora", "out_proj"),
        ("text_encoder.encoder.layers.3.self_attn.k_proj.lora_linear_layer", "k_proj"),
    ],
)
def test_the_names_of_older_and_newer_diffusers_are_understood(name: str, layer: str, tmp_path: Path) -> None:
    side = 768 if name.startswith("text") else 1280
    path = file(tmp_path / "l.safetensors", {f"{name}.down.weight": [4, side], f"{name}.up.weight": [side, 4]})
    match = lora.match(path, model("sd15"))
    assert [one.layer.name.endswith(layer) for one in match.fitted] == [True]


# --- shapes and alphas


def test_a_kernel_must_be_the_layers_own(tmp_path: Path) -> None:
    """A 1×1 factor for a layer of 3×3 is another adapter's; for a layer of 1×1 a matrix will do."""
    three, one = "lora_unet_mid_block_resnets_0_conv1", "lora_unet_mid_block_attentions_0_proj_in"
    shapes = {
        **tensors(three, (1280, 1280, 3, 3), kernel=False),
        f"{one}.lora_down.weight": [4, 1280], f"{one}.lora_up.weight": [1280, 4],
    }  # fmt: skip
    match = lora.match(file(tmp_path / "l.safetensors", shapes), model("sd15"))
    assert match.unmatched == (three,)
    assert [fitted.layer.name for fitted in match.fitted] == ["mid_block.attentions.0.proj_in"]


def test_a_convolution_in_three_steps_fits_by_its_middle(tmp_path: Path) -> None:
    name = "lora_unet_mid_block_resnets_0_conv1"
    shapes = {**tensors(name, (1280, 1280, 3, 3), kernel=False), f"{name}.lora_mid.weight": [4, 4, 3, 3]}
    assert lora.match(file(tmp_path / "l.safetensors", shapes), model("sd15")).unmatched == ()


@pytest.mark.parametrize("shape", [[4, 99], [0, 320], [4], []])
def test_factors_of_the_wrong_shape_are_left_out_and_reported(shape: list[int], tmp_path: Path) -> None:
    good = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    bad = good.replace("to_q", "to_v")
    shapes = {**tensors(good, (320, 320)), **tensors(bad, (320, 320)), f"{bad}.lora_down.weight": shape}
    match = lora.match(file(tmp_path / "l.safetensors", shapes), model("sd15"))
    assert match.unmatched == (bad,) and len(match.fitted) == 1 and match.of == 2


def test_alpha_is_a_tensor_else_in_the_notes_else_the_rank(tmp_path: Path) -> None:
    module = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1"
    shapes: dict[str, list[int]] = {}
    for name in ("to_q", "to_k", "to_v"):
        shapes |= {f"{module}.{name}.lora_A.weight": [4, 320], f"{module}.{name}.lora_B.weight": [320, 4]}
    notes = {"unet.lora_alpha": 8, "unet.alpha_pattern": {"attn1.to_k": 2}}
    metadata = {"lora_adapter_metadata": json.dumps(notes)}
    path = file(tmp_path / "l.safetensors", shapes, metadata=metadata)
    scalings = {one.layer.name.rpartition(".")[2]: one.scaling(None) for one in lora.match(path, model("sd15")).fitted}
    assert scalings == {"to_q": 2.0, "to_k": 0.5, "to_v": 2.0}
    assert lora.match(path, model("sd15")).fitted[0].scaling(1.0) == 0.25
    bare = file(tmp_path / "bare.safetensors", shapes)
    assert {one.scaling(None) for one in lora.match(bare, model("sd15")).fitted} == {1.0}
    notes = {"unet.lora_alpha": 8, "unet.use_rslora": True}
    path = file(tmp_path / "rs.safetensors", shapes, metadata={"lora_adapter_metadata": json.dumps(notes)})
    assert {one.scaling(None) for one in lora.match(path, model("sd15")).fitted} == {4.0}


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "3", '{"unet.lora_alpha": "many", "unet.alpha_pattern": [1]}'])
def test_damaged_notes_are_an_error_or_nothing(text: str, tmp_path: Path) -> None:
    shapes = tensors("lora_unet_mid_block_attentions_0_proj_in", (1280, 1280, 1, 1))
    path = file(tmp_path / "l.safetensors", shapes, metadata={"lora_adapter_metadata": text})
    if text.startswith(("{}", "3", '{"')):
        assert len(lora.match(path, model("sd15")).fitted) == 1
    else:
        with pytest.raises(BadFile, match="lora_adapter_metadata"):
            lora.match(path, model("sd15"))


def test_peft_keeps_the_alpha_of_a_unet_in_a_file_beside(tmp_path: Path) -> None:
    module = "base_model.model.mid_block.attentions.0.proj_in"
    path = file(
        tmp_path / "l.safetensors", {f"{module}.lora_A.weight": [4, 1280], f"{module}.lora_B.weight": [1280, 4]}
    )
    assert lora.match(path, model("sd15")).fitted[0].scaling(None) == 1.0
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 12, "auto_mapping": {"parent_library": "x"}}')
    assert lora.match(path, model("sd15")).fitted[0].scaling(None) == 3.0
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 12, "use_dora": true}')
    with pytest.raises(BadFile, match="is a DoRA"):
        lora.match(path, model("sd15"))


# --- families


def small(family: str, layout: str) -> dict[str, list[int]]:
    """A few layers of a LoRA of another family, enough to recognise it."""
    if family == "flux":
        names = {
            "kohya": "lora_unet_double_blocks_0_img_attn_proj",
            "diffusers": "transformer.single_transformer_blocks.0.attn.to_q",
        }
        return _factors(names[layout], 3072, 3072, layout)
    if family == "sd3":
        names = {
            "kohya": "lora_unet_joint_blocks_0_x_block_attn_proj",
            "diffusers": "transformer.joint_blocks.0.attn.to_q",
        }
        return _factors(names[layout], 1536, 1536, layout)
    width = {"sd15": 768, "sd2": 1024, "sdxl": 2048}[family]
    side, block = (640, 1) if family == "sdxl" else (320, 0)
    tensors: dict[str, list[int]] = {}
    for attention, wide in (("attn1", side), ("attn2", width)):
        path = f"down_blocks.{block}.attentions.0.transformer_blocks.0.{attention}.to_k"
        name = f"lora_unet_{path.replace('.', '_')}" if layout == "kohya" else f"unet.{path}"
        tensors |= _factors(name, side, wide, layout)
    return tensors


def _factors(name: str, out: int, wide: int, layout: str) -> dict[str, list[int]]:
    down, up = ("lora_down", "lora_up") if layout == "kohya" else ("lora_A", "lora_B")
    return {f"{name}.{down}.weight": [4, wide], f"{name}.{up}.weight": [out, 4]}


TITLES = {
    "sd15": "Stable Diffusion 1.5", "sdxl": "SDXL", "sd2": "Stable Diffusion 2", "flux": "FLUX",
    "sd3": "Stable Diffusion 3",
}  # fmt: skip


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
@pytest.mark.parametrize("made_for", ["sd15", "sdxl", "sd2", "flux", "sd3"])
@pytest.mark.parametrize("drawn", ["sd15", "sdxl"])
def test_a_lora_of_another_family_is_refused_and_both_are_named(
    drawn: str, made_for: str, layout: str, tmp_path: Path
) -> None:
    path = file(tmp_path / "l.safetensors", small(made_for, layout))
    if drawn == made_for:
        assert lora.match(path, model(drawn)).unmatched == ()
        return
    with pytest.raises(BadFile) as refused:
        lora.match(path, model(drawn))
    assert refused.value.code == 9
    assert f"for {TITLES[made_for]};" in refused.value.message
    assert TITLES[drawn] in refused.value.message and f"my {drawn}" in refused.value.message


def test_a_lora_of_which_nothing_fits_says_so_and_names_a_layer(tmp_path: Path) -> None:
    path = file(tmp_path / "l.safetensors", tensors("lora_unet_no_such_layer", (8, 8)))
    with pytest.raises(BadFile, match="none of its 1 layers, such as lora_unet_no_such_layer, fits my sd15"):
        lora.match(path, model("sd15"))


def test_a_model_of_its_own_shape_takes_what_fits_it(tmp_path: Path) -> None:
    """Its family is unknown, so that only names and shapes decide."""
    config = data.component_config("sd15", "unet") | {"cross_attention_dim": 96}
    unet = Component(parameters=1, stored_bytes=1, stored_dtype="fp16", config=config)
    own = Model(name="own", kind="builtin", family="builtin", source="builtin", components={"unet": unet})
    match = lora.match(file(tmp_path / "l.safetensors", small("sd15", "kohya")), own)
    assert [one.layer.name.split(".")[-2] for one in match.fitted] == ["attn1"] and len(match.unmatched) == 1


@pytest.mark.parametrize(
    ("part", "shape", "title"),
    [("dora_scale", [320, 1], "a DoRA"), ("hada_w1_a", [320, 4], "a LoHa"), ("lokr_w1", [8, 8], "a LoKr"),
     ("diff", [320, 320], "a difference of whole weights")],
)  # fmt: skip
def test_relatives_of_lora_are_refused_by_name_rather_than_half_added(
    part: str, shape: list[int], title: str, tmp_path: Path
) -> None:
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    path = file(tmp_path / "l.safetensors", {**tensors(name, (320, 320)), f"{name}.{part}": shape})
    with pytest.raises(BadFile, match=f"is {title}"):
        lora.match(path, model("sd15"))


def test_what_is_not_a_lora_is_named(tmp_path: Path) -> None:
    path = file(tmp_path / "m.safetensors", checkpoint("sd15"))
    with pytest.raises(BadFile, match=r"Stable Diffusion 1\.5, not a LoRA"):
        lora.match(path, model("sd15"))
    pickle: Any = tmp_path / "l.pt"
    pickle.write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(Unsafe):
        lora.match(pickle, model("sd15"))
