"""A1111's API, called by the unmodified webuiapi."""

from __future__ import annotations

import base64
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image
from sdapi_client import client, encoded, job, opened, post, record
from webuiapi import HiResUpscaler

from sdcli import __version__
from sdcli.cli.main import run
from sdcli.events import Decoded, Step
from sdcli.serve.line import Room
from sdcli.serve.rules import digest
from sdcli.serve.service import Service

Start = Callable[..., Any]
JSON = {"Content-Type": "application/json"}
SMALL = {"width": 64, "height": 64}


def hash_of(image: Image.Image) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()


def photo(width: int = 96, height: int = 64) -> Image.Image:
    image = Image.new("RGB", (width, height), (200, 180, 160))
    image.paste((20, 20, 20), (30, 20, 60, 50))
    return image


def test_images_of_all_batches_come_back_with_consecutive_seeds_and_a1111s_info(serve: Start, tmp_path: Path) -> None:
    server = serve()
    result = client(server).txt2img(
        prompt="a cat", negative_prompt="dog", seed=5, batch_size=2, n_iter=2, width=64, height=80, cfg_scale=3.5
    )
    assert len(result.images) == 4 and {image.size for image in result.images} == {(64, 80)}
    assert len({hash_of(image) for image in result.images}) == 4
    info = result.info
    assert info["all_seeds"] == [5, 6, 7, 8] and info["seed"] == 5 and info["index_of_first_image"] == 0
    assert info["all_prompts"] == ["a cat"] * 4 and info["all_negative_prompts"] == ["dog"] * 4
    assert (info["width"], info["height"], info["steps"], info["cfg_scale"]) == (64, 80, 2, 3.5)
    assert info["sampler_name"] == "Euler a" and info["version"] == f"sdcli {__version__}"
    assert [image.info["parameters"] for image in result.images] == info["infotexts"]
    assert result.parameters["prompt"] == "a cat" and result.parameters["steps"] == 2
    kept = {path.read_bytes() for path in (tmp_path / "images").glob("*.png")}
    assert kept == {base64.b64decode(image) for image in result.json["images"]}


def test_the_same_settings_draw_what_generate_draws(serve: Start, tmp_path: Path) -> None:
    """From a prompt, and repainted as inpaint_full_res does it."""
    start, marks = photo(64, 64), Image.new("L", (64, 64))
    marks.paste(255, (8, 8, 40, 40))
    start.save(tmp_path / "start.png")
    marks.save(tmp_path / "marks.png")
    words = ["generate", "a red apple", "--negative", "blue", "--seed", "7", "-s", "3", "-g", "3", "--size", "64x64"]
    words += ["--sampler", "Euler", "--dtype", "fp32", "--pin", "execution=eager", "-q", "--no-show", "-o"]
    repainted = ["--image", str(tmp_path / "start.png"), "--mask", str(tmp_path / "marks.png"), "--strength", "0.75"]
    repainted += ["--only-masked", "--mask-padding", "4", "--masked-content", "fill", "--fit", "stretch"]
    for more in ([str(tmp_path / "{seed}.png"), "-n", "2"], [str(tmp_path / "changed.png"), *repainted]):
        with pytest.raises(SystemExit) as left:
            run([*words, *more])
        assert not left.value.code
    settings = {"prompt": "a red apple", "negative_prompt": "blue", "seed": 7, "cfg_scale": 3.0, "steps": 3, **SMALL}
    api = client(serve(engine="local", typed={"dtype": "fp32", "pins": ["execution=eager"]}), sampler="euler")
    drawn = api.txt2img(**settings, n_iter=2).images
    drawn += api.img2img(images=[start], mask_image=marks, inpaint_full_res_padding=4, **settings).images
    own = [Image.open(tmp_path / name) for name in ("7.png", "8.png", "changed.png")]
    assert [record(image)["setup"] for image in drawn] == [record(image)["setup"] for image in own]
    assert [hash_of(image) for image in drawn] == [hash_of(image) for image in own]


# --- every call of webuiapi's that is about images


