"""Downloads from a hub on loopback: what is asked for, what arrives in the cache, and what each fault becomes."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import random
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_hub import LARGE, Asked, FakeHub, Fault, hash_of, pipeline, repository, safetensors

from sdcli.errors import BadFile, CannotWrite, Gated, ModelMissing, Offline, SdcliError, Unsafe
from sdcli.models import hub, hub_cache, hub_connection, resolve
from sdcli.models.hub import Offer, Progress
from sdcli.models.hub_connection import Connection
from sdcli.models.hub_name import HubName

ID, COMMIT = "someone/tiny", "c" * 40
UNET = "unet/diffusion_pytorch_model.fp16.safetensors"
VAE = "vae/diffusion_pytorch_model.fp16.safetensors"


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two attempts nobody waits; and files are as large as these tests need, in pieces of this size."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(hub_connection, "PIECE", 100)


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server(no_proxies: None) -> Iterator[FakeHub]:
    made = FakeHub()
    made.repositories[ID] = repository()
    yield made
    made.close()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "hub"


def line(server: FakeHub, token: str | None = None) -> Connection:
    return Connection(endpoint=server.url, token=token)


def offered(
    server: FakeHub, cache: Path, name: str = ID, revision: str | None = None, token: str | None = None
) -> Offer:
    return hub.offer(line(server, token), name, revision, cache)


def fetched(server: FakeHub, cache: Path, token: str | None = None) -> list[Progress]:
    told: list[Progress] = []
    hub.fetch(line(server, token), offered(server, cache, token=token), told.append)
    return told


def assert_nothing_wrong(server: FakeHub, cache: Path) -> None:
    """Whatever stands under a name in the cache has the bytes that the hub holds."""
    commits = server.repositories[ID].commits
    snapshots, blobs = (cache / "models--someone--tiny" / name for name in ("snapshots", "blobs"))
    for path in snapshots.rglob("*"):
        if path.is_file():
            commit, _, name = path.relative_to(snapshots).as_posix().partition("/")
            assert path.read_bytes() == commits[commit][name], name
    known = {hash_of(path, content): content for held in commits.values() for path, content in held.items()}
    for path in blobs.glob("*") if blobs.is_dir() else ():
        if not path.name.endswith(".incomplete"):
            assert path.read_bytes() == known[path.name]


# --- what arrives


def test_a_model_is_fetched_in_half_precision_with_its_json_and_nothing_else(server: FakeHub, cache: Path) -> None:
    offer = offered(server, cache)
    assert (offer.commit, offer.family, offer.licence) == (COMMIT, "sd15", "creativeml-openrail-m")
    progress: list[Progress] = []
    hub.fetch(line(server), offer, progress.append)
    done = [at.done for at in progress]
    assert done == sorted(done) and len(set(done)) > len(offer.files)  # within a file too
    assert progress[-1].done == progress[-1].total == offer.size
    files = {p.relative_to(offer.snapshot).as_posix() for p in offer.snapshot.rglob("*") if p.is_file()}
    assert files == {
        "model_index.json", "scheduler/scheduler_config.json", "tokenizer/merges.txt", "tokenizer/vocab.json",
        "unet/config.json", "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/config.json", "vae/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/config.json", "text_encoder/model.fp16.safetensors",
    }  # fmt: skip
    assert_nothing_wrong(server, cache)


def test_the_fetched_model_is_then_found_by_its_id(server: FakeHub, cache: Path) -> None:
    fetched(server, cache)
    model = resolve.resolve(ID, hub=cache)
    assert (model.cached, model.revision, model.components["unet"].stored_dtype) == (True, COMMIT, "fp16")


def test_other_tools_read_the_same_cache(server: FakeHub, cache: Path) -> None:
    from huggingface_hub import scan_cache_dir, try_to_load_from_cache

    fetched(server, cache)
    found = scan_cache_dir(cache)
    assert not found.warnings
    (held,) = found.repos
    (revision,) = held.revisions
    assert (held.repo_id, revision.commit_hash, set(revision.refs)) == (ID, COMMIT, {"main"})
    assert isinstance(try_to_load_from_cache(ID, "unet/config.json", cache_dir=cache), str)


def test_without_half_precision_the_plain_weights_are_fetched(server: FakeHub, cache: Path) -> None:
    server.repositories[ID] = repository(pipeline(variant=""))
    names = {file.path for file in offered(server, cache).files}
    assert "unet/diffusion_pytorch_model.safetensors" in names
    assert not any(".bin" in name or ".fp16" in name for name in names)


@pytest.mark.parametrize("spelling", ["fp16-00001-of-00002", "-00001-of-00002.fp16"])
def test_shards_come_with_their_table(server: FakeHub, cache: Path, spelling: str) -> None:
    files = pipeline()
    whole = files.pop("unet/diffusion_pytorch_model.fp16.safetensors")
    first = f"diffusion_pytorch_model{'.' if spelling.startswith('fp16') else ''}{spelling}{LARGE}"
    files[f"unet/{first}"] = whole
    second = first.replace("00001-of", "00002-of")
    files[f"unet/{second}"] = _empty()
    files["unet/diffusion_pytorch_model.safetensors.index.fp16.json"] = json.dumps(
        {"weight_map": {"all": first, "none": second}}
    ).encode()
    server.repositories[ID] = repository(files)
    fetched(server, cache)
    assert len(resolve.resolve(ID, hub=cache).components["unet"].files) == 2


def _empty() -> bytes:
    table = b'{"none":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}}'
    return len(table).to_bytes(8, "little") + table + b"\0\0"


def test_a_second_time_nothing_is_fetched_again(server: FakeHub, cache: Path) -> None:
    fetched(server, cache)
    server.log.clear()
    offer = offered(server, cache)
    assert offer.missing == 0
    hub.fetch(line(server), offer)
    assert not [path for path in server.paths() if LARGE in path]


def test_the_commit_is_resolved_once_though_main_moves_between_all_calls(server: FakeHub, cache: Path) -> None:
    held = server.repositories[ID]
    for number in range(40):
        held.commits[f"{number:040x}"] = pipeline(seed=1000 + number)

    def move(asked: object) -> None:
        held.branches["main"] = f"{len(server.log) % 40:040x}"

    offer = offered(server, cache)  # the first question is answered with the first commit
    server.before = move
    hub.fetch(line(server), offer)
    assert all(f"/resolve/{COMMIT}/" in path for path in server.paths("hub") if "/resolve/" in path)
    assert len([path for path in server.paths() if path.startswith("/api/")]) == 1
    assert (cache / "models--someone--tiny/refs/main").read_text() == COMMIT
    assert_nothing_wrong(server, cache)


# --- what is refused before any weights


@pytest.mark.parametrize(
    ("index", "error"),
    [
        ({"_class_name": "FluxPipeline"}, BadFile),
        ({"unet": ["diffusers", "UNet2DModel"]}, BadFile),
        ({"unet": ["evil", "Thing"]}, Unsafe),
        ({"_class_name": ["mine", "Pipeline"]}, Unsafe),
    ],
)
def test_a_model_that_sdcli_does_not_draw_with_is_refused_before_its_weights(
    server: FakeHub, cache: Path, index: dict[str, object], error: type[SdcliError]
) -> None:
    server.repositories[ID] = repository(pipeline(**index))
    with pytest.raises(error, match=ID):
        offered(server, cache)
    assert not [path for path in server.paths() if LARGE in path] and not cache.exists()


def test_a_config_that_could_run_code_is_refused_before_the_weights(server: FakeHub, cache: Path) -> None:
    files = pipeline()
    files["unet/config.json"] = json.dumps({**json.loads(files["unet/config.json"]), "auto_map": {"x": "y"}}).encode()
    server.repositories[ID] = repository(files)
    with pytest.raises(Unsafe, match="auto_map"):
        offered(server, cache)


def test_a_repository_of_pickles_is_refused_by_name(server: FakeHub, cache: Path) -> None:
    files = {path: held for path, held in pipeline(variant="").items() if not path.endswith(LARGE)}
    server.repositories[ID] = repository(files)
    with pytest.raises(Unsafe, match=r"text_encoder/model\.bin"):
        offered(server, cache)


def test_a_repository_of_single_files_says_how_to_get_one(server: FakeHub, cache: Path) -> None:
    server.repositories[ID] = repository({"dream.safetensors": b"x", "README.md": b"x"})
    with pytest.raises(BadFile, match=r"dream\.safetensors") as refused:
        offered(server, cache)
    assert f'sdcli pull "{ID}/dream.safetensors"' in refused.value.hint


def test_weights_without_a_checksum_are_not_fetched(
    server: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fake_hub

    monkeypatch.setattr(fake_hub, "_listed", lambda path, held: {"rfilename": path, "size": len(held)})
    with pytest.raises(BadFile, match="checksum"):
        offered(server, cache)


def test_a_path_that_leads_out_of_the_cache_is_no_file(server: FakeHub, cache: Path) -> None:
    server.repositories[ID] = repository({"../../x.safetensors": safetensors(8)})
    with pytest.raises(BadFile, match=r"no \.safetensors file"):
        hub.offer_file(line(server), HubName(ID), cache)


# --- who may have it


def test_an_unknown_id_is_a_missing_model(server: FakeHub, cache: Path) -> None:
    with pytest.raises(ModelMissing, match="someone/else"):
        offered(server, cache, "someone/else")


def test_an_unknown_revision_is_said_to_be_one(server: FakeHub, cache: Path) -> None:
    with pytest.raises(ModelMissing, match="revision"):
        offered(server, cache, revision="v9")


def test_a_token_that_is_not_accepted_is_named_as_the_cause(server: FakeHub, cache: Path) -> None:
    server.token = "hf_right"
    with pytest.raises(Gated, match="did not accept the token") as refused:
        offered(server, cache, token="hf_wrong")
    assert "hf auth login" in refused.value.hint and "hf_wrong" not in json.dumps(refused.value.to_json())


def test_a_gated_model_names_its_page_and_the_command(server: FakeHub, cache: Path) -> None:
    server.repositories[ID].gated = "auto"
    with pytest.raises(Gated) as refused:
        offered(server, cache)
    assert f"{server.url}/{ID}" in refused.value.hint and "hf auth login" in refused.value.hint


@pytest.mark.parametrize(
    ("said", "shown"),
    [("Please enable access to public gated repositories in your fine-grained token", "fine-grained"),
     ("Access to model is restricted", "has not done so yet"), ("", "has not done so yet")],
)  # fmt: skip
def test_why_a_gated_model_is_refused_to_a_token_is_told_apart(
    server: FakeHub, cache: Path, said: str, shown: str
) -> None:
    server.token = "hf_right"
    headers = {"X-Error-Code": "GatedRepo", "X-Error-Message": said}
    server.faults = [Fault("status", 403, headers, only="resolve")]
    with pytest.raises(Gated, match=shown):
        offered(server, cache, token="hf_right")


def test_a_gated_model_is_fetched_with_a_right_token(server: FakeHub, cache: Path) -> None:
    server.token = "hf_right"
    server.repositories[ID].gated = "manual"
    fetched(server, cache, token="hf_right")
    assert resolve.resolve(ID, hub=cache).cached


def test_the_token_goes_to_no_other_host(server: FakeHub, cache: Path) -> None:
    server.token = "hf_right"
    fetched(server, cache, token="hf_right")
    there = {asked.host: "authorization" in asked.headers for asked in server.log}
    assert there == {"hub": True, "cdn": False}


def test_from_https_to_http_no_redirect_is_followed(
    no_proxies: None, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = Path(__file__).with_name("loopback.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    safe = FakeHub(certificate=certificate)
    safe.repositories[ID] = repository()
    try:
        offer = offered(safe, cache)  # every file of it is right here
        with pytest.raises(Offline, match="not followed"):
            hub.fetch(line(safe), offer)  # the large ones are at an http address
        assert safe.paths("hub") and not safe.paths("cdn")
    finally:
        safe.close()


def test_a_mirror_that_redirects_to_the_hub_gives_it_no_token(
    server: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """huggingface_hub would send it to hosts that it takes for the hub's."""
    from huggingface_hub.utils import _http

    monkeypatch.setattr(_http, "_HUB_ORIGINS", frozenset({_http._url_origin(server.cdn_url)}))
    server.token = "hf_right"
    fetched(server, cache, token="hf_right")
    assert {asked.host for asked in server.log if "authorization" in asked.headers} == {"hub"}
    assert "cdn" in {asked.host for asked in server.log if asked.method == "HEAD"}


