"""T2I-Adapters in every form they come in, recognised by headers alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scripts import make_checkpoint
from sdcli.errors import BadFile, SdcliError
from sdcli.models import controlnet, headers, kinds, resolve

PARAMETERS = {"full": 77_369_280, "light": 18_689_200, "large": 79_028_160}
ABOUT: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("sd15", {}), "light": ("sd15", {"light": True}), "large": ("sdxl", {}),
}  # fmt: skip


def file_of(path: Path, which: str, layout: str = "diffusers", **changes: Any) -> Path:
    """Full size, with holes in place of weights."""
    family, about = ABOUT[which]
    return make_checkpoint.write_t2i_file(path, family, layout=layout, dtype="fp16", seed=None, **about, **changes)


@pytest.mark.parametrize(("which", "layout"), [
    ("full", "diffusers"), ("full", "original"), ("light", "diffusers"), ("light", "original"), ("large", "diffusers"),
])  # fmt: skip
def test_a_single_file_gives_its_family_its_config_and_its_size(tmp_path: Path, which: str, layout: str) -> None:
    file = file_of(tmp_path / "sketch.safetensors", which, layout)
    found = controlnet.read(file)
    family, about = ABOUT[which]
    assert (found.name, found.family, found.part, found.called) == ("sketch", family, "t2i_adapter", "T2I-Adapter")
    assert found.component.parameters == PARAMETERS[which]
    assert found.component.config == make_checkpoint.t2i_config(family, **about)
    assert found.component.files == (str(file),)
    kind = kinds.kind_of(headers.read_header(file))
    assert (kind.kind, kind.family) == ("t2i-adapter", family)


def test_one_for_images_of_one_colour_says_so(tmp_path: Path) -> None:
    for which in ("full", "large"):
        found = controlnet.read(file_of(tmp_path / f"{which}.safetensors", which, channels=1))
        assert found.component.config["in_channels"] == 1


def test_a_folder_gives_what_its_config_says(tmp_path: Path) -> None:
    folder = make_checkpoint.write_t2i_folder(tmp_path / "depth", "sdxl", tiny=True, dtype="fp16", variant="fp16")
    found = controlnet.read(folder)
    assert (found.name, found.family, found.part) == ("depth", "sdxl", "t2i_adapter")
    assert found.component.config == json.loads((folder / "config.json").read_text())
    assert found.component.files == (str(folder / "diffusion_pytorch_model.fp16.safetensors"),)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"in_channels": 4}, "in_channels should be 1 or 3"),
        ({"downscale_factor": 4}, "downscale_factor should be 8 or 16"),
        ({"adapter_type": "heavy"}, "adapter_type should be one of"),
        ({"channels": "many"}, "channels should be"),
        ({"channels": [32]}, "channels should be"),
        ({"channels": [32, 64, 64, 640]}, "not the same model"),
        ({"_class_name": "MultiAdapter"}, "several T2I-Adapters in one"),
    ],
)
def test_a_config_that_diffusers_could_not_use_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    folder = make_checkpoint.write_t2i_folder(tmp_path, "sd15", tiny=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(SdcliError) as refused:
        controlnet.read(folder)
    assert said in refused.value.message


def test_one_that_lacks_layers_is_refused(tmp_path: Path) -> None:
    planned = make_checkpoint.planned("t2i_adapter", make_checkpoint.t2i_config("sd15"), None)
    for lacking, said in (
        ("body.2.in_conv", "of 77.4 million parameters"),
        ("conv_in", "none that sdcli can draw with"),
    ):
        kept = {name: tensor for name, tensor in planned.items() if not name.startswith(f"adapter.{lacking}.")}
        make_checkpoint.write_safetensors(tmp_path / "x.safetensors", kept, "fp16")
        with pytest.raises(BadFile, match=said):
            controlnet.read(tmp_path / "x.safetensors")


def test_one_for_another_family_or_another_unet_is_refused(tmp_path: Path) -> None:
    drawn = {
        family: resolve.at(make_checkpoint.write_folder(tmp_path / family, family, tiny=True))
        for family in ("sd15", "sd2", "sdxl")
    }
    for family in ("sd15", "sdxl"):
        own = controlnet.read(make_checkpoint.write_t2i_folder(tmp_path / f"{family}-net", family, tiny=True))
        controlnet.check_fits(own, drawn[family])
    small = controlnet.read(tmp_path / "sd15-net")
    with pytest.raises(BadFile, match=r"sd15-net is a T2I-Adapter for Stable Diffusion 1\.5; sdxl is SDXL"):
        controlnet.check_fits(small, drawn["sdxl"])
    with pytest.raises(BadFile, match="sd2 is Stable Diffusion 2"):
        controlnet.check_fits(small, drawn["sd2"])
    full = controlnet.read(file_of(tmp_path / "full.safetensors", "full"))
    with pytest.raises(BadFile, match="made for another UNet than that of sd15: it gives 320×64×64"):
        controlnet.check_fits(full, drawn["sd15"])


def test_several_nets_are_counted_by_kind(tmp_path: Path) -> None:
    adapter = controlnet.read(file_of(tmp_path / "a.safetensors", "full"))
    net = controlnet.read(make_checkpoint.write_controlnet_folder(tmp_path / "net", "sd15", tiny=True))
    assert [*controlnet.parts([net, adapter, net, adapter])] == [
        "controlnet", "t2i_adapter", "controlnet_2", "t2i_adapter_2"
    ]  # fmt: skip
