"""A name becomes a model, in one order: path, alias, added folders, the Hub's cache; or an error with a fix."""

from __future__ import annotations

from pathlib import Path

import model_files as make
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdcli import data
from sdcli.errors import BadFile, ModelMissing, Offline, SdcliError, Unsafe, Usage
from sdcli.models import hub_cache, hub_name
from sdcli.models.families import families, find
from sdcli.models.resolve import at, family_of, resolve
from sdcli.schema import from_json, to_json

COMMIT, OTHER = "0123456789abcdef0123456789abcdef01234567", "f" * 40
SD15, SDXL = "stable-diffusion-v1-5/stable-diffusion-v1-5", "stabilityai/stable-diffusion-xl-base-1.0"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def dream(path: Path, family: str = "sd15") -> Path:
    return make.file(path, make.checkpoint(family))


# --- what the shipped facts say


@pytest.mark.parametrize(
    ("alias", "repository", "size", "licence"),
    [
        ("sd15", SD15, 2 * (859_520_964 + 123_060_480 + 83_653_863), "CreativeML OpenRAIL-M"),
        ("sdxl", SDXL, 2 * (2_567_463_684 + 123_060_480 + 694_659_840 + 83_653_863), "OpenRAIL++-M"),
    ],
)
def test_an_alias_is_known_before_anything_is_downloaded(alias: str, repository: str, size: int, licence: str) -> None:
    model = resolve(alias)
    assert (model.name, model.family, model.source) == (alias, alias, "hub")
    assert (model.cached, model.path, model.download_bytes, model.disk_bytes) == (False, None, size, size)
    assert (model.repository, model.licence) == (repository, licence)
    assert model.revision is not None
    assert len(model.revision) == 40
    assert model.scheduler["num_train_timesteps"] == 1000
    assert to_json(from_json(type(model), to_json(model))) == to_json(model)


def test_the_download_sizes_are_those_documented() -> None:
    assert round(resolve("sd15").download_bytes / 1e9, 2) == 2.13
    assert round(resolve("sdxl").download_bytes / 1e9, 2) == 6.94


@pytest.mark.parametrize(
    ("text", "alias"), [(SD15, "sd15"), ("runwayml/stable-diffusion-v1-5", "sd15"), (SDXL, "sdxl")]
)
def test_a_known_repository_is_its_alias(text: str, alias: str) -> None:
    assert resolve(text) == resolve(alias)


def test_another_revision_of_a_known_repository_is_kept() -> None:
    assert resolve("sd15", revision=OTHER).revision == OTHER


def test_every_family_has_complete_defaults() -> None:
    assert find("sd15").native == (512, 512)
    assert find("sdxl").native == (1024, 1024)
    for family in families().values():
        size = set() if family.name == "builtin" else {"width", "height"}  # its folder says it
        own = {"strength"} if family.refines else set()
        assert set(family.defaults) == {*size, *own, "steps", "guidance", "sampler"}
        assert {"unet", "vae", family.encoders[0].part} <= set(family.components)
    expected = {"steps": 30, "guidance": 5.5, "sampler": "DPM++ 2M Karras"}
    assert expected.items() <= find("sdxl").defaults.items()


# --- the order


def test_a_folder_with_a_model_wins_over_an_alias(here: Path) -> None:
    make.folder(here / "sdxl", "sd15")
    assert resolve("sdxl").family == "sd15"


def test_a_folder_without_a_model_does_not_hide_an_alias(here: Path) -> None:
    (here / "sd15").mkdir()
    (here / "builtin").mkdir()
    assert resolve("sd15").source == "hub"
    assert resolve("builtin", builtin=make.folder(here / "shipped")).source == "builtin"
    with pytest.raises(ModelMissing, match="no model_index"):
        resolve("./sd15")


def test_a_folder_that_no_other_name_explains_says_what_it_lacks(here: Path) -> None:
    (here / "images").mkdir()
    with pytest.raises(ModelMissing, match="no model_index"):
        resolve("images")


def test_an_alias_wins_over_a_file_in_an_added_folder(here: Path) -> None:
    dream(here / "models" / "sdxl.safetensors")
    assert resolve("sdxl", folders=[here / "models"]).source == "hub"