def test_a_redirect_to_what_is_no_web_address_is_not_followed(server: FakeHub, cache: Path) -> None:
    server.faults = [Fault("elsewhere", headers={"Location": "file:///etc/passwd"})]
    with pytest.raises(Offline, match="not followed"):
        offered(server, cache)


def test_redirects_in_a_circle_end(server: FakeHub, cache: Path) -> None:
    server.faults = [Fault("elsewhere", headers={"Location": f"/api/models/{ID}/revision/main"})] * 50
    with pytest.raises(Offline, match="circle"):
        offered(server, cache)


# --- faults on the way


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_hub_in_trouble_is_asked_again(
    server: FakeHub, cache: Path, status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    server.faults = [Fault("status", status), Fault("status", status, only=LARGE)]
    notes = [at.note for at in fetched(server, cache) if at.note]
    assert all(f"{status}; trying again in 1.0 s" in note for note in notes)
    assert len(notes) == (status != 429)  # those huggingface_hub repeats, without a word
    assert capfd.readouterr() == ("", "")
    assert resolve.resolve(ID, hub=cache).cached


def test_a_hub_in_trouble_for_good_is_offline(server: FakeHub, cache: Path) -> None:
    server.faults = [Fault("status", 503)] * 99
    with pytest.raises(Offline, match="503"):
        offered(server, cache)
    assert 2 <= len(server.log) < 10


@pytest.mark.parametrize("only", ["/api/", LARGE, "tokenizer/"])
@pytest.mark.parametrize("asks", [{"Retry-After": "3600"}, {"RateLimit": '"api";r=0;t=3600'}])
def test_a_hub_that_asks_to_wait_for_an_hour_is_not_waited_for(
    server: FakeHub, cache: Path, asks: dict[str, str], only: str
) -> None:
    server.faults = [Fault("status", 429, asks, only=only)]
    with pytest.raises(Offline, match="60 min"):
        fetched(server, cache)
    assert only in server.log[-1].path


def test_a_hub_that_asks_to_wait_a_moment_is_waited_for(
    server: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    server.faults = [Fault("status", 429, {"Retry-After": "7"})]
    assert offered(server, cache).commit == COMMIT and waited == [7.0]


def test_a_web_page_instead_of_an_answer_is_no_hub(server: FakeHub, cache: Path) -> None:
    server.before = lambda asked: None
    server.faults = [Fault("elsewhere", headers={"Location": f"/{ID}/resolve/{COMMIT}/README.md"})]
    with pytest.raises(Offline, match="does not answer like a hub"):
        offered(server, cache)


def test_nobody_there_is_offline_with_the_ways_out(cache: Path, server: FakeHub) -> None:
    server.close()
    with pytest.raises(Offline, match="cannot be reached") as refused:
        offered(server, cache)
    assert "HF_ENDPOINT" in refused.value.hint


def test_silence_is_not_waited_for_without_end(server: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_connection, "SILENCE", 0.3)
    server.faults = [Fault("silence"), Fault("silence", only=LARGE), Fault("silence", only="tokenizer")]
    fetched(server, cache)
    assert resolve.resolve(ID, hub=cache).cached and not server.faults and not server.outwaited


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.5, 0.999])
def test_a_connection_that_breaks_off_goes_on_where_it_broke(server: FakeHub, cache: Path, share: float) -> None:
    at, name = int(len(server.repositories[ID].commits[COMMIT][UNET]) * share), _blob(server, UNET)
    server.faults = [Fault("cut", at, only=name)]
    fetched(server, cache)
    first, second = _begun_at(server, name)
    assert first == 0 and at - hub_connection.PIECE < second <= at
    assert_nothing_wrong(server, cache)


