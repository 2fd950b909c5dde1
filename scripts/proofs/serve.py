"""A server under load: nobody is forgotten, nobody gets another's image, and it grows with nothing."""

from __future__ import annotations

import base64
import hashlib
import http.client
import itertools
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from scripts.proofs.damaged import header, png  # noqa: E402

NAME = "serve"
CLAIM = (
    "`sdcli serve` answers 10,000 requests of 64 clients once each, with the image of their seed, also while workers "
    "are killed 300 times; what its queue and its HTTP cost beside the drawing, and how it grows, is measured. Of "
    "20,000 requests that schemathesis makes of /openapi.json, each is answered as that says."
)

REQUESTS, CLIENTS, KILLS = 10_000, 64, 300
BODIES, SLOW, BOMBS = 2_000, 500, 200
SIDE = 64
QUEUE_COST, GROWTH = 0.005, 1_000  # seconds at the 99th percentile; bytes a request
SHARE, BESIDE = 0.03, 0.010  # of an image's time, and seconds
FIRST = 0.300  # seconds after generate's first image
CASES, OF_EACH = 20_000, 640  # of schemathesis: all together, and the most it draws at random of one operation
SCHEMATHESIS = "SCHEMATHESIS"  # the variable that says where the program is

Row = tuple[str, str, str, bool | None]
ROOM = ("--max-queue", "256")
QUICK = ("--size", "64x64", "--steps", "2")  # images of who asks for nothing else


@dataclass
class Answers:
    """What came back, over all clients."""

    statuses: Counter[int] = field(default_factory=Counter)
    wrong: int = 0
    lost: int = 0
    again: int = 0  # requests that were asked to come again
    asked: int = 0
    killed: int = 0
    seconds: list[float] = field(default_factory=list)
    memory: list[tuple[int, int]] = field(default_factory=list)  # answered, bytes of the server


LOST = 0  # instead of a status: there was no answer


def tell(text: str) -> None:
    print(f"  {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


@contextmanager
def server(
    engine: str, *words: str, costs: Path | None = None, quick_disk: bool = True
) -> Iterator[tuple[subprocess.Popen[str], int]]:  # fmt: skip
    """A server of its own, and its port. `costs`: where it notes what its queue costs; `quick_disk`: its images are
    kept in memory, where the system has a folder for that, so that no disk is measured."""
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "SDCLI_HOME": home, "PYTHONPATH": str(ROOT)}
        if quick_disk and os.path.isdir("/dev/shm"):
            environment["TMPDIR"] = "/dev/shm"
        program = ["sdcli"] if costs is None else ["scripts.proofs._clocks", str(costs)]
        command = [sys.executable, "-P", "-m", *program, "serve", "--port", "0", "--engine", engine, *words]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=home)
        assert process.stderr is not None
        try:
            port = next(int(line.partition("http://127.0.0.1:")[2].split()[0].rstrip("/")) for line in process.stderr
                        if "http://127.0.0.1:" in line)  # fmt: skip
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield process, port
        finally:
            process.terminate()
            process.wait(60)