def test_an_added_folder_wins_over_the_cache(here: Path) -> None:
    make.snapshot(here / "hub", "me/dream", COMMIT, "sd15")
    make.folder(here / "models" / "me" / "dream", "sdxl")
    assert resolve("me/dream", hub=here / "hub", folders=[here / "models"]).source == "hub"
    assert resolve("dream", hub=here / "hub", folders=[here / "models"]).source == "folder"


# --- paths


def test_a_path_may_be_written_in_any_way(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    monkeypatch.setenv("USERPROFILE", str(here))
    dream(here / "a b" / "dream.v2.safetensors")
    make.folder(here / "mine")
    for text in ("a b/dream.v2.safetensors", "./a b/dream.v2.safetensors", "~/a b/dream.v2.safetensors",
                 str(here / "a b" / "dream.v2.safetensors"), "  a b/dream.v2.safetensors "):  # fmt: skip
        assert resolve(text).name == "dream.v2"
    monkeypatch.chdir(here / "mine")
    for text in (".", "../mine", "../mine/", str(here / "mine")):
        model = resolve(text)
        assert (model.name, model.path) == ("mine", str(here / "mine"))


def test_links_are_followed(here: Path) -> None:
    dream(here / "deep" / "blob")
    link = here / "link.safetensors"
    try:
        link.symlink_to(here / "deep" / "blob")
    except OSError:
        pytest.skip("this system makes no links")
    assert resolve("link.safetensors").name == "link"


@pytest.mark.parametrize(
    "name", ["./absent", "absent.safetensors", "~/absent", "a/b/c", "C:\\sd\\x", "\\\\nas\\x", "x\0y"]
)
def test_what_can_only_be_a_path_is_said_to_be_absent(name: str, here: Path) -> None:
    with pytest.raises(ModelMissing) as caught:
        resolve(name)
    assert caught.value.message.isprintable()
    assert caught.value.hint


def test_a_slip_in_a_path_is_answered_with_the_nearest_name(here: Path) -> None:
    dream(here / "dream.safetensors")
    with pytest.raises(ModelMissing, match=r"near: dream\.safetensors"):
        resolve("./daem.safetensors")


@pytest.mark.parametrize("name", ["x.ckpt", "x.safetensors", "pytorch_model.bin", "x"])
def test_a_pickle_is_refused_under_any_name(here: Path, name: str) -> None:
    (here / name).write_bytes(b"\x80\x02}q\x00." + bytes(100))
    with pytest.raises(Unsafe) as caught:
        resolve(name)
    assert caught.value.code == 6
    assert "safetensors" in caught.value.hint


# --- short names


def test_a_file_in_an_added_folder_has_a_short_name(here: Path) -> None:
    dream(here / "models" / "sub" / "dreamshaper_8.safetensors")
    make.folder(here / "models" / "other")
    folders = [here / "models", here / "absent"]
    assert resolve("dreamshaper_8", folders=folders).source == "file"
    assert resolve("dreamshaper_8.safetensors", folders=folders).name == "dreamshaper_8"
    assert resolve("other", folders=folders).source == "folder"


def test_a_short_name_of_two_models_is_ambiguous(here: Path) -> None:
    first, second = (dream(here / folder / "dream.safetensors") for folder in "ab")
    with pytest.raises(Usage) as caught:
        resolve("dream", folders=[here / "a", here / "b"])
    assert str(first) in caught.value.message
    assert str(second) in caught.value.message
    assert resolve(str(second)).path == str(second)


def test_the_pickle_beside_a_checkpoint_is_ignored(here: Path) -> None:
    dream(here / "models" / "dream.safetensors")
    (here / "models" / "dream.ckpt").write_bytes(b"\x80\x02}q\x00.")
    assert resolve("dream", folders=[here / "models"]).source == "file"
    (here / "models" / "dream.safetensors").unlink()
    with pytest.raises(Unsafe):
        resolve("dream", folders=[here / "models"])


def test_an_unknown_name_is_answered_with_near_ones_and_their_sizes(here: Path) -> None:
    dream(here / "dreamshaper_8.safetensors")
    dream(here / "dreamshaperXL_v21.safetensors", "sdxl")
    with pytest.raises(ModelMissing) as caught:
        resolve("dreamshaper9", folders=[here])
    first, second = caught.value.message.split("\n")
    assert first.startswith('no model "dreamshaper9": not an alias, a path, in ')
    assert second == "  near: dreamshaper_8 (sd15, 2.13 GB)   dreamshaperXL_v21 (sdxl, 6.94 GB)"
    assert caught.value.hint == "-m dreamshaper_8"
    assert caught.value.details["near"] == ["dreamshaper_8", "dreamshaperXL_v21"]


def test_a_known_alias_may_be_written_in_capitals() -> None:
    assert (resolve("SD15").name, resolve("SdXL").name) == ("sd15", "sdxl")
    assert resolve("Builtin", builtin=data.builtin_model()).kind == "builtin"


@pytest.mark.parametrize(
    ("page", "name"),
    [
        ("https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0", "sdxl"),
        ("https://huggingface.co/stable-diffusion-v1-5/stable-diffusion-v1-5/tree/main?x=1", "sd15"),
    ],
)
def test_the_address_of_a_page_at_the_hub_is_the_model_it_is_about(page: str, name: str) -> None:
    assert resolve(page).name == name


def test_the_address_of_a_file_or_a_commit_at_the_hub_keeps_them(here: Path) -> None:
    assert str(hub_name.of_page("https://hf.co/me/x/blob/main/a/b.safetensors")) == "me/x/a/b.safetensors"
    assert str(hub_name.of_page(f"https://huggingface.co/me/x/tree/{COMMIT}")) == f"me/x@{COMMIT}"
    assert hub_name.of_page("https://huggingface.co.evil.org/me/x") is None
    make.snapshot(here, "me/dream", COMMIT)
    assert resolve(f"https://huggingface.co/me/dream/tree/{COMMIT[:7]}", hub=here, offline=True).revision == COMMIT


def test_a_mistyped_alias_is_near() -> None:
    for text, near in (("sdlx", "sdxl"), ("buildin", "builtin")):
        with pytest.raises(ModelMissing) as caught:
            resolve(text)
        assert caught.value.details["near"][0] == near


# --- the Hub's cache


def test_the_cache_is_read_without_a_network(here: Path) -> None:
    make.snapshot(here, "me/dream", COMMIT)
    model = resolve("me/dream", hub=here, offline=True)
    assert (model.name, model.source, model.revision, model.cached) == ("dream", "hub", COMMIT, True)
    assert (model.repository, model.download_bytes) == ("me/dream", 0)
    for revision in (COMMIT, COMMIT[:7], "main"):
        assert resolve("me/dream", revision=revision, hub=here).revision == COMMIT


@pytest.mark.parametrize("revision", ["other", OTHER, "../../../../etc/passwd", "/etc/hostname", "", " ", "f" * 500])
def test_a_revision_that_is_not_there_is_not_replaced_by_another(here: Path, revision: str) -> None:
    make.snapshot(here, "me/dream", COMMIT, branch="")
    with pytest.raises(ModelMissing):
        resolve("me/dream", revision=revision, hub=here)


def test_an_alias_is_its_pinned_commit_only(here: Path) -> None:
    pinned = str(resolve("sd15").revision)
    make.snapshot(here, SD15, OTHER)
    assert not resolve("sd15", hub=here).cached
    make.snapshot(here, SD15, pinned, branch="")
    model = resolve("sd15", hub=here)
    assert (model.name, model.cached, model.revision, model.licence) == ("sd15", True, pinned, "CreativeML OpenRAIL-M")


def test_a_copy_under_the_vanished_name_is_used_rather_than_fetched_again(here: Path) -> None:
    make.snapshot(here, "runwayml/stable-diffusion-v1-5", OTHER)
    model = resolve("runwayml/stable-diffusion-v1-5", hub=here)
    assert (model.name, model.cached, model.revision) == ("sd15", True, OTHER)


def test_a_known_model_that_is_incomplete_is_to_be_downloaded(here: Path) -> None:
    pinned = str(resolve("sd15").revision)
    path = make.snapshot(here, SD15, pinned)
    whole = path / "unet" / "diffusion_pytorch_model.safetensors"
    whole.rename(whole.with_suffix(".bin"))
    assert not resolve("sd15", hub=here).cached
    whole.with_suffix(".bin").unlink()
    assert not resolve("sd15", hub=here).cached


def test_a_tampered_copy_of_a_known_model_is_refused_not_passed_over(here: Path) -> None:
    path = make.snapshot(here, SD15, str(resolve("sd15").revision))
    make.write_json(path / "vae" / "config.json", {"auto_map": {"AutoModel": "x.py"}})
    with pytest.raises(Unsafe):
        resolve("sd15", hub=here)


def test_a_single_file_of_a_repository_is_a_model_by_its_whole_name(here: Path) -> None:
    repository = here / "hub/models--me--dream"
    dream(repository / "snapshots" / COMMIT / "v8" / "dream.safetensors")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(COMMIT)
    for name in ("me/dream/v8/dream.safetensors", f"me/dream@{COMMIT}/v8/dream.safetensors"):
        model = resolve(name, offline=True, hub=here / "hub")
        assert (model.name, model.kind, model.source) == ("dream", "sd15", "hub")
        assert (model.repository, model.revision) == ("me/dream", COMMIT)
    for name in ("me/dream/v9.safetensors", "me/other/v8/dream.safetensors"):
        with pytest.raises(ModelMissing, match="there is no file or folder") as missing:
            resolve(name, hub=here / "hub")
        assert missing.value.hint == f'sdcli pull "{name}"'


def test_offline_says_so_instead_of_planning_a_download(here: Path) -> None:
    for name in ("sd15", SDXL, "me/absent"):
        with pytest.raises(Offline) as caught:
            resolve(name, hub=here, offline=True)
        assert caught.value.code == 3


def test_a_repository_that_is_not_cached_is_missing_with_the_line_that_gets_it(here: Path) -> None:
    with pytest.raises(ModelMissing) as caught:
        resolve("me/absent", hub=here, revision="v2")
    assert caught.value.hint == "sdcli pull me/absent --revision v2"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"HF_HUB_CACHE": "/a"}, "/a"),
        ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
        ({"HUGGINGFACE_HUB_CACHE": "/c", "HF_HOME": "/b"}, "/c"),
        ({"HF_HOME": "/b"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/d"}, "/d/huggingface/hub"),
    ],
)
def test_the_cache_is_where_huggingface_hub_keeps_it(environment: dict[str, str], expected: str) -> None:
    assert hub_cache.folder(environment) == Path(expected)