def _blob(server: FakeHub, path: str) -> str:
    return hashlib.sha256(server.repositories[ID].commits[COMMIT][path]).hexdigest()


def _begun_at(server: FakeHub, name: str) -> list[int]:
    """Where in the file each answer began."""
    ranges = [asked.headers.get("range", "bytes=0-") for asked in server.log if name in asked.path]
    return [int(text.removeprefix("bytes=").removesuffix("-")) for text in ranges]


def test_what_a_dead_connection_left_is_kept_and_told_and_taken_up(server: FakeHub, cache: Path) -> None:
    name = _blob(server, UNET)
    server.faults = [Fault("cut", 2000, only=name), *[Fault("status", 503, only=name)] * 9]
    with pytest.raises(Offline) as lost:
        fetched(server, cache)
    assert " of " in lost.value.done and lost.value.done.endswith("will continue")
    server.faults.clear()
    server.log.clear()
    offer = offered(server, cache)
    assert 2000 - hub_connection.PIECE < offer.kept < offer.size
    hub.fetch(line(server), offer)
    (begun,) = _begun_at(server, name)
    assert 2000 - hub_connection.PIECE < begun <= 2000
    assert resolve.resolve(ID, hub=cache).cached


def test_an_unfinished_download_is_not_taken_for_a_model(server: FakeHub, cache: Path) -> None:
    server.faults = [Fault("status", 503, only=_blob(server, VAE))] * 9
    with pytest.raises(Offline):
        fetched(server, cache)
    assert hub_cache.snapshot(cache, ID, None) is None and hub_cache.snapshot(cache, ID, COMMIT) is None


