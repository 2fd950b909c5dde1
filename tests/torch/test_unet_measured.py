"""inspect-unet's figures for a real call and for any torch module, against the modules themselves."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from unet_reference import live_peak, random_config

from sdcli import data
from sdcli.errors import BadFile, DeviceUnusable, ModelMissing, Usage
from sdcli.inspect import modules
from sdcli.inspect.facts import At, Source, inspect, to_json
from sdcli.inspect.measure import measure
from sdcli.inspect.screen import measured as shown
from sdcli.inspect.source import of_family
from sdcli.models.unet import analyse


def small(config: dict[str, Any]) -> Source:
    return Source(name="small", kind="config", family="", title="small", origin="", config=config)


TINY = data.component_config("sdxl", "unet") | {
    "block_out_channels": [32, 64, 64],
    "layers_per_block": 1,
    "attention_head_dim": [2, 4, 4],
    "transformer_layers_per_block": [1, 1, 2],
    "cross_attention_dim": 96,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 64 + 6 * 8,
}


def test_a_real_call_has_the_peak_that_was_predicted(capsys: pytest.CaptureFixture[str]) -> None:
    look = measure(inspect(small(TINY), At(width=256, height=256, dtype="fp32")), "cpu")
    run = look.measured
    assert run is not None
    assert run.activation_peak_bytes == pytest.approx(look.unet.activation_peak(4), rel=0.1)
    assert [block.name for block in run.blocks] == [block.name for block in look.unet.blocks]
    assert run.seconds == pytest.approx(sum(block.seconds for block in run.blocks))
    assert to_json(look)["measured"]["dtype"] == "fp32"
    assert any("predicted" in line and "measured" in line for line in shown(look))
    assert "random weights" in capsys.readouterr().err


@pytest.mark.parametrize("seed", [0, 3, 5, 8, 13])
def test_random_unets_run_as_they_were_read(seed: int) -> None:
    config, size = random_config(seed)
    at = At(
        width=size["width"] * 8, height=size["height"] * 8, batch=size["batch"], tokens=size["tokens"], dtype="fp32"
    )
    assert measure(inspect(small(config), at), "cpu").measured is not None


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(Usage, match="diffusion UNets"):
        measure(inspect(of_family("unet2015"), At(width=572, height=572)), "cpu")
    with pytest.raises(DeviceUnusable):
        measure(inspect(small(TINY), At(width=64, height=64)), "cuda:99")


class Classic(torch.nn.Module):
    """The U-Net of 2015, written out, to compare the analytic one with."""

    def __init__(self) -> None:
        super().__init__()
        widths = [64, 128, 256, 512, 1024]
        self.downs, self.rises, self.ups = (torch.nn.ModuleList() for _ in range(3))
        before = 1
        for width in widths:
            self.downs.extend([torch.nn.Conv2d(before, width, 3), torch.nn.Conv2d(width, width, 3)])
            before = width
        for width in widths[-2::-1]:
            self.rises.append(torch.nn.ConvTranspose2d(2 * width, width, 2, stride=2))
            self.ups.extend([torch.nn.Conv2d(2 * width, width, 3), torch.nn.Conv2d(width, width, 3)])
        self.out = torch.nn.Conv2d(64, 2, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        skips = []
        for number, conv in enumerate(self.downs):
            image = torch.relu(conv(image))
            if number % 2 and number < len(self.downs) - 1:
                skips.append(image)
                image = torch.nn.functional.max_pool2d(image, 2)
        for number, rise in enumerate(self.rises):
            image = rise(image)
            top, left = ((skips[-1].shape[i] - image.shape[i]) // 2 for i in (2, 3))
            height, width = image.shape[2:]
            image = torch.cat([skips.pop()[:, :, top : top + height, left : left + width], image], 1)
            for conv in self.ups[2 * number : 2 * number + 2]:
                image = torch.relu(conv(image))
        out: torch.Tensor = self.out(image)
        return out


def test_the_unet_of_2015_is_what_its_paper_draws() -> None:
    look = modules.inspect(f"{Classic.__module__}:Classic", ["1,1,572,572"])
    ours = analyse(data.component_config("unet2015", "unet"), height=572, width=572)
    assert look.unet.parameters == ours.parameters == 31_030_658
    assert look.unet.macs == ours.macs
    weighted = [leaf for leaf in look.unet.leaves if leaf.parameters]
    assert [leaf.output_shape for leaf in weighted] == [leaf.output_shape for leaf in ours.leaves]
    assert [leaf.parameters for leaf in weighted] == [leaf.parameters for leaf in ours.leaves]
    assert [leaf.macs for leaf in weighted] == [leaf.macs for leaf in ours.leaves]


def test_the_unet_of_2015_has_the_peak_that_was_predicted() -> None:
    with torch.device("meta"):
        model = Classic().half()
    image = torch.empty((1, 1, 572, 572), device="meta", dtype=torch.float16)
    predicted = analyse(data.component_config("unet2015", "unet"), height=572, width=572).activation_peak(2)
    assert predicted == pytest.approx(live_peak(lambda: model(image)), rel=0.01)


def test_the_rows_of_any_module_add_up() -> None:
    look = modules.inspect("diffusers:AutoencoderTiny", ["1,3,64,64"])
    assert look.unet.parameters == 2_445_063
    assert sum(leaf.macs for leaf in look.unet.leaves) == look.unet.macs
    assert sum(block.macs for block in look.unet.blocks) == look.unet.macs
    document = to_json(look)
    assert document["source"]["kind"] == "module"
    assert sum(layer["parameters"] for layer in document["layers"]) == 2_445_063


def test_attention_products_inside_a_module_get_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "attending.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.inner = torch.nn.Linear(8, 8)\n"
        "        self.never = torch.nn.Linear(8, 8)\n"
        "    def forward(self, x):\n"
        "        x = self.inner(self.inner(x))\n"
        "        return x @ x.transpose(1, 2)\n"
        "def broken():\n"
        "    raise RuntimeError('no luck')\n"
        "def number():\n"
        "    return 3\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    look = modules.inspect("attending:Net", ["2,5,8"])
    assert look.unet.macs == 2 * (2 * 5 * 8 * 8) + 2 * 5 * 5 * 8
    assert sum(leaf.macs for leaf in look.unet.leaves) == look.unet.macs
    assert look.source.unexpected == ("never",)
    assert look.unet.parameters == 144
    with pytest.raises(BadFile, match="no luck"):
        modules.inspect("attending:broken", ["1,3"])
    with pytest.raises(Usage, match="not a torch module"):
        modules.inspect("attending:number", ["1,3"])
    with pytest.raises(BadFile, match="does not run on 1×3×4"):
        modules.inspect("attending:Net", ["1,3,4"])
    sys.modules.pop("attending", None)


def test_a_wrong_name_of_a_module_is_explained() -> None:
    for name, shapes, kind in (
        ("torch.nn", ["1"], Usage),
        ("torch.nn:Linear", [], Usage),
        ("torch.nn:Linear", ["1,x"], Usage),
        ("no_such_package:Net", ["1"], ModelMissing),
        ("torch.nn:NoSuchClass", ["1"], ModelMissing),
    ):
        with pytest.raises(kind):
            modules.inspect(name, shapes)