def ask(connection: http.client.HTTPConnection, seed: int, steps: int = 1, side: int = SIDE) -> tuple[int, Any, float]:
    body = {"prompt": "a cat", "seed": seed, "size": f"{side}x{side}", "steps": steps}
    started = time.perf_counter()
    connection.request("POST", "/v1/images/generations", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    content = json.loads(answer.read())
    return answer.status, (content, answer.headers.get("Retry-After")), time.perf_counter() - started


def pixels_of(content: Any) -> str:
    from PIL import Image

    image = Image.open(BytesIO(base64.b64decode(content["data"][0]["b64_json"])))
    return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()


def load(port: int, process: subprocess.Popen[str], requests: int, clients: int, kill: int = 0) -> Answers:
    """Each seed is asked for once, until it is answered: `requests` of them, and more until as many workers were killed
    as there are to `kill`. None is killed before a request was drawn since the last one: what a dead worker was drawing
    is drawn by the next one, and who loses two workers is told so."""
    import psutil

    from sdcli.draw.fake import _gradient

    seeds = itertools.count()
    answers, lock, measured = Answers(), threading.Lock(), psutil.Process(process.pid)

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        while True:
            with lock:
                seed = next(seeds)
                if seed >= requests and answers.killed >= kill:
                    return
                answers.asked += 1
            while True:
                try:
                    status, (content, after), seconds = ask(connection, seed)
                except (OSError, http.client.HTTPException):
                    status, content, seconds = LOST, None, 0.0
                    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
                    break
                if status != 429:
                    break
                answers.again += 1
                time.sleep(random.uniform(0.2, 1.0) * min(float(after or 1), 1.0))
            right = status != 200 or pixels_of(content) == hashlib.sha256(_gradient(seed, SIDE, SIDE)).hexdigest()
            if status not in (200, LOST):
                tell(f"seed {seed} was answered {status}: {json.dumps(content)[:300]}")
            with lock:
                answers.statuses[status] += 1
                answers.lost += status == LOST
                answers.wrong += not right
                answers.seconds.append(seconds)
                done = sum(answers.statuses.values())
                if done % 100 == 0:
                    answers.memory.append((done, measured.memory_info().rss))
                if done % (50 if kill else 500) == 0:
                    tell(f"{done:,} requests answered" + (f", {answers.killed} workers killed" if kill else ""))

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    answered = -clients
    while any(thread.is_alive() for thread in threads):
        time.sleep(random.uniform(0.005, 0.1) if kill else 0.5)
        done = sum(answers.statuses.values())
        if answers.killed < kill and done > answered + clients:  # as many answers may have been on their way
            for child in random.sample(children := measured.children(), min(1, len(children))):
                os.kill(child.pid, signal.SIGKILL)
                answers.killed += 1
            answered = sum(answers.statuses.values())
    for thread in threads:
        thread.join()
    return answers


def growth(samples: list[tuple[int, int]]) -> float:
    """Bytes a request, over the second half."""
    half = samples[len(samples) // 2 :]
    return statistics.linear_regression([at for at, _ in half], [size for _, size in half]).slope


def main(requests: int = REQUESTS, clients: int = CLIENTS, kills: int = KILLS, cases: int = CASES) -> list[Row]:
    return [
        *under_load(requests, clients), *with_kills(kills), *with_kills(kills // 3, "--devices", "cpu:2x1"),
        *nonsense(), slow_clients(), as_documented(cases), *beside_the_engine(), first_image(),
    ]  # fmt: skip


def under_load(requests: int, clients: int) -> list[Row]:
    tell(f"{requests:,} requests of {clients} clients")
    with tempfile.TemporaryDirectory() as folder:
        noted = Path(folder) / "costs"
        with server("fake", "--no-store", *ROOM, costs=noted) as (process, port):
            answers = load(port, process, requests, clients)
        costs = [float(line) for line in noted.read_text(encoding="utf-8").split()]
    right = answers.statuses[200] - answers.wrong
    slope = growth(answers.memory)
    slowest, usual = statistics.quantiles(costs, n=100)[98], statistics.median(costs)
    seen = (
        f"{right:,} answered with their own image, {answers.lost} lost, {answers.wrong} mixed up; "
        f"{answers.again:,} times asked to come again"
    )
    cost = f"{slowest * 1000:.1f} ms at the 99th percentile, {usual * 1000:.1f} ms in the median"
    holds = right == requests and not answers.lost and not answers.wrong
    most = f"≤ {QUEUE_COST * 1000:.0f} ms"
    return [
        (f"{requests:,} requests of {clients} clients", seen, "all, 0, 0", holds),
        ("from a place in line and a free worker to the worker's order", cost, most, slowest <= QUEUE_COST),
        ("the server's memory, over the second half", f"{slope:.0f} bytes a request", f"≤ {GROWTH:,}", slope <= GROWTH),
    ]


def with_kills(kills: int, *words: str) -> list[Row]:
    tell(f"{kills} workers killed {' '.join(words)}")
    with server("fake", "--no-store", *ROOM, *words) as (process, port):
        answers = load(port, process, kills, 4, kill=kills)
    right = answers.statuses[200] - answers.wrong
    seen = (
        f"{right:,} of {answers.asked:,} requests answered with their own image, {answers.lost} lost, "
        f"{answers.wrong} wrong, other answers: {answers.asked - answers.statuses[200] - answers.lost}"
    )
    holds = answers.killed == kills and right == answers.asked
    what = " ".join((f"{answers.killed} workers killed under load", *words))
    return [(what, seen, "each answered once, pixels right", holds)]


# --- what no honest client sends


def nonsense(bodies: int = BODIES, bombs: int = BOMBS) -> list[Row]:
    """Bodies changed in a few bytes, and images whose pixels are far more than their bytes."""
    chance = random.Random(5)
    image = base64.b64encode(_image(16)).decode()
    good = {
        "/v1/images/generations": {"prompt": "a cat", "n": 1, "size": "64x64", "steps": 1, "seed": 5},
        "/v1/jobs": {"prompt": "a cat", "size": "64x64", "steps": 1, "image": image, "strength": 0.5},
        "/sdapi/v1/txt2img": {"prompt": "a cat", "width": 64, "height": 64, "steps": 1, "override_settings": {}},
        "/sdapi/v1/img2img": {"prompt": "a cat", "init_images": [image], "width": 64, "height": 64, "steps": 1},
        "/sdapi/v1/options": {"sd_model_checkpoint": "builtin"},
    }
    tell(f"{bodies:,} broken bodies, {bombs} bombs")
    statuses: dict[str, Counter[int]] = {"bodies": Counter(), "bombs": Counter()}
    with server("fake", "--no-store", *ROOM, *QUICK) as (_, port):
        for _ in range(bodies):
            path = chance.choice(list(good))
            statuses["bodies"][_posted(port, path, _broken(chance, json.dumps(good[path]).encode()))] += 1
        bomb = base64.b64encode(_image(20_000)).decode()
        for number in range(bombs):
            path, name = (("/v1/jobs", "image"), ("/sdapi/v1/img2img", "init_images"))[number % 2]
            body = {"prompt": "a cat", name: bomb if name == "image" else [bomb]}
            statuses["bombs"][_posted(port, path, json.dumps(body).encode())] += 1
        alive = ask(http.client.HTTPConnection("127.0.0.1", port, timeout=60), 1)[0] == 200
    rows = []
    for what, seen in statuses.items():
        told = ", ".join(f"{count} × {status}" for status, count in sorted(seen.items()))
        fine = not any(status >= 500 for status in seen) and (what == "bodies" or all(400 <= one < 500 for one in seen))
        rows.append((f"{sum(seen.values()):,} broken {what}", told, "no 5xx, and the next is served", fine and alive))
    return rows


def _broken(chance: random.Random, body: bytes) -> bytes:
    changed = bytearray(body)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(changed))
        match chance.randrange(4):
            case 0:
                changed[at] = chance.randrange(256)
            case 1:
                del changed[at : at + chance.randint(1, 8)]
            case 2:
                changed[at:at] = chance.choice((b"null", b"1e999", b"[" * 40, b'"\\ud800"', b"-1", b"{}", b"9" * 400))
            case 3:
                changed[at:at] = bytes(chance.randrange(256) for _ in range(chance.randint(1, 6)))
        if not changed:
            break
    return bytes(changed)


def _posted(port: int, path: str, body: bytes) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


def _image(side: int) -> bytes:
    """All black, and only the first rows of a large one: a hundred kB at most."""
    rows = zlib.compress(bytes((side * 3 + 1) * min(side, 2_000)), 9)
    return png(header(side, side), (b"IDAT", rows), (b"IEND", b""))


def slow_clients(count: int = SLOW) -> Row:
    """Clients that send half a head, half a body, or nothing, while others are served."""
    import socket

    beginnings = (b"", b"POST /v1/images/gen", b"POST /v1/images/generations HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n"
                  b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{")  # fmt: skip
    tell(f"{count} silent or half-sent requests")
    with server("fake", "--no-store", *ROOM) as (_, port):
        held = []
        for number in range(count):
            held.append(socket.create_connection(("127.0.0.1", port), timeout=60))
            start = beginnings[number % 3]
            held[-1].sendall(start % port if b"%d" in start else start)
        seconds = []
        for seed in range(50):
            status, _, spent = ask(http.client.HTTPConnection("127.0.0.1", port, timeout=60), seed)
            seconds.append(spent if status == 200 else 60.0)
        let_go = sum(_ended(one) for one in held)
    slowest = max(seconds)
    seen = f"{let_go} let go; 50 others served meanwhile, the slowest in {slowest * 1000:.0f} ms"
    return (
        f"{count} silent or half-sent requests",
        seen,
        "all let go, all others served",
        let_go == count and slowest < 5,
    )


def _ended(connection: Any) -> bool:
    """Whether the server ends it within its own limits."""
    connection.settimeout(40)
    try:
        while connection.recv(4096):
            pass
        return True
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    finally:
        connection.close()


# --- what /openapi.json says


def as_documented(cases: int = CASES) -> Row:
    """Requests that schemathesis makes of the document, right ones and wrong ones, and what the document says of their
    answers. It runs in an environment of its own."""
    what, goal = "requests made of /openapi.json by schemathesis", f"≥ {cases:,}, 0 failures"
    program = os.environ.get(SCHEMATHESIS) or shutil.which("schemathesis")
    if program is None:
        return (what, f"not installed; {SCHEMATHESIS}=PROGRAM says where it is", goal, None)
    tell(what)
    with (
        tempfile.TemporaryDirectory() as folder,
        server("fake", "--no-store", *ROOM, "--max-size", "512x512", *QUICK) as (_, port),
    ):
        (Path(folder) / "schemathesis.toml").write_text(ACCEPTED, encoding="utf-8")
        hooks = {"SCHEMATHESIS_HOOKS": "_bodies", "PYTHONPATH": str(ROOT / "scripts" / "proofs")}
        command = [
            program, "--config-file", "schemathesis.toml", "run", f"http://127.0.0.1:{port}/openapi.json", "--checks",
            "all", "--max-examples", str(max(1, OF_EACH * cases // CASES)), "--seed", "1", "--no-color",
            "--continue-on-failure", "--no-shrink", "--generation-database", "none", "--suppress-health-check", "all",
            "--workers", "2", "--request-timeout", "120",
        ]  # fmt: skip
        run = subprocess.run(
            command, cwd=folder, env={**os.environ, **hooks}, capture_output=True, text=True, encoding="utf-8"
        )
        alive = ask(http.client.HTTPConnection("127.0.0.1", port, timeout=60), 1)[0] == 200
    made = re.search(r"Test cases:\s+([\d,]+) generated", run.stdout)
    count = int(made[1].replace(",", "")) if made else 0
    failed = re.findall(r"❌ (ST\d+ [^\n]*)|🚫 ([A-Z][^\n]*: \d+)", run.stdout)
    said = "; ".join(first or second for first, second in failed) or "0 failures"
    if run.returncode and not failed:
        said = f"exit code {run.returncode}"
    if failed or run.returncode:
        tell(run.stdout[-20_000:])
    return (what, f"{count:,}, {said}", goal, run.returncode == 0 and count >= cases and alive)


# A body that the document allows may be refused for what it cannot say, by the name of the field: see _bodies.py.
ACCEPTED = """[checks.positive_data_acceptance]
expected-statuses = ["2xx", "3xx", "400", "401", "403", "404", "409", "422", "429"]
"""


def beside_the_engine(images: int = 12, side: int = 256) -> list[Row]:
    """Of the built-in model, a request after the other, beside the engine alone in one process, by turns."""
    from sdcli.asking import planning
    from sdcli.draw import local

    tell(f"{images} images beside the engine alone")
    with server("local", "--no-store", quick_disk=False) as (_, port), local.Engine() as engine:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        alone, served = [], []
        for seed in range(images + 2):
            plan = planning.plan_for(
                {"words": ("a cat",), "seeds": str(seed), "size": f"{side}x{side}", "steps": "10"}, "generate"
            ).plan
            started = time.perf_counter()
            for _ in engine.run(plan):
                pass
            alone.append(time.perf_counter() - started)
            status, _, seconds = ask(connection, seed, 10, side)
            assert status == 200
            served.append(seconds)
    usual, more = statistics.median(alone[2:]), statistics.median(served[2:]) - statistics.median(alone[2:])
    most = SHARE * usual + BESIDE
    seen = f"{more * 1000:.0f} ms beside {usual * 1000:.0f} ms"
    return [(f"a served image of {side}², beside the engine alone", seen, f"≤ {most * 1000:.0f} ms", more <= most)]


def first_image(side: int = 256, times: int = 3) -> Row:
    tell("the first image after the start")
    generated, served = [], []
    for _ in range(times):
        with tempfile.TemporaryDirectory() as folder:
            environment = {**os.environ, "SDCLI_HOME": folder, "PYTHONPATH": str(ROOT)}
            words = ["generate", "a cat", "--seed", "1", "--size", str(side), "-s", "10", "-q", "-o", folder]
            started = time.perf_counter()
            subprocess.run(
                [sys.executable, "-P", "-m", "sdcli", *words], env=environment, check=True, capture_output=True
            )
            generated.append(time.perf_counter() - started)
        started = time.perf_counter()
        with server("local", "--no-store", quick_disk=False) as (_, port):
            status, _, _ = ask(http.client.HTTPConnection("127.0.0.1", port, timeout=300), 1, 10, side)
            served.append(time.perf_counter() - started)
            assert status == 200
    later = min(served) - min(generated)
    seen = f"{later * 1000:+.0f} ms ({min(served):.2f} s, generate {min(generated):.2f} s)"
    return ("the first image after the start, beside generate's", seen, f"≤ {FIRST * 1000:.0f} ms", later <= FIRST)


if __name__ == "__main__":
    for row in main(*(int(word) for word in sys.argv[1:])):
        print(row)
