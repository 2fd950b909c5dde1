"""The names that real checkpoints have, made from the libraries' own modules, are recognised and counted exactly."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import model_files as make
import pytest

from sdcli.models import checkpoint, folder
from sdcli.models.headers import read_header
from sdcli.models.kinds import kind_of

PUBLISHED = {
    "sd15": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sdxl": {
        "unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    """scripts/make_checkpoint.py: it knows the original names from diffusers' and transformers' modules."""
    pytest.importorskip("diffusers")
    path = Path(__file__).parents[2] / "scripts" / "make_checkpoint.py"
    spec = importlib.util.spec_from_file_location("make_checkpoint_for_models", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_whole_checkpoint_has_its_published_parameters(tmp_path: Path, maker: ModuleType, family: str) -> None:
    shapes: dict[str, list[int]] = {}
    for name, config in maker.configs(family).items():
        if name != "scheduler":
            planned = maker.planned(name, config, 0)
            shapes |= {key: list(t.shape) for key, t in maker.original(family, name, config, planned)}
    ids = {name: "F32" for name in shapes if name.endswith("position_ids")}
    assert ids
    model = checkpoint.read(make.file(tmp_path / "whole.safetensors", shapes, dtypes=ids))
    assert model.kind == family
    assert {name: part.parameters for name, part in model.components.items()} == PUBLISHED[family]
    assert {part.stored_dtype for part in model.components.values()} == {"fp16"}


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_folder_and_each_of_its_files_are_recognised(tmp_path: Path, maker: ModuleType, family: str) -> None:
    path = make.folder(tmp_path / family, family)
    kinds = {}
    for name, config in maker.configs(family).items():
        if name != "scheduler":
            shapes = {key: list(shape) for key, shape in maker.shapes(name, config).items()}
            file = make.file(path / name / f"{make.stem(name)}.safetensors", shapes, dtype="BF16")
            kind = kind_of(read_header(file))
            kinds[name] = (kind.kind, kind.family)
    model = folder.read(path)
    assert {name: part.parameters for name, part in model.components.items()} == PUBLISHED[family]
    assert {part.stored_dtype for part in model.components.values()} == {"bf16"}
    assert kinds.pop("unet") == ("unet", family)
    assert kinds.pop("vae") == ("vae", "")
    assert set(kinds.values()) == {("text-encoder", "")}


def test_tiny_models_with_the_real_structure_are_read_as_their_folders_say(tmp_path: Path, maker: ModuleType) -> None:
    for family in ("sd15", "sdxl"):
        path = maker.write_folder(tmp_path / family, family, tiny=True, dtype="fp32", shards=2)
        model = folder.read(path)
        assert (model.family, model.components["unet"].stored_dtype) == (family, "fp32")
        assert len(model.components["unet"].files) == 2