def test_a_server_that_ignores_ranges_is_taken_from_the_start(server: FakeHub, cache: Path) -> None:
    name = _blob(server, UNET)
    server.faults = [Fault("cut", 999, only=name), Fault("whole", only=name)]
    fetched(server, cache)
    assert_nothing_wrong(server, cache)


def test_right_size_with_wrong_bytes_is_fetched_again(server: FakeHub, cache: Path) -> None:
    name = _blob(server, VAE)
    server.faults = [Fault("wrong", 4711, only=name)]
    notes = [at.note for at in fetched(server, cache) if at.note]
    assert len(notes) == 1 and "checksum" in notes[0]
    assert_nothing_wrong(server, cache)


def test_wrong_bytes_twice_are_deleted_and_named(server: FakeHub, cache: Path) -> None:
    name = _blob(server, VAE)
    server.faults = [Fault("wrong", 4711, only=name)] * 2
    with pytest.raises(BadFile, match=r"vae/diffusion_pytorch_model\.fp16\.safetensors"):
        fetched(server, cache)
    assert not list(cache.rglob(f"{name}*.incomplete"))
    assert_nothing_wrong(server, cache)


def test_wrong_bytes_in_json_never_count_either(server: FakeHub, cache: Path) -> None:
    server.faults = [Fault("wrong", 10, only="unet/config.json")]
    fetched(server, cache)
    server.faults = [Fault("wrong", 10, only="unet/config.json")] * 2
    with pytest.raises(BadFile, match=r"unet/config\.json"):
        offered(server, cache)