def test_every_list_that_webuiapi_asks_for_is_there(serving: Any) -> None:
    api = client(serving)
    assert api.get_scripts() == {"txt2img": [], "img2img": []} and api.get_cmd_flags() == {}
    assert "Euler a" in api.util_get_sampler_names()
    assert api.util_get_scheduler_names() == [
        "automatic", "exponential", "karras", "sgm_uniform", "simple", "uniform",
    ]  # fmt: skip
    assert [one["name"] for one in api.get_upscalers()] == ["None", "Lanczos", "Nearest"]
    assert api.get_latent_upscale_modes() == [{"name": "Latent"}]
    assert api.get_sd_vae() == [] and api.get_loras() == [] and api.get_embeddings() == {"loaded": {}, "skipped": {}}
    for empty in (api.get_hypernetworks, api.get_face_restorers, api.get_realesrgan_models, api.get_prompt_styles,
                  api.get_artist_categories, api.get_artists):  # fmt: skip
        assert empty() == []
    assert api.refresh_checkpoints() is None
    memory = api.get_memory()
    assert set(memory["ram"]) == {"free", "used", "total"} and memory["cuda"]
    assert api.controlnet_model_list() == [] and "canny" in api.controlnet_module_list() and api.controlnet_version()


def test_the_model_is_shown_by_its_title_and_set_by_the_closest_name(serving: Any) -> None:
    api = client(serving)
    (model,) = api.get_sd_models()
    assert model["model_name"] == "builtin" and model["title"] == f"builtin [{model['hash']}]"
    assert api.util_get_model_names() == [model["title"]] and api.util_get_current_model() == model["title"]
    api.util_set_model("buildin")
    assert api.util_get_current_model() == model["title"]
    result = api.txt2img(prompt="a cat", **SMALL)
    assert result.info["sd_model_name"] == "builtin" and result.info["sd_model_hash"] == model["hash"]


def test_nothing_is_in_progress_where_nobody_draws_and_stopping_it_is_no_error(serving: Any) -> None:
    api = client(serving)
    progress = api.get_progress()
    assert progress["progress"] == 0.0 and progress["state"]["job_count"] == 0 and progress["current_image"] is None
    api.util_wait_for_ready(check_interval=0.1)
    assert api.interrupt() == {} and api.skip() is None


# --- from text


@pytest.mark.parametrize(
    ("name", "scheduler", "sampler"),
    [
        ("Euler a", "automatic", "Euler a"), ("euler", "Uniform", "Euler"), ("k_euler_a", None, "Euler a"),
        ("DPM++ 2M Karras", None, "DPM++ 2M Karras"), ("DPM++ 2M", "KARRAS", "DPM++ 2M Karras"),
        ("DPM++ 2M", "Automatic", "DPM++ 2M Karras"), ("dpm++ 2m", "Normal", "DPM++ 2M"),
        ("DPM++ 2M SDE", "karras", "DPM++ 2M SDE Karras"), ("DDIM", "DDIM", "DDIM"), ("PLMS", "Automatic", "PNDM"),
        ("Euler", "SGM Uniform", "Euler SGM Uniform"), ("DPM++ 3M SDE", "exponential", "DPM++ 3M SDE Exponential"),
    ],
)  # fmt: skip
def test_a_sampler_and_its_schedule_are_understood_in_any_spelling(
    name: str, scheduler: str | None, sampler: str
) -> None:
    from sdcli.serve import sdapi_fields
    from sdcli.serve.sdapi_body import Body

    found = sdapi_fields.sampler_of(Body({"sampler_name": name, "scheduler": scheduler}))
    assert found is not None and found.name == sampler


def test_a_second_pass_is_drawn_as_asked(serving: Any) -> None:
    api = client(serving)
    result = api.txt2img(
        prompt="a cat", enable_hr=True, hr_scale=1.5, hr_second_pass_steps=3, denoising_strength=0.5, **SMALL
    )
    assert result.image.size == (96, 96)
    second = job(result.image)["second"]
    assert (second["scale"], second["steps"], second["strength"], second["upscaler"]) == (1.5, 3, 0.5, "latent")
    result = api.txt2img(prompt="a cat", enable_hr=True, hr_resize_x=128, hr_upscaler=HiResUpscaler.none, **SMALL)
    assert result.image.size == (128, 128) and job(result.image)["second"]["upscaler"] == "lanczos"


