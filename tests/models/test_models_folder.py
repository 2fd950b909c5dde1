"""A diffusers folder is read as JSON and headers; nothing in it chooses what runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import model_files as make
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdcli import data
from sdcli.errors import BadFile, ModelMissing, SdcliError, Unsafe
from sdcli.models import families, folder


def test_families_have_their_published_sizes(tmp_path: Path) -> None:
    for family, total in (("sd15", 1_066_235_307), ("sdxl", 3_468_837_867), ("refiner", 3_037_840_363)):
        model = folder.read(make.folder(tmp_path / family, family, variant=".fp16", dtype="F16"))
        assert (model.name, model.kind, model.family, model.source) == (family, family, family, "folder")
        assert sum(part.parameters for part in model.components.values()) == total
        assert model.disk_bytes == 2 * total
        assert {part.stored_dtype for part in model.components.values()} == {"fp16"}
        assert model.components["unet"].config["cross_attention_dim"] in (768, 1280, 2048)
        assert model.empty_is_zeros == (family == "sdxl")
        assert all(Path(file).is_absolute() for part in model.components.values() for file in part.files)
        assert model.layout == "diffusers"
        assert model.cached


def test_the_smaller_variant_is_taken_where_there_are_two(tmp_path: Path) -> None:
    path = make.folder(tmp_path / "mine")
    make.file(path / "unet" / "diffusion_pytorch_model.fp16.safetensors", {"all": [859_520_964]})
    model = folder.read(path)
    assert model.components["unet"].stored_dtype == "fp16"
    assert model.components["vae"].stored_dtype == "fp32"


@pytest.mark.parametrize("table", ["{}.safetensors.index.json", "{}.safetensors.index.fp16.json"])
def test_shards_are_found_through_their_table(tmp_path: Path, table: str) -> None:
    path = make.folder(tmp_path / "mine")
    unet = path / "unet"
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    make.file(unet / "one-00001-of-00002.safetensors", {"a": [859_520_960]})
    make.file(unet / "one-00002-of-00002.safetensors", {"b": [4]})
    weight_map = {"a": "one-00001-of-00002.safetensors", "b": "one-00002-of-00002.safetensors"}
    make.write_json(unet / table.format("diffusion_pytorch_model"), {"metadata": {}, "weight_map": weight_map})
    component = folder.read(path).components["unet"]
    assert component.parameters == 859_520_964
    assert [Path(file).name for file in component.files] == sorted(weight_map.values())


@pytest.mark.parametrize(
    ("weight_map", "error", "words"),
    [
        ({"a": "../../secret.safetensors"}, Unsafe, "not a file beside it"),
        ({"a": "/etc/passwd"}, Unsafe, "not a file beside it"),
        ({"a": "model.bin"}, Unsafe, "not a file beside it"),
        ({"a": 7}, Unsafe, "not a file beside it"),
        ({"a": "absent.safetensors"}, ModelMissing, "absent.safetensors is missing"),
        ({}, BadFile, "no weight_map"),
        ([], BadFile, "no weight_map"),
    ],
)
def test_a_table_of_shards_leads_nowhere_else(
    tmp_path: Path, weight_map: Any, error: type[SdcliError], words: str
) -> None:
    path = make.folder(tmp_path / "mine")
    (path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    make.write_json(path / "unet" / "diffusion_pytorch_model.safetensors.index.json", {"weight_map": weight_map})
    with pytest.raises(error) as caught:
        folder.read(path)
    assert words in caught.value.message


# --- what is not a model


def test_a_folder_of_checkpoints_says_which_there_are(tmp_path: Path) -> None:
    for name in "dcba":
        make.file(tmp_path / f"{name}.safetensors", {"x": [1]})
    with pytest.raises(ModelMissing) as caught:
        folder.read(tmp_path)
    assert "a.safetensors, b.safetensors, c.safetensors …" in caught.value.message
    assert caught.value.hint.endswith('a.safetensors"')


def test_a_part_of_a_model_is_called_that(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match=r"one part of a model \(UNet2DConditionModel\)"):
        folder.read(make.folder(tmp_path / "mine") / "unet")


def test_an_empty_folder_is_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match=r"no model_index\.json"):
        folder.read(tmp_path)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_missing_file_is_named(tmp_path: Path, part: str) -> None:
    path = make.folder(tmp_path / "mine")
    (path / part / f"{make.stem(part)}.safetensors").unlink()
    with pytest.raises(ModelMissing) as caught:
        folder.read(path)
    assert f"{part}/{make.stem(part)}.safetensors is missing" in caught.value.message.replace("\\", "/")
    (path / part / "config.json").unlink()
    with pytest.raises(ModelMissing, match=r"config\.json is missing"):
        folder.read(path)


def test_pickles_alone_are_refused_as_unsafe(tmp_path: Path) -> None:
    path = make.folder(tmp_path / "mine")
    (path / "unet" / "diffusion_pytorch_model.safetensors").rename(path / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(Unsafe, match=r"only pickles \(diffusion_pytorch_model.bin\)"):
        folder.read(path)


def test_pickles_beside_safetensors_are_left_alone(tmp_path: Path) -> None:
    path = make.folder(tmp_path / "mine")
    (path / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x02bad")
    assert folder.read(path).family == "sd15"


def test_weights_that_are_fewer_than_the_config_says_are_not_this_model(tmp_path: Path) -> None:
    path = make.folder(tmp_path / "mine")
    make.file(path / "vae" / "diffusion_pytorch_model.safetensors", {"all": [1000]})
    with pytest.raises(BadFile, match=r"has 1,000 parameters, its config\.json describes 83,653,863"):
        folder.read(path)


@pytest.mark.parametrize(
    ("configs", "words"),
    [
        ({"unet": {"cross_attention_dim": 1024}}, "not the same model"),  # read as SD2's, which has more of it
        ({"unet": {"encoder_hid_dim": 4096}}, "a UNet that sdcli cannot draw with"),
        ({"unet": {"in_channels": 7}}, "takes 7 channels, its VAE gives 4"),
        ({"unet": {"time_cond_proj_dim": 256}}, "latent consistency"),
        ({"unet": {"cross_attention_dim": 40, "in_channels": 5}}, "takes 5 channels, its VAE gives 4"),
        ({"vae": {"latent_channels": 16}}, "takes 4 channels, its VAE gives 16"),
        ({"vae": {"quantization_config": {"bits": 4}}}, "quantized"),
        ({"scheduler": {"prediction_type": "flow"}}, "predicts flow"),
        ({"unet": {"down_block_types": ["Nonsense"] * 4}}, "Nonsense is not supported"),
    ],
)
def test_a_model_of_another_kind_behind_a_familiar_index_is_named(
    tmp_path: Path, configs: dict[str, Any], words: str
) -> None:
    with pytest.raises(BadFile) as caught:
        folder.read(make.folder(tmp_path / "mine", configs=configs))
    assert words in caught.value.message
    assert caught.value.hint


def test_a_family_is_known_by_its_unet_whatever_the_index_calls_the_pipeline(tmp_path: Path) -> None:
    """SD1.5 and SD2 share a pipeline's class; widths of one's own do not matter."""
    assert folder.read(make.folder(tmp_path / "two", "sd2")).family == "sd2"
    mislabelled = make.folder(tmp_path / "xl", "sd15", _class_name="StableDiffusionXLPipeline")
    assert folder.read(mislabelled).family == "sd15"
    for family in ("sd15", "sd2", "sdxl"):
        config = {**data.component_config(family, "unet"), "cross_attention_dim": 40}
        assert getattr(families.of_unet(config), "name", None) == family


@pytest.mark.parametrize("family", ["sd15", "sd2", "sdxl"])
def test_a_folder_that_was_trained_to_repaint_is_its_familys(tmp_path: Path, family: str) -> None:
    """Under its own pipeline's name, and under the usual one."""
    for index in ({}, {"_class_name": families.find(family).repainting}):
        path = make.folder(tmp_path / str(len(index)), family, configs={"unet": {"in_channels": 9}}, **index)
        model = folder.read(path)
        assert (model.kind, model.family, model.sees_mask) == (f"{family}-inpainting", family, True)


