"""A hub on loopback: two ports, so that large files come from another host than their list, with faults to order."""

from __future__ import annotations

import hashlib
import json
import random
import re
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from sdcli import data
from sdcli.models.shipped import parameters_of

LARGE = ".safetensors"
IN_LFS = (LARGE, ".bin", ".ckpt", ".onnx")
TINY: dict[str, dict[str, Any]] = {
    "unet": {"block_out_channels": [8, 8, 8, 8], "layers_per_block": 1, "attention_head_dim": 4,
             "cross_attention_dim": 16, "norm_num_groups": 4},
    "vae": {"block_out_channels": [8, 8, 8, 8], "layers_per_block": 1, "norm_num_groups": 4},
    "text_encoder": {"hidden_size": 16, "intermediate_size": 37, "num_hidden_layers": 1, "num_attention_heads": 4,
                     "vocab_size": 500, "projection_dim": 16},
}  # fmt: skip


def safetensors(count: int, dtype: str = "F16", seed: int = 0) -> bytes:
    """One tensor of so many parameters, with bytes that are nowhere alike; every number in it is finite."""
    size = count * {"F16": 2, "F32": 4}[dtype]
    table = json.dumps({"all": {"dtype": dtype, "shape": [count], "data_offsets": [0, size]}}).encode()
    held = bytes(byte & 0xBF for byte in random.Random(seed).randbytes(size))
    return len(table).to_bytes(8, "little") + table + held


def pipeline(variant: str = ".fp16", seed: int = 0, **index: Any) -> dict[str, bytes]:
    """A tiny SD1.5 as a repository holds it, with files beside it that nobody should fetch."""
    table = json.loads((data.component_folder("sd15") / "model_index.json").read_text())
    files = {"model_index.json": json.dumps({**table, **index}).encode()}
    files["scheduler/scheduler_config.json"] = json.dumps(data.component_config("sd15", "scheduler")).encode()
    for number, (part, changes) in enumerate(TINY.items()):
        config = {**data.component_config("sd15", part), **changes}
        stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        files[f"{part}/config.json"] = json.dumps(config).encode()
        files[f"{part}/{stem}{variant}{LARGE}"] = safetensors(parameters_of(part, config), "F16", seed + number)
        if variant:
            files[f"{part}/{stem}{LARGE}"] = b"the larger variant, not wanted"
        files[f"{part}/{stem}.bin"] = b"a pickle, never wanted"
    files["tokenizer/merges.txt"] = b"#version: 0.2\na b\n"
    files["tokenizer/vocab.json"] = b'{"a": 0, "b": 1, "ab": 2, "<|startoftext|>": 3, "<|endoftext|>": 4}'
    for other in ("README.md", "run_me.py", "v1-5-pruned.ckpt", "unet/model.onnx", "safety_checker/model.safetensors"):
        files[other] = b"not wanted"
    return files


@dataclass
class Repository:
    commits: dict[str, dict[str, bytes]]
    branches: dict[str, str]
    gated: str | bool = False
    card: Mapping[str, Any] = field(default_factory=lambda: {"license": "creativeml-openrail-m"})

    def commit(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)


def repository(files: dict[str, bytes] | None = None, commit: str = "c" * 40, **more: Any) -> Repository:
    return Repository({commit: pipeline() if files is None else files}, {"main": commit}, **more)


@dataclass(frozen=True)
class Asked:
    host: str  # hub | cdn
    path: str
    headers: Mapping[str, str]
    method: str = "GET"


OF_BYTES = ("cut", "wrong", "longer", "drip", "whole")  # what can happen to a body; an answer to HEAD has none


@dataclass(frozen=True)
class Fault:
    """What happens to one answer instead of the right one. `only` restricts it to paths that hold this text."""

    kind: str  # status | cut | wrong | longer | drip | silence | whole | reset | elsewhere
    number: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    only: str = ""


class FakeHub:
    """`faults` are used up in order, one for each request that matches; `log` keeps every request."""

    def __init__(self, *, cdn: bool = True, certificate: Path | None = None) -> None:
        self.repositories: dict[str, Repository] = {}
        self.faults: list[Fault] = []
        self.log: list[Asked] = []
        self.token: str | None = None  # the one that is valid
        self.before: Callable[[Asked], None] = lambda asked: None
        self.silent = threading.Event()  # set: those who keep silent may go
        self.outwaited = False  # that one kept silent for longer than anybody should wait
        self._servers = [_serve(self, "hub", certificate), _serve(self, "cdn", None)]
        hub, cdn = (server.server_port for server in self._servers)
        self.url = f"{'https' if certificate else 'http'}://127.0.0.1:{hub}"
        self.cdn_url = f"http://localhost:{cdn}"  # another host
        self.uses_cdn = cdn

    def close(self) -> None:
        self.silent.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def fault_for(self, asked: Asked) -> Fault | None:
        for number, fault in enumerate(self.faults):
            if fault.only in asked.path and (asked.method == "GET" or fault.kind not in OF_BYTES):
                return self.faults.pop(number)
        return None

    def paths(self, host: str = "") -> list[str]:
        return [asked.path for asked in self.log if host in asked.host]