def test_a_request_may_override_settings_for_itself_alone(serving: Any) -> None:
    api = client(serving)
    own = {
        "CLIP_stop_at_last_layers": 2, "randn_source": "NV", "samples_format": "webp", "emphasis": "None",
        "eta_noise_seed_delta": 0, "img2img_fix_steps": False, "sd_vae": "Automatic", "jpeg_quality": 80,
    }  # fmt: skip
    before = api.get_options()
    result = api.txt2img(prompt="a cat", seed=1, override_settings=own, **SMALL)
    assert result.image.format == "WEBP" and "RNG: NV" in result.info["infotexts"][0]
    assert result.info["clip_skip"] == 2 and "Emphasis: None" in result.info["infotexts"][0]
    assert api.get_options() == before
    after = api.txt2img(prompt="a cat", seed=1, **SMALL)
    assert after.image.format == "PNG" and job(after.image)["clip_skip"] == 1 and job(after.image)["rng"] == "cpu"


@pytest.mark.parametrize("named", ["title", "model_name", "filename", "hash"])
def test_a_model_is_found_by_each_of_its_names(serving: Any, named: str) -> None:
    api = client(serving)
    name = api.get_sd_models()[0][named]
    result = api.txt2img(prompt="a cat", override_settings={"sd_model_checkpoint": name.upper()}, **SMALL)
    assert result.info["sd_model_name"] == "builtin"


def test_an_unknown_model_is_an_error_and_never_a_path(serving: Any, tmp_path: Path) -> None:
    api = client(serving)
    for name in ("no-such", str(tmp_path), "../builtin", "deadbeef00"):
        with pytest.raises(RuntimeError) as refused:
            api.txt2img(prompt="a cat", override_settings={"sd_model_checkpoint": name}, **SMALL)
        assert refused.value.args[0] == 404 and "no checkpoint" in refused.value.args[1]
        assert post_status(api, {"sd_model_checkpoint": name}) == 404


def post_status(api: Any, options: dict[str, Any]) -> int:
    return int(api.session.post(f"{api.baseurl}/options", json=options).status_code)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"restore_faces": True}, "restore_faces"), ({"tiling": True}, "tiling"), ({"styles": ["Anime"]}, "styles"),
    ({"subseed_strength": 0.3}, "subseed_strength"), ({"script_name": "X/Y/Z plot"}, "script_name"),
    ({"s_churn": 0.5}, "s_churn"), ({"sampler_name": "Euler a", "s_noise": 0.9}, "s_noise"),
    ({"sampler_name": "Euler a", "eta": 0.5}, "eta"), ({"sampler_name": "Eulr"}, "sampler_name"),
    ({"sampler_name": "Euler", "scheduler": "KL Optimal"}, "scheduler"), ({"steps": 0}, "steps"),
    ({"steps": 2.5}, "steps"), ({"steps": "many"}, "steps"), ({"cfg_scale": 101}, "cfg_scale"),
    ({"seed": -2}, "seed"), ({"seed": 2**32}, "seed"), ({"batch_size": 0}, "batch_size"), ({"n_iter": -1}, "n_iter"),
    ({"width": 63}, "width"), ({"prompt": ""}, "prompt"), ({"prompt": ["a"]}, "prompt"),
    ({"enable_hr": True, "hr_scale": 1}, "hr_scale"), ({"enable_hr": True, "hr_upscaler": "ESRGAN"}, "hr_upscaler"),
    ({"enable_hr": True, "hr_prompt": "a dog"}, "hr_prompt"), ({"enable_hr": 3}, "enable_hr"),
    ({"enable_hr": True, "hr_sampler_name": "DDIM"}, "hr_sampler_name"),
    ({"enable_hr": True, "denoising_strength": 0}, "denoising_strength"),
    ({"enable_hr": True, "hr_checkpoint_name": "other"}, "hr_checkpoint_name"),
    ({"enable_hr": True, "hr_resize_x": 128, "hr_resize_y": 200}, "hr_resize_x"),
    ({"override_settings": {"eta_noise_seed_delta": 31337}}, "override_settings.eta_noise_seed_delta"),
    ({"override_settings": {"randn_source": "GPU"}}, "override_settings.randn_source"),
    ({"override_settings": {"CLIP_stop_at_last_layers": 13}}, "override_settings.CLIP_stop_at_last_layers"),
    ({"override_settings": {"sd_vae": "/etc/passwd"}}, "override_settings.sd_vae"),
    ({"override_settings": {"samples_format": "tiff"}}, "override_settings.samples_format"),
    ({"override_settings": {"token_merging_ratio": 0.5}}, "override_settings.token_merging_ratio"),
    ({"override_settings": {"sd_hypernetwork_of_mine": "x"}}, "override_settings.sd_hypernetwork_of_mine"),
    ({"override_settings": "x"}, "override_settings"),
    ({"alwayson_scripts": {"ADetailer": {"args": [True, {"ad_model": "face"}]}}}, "alwayson_scripts.ADetailer"),
    ({"alwayson_scripts": {"ControlNet": {"args": [{"image": "", "model": "x"}]}}}, "ControlNet.args[0].model"),
    ({"alwayson_scripts": {"ControlNet": {"args": [{"module": "openpose"}]}}}, "ControlNet.args[0].module"),
    ({"refiner_checkpoint": "xl", "refiner_switch_at": 2}, "refiner_switch_at"),
]  # fmt: skip