@pytest.mark.parametrize("family", ["sd15", "sd2", "sdxl"])
def test_so_is_one_that_was_trained_to_edit(tmp_path: Path, family: str) -> None:
    for index in ({}, {"_class_name": families.find(family).editing}):
        path = make.folder(tmp_path / str(len(index)), family, configs={"unet": {"in_channels": 8}}, **index)
        model = folder.read(path)
        assert (model.kind, model.family, model.edits) == (f"{family}-edit", family, True)


def test_sd2_base_says_its_size_and_that_it_predicts_noise(tmp_path: Path) -> None:
    configs = {"unet": {"sample_size": 64}, "scheduler": {"prediction_type": "epsilon"}}
    base, large = (
        folder.read(make.folder(tmp_path / "b", "sd2", configs=configs)),
        folder.read(make.folder(tmp_path / "v", "sd2")),
    )
    assert (base.prediction, base.defaults) == ("epsilon", {"width": 512, "height": 512})
    assert (large.prediction, large.defaults) == ("v_prediction", {})
    assert base.components["text_encoder"].parameters == 340_387_840


# --- hostile folders


@pytest.mark.parametrize(
    ("index", "error"),
    [
        ({"_class_name": "FluxPipeline"}, BadFile),
        ({"_class_name": "StableDiffusionDepth2ImgPipeline"}, BadFile),
        ({"_class_name": ""}, BadFile),
        ({"_class_name": None}, BadFile),
        ({"_class_name": ["pipeline", "Mine"]}, Unsafe),
        ({"unet": ["evil", "UNet2DConditionModel"]}, Unsafe),
        ({"unet": ["diffusers", "Exec"]}, Unsafe),
        ({"unet": ["diffusers", ["UNet2DConditionModel"]]}, Unsafe),
        ({"unet": ["diffusers", "UNet2DConditionModel", "more"]}, Unsafe),
        ({"unet": []}, Unsafe),
        ({"vae": ["diffusers", "AutoencoderTiny"]}, BadFile),
        ({"scheduler": ["scheduler", "Mine"]}, Unsafe),
        ({"safety_checker": ["os", "system"]}, Unsafe),
        ({"extra": ["os", "system"]}, Unsafe),
        ({"extra": ["diffusers", "AutoencoderKL"]}, Unsafe),
        ({"custom_pipeline": "x"}, Unsafe),
        ({"auto_map": {}}, Unsafe),
    ],
)
def test_an_index_names_no_code(tmp_path: Path, index: dict[str, Any], error: type[SdcliError]) -> None:
    with pytest.raises(error) as caught:
        folder.read(make.folder(tmp_path / "mine", **index))
    assert caught.value.hint