def test_a_damaged_beginning_of_an_earlier_attempt_is_noticed(server: FakeHub, cache: Path) -> None:
    name = _blob(server, UNET)
    blobs = cache / "models--someone--tiny" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{name}.sdcli.incomplete").write_bytes(b"rot" * 100)
    fetched(server, cache)
    assert_nothing_wrong(server, cache)


@pytest.mark.parametrize("kind", ["longer", "drip"])
def test_more_bytes_than_listed_and_bytes_in_drops_do_no_harm(server: FakeHub, cache: Path, kind: str) -> None:
    server.faults = [Fault(kind, only=_blob(server, UNET))]
    fetched(server, cache)
    assert set(_begun_at(server, _blob(server, UNET))) == {0}
    assert_nothing_wrong(server, cache)


def test_a_file_that_the_list_names_and_the_hub_lacks_is_named_as_the_cause(server: FakeHub, cache: Path) -> None:
    server.faults = [Fault("status", 404, {"X-Error-Code": "EntryNotFound"}, only="/resolve/")]
    with pytest.raises(ModelMissing, match="lists a file that it does not have"):
        offered(server, cache)


def test_a_token_that_may_not_read_the_model_is_said_to_be_so(server: FakeHub, cache: Path) -> None:
    server.token = "hf_right"
    server.faults = [Fault("status", 403, {"X-Error-Message": "no access to this organisation"}, only="/api/")]
    with pytest.raises(Gated, match="does not let this token read") as refused:
        offered(server, cache, token="hf_right")
    assert "hf auth login" in refused.value.hint