def test_what_would_silently_draw_something_else_is_refused_by_its_name(serving: Any) -> None:
    for fields, name in REFUSED:
        answer = post(serving, "/sdapi/v1/txt2img", {"prompt": "a cat", **SMALL, **fields})
        assert answer.status_code == 422, (fields, answer.text)
        assert name in answer.json()["detail"], (fields, answer.text)
        assert "--" not in answer.json()["detail"], answer.text


def test_what_is_neutral_passes(serving: Any) -> None:
    body = {
        "prompt": "a cat", **SMALL, "steps": "2", "sampler_name": "Euler", "eta": 0.5, "s_noise": 0, "s_tmax": 0,
        "seed_resize_from_h": -1, "seed_resize_from_w": -1, "styles": [], "script_name": "", "script_args": ["x"],
        "restore_faces": None, "refiner_switch_at": 0.8, "comments": {}, "hr_prompt": "unused", "hr_scale": 1,
        "hr_resize_x": 3, "override_settings": {"forge_additional_modules": []}, "seed": None,
        "alwayson_scripts": {
            "ADetailer": {"args": [False]}, "animatediff": {"args": [False]}, "Seed": {"args": []},
            "ControlNet": {"args": [{"enabled": False, "model": "x"}]}, "x": {"args": [{"enabled": False}]},
        },
    }  # fmt: skip
    answer = post(serving, "/sdapi/v1/txt2img", body)
    assert answer.status_code == 200, answer.text
    assert opened(answer.json()["images"][0]).size == (64, 64)


def test_what_is_left_out_is_as_the_server_has_it(serve: Start) -> None:
    server = serve(typed={"steps": "3", "guidance": "2", "sampler": "DDIM", "size": "80x64", "seeds": "9"})
    image = opened(post(server, "/sdapi/v1/txt2img", {"prompt": "a cat"}).json()["images"][0])
    assert image.size == (80, 64)
    drawn = job(image)
    assert (drawn["steps"], drawn["guidance"], drawn["sampler"], drawn["seed"]) == (3, 2.0, "DDIM", 9)


def test_no_image_is_sent_where_none_is_wanted(serve: Start, tmp_path: Path) -> None:
    result = client(serve()).txt2img(prompt="a cat", send_images=False, **SMALL)
    assert result.images == [] and len(result.info["infotexts"]) == 1
    assert len(list((tmp_path / "images").glob("*.png"))) == 1


# --- from an image


