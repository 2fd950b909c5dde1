"""A1111's API beside more than one model: checkpoints, LoRAs, VAEs, ControlNets and upscalers, by their names."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sdapi_client import client, encoded, job, opened, post, record
from webuiapi import ControlNetInterface, ControlNetUnit

from scripts import make_checkpoint
from sdcli.machine.folders import config_file
from sdcli.request import config

torch = pytest.importorskip("torch")
Start = Callable[..., Any]
SMALL = {"width": 64, "height": 64}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from safetensors.torch import save_file

    root = tmp_path_factory.mktemp("shelf")
    make_checkpoint.write_folder(root / "dream_8", "sd15", tiny=True)
    other = make_checkpoint.write_folder(root / "sub" / "Other Model", "sd15", tiny=True, seed=9)
    unet = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    first = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(32, 4, 3, 3), unet: torch.zeros(32, 768)}
    save_file({**first, "first_stage_model.rest": torch.zeros(1)}, root / "photo_2.safetensors")
    make_checkpoint.write_controlnet_folder(root / "lines", "sd15", tiny=True)
    make_checkpoint.write_folder(root / "large", "sdxl", tiny=True)
    make_checkpoint.write_folder(root / "last steps", "refiner", tiny=True)
    make_checkpoint.write_upscaler(root / "x2.safetensors", tiny=True, scale=2, unshuffle=2)
    stored = (other / "vae" / "diffusion_pytorch_model.safetensors").read_bytes()
    (root / "sharp.safetensors").write_bytes(stored)
    save_file({"emb_params": torch.zeros((2, 32))}, root / "mycat.safetensors")
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    save_file(
        {f"{layer}.lora_down.weight": torch.ones(4, 32), f"{layer}.lora_up.weight": torch.ones(32, 4)},
        root / "ink wash.safetensors",
    )
    return root


@pytest.fixture
def server(serve: Start, shelf: Path) -> Any:
    started = serve(typed={"size": "64x64", "steps": "2"})
    config.set_folders(config_file(), [shelf])
    return started


def test_all_files_are_listed_by_their_names_and_no_folder_is(server: Any, shelf: Path) -> None:
    api = client(server)
    models = api.get_sd_models()
    assert {one["title"] for one in models[1:]} == {"dream_8", "Other Model", "large", "photo_2.safetensors"}
    assert models[0]["model_name"] == "builtin"
    assert api.get_sd_vae() == [{"model_name": "sharp", "filename": "sharp.safetensors"}]
    assert [one["name"] for one in api.get_upscalers()] == ["None", "Lanczos", "Nearest", "x2"]
    assert api.get_upscalers()[-1]["scale"] == 2.0
    assert [(one["name"], one["path"]) for one in api.get_loras()] == [("ink wash", "ink wash.safetensors")]
    (word,) = api.get_embeddings()["loaded"].items()
    assert (word[0], word[1]["vectors"], word[1]["shape"]) == ("mycat", 2, 32)
    assert api.controlnet_model_list() == ["lines"]
    answers = [api.get_options(), models, api.get_loras(), api.get_sd_vae(), api.get_upscalers()]
    assert not any(str(shelf) in str(answer) for answer in answers)


def test_a_model_is_found_by_its_hash_which_then_stands_in_its_title(server: Any, shelf: Path) -> None:
    api = client(server)
    assert "photo_2.safetensors" in api.util_get_model_names()
    whole = hashlib.sha256((shelf / "photo_2.safetensors").read_bytes()).hexdigest()
    title = f"photo_2.safetensors [{whole[:10]}]"
    for name in (whole[:10], whole, "photo_2", "photo_2.safetensors", title, "PHOTO_2", f"photo_2 [{whole[:10]}]"):
        api.set_options({"sd_model_checkpoint": "builtin"})
        api.set_options({"sd_model_checkpoint": name})
        assert api.get_options()["sd_model_checkpoint"] == title, name
    assert api.get_options()["sd_checkpoint_hash"] == whole and title in api.util_get_model_names()


def test_a_model_that_one_client_sets_is_nobody_elses(server: Any) -> None:
    one, two = client(server), client(server, "127.0.0.2")
    one.util_set_model("dreem_8")
    two.set_options({"sd_model_checkpoint": "Other Model"})
    assert one.util_get_current_model() == "dream_8"
    assert two.util_get_current_model() == "Other Model"
    three = client(server, "127.0.0.3")
    assert three.util_get_current_model().startswith("builtin")
    drawn: dict[str, list[str]] = {}

    def draw(name: str, api: Any, override: str) -> None:
        for turn in range(6):
            own = {"sd_model_checkpoint": override} if turn % 2 else {}
            result = api.txt2img(prompt=name, override_settings=own, **SMALL)
            assert record(result.image)["model"]["name"] == result.info["sd_model_name"]
            drawn.setdefault(name, []).append(result.info["sd_model_name"])

    builtin = three.util_get_current_model()
    asked = [("one", one, "Other Model"), ("two", two, builtin), ("three", three, "dream_8")]
    threads = [threading.Thread(target=draw, args=about) for about in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert drawn["one"] == ["dream_8", "Other Model"] * 3 and drawn["two"] == ["Other Model", "builtin"] * 3
    assert drawn["three"] == ["builtin", "dream_8"] * 3


def test_no_setting_is_taken_where_one_of_them_is_wrong(server: Any) -> None:
    api = client(server)
    before = api.get_options()
    for wrong in ({"sd_model_checkpoint": "no-such"}, {"eta_noise_seed_delta": 31337}, {"unheard_of": 1}):
        answer = post(server, "/sdapi/v1/options", {"CLIP_stop_at_last_layers": 3, **wrong})
        assert answer.status_code in (404, 422) and next(iter(wrong)) in answer.text + "sd_model_checkpoint"
    assert api.get_options() == before


def test_a_lora_a_vae_and_an_upscaler_are_used_by_their_names(server: Any) -> None:
    api = client(server)
    result = api.txt2img(
        prompt="a cat <lora:ink wash:0.5>", enable_hr=True, hr_upscaler="x2", denoising_strength=0.4,
        override_settings={"sd_model_checkpoint": "dream_8", "sd_vae": "sharp.safetensors"}, **SMALL,
    )  # fmt: skip
    adapters = {one["kind"]: one["name"] for one in record(result.image)["setup"]["adapters"]}
    assert adapters == {"lora": "ink wash", "vae": "sharp", "upscaler": "x2"}
    assert result.info["all_prompts"] == ["a cat <lora:ink wash:0.5>"] and result.info["sd_vae_name"] == "sharp"
    assert result.info["infotexts"][0] == result.image.info["parameters"]


def test_a_refiner_takes_the_last_steps(server: Any) -> None:
    own = {"prompt": "a cat", "steps": 4, "override_settings": {"sd_model_checkpoint": "large"}, **SMALL}
    answer = post(server, "/sdapi/v1/txt2img", {**own, "refiner_checkpoint": "Last Steps", "refiner_switch_at": 0.5})
    assert answer.status_code == 200, answer.text
    refined = job(opened(answer.json()["images"][0]))["refined"]
    assert (refined["model"], refined["steps"], refined["share"]) == ("last steps", 2, 0.5)
    missing = post(server, "/sdapi/v1/txt2img", {**own, "refiner_checkpoint": "none such", "refiner_switch_at": 0.5})
    assert missing.status_code == 404 and "none such" in missing.json()["detail"]


def test_images_are_enlarged_by_a_model_as_upscale_does_it(
    server: Any, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdcli.cli.main import run

    photo().save(tmp_path / "photo.png")
    words = ["upscale", str(tmp_path / "photo.png"), "--upscaler", str(shelf / "x2.safetensors"), "--dtype", "fp32"]
    with pytest.raises(SystemExit):
        run([*words, "-o", str(tmp_path / "large.png"), "-q"])
    with Image.open(tmp_path / "large.png") as large:
        own, done = large.convert("RGB"), large.info["postprocessing"]
    monkeypatch.setitem(server.service.settings.typed, "dtype", "fp32")
    made = client(server).extra_single_image(photo(), upscaler_1="x2", upscaling_resize=2).image
    assert made.size == own.size == (192, 128) and made.tobytes() == own.tobytes()
    assert made.info["postprocessing"] == done
    sized = {"resize_mode": 1, "upscaling_resize_w": 100, "upscaling_resize_h": 100, "upscaler_1": "X2"}
    assert [image.size for image in client(server).extra_batch_images([photo()], **sized).images] == [(100, 100)]


def photo() -> Image.Image:
    image = Image.new("RGB", (96, 64), (200, 180, 160))
    image.paste((20, 20, 20), (30, 20, 60, 50))
    return image


# webuiapi puts units into the object that it has for "no scripts", unless it is given one of its own.
MODEL = {"sd_model_checkpoint": "dream_8"}


def test_controlnets_steer_as_their_units_say(server: Any) -> None:
    unit = ControlNetUnit(
        image=photo(), module="canny", model="lines", weight=0.8, guidance_end=0.5, resize_mode="Crop and Resize",
        control_mode=2,
    )  # fmt: skip
    result = client(server).txt2img(
        prompt="a cat", controlnet_units=[unit], alwayson_scripts={}, override_settings=MODEL, **SMALL
    )
    (control,) = job(result.image)["controls"]
    assert (control["net"], control["made"], control["weight"], control["end"]) == ("lines", "canny", 0.8, 0.5)
    assert control["fit"] == "crop" and job(result.image)["guess_mode"] is True
    whole = record(result.image)["setup"]["adapters"][0]["sha256"]
    assert f"Model: lines [{whole[:8]}]" in result.info["infotexts"][0]
    again = ControlNetUnit(image=photo(), model=f"lines [{whole[:8]}]")
    assert job(
        client(server)
        .txt2img(prompt="a cat", controlnet_units=[again], alwayson_scripts={}, override_settings=MODEL, **SMALL)
        .image
    )


def test_the_image_that_is_drawn_from_steers_where_a_unit_has_none(server: Any) -> None:
    units = [ControlNetUnit(model="lines", module="invert"), ControlNetUnit(image=photo(), model="lines")]
    result = client(server).img2img(
        images=[photo()],
        prompt="a cat",
        controlnet_units=units,
        alwayson_scripts={},
        override_settings=MODEL,
        resize_mode=1,
        **SMALL,
    )
    first, second = job(result.image)["controls"]
    assert {first["made"], second["made"]} == {"none"}, "both are made before: a request has one way for all"
    plan = server.service.tickets[list(server.service.tickets)[-1]].plan
    assert [(one.image.width, one.image.height) for one in plan.jobs[0].controls] == [(64, 64), (64, 64)]
    start = job(result.image)["start"]
    assert (start["fit"], start["image"]["width"]) == ("crop", 96)


def test_the_older_ways_to_ask_for_a_controlnet_are_understood(server: Any) -> None:
    api = client(server)
    unit = ControlNetUnit(image=photo(), module="canny", model="lines", weight=0.7)
    result = api.txt2img(
        prompt="a cat",
        controlnet_units=[unit],
        alwayson_scripts={},
        override_settings=MODEL,
        use_deprecated_controlnet=True,
        **SMALL,
    )
    assert job(result.image)["controls"][0]["weight"] == 0.7
    older = ControlNetInterface(api, show_deprecation_warning=False)
    result = older.txt2img(
        prompt="a cat", controlnet_image=[photo()], controlnet_module="canny", controlnet_model="lines", steps=2,
        override_settings=MODEL, **SMALL,
    )  # fmt: skip
    drawn = job(result.image)
    assert (drawn["controls"][0]["weight"], drawn["guess_mode"]) == (0.5, True)
    result = older.img2img(
        init_images=[photo()], prompt="a cat", controlnet_image=[photo()], controlnet_model="lines", steps=2,
        override_settings=MODEL, sampler_index="Euler", **SMALL,
    )  # fmt: skip
    assert job(result.image)["start"]["strength"] == 0.7 and job(result.image)["controls"]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model": "None"}, "args[0].model"), ({"model": "/etc/passwd"}, "args[0].model"),
    ({"model": "lines", "module": "openpose"}, "args[0].module"), ({"model": "lines", "image": None}, "args[0].image"),
    ({"model": "lines", "image": "http://127.0.0.1:9/a"}, "no URL is fetched"),
    ({"model": "lines", "control_mode": "My prompt is more important"}, "args[0].control_mode"),
    ({"model": "lines", "mask": "aGVsbG8="}, "args[0].mask"), ({"model": "lines", "weight": -1}, "args[0].weight"),
    ({"model": "lines", "guidance_start": 0.8, "guidance_end": 0.2}, "args[0].guidance_end"),
    ({"model": "lines", "module": "canny", "threshold_a": 30}, "args[0].threshold_a"),
    ({"model": "lines", "hr_option": "Low res only"}, "args[0].hr_option"),
    ({"model": "lines", "resize_mode": "Wrap"}, "args[0].resize_mode"),
]  # fmt: skip


def test_a_unit_that_cannot_be_drawn_as_asked_is_refused_by_the_name_of_its_field(server: Any) -> None:
    for fields, name in REFUSED:
        unit = {"image": encoded(photo()), **fields}
        body = {"prompt": "a cat", "override_settings": MODEL, **SMALL}
        answer = post(server, "/sdapi/v1/txt2img", {**body, "alwayson_scripts": {"controlnet": {"args": [unit]}}})
        assert answer.status_code == 422 and name in answer.json()["detail"], (fields, answer.text)


# --- clients as they are


def test_sillytavern_connects_changes_the_model_and_draws_and_its_password_goes_nowhere(
    server: Any, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    api = client(server)
    for path in ("options", "sd-models", "samplers", "schedulers", "upscalers", "latent-upscale-modes", "sd-vae"):
        assert api.session.get(f"{api.baseurl}/{path}").status_code == 200
    change = api.session.post(f"{api.baseurl}/options", json={"sd_model_checkpoint": "dream_8"})
    assert change.status_code == 200
    progress = api.get_progress()
    assert progress["progress"] == 0.0 and progress["state"]["job_count"] == 0
    body = {
        "url": server.url, "auth": "user:correct-horse-battery", "prompt": "a cat", "negative_prompt": "dog",
        "sampler_name": "DPM++ 2M Karras", "scheduler": "normal", "steps": 2, "cfg_scale": 7, "width": 64,
        "height": 64, "restore_faces": False, "enable_hr": False, "hr_upscaler": "Latent", "hr_scale": 1,
        "hr_additional_modules": [], "denoising_strength": 0.7, "hr_second_pass_steps": 0, "seed": -1,
        "override_settings": {"CLIP_stop_at_last_layers": 1, "sd_vae": "Automatic", "forge_additional_modules": None},
        "override_settings_restore_afterwards": True, "clip_skip": 1, "save_images": True, "send_images": True,
        "do_not_save_grid": False, "do_not_save_samples": False,
    }  # fmt: skip
    answer = post(server, "/sdapi/v1/txt2img", body)
    assert answer.status_code == 200, answer.text
    assert record(opened(answer.json()["images"][0]))["model"]["name"] == "dream_8"
    assert "auth" not in answer.json()["parameters"] and "url" not in answer.json()["parameters"]
    wrong = post(server, "/sdapi/v1/txt2img", {**body, "steps": 0})
    said = capfd.readouterr()
    kept = b"".join(path.read_bytes() for path in (tmp_path / "images").rglob("*") if path.is_file())
    for text in (answer.text, wrong.text, said.out, said.err, kept.decode("latin-1")):
        assert "correct-horse" not in text
    assert api.session.post(f"{api.baseurl}/interrupt").json() == {}


def test_open_webui_posts_all_options_back_with_one_changed(server: Any) -> None:
    api = client(server)
    headers = {"Authorization": ""}
    options = api.session.get(f"{api.baseurl}/options", headers=headers).json()
    options["sd_model_checkpoint"] = "Other Model"
    answer = api.session.post(f"{api.baseurl}/options", json=options, headers=headers)
    assert answer.status_code == 200 and answer.json() is None
    assert api.get_options()["sd_model_checkpoint"] == "Other Model"
    body = {"prompt": "a cat", "batch_size": 2, "width": 64, "height": 64, "negative_prompt": None}
    drawn = post(server, "/sdapi/v1/txt2img", body, headers=headers).json()
    assert set(drawn) == {"images", "parameters", "info"} and len(drawn["images"]) == 2
    assert record(opened(drawn["images"][0]))["model"]["name"] == "Other Model"
    failed = post(server, "/sdapi/v1/txt2img", {**body, "cfg_scale": "high"}, headers=headers)
    assert failed.status_code == 422 and "cfg_scale" in failed.json()["detail"]