def test_a_file_may_be_cut_at_any_byte(
    server: FakeHub, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every one of a small file's: each time the bytes are right, and none is asked for twice but a piece's."""
    monkeypatch.setattr(hub_connection, "PIECE", 7)
    small = safetensors(8, seed=9)
    server.repositories[ID] = repository({"one.safetensors": small})
    server.uses_cdn = False
    for at in range(len(small)):
        offer = hub.offer_file(line(server), HubName(ID), tmp_path / str(at))
        server.log.clear()
        server.faults = [Fault("cut", at, only=LARGE)]
        hub.fetch(line(server), offer)
        begun = [asked.headers.get("range") for asked in server.log if asked.method == "GET"]
        assert begun == [None, f"bytes={at - at % 7}-" if at >= 7 else None]
        assert (offer.snapshot / "one.safetensors").read_bytes() == small


KINDS = ("status", "cut", "cut", "wrong", "longer", "drip", "whole", "reset", "elsewhere", "moves", "full")
STATUSES = (401, 403, 404, 408, 425, 429, 429, 500, 502, 503, 504)
OTHER = "e" * 40  # a second commit, to which `main` may move


def test_60_random_sequences_of_faults_end_in_a_whole_model_or_a_typed_error(server: FakeHub, tmp_path: Path) -> None:
    chance = random.Random(3)
    server.token = "hf_right"
    server.repositories[ID].commits[OTHER] = pipeline(seed=50)
    ends: dict[str, int] = {}
    kinds: set[str] = set()
    for number in range(60):
        cache = tmp_path / str(number)
        planned = [_any_fault(chance, server) for _ in range(chance.randrange(1, 14))]
        kinds |= {str(fault.number) if fault.kind == "status" else fault.kind for fault in planned}
        server.faults = [fault for fault in planned if fault.kind not in ("moves", "full")]
        server.before = mover(server, [fault.number % 12 for fault in planned if fault.kind == "moves"])
        room = min((fault.number % 99_000 for fault in planned if fault.kind == "full"), default=None)
        try:
            with files_of_at_most(room):
                fetched(server, cache, token="hf_right")
            end = "whole"
        except SdcliError as error:
            assert error.message and error.hint and error.code in (3, 7, 9), error
            end = error.type
        ends[end] = ends.get(end, 0) + 1
        assert_nothing_wrong(server, cache)
        assert (hub_cache.snapshot(cache, ID, None) is not None) == (end == "whole")
        server.faults.clear()
        server.before = lambda asked: None
        if end != "whole":
            fetched(server, cache, token="hf_right")  # whatever was left, the next call makes a whole model of it
        assert resolve.resolve(ID, hub=cache).cached
        assert_nothing_wrong(server, cache)
        server.repositories[ID].branches["main"] = COMMIT
    assert kinds == {*map(str, STATUSES), *KINDS} - {"status"}
    assert ends.keys() >= {"whole", "offline", "gated", "model_missing", "cannot_write"} and ends["whole"] > 6, ends
    assert not [asked for asked in server.log if asked.host != "hub" and "authorization" in asked.headers]


def mover(server: FakeHub, moments: list[int]) -> Callable[[Asked], None]:
    """`main` is at the other commit from the request of each of these numbers on."""
    seen = itertools.count()
    branches = server.repositories[ID].branches

    def before(asked: Asked) -> None:
        if next(seen) in moments:
            branches["main"] = OTHER if branches["main"] == COMMIT else COMMIT

    return before


@contextlib.contextmanager
def files_of_at_most(size: int | None) -> Iterator[None]:
    """Beyond it the system refuses to write, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _any_fault(chance: random.Random, server: FakeHub) -> Fault:
    kind = chance.choice(KINDS)
    number = chance.choice(STATUSES) if kind == "status" else chance.randrange(1 << 20)
    # The list of files has no checksum of its own: what it names is right or not by the bytes alone.
    anywhere = [LARGE, "config.json"] if kind == "wrong" else ["", "", LARGE, "config.json"]
    headers = {"Location": f"{server.cdn_url}/{chance.randrange(1 << 30):064x}"} if kind == "elsewhere" else {}
    return Fault(kind, number, headers, only=chance.choice(anywhere))


# --- the disk


def test_too_little_room_is_said_before_the_first_byte(server: FakeHub, cache: Path) -> None:
    offer = offered(server, cache)
    server.log.clear()
    with pytest.raises(CannotWrite) as refused:
        hub.fetch(line(server), offer, free=lambda folder: offer.missing - 1)
    assert refused.value.details == {"need": offer.missing, "free": offer.missing - 1}
    assert not server.log and not cache.exists()


def test_room_is_needed_only_for_what_is_missing(server: FakeHub, cache: Path) -> None:
    fetched(server, cache)
    hub.fetch(line(server), offered(server, cache), free=lambda folder: 0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a file that is always full")
def test_a_disk_that_fills_up_on_the_way_is_named(server: FakeHub, cache: Path) -> None:
    offer = offered(server, cache)
    file = next(file for file in offer.files if file.part == "unet")
    beginning = offer.beginning(file)
    beginning.parent.mkdir(parents=True)
    os.symlink("/dev/full", beginning)
    with pytest.raises(CannotWrite, match="disk is full"):
        hub.fetch(line(server), offer)
    assert hub_cache.snapshot(cache, ID, COMMIT) is None


def test_where_links_cannot_be_made_the_files_themselves_stand_there(
    server: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "symlink", refuse)
    fetched(server, cache)
    assert resolve.resolve(ID, hub=cache).cached
    assert_nothing_wrong(server, cache)
    assert not list((cache / "models--someone--tiny/blobs").iterdir())  # nothing lies there twice
    server.log.clear()
    offer = offered(server, cache)
    assert offer.missing == 0 and not [path for path in server.paths() if LARGE in path]


def test_another_program_at_the_same_file_is_waited_for(server: FakeHub, cache: Path) -> None:
    from huggingface_hub.utils import WeakFileLock

    offer = offered(server, cache)
    file = next(file for file in offer.files if file.path == UNET)
    blob, lock = offer.blob(file), cache / ".locks/models--someone--tiny" / f"{file.hash}.lock"
    for path in (blob, lock):
        path.parent.mkdir(parents=True)
    fetching = threading.Thread(target=hub.fetch, args=(line(server), offer))
    with WeakFileLock(lock):
        fetching.start()
        fetching.join(1.0)  # more than it would need
        assert fetching.is_alive()
        blob.write_bytes(server.repositories[ID].commits[COMMIT][UNET])
    fetching.join()
    assert resolve.resolve(ID, hub=cache).cached and not [path for path in server.paths() if file.hash in path]