@pytest.mark.parametrize(("mode", "fit"), [(0, "stretch"), (1, "crop"), (2, "pad")])
def test_an_image_is_drawn_from_and_fitted_as_asked(serving: Any, mode: int, fit: str) -> None:
    result = client(serving).img2img(
        images=[photo()], prompt="a cat", resize_mode=mode, denoising_strength=0.5, steps=4, **SMALL
    )
    start = job(result.image)["start"]
    assert (start["strength"], start["fit"], start["image"]["width"], start["repaint"]) == (0.5, fit, 96, None)
    assert result.info["denoising_strength"] == 0.5
    assert result.parameters["init_images"] is None and result.parameters["resize_mode"] == mode


@pytest.mark.parametrize(
    ("fill", "content"), [(0, "fill"), (1, "original"), (2, "noise"), (3, "nothing")]
)  # fmt: skip
def test_what_is_white_in_the_mask_is_repainted(serving: Any, fill: int, content: str) -> None:
    mask = Image.new("L", (96, 64))
    mask.paste(255, (30, 20, 60, 50))
    result = client(serving).img2img(
        images=[photo()], mask_image=mask, prompt="a cat", mask_blur=6, inpainting_fill=fill,
        inpaint_full_res=fill < 2, inpaint_full_res_padding=8, **SMALL,
    )  # fmt: skip
    repaint = job(result.image)["start"]["repaint"]
    assert (repaint["blur"], repaint["content"], repaint["padding"]) == (6, content, 8 if fill < 2 else None)


def test_a_mask_is_turned_round_and_taken_from_what_is_opaque(serving: Any) -> None:
    mask = Image.new("L", (96, 64))
    mask.paste(255, (30, 20, 60, 50))
    seen = Image.new("RGBA", (96, 64))
    seen.paste((0, 0, 0, 255), (30, 20, 60, 50))
    areas = {}
    for name, image, invert in (("plain", mask, 0), ("turned", mask, 1), ("opaque", seen, 0), ("clear", seen, 1)):
        client(serving).img2img(
            images=[photo()], mask_image=image, prompt="a cat", inpainting_mask_invert=invert, **SMALL
        )
        used = serving.service.tickets[list(serving.service.tickets)[-1]].plan.jobs[0].start.repaint.mask
        areas[name] = Image.open(used.path).convert("L").tobytes()
    assert areas["plain"] == areas["opaque"] == mask.tobytes()
    assert areas["turned"] == areas["clear"] == bytes(255 - value for value in mask.tobytes())


def test_fields_of_an_image_that_are_left_out_are_as_in_a1111(serving: Any) -> None:
    white = encoded(Image.new("L", (64, 64), 255))
    body = {"prompt": "a cat", "init_images": [encoded(photo(64, 64))], "mask": white, **SMALL}
    start = job(opened(post(serving, "/sdapi/v1/img2img", body).json()["images"][0]))["start"]
    assert (start["strength"], start["fit"]) == (0.75, "stretch")
    repaint = start["repaint"]
    assert (repaint["content"], repaint["blur"], repaint["padding"]) == ("fill", 4, 0)


BAD_IMAGES: list[tuple[dict[str, Any], int, str]] = [
    ({}, 422, "init_images"), ({"init_images": []}, 422, "init_images"), ({"init_images": [""]}, 422, "init_images"),
    ({"init_images": ["http://127.0.0.1:9/cat.png"]}, 422, "no URL is fetched"),
    ({"init_images": ["https://example.com/cat.png"]}, 422, "no URL is fetched"),
    ({"init_images": ["file:///etc/passwd"]}, 422, "no URL is fetched"),
    ({"init_images": ["/etc/passwd"]}, 400, "PNG, JPEG or WebP"),
    ({"init_images": ["data:text/plain,hello"]}, 422, "base64"), ({"init_images": ["%%%"]}, 422, "base64"),
    ({"init_images": [5]}, 422, "init_images"), ({"init_images": "cat"}, 422, "init_images"),
    ({"init_images": ["iVBORw0KGgo="]}, 400, "image"),
]  # fmt: skip