def _serve(hub: FakeHub, host: str, certificate: Path | None) -> ThreadingHTTPServer:
    handler = type("Handler", (_Handler,), {"hub": hub, "host": host})
    server = _Server(("127.0.0.1", 0), handler)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    return server


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave in the middle are what is tested here."""


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    host: str

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        asked = Asked(self.host, path, {k.lower(): v for k, v in self.headers.items()}, self.command)
        self.hub.log.append(asked)
        self.hub.before(asked)
        fault = self.hub.fault_for(asked)
        if fault is not None and fault.kind == "status":
            self._answer(fault.number, b"no", fault.headers)
        elif fault is not None and fault.kind == "silence":
            self.hub.outwaited |= not self.hub.silent.wait(30)
        elif fault is not None and fault.kind == "reset":
            self.close_connection = True
        elif fault is not None and fault.kind == "elsewhere":
            self._answer(302, b"", {"Location": fault.headers["Location"]})
        elif self.host == "cdn" and self.command == "HEAD":
            self._answer(200, b"", {"ETag": asked.path.strip("/"), "X-Repo-Commit": "c" * 40})
        elif self.host == "cdn":
            self._file(self._bytes_of(asked.path), fault)
        elif asked.path.startswith("/api/models/"):
            self._info(asked, fault)
        else:
            self._resolve(asked, fault)

    do_HEAD = do_GET

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str] = {}) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refused(self, repository: Repository | None) -> bool:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if given and given != self.hub.token:
            said = {"X-Error-Message": "Invalid credentials in Authorization header"}
            self._answer(401, b"no", said)
        elif repository is None:
            self._answer(404 if given else 401, b"no", {"X-Error-Code": "RepoNotFound"})
        else:
            return False
        return True

    def _info(self, asked: Asked, fault: Fault | None) -> None:
        name, _, revision = asked.path.removeprefix("/api/models/").partition("/revision/")
        repository = self.hub.repositories.get(name)
        if self._refused(repository):
            return
        assert repository is not None
        commit = repository.commit(revision or "main")
        if commit is None:
            self._answer(404, b"no", {"X-Error-Code": "RevisionNotFound"})
            return
        files = repository.commits[commit]
        told = {
            "id": name, "sha": commit, "gated": repository.gated, "cardData": dict(repository.card),
            "siblings": [_listed(path, held) for path, held in files.items()],
        }  # fmt: skip
        self._file(json.dumps(told).encode(), fault)

    def _resolve(self, asked: Asked, fault: Fault | None) -> None:
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", asked.path)
        repository = self.hub.repositories.get(match[1]) if match else None
        if self._refused(repository):
            return
        assert match is not None and repository is not None
        if repository.gated and not self.headers.get("Authorization"):
            self._answer(401, b"no", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."})
            return
        held = repository.commits.get(match[2], {}).get(match[3])
        if held is None:
            self._answer(404, b"no", {"X-Error-Code": "EntryNotFound"})
            return
        told = {"X-Repo-Commit": match[2], "ETag": f'"{hash_of(match[3], held)}"'}
        if match[3].endswith(IN_LFS):
            told |= {"X-Linked-Size": str(len(held)), "X-Linked-Etag": told["ETag"]}
        if match[3].endswith(LARGE) and self.hub.uses_cdn:
            if fault is not None:
                self.hub.faults.insert(0, fault)  # it is the bytes that it is about
            where = f"{self.hub.cdn_url}/{hashlib.sha256(held).hexdigest()}?signed=1"
            self._answer(302, b"", {**told, "Location": where})
        elif self.command == "HEAD":
            self._answer(200, b"", {**told, "Content-Length": str(len(held))})
        else:
            self._file(held, fault)

    def _bytes_of(self, path: str) -> bytes:
        for repository in self.hub.repositories.values():
            for files in repository.commits.values():
                for held in files.values():
                    if hashlib.sha256(held).hexdigest() == path.strip("/"):
                        return held
        return b""

    def _file(self, held: bytes, fault: Fault | None) -> None:
        kind = fault.kind if fault is not None else ""
        size = len(held)
        if kind == "wrong":
            at = fault.number % size if fault else 0
            held = held[:at] + bytes([held[at] ^ 0x10]) + held[at + 1 :]
        if kind == "longer":
            held, size = held + b"more" * 1000, size + 4000
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked and kind != "whole" else 0
        if start and start >= size:
            self._answer(416, b"", {"Content-Range": f"bytes */{size}"})
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("Content-Length", str(size - start))
        self.end_headers()
        rest = held[start:]
        if kind == "cut":
            rest = rest[: (fault.number if fault else 0) % max(1, len(rest))]
        step = 7 if kind == "drip" else 1 << 16
        for position in range(0, min(len(rest), 7000) if kind == "drip" else len(rest), step):
            self.wfile.write(rest[position : position + step])
        if kind == "drip":
            self.wfile.write(rest[7000:])


def hash_of(path: str, held: bytes) -> str:
    """Its name in the cache: sha256 of what git keeps elsewhere, git's own of the rest."""
    if path.endswith(IN_LFS):
        return hashlib.sha256(held).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(held) + held).hexdigest()


def _listed(path: str, held: bytes) -> dict[str, Any]:
    git = hashlib.sha1(b"blob %d\0" % len(held) + held).hexdigest()
    entry: dict[str, Any] = {"rfilename": path, "size": len(held), "blobId": git}
    if path.endswith(IN_LFS):
        entry["lfs"] = {"sha256": hash_of(path, held), "size": len(held), "pointerSize": 135}
    return entry