def test_the_parts_that_are_never_loaded_may_be_what_the_libraries_have(tmp_path: Path) -> None:
    usual: dict[str, Any] = {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "scheduler": ["diffusers", "AScheduler"],
        "requires_safety_checker": True,
    }
    assert folder.read(make.folder(tmp_path / "mine", **usual)).family == "sd15"


@pytest.mark.parametrize("where", ["unet/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize("key", ["_attn_implementation_internal", "trust_remote_code", "auto_map", "custom_pipeline"])
def test_a_config_that_could_make_code_run_is_refused_at_any_depth(tmp_path: Path, where: str, key: str) -> None:
    path = make.folder(tmp_path / "mine")
    before = json.loads((path / where).read_text())
    make.write_json(path / where, {**before, "deep": [{"er": {key: "x"}}]})
    with pytest.raises(Unsafe, match=key):
        folder.read(path)


def test_the_flag_transformers_once_wrote_itself_is_harmless(tmp_path: Path) -> None:
    flag = {"_attn_implementation_autoset": True}
    assert folder.read(make.folder(tmp_path / "a", configs={"text_encoder": flag})).family == "sd15"
    with pytest.raises(Unsafe):
        folder.read(make.folder(tmp_path / "b", configs={"text_encoder": {"_attn_implementation_autoset": "x/y"}}))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not JSON"),
        ("[]", "not a JSON object"),
        ('{"a": 1, "a": 2}', 'names "a" twice'),
        ('{"a": NaN}', "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"a": ' + "9" * 5000 + "}", "is not JSON"),
        ('{"a": "' + "x" * (9 << 20) + '"}', "larger than 8 MiB"),
    ],
)
def test_damaged_json_is_refused_with_its_fault(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(BadFile) as caught:
        folder.read_json(path)
    assert words in caught.value.message


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)
KEYS = {
    name: sorted(json.loads((data.component_folder("sd15") / name).read_text()))
    for name in ("model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json",
                 "scheduler/scheduler_config.json")
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make.folder(tmp_path_factory.mktemp("whole") / "mine")


@settings(
    max_examples=400, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(choice=st.data())
def test_any_value_in_any_config_is_read_or_refused(whole: Path, choice: st.DataObject) -> None:
    name = choice.draw(st.sampled_from(sorted(KEYS)))
    key = choice.draw(st.sampled_from(KEYS[name]))
    value = choice.draw(ANY_JSON)
    file = whole / name
    before = file.read_text()
    try:
        make.write_json(file, {**json.loads(before), key: value})
        try:
            folder.read(whole)
        except SdcliError as error:
            assert error.code in (3, 6, 9)
            assert error.message.isprintable()
    finally:
        file.write_text(before)


# --- what the model's own files set


def test_prediction_and_zero_snr_come_from_the_scheduler(tmp_path: Path) -> None:
    marks = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    model = folder.read(make.folder(tmp_path / "v", configs={"scheduler": marks}))
    assert (model.prediction, model.zero_snr) == ("v_prediction", True)
    plain = folder.read(make.folder(tmp_path / "plain"))
    assert (plain.prediction, plain.zero_snr) == ("epsilon", False)
    assert plain.scheduler["beta_schedule"] == "scaled_linear"


def test_a_folder_without_a_scheduler_has_its_family_s(tmp_path: Path) -> None:
    path = make.folder(tmp_path / "mine", "sdxl")
    (path / "scheduler" / "scheduler_config.json").unlink()
    assert folder.read(path).scheduler == data.component_config("sdxl", "scheduler")


@pytest.mark.parametrize(
    ("sample_size", "defaults"),
    [(64, {}), (96, {"width": 768, "height": 768}), (None, {}), ("64", {}), (10**9, {}), (1, {}), (True, {})],
)
def test_the_size_a_model_was_trained_at_is_its_default(
    tmp_path: Path, sample_size: Any, defaults: dict[str, int]
) -> None:
    path = make.folder(tmp_path / "mine", configs={"unet": {"sample_size": sample_size}})
    assert folder.read(path).defaults == defaults


def test_an_index_sets_plain_settings_only(tmp_path: Path) -> None:
    asked = {
        "steps": 12,
        "guidance": 4,
        "sampler": "DDIM",
        "width": True,
        "height": "512",
        "output": "/etc",
        "lora": "x",
    }
    path = make.folder(tmp_path / "mine", sdcli=asked)
    assert folder.read(path).defaults == {"steps": 12, "guidance": 4, "sampler": "DDIM"}


def test_the_built_in_model_is_a_folder_of_its_own_family(tmp_path: Path) -> None:
    model = folder.read(make.folder(tmp_path / "shipped"), family="builtin")
    assert (model.name, model.kind, model.family, model.source) == ("builtin", "builtin", "builtin", "builtin")
    assert model.defaults == {"width": 512, "height": 512}  # as its UNet says: the family has no size of its own