def test_only_images_in_base64_are_taken_and_no_url_is_fetched(serving: Any) -> None:
    for fields, status, words in BAD_IMAGES:
        answer = post(serving, "/sdapi/v1/img2img", {"prompt": "a cat", **SMALL, **fields})
        assert (answer.status_code, words in answer.text) == (status, True), (fields, answer.text)
    twice = {"prompt": "a cat", **SMALL, "init_images": [encoded(photo()), encoded(photo())]}
    assert post(serving, "/sdapi/v1/img2img", twice).status_code == 422
    masked = {"prompt": "a cat", **SMALL, "init_images": [encoded(photo())], "mask": "http://a/b"}
    assert "mask" in post(serving, "/sdapi/v1/img2img", masked).json()["detail"]


# --- beside drawing


def test_the_settings_of_an_image_are_read_as_a1111_has_them(serving: Any) -> None:
    api = client(serving)
    drawn = api.txt2img(prompt="a cat, sitting", negative_prompt="dog", seed=3, **SMALL)
    read = api.png_info(drawn.image)
    assert read.info == drawn.info["infotexts"][0]
    assert read.parameters["Prompt"] == "a cat, sitting" and read.parameters["Negative prompt"] == "dog"
    assert read.parameters["Seed"] == "3" and read.parameters["Size-1"] == "64" and "sdcli" in read.json["items"]
    only_own = Image.new("RGB", (8, 8))
    only_own.info["sdcli"] = drawn.image.info["sdcli"]
    assert api.png_info(only_own).parameters["Steps"] == "2"
    empty = api.png_info(photo())
    assert empty.info == "" and empty.parameters == {} and empty.json["items"] == {}
    with pytest.raises(RuntimeError):
        api._to_api_result(api.session.post(f"{api.baseurl}/png-info", json={"image": "aGVsbG8="}))


def test_images_are_enlarged_without_a_model(serving: Any) -> None:
    api = client(serving)
    assert api.extra_single_image(photo()).image.size == (96, 64)
    assert api.extra_single_image(photo(), upscaler_1="Lanczos", upscaling_resize=1.5).image.size == (144, 96)
    nearest = api.extra_single_image(photo(), upscaler_1="Nearest", upscaling_resize=2).image
    assert nearest.tobytes() == photo().resize((192, 128), Image.Resampling.NEAREST).tobytes()
    sized = {"resize_mode": 1, "upscaling_resize_w": 128, "upscaling_resize_h": 128, "upscaler_1": "Lanczos"}
    assert api.extra_single_image(photo(), **sized).image.size == (128, 128)
    assert api.extra_single_image(photo(), **sized, upscaling_crop=False).image.size == (192, 128)
    several = api.extra_batch_images([photo(), photo(8, 16)], upscaler_1="Lanczos")
    assert [image.size for image in several.images] == [(192, 128), (16, 32)]


def test_what_cannot_be_made_of_an_image_is_named(serving: Any) -> None:
    refused = [
        ({"gfpgan_visibility": 0.5}, "gfpgan_visibility"), ({"codeformer_visibility": 1}, "codeformer_visibility"),
        ({"upscaler_1": "R-ESRGAN 4x+"}, "upscaler_1"), ({"extras_upscaler_2_visibility": 0.5}, "upscaler_2"),
        ({"resize_mode": 2}, "resize_mode"), ({"upscaling_resize": -1}, "upscaling_resize"),
        ({"upscaler_1": "Lanczos", "upscaling_resize": 100000}, "upscaling_resize"), ({"image": ""}, "image"),
        ({"resize_mode": 1, "upscaling_resize_w": 0}, "upscaling_resize_w"),
        ({"image": "http://127.0.0.1/a.png"}, "image"),
    ]  # fmt: skip
    for fields, name in refused:
        answer = post(serving, "/sdapi/v1/extra-single-image", {"image": encoded(photo()), **fields})
        assert answer.status_code == 422 and name in answer.json()["detail"], (fields, answer.text)
    assert post(serving, "/sdapi/v1/extra-batch-images", {"imageList": []}).status_code == 422