def test_cached_repositories_are_listed_by_their_names(here: Path) -> None:
    make.snapshot(here, "me/dream-2--x", COMMIT)
    (here / "datasets--me--words").mkdir()
    assert hub_cache.repositories(here) == ("me/dream-2--x",)
    assert hub_cache.repositories(here / "absent") == ()


# --- anything at all


@pytest.mark.parametrize("name", ["", "   ", "nope", "[/red]", "\x1b]0;x\x07", "猫" * 3000, "-" * 5000, "a/" * 3000])
def test_a_missing_model_is_reported_with_a_fix(name: str, here: Path) -> None:
    with pytest.raises(SdcliError) as caught:
        resolve(name, hub=here)
    assert caught.value.code in (2, 3)
    assert caught.value.message.replace("\n", "").isprintable()
    assert caught.value.hint


@settings(
    max_examples=500, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.text(max_size=60) | st.from_regex(r"[\w./\\~:-]{1,40}", fullmatch=True))
def test_any_text_as_a_model_is_answered(here: Path, text: str) -> None:
    try:
        resolve(text, folders=[here], hub=here / "hub")
    except SdcliError as error:
        assert error.code in (2, 3, 6, 9)
        assert error.hint


def test_without_a_built_in_model_its_name_says_so() -> None:
    with pytest.raises(ModelMissing, match="no built-in model"):
        resolve("builtin")


def test_a_model_knows_its_family(here: Path) -> None:
    assert family_of(at(dream(here / "x.safetensors"))) is find("sd15")
    with pytest.raises(BadFile):
        family_of(from_json(type(resolve("sd15")), {**to_json(resolve("sd15")), "family": ""}))