def test_what_a_controlnet_would_see_is_shown(serving: Any) -> None:
    seen = client(serving).controlnet_detect([photo()], module="canny").image
    assert seen.size == (96, 64) and {colour for _, colour in seen.getcolors()} == {(0, 0, 0), (255, 255, 255)}


def test_every_broken_body_is_refused_as_a1111_does_it(serving: Any) -> None:
    for content in (b"", b"[]", b"{", b'{"prompt": 1}', b'{"prompt": "a", "prompt": "b"}', b"\xff", b"null"):
        answer = requests.post(f"{serving.url}/sdapi/v1/txt2img", data=content, headers=JSON, timeout=30)
        assert answer.status_code == 422, content
        assert set(answer.json()) == {"error", "detail", "body", "errors"} and answer.json()["detail"]


# --- while something is drawn


class Gate:
    """Lets what the worker says pass until so many images are done, and then so many steps, and holds the rest."""

    def __init__(self, server: Any, monkeypatch: pytest.MonkeyPatch, images: int, steps: int = 12) -> None:
        self.images, self.steps = images, steps
        self.reached, self.opened = threading.Event(), threading.Event()
        self._run = server.service.desks[0].worker.begun
        monkeypatch.setattr(server.service.desks[0].worker, "begun", self._held)

    def _held(self, *about: Any, **more: Any) -> Iterator[Any]:
        done = 0
        for event in self._run(*about, **more):
            yield event
            done += isinstance(event, Decoded)
            if done == self.images and isinstance(event, Step) and event.step >= self.steps:
                self.reached.set()
                assert self.opened.wait(60)


class Drawing(threading.Thread):
    """A client that waits for images of many steps."""

    def __init__(self, server: Any, **settings: Any) -> None:
        super().__init__(daemon=True)
        self.server = server
        self.result: Any = None
        self.error: RuntimeError | None = None
        small = {"width": 128, "height": 128, "steps": 100, "n_iter": 10}
        self.settings = {"prompt": "a cat", "sampler_name": "Euler", **small, **settings}
        self.start()

    def run(self) -> None:
        try:
            self.result = client(self.server).txt2img(**self.settings)
        except RuntimeError as error:
            self.error = error


def test_progress_counts_up_and_shows_the_image_to_who_asked_for_it(
    serve: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve()
    gate = Gate(server, monkeypatch, images=2)
    drawing = Drawing(server)
    assert gate.reached.wait(60)
    own, other = client(server), client(server, "127.0.0.2")
    shown = own.get_progress()
    assert shown["progress"] == pytest.approx(0.01 + 2.12 / 10) and shown["eta_relative"] > 0
    state = shown["state"]
    assert (state["job_count"], state["job_no"], state["sampling_step"], state["sampling_steps"]) == (10, 2, 12, 100)
    assert opened(shown["current_image"]).size == (16, 16)
    assert own.session.get(f"{own.baseurl}/progress?skip_current_image=true").json()["current_image"] is None
    seen = other.get_progress()
    assert seen["state"]["job_count"] == 10 and seen["current_image"] is None
    gate.opened.set()
    drawing.join(60)
    assert len(drawing.result.images) == 10
    assert own.get_progress()["progress"] == 0.0 and own.get_progress()["state"]["job_count"] == 0


def test_interrupt_gives_the_finished_images_to_who_waits(serve: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve()
    gate = Gate(server, monkeypatch, images=2)
    drawing = Drawing(server)
    assert gate.reached.wait(60)
    assert client(server, "127.0.0.2").interrupt() == {}
    (ticket,) = server.service.of_client("127.0.0.1")
    assert not ticket.cancelled and "others after it" in client(server).skip()["detail"]
    assert client(server).interrupt() == {}
    assert client(server).get_progress()["state"]["interrupted"] is True
    gate.opened.set()
    drawing.join(60)
    assert drawing.error is None and 2 <= len(drawing.result.images) < 10
    assert drawing.result.info["interrupted"] is True


@pytest.mark.parametrize("stop", ["skip", "interrupt"])
def test_an_image_that_is_ended_alone_is_an_error(serve: Start, monkeypatch: pytest.MonkeyPatch, stop: str) -> None:
    server = serve()
    gate = Gate(server, monkeypatch, images=0)
    drawing = Drawing(
        server, n_iter=1, steps=150, enable_hr=True, hr_second_pass_steps=150, denoising_strength=1, hr_scale=2
    )
    assert gate.reached.wait(60)
    getattr(client(server), stop)()
    gate.opened.set()
    drawing.join(60)
    assert drawing.error is not None and drawing.error.args[0] == 409
    assert not list(Path(server.service.settings.typed["output"]).glob("*.png"))


def test_a_client_that_waits_in_the_queue_sees_that_it_does(serve: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(room=Room(images=4, requests=2, share=1.0))
    gate = Gate(server, monkeypatch, images=0)
    first = Drawing(server, n_iter=1)
    assert gate.reached.wait(60)
    waiting = [Drawing(server, n_iter=2, prompt="a dog") for _ in range(2)]
    while len(server.service.line.waiting()) < 2:
        time.sleep(0.01)
    full = post(server, "/sdapi/v1/txt2img", {"prompt": "a cow", **SMALL})
    assert full.status_code == 429 and 1 <= int(full.headers["retry-after"]) <= 120
    gate.opened.set()
    for drawing in (first, *waiting):
        drawing.join(60)
        assert drawing.error is None


def test_two_clients_at_once_never_get_each_others_settings(serve: Start) -> None:
    server = serve()
    one, two = client(server), client(server, "127.0.0.2")
    one.set_options({"CLIP_stop_at_last_layers": 2, "samples_format": "webp"})
    two.set_options({"randn_source": "NV"})
    assert one.get_options()["CLIP_stop_at_last_layers"] == 2 and two.get_options()["CLIP_stop_at_last_layers"] == 1
    results: dict[str, list[Any]] = {"one": [], "two": []}

    def draw(name: str, api: Any, override: dict[str, Any]) -> None:
        for seed in range(6):
            own = override if seed % 2 else {}
            results[name].append(api.txt2img(prompt=name, seed=seed, override_settings=own, **SMALL))

    threads = [
        threading.Thread(target=draw, args=("one", one, {"CLIP_stop_at_last_layers": 3})),
        threading.Thread(target=draw, args=("two", two, {"samples_format": "jpg"})),
    ]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [result.info["clip_skip"] for result in results["one"]] == [2, 3] * 3
    assert {result.image.format for result in results["one"]} == {"WEBP"}
    assert {"RNG: CPU" in result.info["infotexts"][0] for result in results["one"]} == {True}
    assert [result.info["clip_skip"] for result in results["two"]] == [1] * 6
    assert [result.image.format for result in results["two"]] == ["PNG", "JPEG"] * 3
    assert {"RNG: NV" in result.info["infotexts"][0] for result in results["two"]} == {True}
    assert [result.info["seed"] for result in results["one"]] == [0, 1, 2, 3, 4, 5]


KEYS = ("first-long-random-key", "second-long-random-key")


def test_a_key_is_a_password_of_any_user_and_whoever_has_another_is_another_client(serving: Any) -> None:
    settings = replace(serving.service.settings, preload=False)
    server = type(serving)(Service(settings), keys=tuple(map(digest, KEYS)))
    try:
        one, two = (client(server, username="me", password=key) for key in KEYS)
        one.set_options({"CLIP_stop_at_last_layers": 2})
        assert one.get_options()["CLIP_stop_at_last_layers"] == 2 and two.get_options()["CLIP_stop_at_last_layers"] == 1
        assert one.txt2img(prompt="a cat", **SMALL).info["clip_skip"] == 2
        assert two.txt2img(prompt="a cat", **SMALL).info["clip_skip"] == 1
        assert len(one.extra_single_image(photo(), upscaler_1="Lanczos").images) == 1
        for api in (client(server), client(server, username="me", password="wrong-long-random-key")):
            with pytest.raises(RuntimeError) as refused:
                api.txt2img(prompt="a cat", **SMALL)
            assert refused.value.args[0] == 401 and KEYS[0] not in refused.value.args[1]
    finally:
        server.stop()
