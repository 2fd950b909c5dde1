"""Damaged model files, damaged images with settings, and bombs: read, or refused with a typed error, within bounds."""

from __future__ import annotations

import io
import itertools
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from PIL import Image  # noqa: E402

from scripts import make_checkpoint  # noqa: E402
from sdcli.errors import SdcliError  # noqa: E402
from sdcli.images import read as pixels  # noqa: E402
from sdcli.models import adapter_files, embedding, lora, resolve  # noqa: E402
from sdcli.models.headers import read_header  # noqa: E402
from sdcli.models.model import Model  # noqa: E402
from sdcli.record.metadata import read as settings  # noqa: E402
from sdcli.record.store import store  # noqa: E402
from tests.record import record_samples  # noqa: E402

NAME = "damaged"
CLAIM = (
    "Model files whose headers were changed in a few places, images with settings that were changed likewise, and "
    "bombs (a few bytes that ask for gigabytes) are read, or refused with a typed error that prints as one line: each "
    "in less than two seconds of CPU time, all of them in less than half a GiB."
)

FILES, IMAGES = 5_000, 3_000
MOST_SECONDS, MOST_BYTES = 2.0, 512 << 20

Row = tuple[str, str, str, bool]
Reader = Callable[[Path], object]


def read_by(reader: Reader, path: Path) -> str:
    """What became of the file: `read`, the type of its refusal, or what was wrong."""
    started = time.process_time()
    try:
        reader(path)
        end = "read"
    except SdcliError as error:
        shown = error.message.isprintable() and error.hint.isprintable() and bool(error.hint)
        end = error.type if error.code in (2, 3, 6, 9) and shown else f"WRONG: {error!r}"
    except Exception as error:
        end = f"WRONG: {error!r}"
    seconds = time.process_time() - started
    return end if seconds < MOST_SECONDS else f"WRONG: {seconds:.1f} s"


def changed(content: bytes, chance: random.Random) -> bytes:
    """The same with a few bytes flipped, dropped, doubled or put in; or cut off."""
    made = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 8))):
        at, kind = chance.randrange(len(made)), chance.randrange(6)
        if kind == 0:
            made[at] ^= 1 << chance.randrange(8)
        elif kind == 1 and len(made) > 60:
            del made[at : at + chance.randint(1, 40)]
        elif kind == 2:
            made[at:at] = made[max(0, at - 40) : at]
        elif kind == 3:
            made[at:at] = chance.randbytes(chance.randint(1, 8))
        elif kind == 4:
            made[at : at + 1] = str(chance.choice([-1, 2**64, 10**30, "NaN", "[", "{"])).encode()
        elif chance.randrange(4) == 0:
            del made[max(at, 20) :]
    return bytes(made)


# --- model files


def damaged_models(root: Path, times: int) -> Iterator[str]:
    """Each is a header and a hole in place of the values."""
    chance, path = random.Random(24), root / "damaged.safetensors"
    model = resolve.at(make_checkpoint.write_folder(root / "model", "sd15", tiny=True))
    checkpoint = make_checkpoint.write_file(root / "one.safetensors", "sd15", tiny=True)
    files: list[tuple[Path, Reader]] = [
        (checkpoint, resolve.at),
        (Path(model.components["vae"].files[0]), lambda file: adapter_files.with_vae(model, file)),
        (_lora(root / "lora.safetensors", model), lambda file: lora.match(file, model)),
        (_embedding(root / "embedding.safetensors"), lambda file: embedding.read(file, model)),
    ]
    for number in range(times):
        good, reader = files[number % len(files)]
        header = read_header(good)
        with open(good, "rb") as file:
            head = file.read(header.data_start)
        with open(path, "wb") as out:
            made = changed(head, chance)
            if number % 2 and len(made) > 16:  # the length as it should be, so that what it heads is read
                made = (len(made) - 8).to_bytes(8, "little") + made[8:]
            out.write(made)
            out.truncate(len(made) + header.size - header.data_start + chance.choice((0, 0, 0, 0, -1, 3)))
        yield read_by(reader, path)


def _write(path: Path, shapes: dict[str, list[int]]) -> Path:
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * shape[1]
        table[name] = {"dtype": "F16", "shape": shape, "data_offsets": [position, position + size]}
        position += size
    head = json.dumps(table).encode()
    with open(path, "wb") as out:
        out.write(len(head).to_bytes(8, "little") + head)
        out.truncate(8 + len(head) + position)
    return path


def _lora(path: Path, model: Model) -> Path:
    found = lora.layers({name: model.components[name].config for name in ("unet", "text_encoder")})
    shapes: dict[str, list[int]] = {}
    for name, layer in itertools.islice(((n, one) for n, one in found.items() if len(one.shape) == 2), 40):
        shapes |= {f"{name}.lora_down.weight": [4, layer.shape[1]], f"{name}.lora_up.weight": [layer.shape[0], 4]}
    return _write(path, shapes)


def _embedding(path: Path) -> Path:
    return _write(path, {"emb_params": [4, 32]})


# --- images


def damaged_images(root: Path, times: int) -> Iterator[str]:
    """Read for their settings, and for their pixels."""
    chance, path = random.Random(25), root / "damaged"
    plan, good = record_samples.plan(), []
    for format in ("png", "jpg", "webp"):
        file = root / f"good.{format}"
        where = record_samples.destination(root / format, kind="file", pattern=file.name, format=format)
        list(store(record_samples.stream(plan), where))
        good.append((root / format / file.name).read_bytes())
    for number in range(times):
        path.write_bytes(changed(good[number % len(good)], chance))
        yield f"{read_by(settings.read, path)} as settings"
        yield f"{read_by(pixels.look, path)} as pixels"


# --- bombs


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    def one(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + b"".join(one(*chunk) for chunk in chunks)


def header(width: int, height: int) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)


def _flat(side: int, format: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("1" if format != "WEBP" else "L", (side, side)).convert("L").save(buffer, format)
    return buffer.getvalue()


def bombs() -> dict[str, bytes]:
    zeros, row = zlib.compress(bytes(200_000_000), 9), zlib.compress(bytes(20_000 * 3 + 1) * 2_000, 9)
    pixel = (b"IDAT", zlib.compress(bytes(8 * 25), 9))
    deep = b'{"schema": "sdcli.image/1", "job": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    end, filling = (b"IEND", b""), b"x" * 900_000
    large, gif = b"\xff" * 4, b"\0\x02\x02\x4c\x01\0;"
    return {
        "a PNG of 2^31 pixels a side": png(header(2**31 - 1, 2**31 - 1), end),
        "a PNG of 20,000 pixels a side": png(header(20_000, 20_000), (b"IDAT", row), end),
        "a PNG of 12,000 pixels a side": png(header(12_000, 12_000), (b"IDAT", row), end),
        "a compressed text of 200 MB": png(header(8, 8), (b"zTXt", b"parameters\0\0" + zeros), pixel, end),
        "a compressed UTF-8 text of 200 MB": png(header(8, 8), (b"iTXt", b"sdcli\0\1\0\0\0" + zeros), pixel, end),
        "a colour profile of 200 MB": png(header(8, 8), (b"iCCP", b"x\0\0" + zeros), pixel, end),
        "eighty texts of 0.9 MB": png(header(8, 8), *((b"tEXt", b"k%d\0" % n + filling) for n in range(80)), end),
        "settings nested 100,000 deep": png(header(8, 8), (b"tEXt", b"sdcli\0" + deep), pixel, end),
        "settings of 60 MB": png(header(8, 8), pixel, (b"tEXt", b"sdcli\0" + b'{"a":[' + b"1," * 30_000_000), end),
        "a JPEG of 65,000 pixels a side": _jpeg(65_000),
        "a WebP of 16,383 pixels a side": _flat(16_383, "WEBP"),
        "a GIF of 65,535 pixels a side": b"GIF89a" + large + b"\xf0\0\0" + bytes(6) + b"\x2c\0\0\0\0" + large + gif,
    }  # fmt: skip


def _jpeg(side: int) -> bytes:
    """A small one that says it is large."""
    made = bytearray(_flat(8, "JPEG"))
    at = made.index(b"\xff\xc0") + 5
    made[at : at + 4] = struct.pack(">HH", side, side)
    return bytes(made)


def set_off(folder: Path) -> dict[str, str]:
    return {
        path.name: f"{read_by(settings.read, path)} as settings, {read_by(pixels.look, path)} as pixels"
        for path in sorted(folder.iterdir())
    }


# --- the table


def measured(files: int, images: int, laid: str) -> dict[str, Any]:
    """In a process of its own, whose memory at its most is what they took; `laid` is the folder of bombs."""
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        before = _most()
        found: dict[str, Any] = {
            "model files": Counter(damaged_models(root, files)),
            "images": Counter(damaged_images(root, images)),
            "bombs": set_off(Path(laid)),
        }
        found["bytes"] = _most() - before
        return found


def _most() -> int:
    """Bytes that this process has held in memory at its most; `getrusage` counts its parent's too."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def tried(files: int = FILES, images: int = IMAGES) -> dict[str, Any]:
    code = "import json, sys; from scripts.proofs.damaged import measured; "
    code += f"print(json.dumps(measured({files}, {images}, sys.argv[1])))"
    place = {**os.environ, "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as laid:
        for name, content in bombs().items():
            (Path(laid) / name).write_bytes(content)
        command = [sys.executable, "-P", "-c", code, laid]
        done = subprocess.run(command, cwd=ROOT, env=place, stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> list[Row]:
    found, rows = tried(), []
    for what, of in (("model files", FILES), ("images", IMAGES)):
        ends: dict[str, int] = found[what]
        seen = ", ".join(f"{count:,} {end}" for end, count in sorted(ends.items(), key=lambda end: -end[1]))
        rows.append((f"{of:,} damaged {what}", seen, "read or refused", not any("WRONG" in end for end in ends)))
    bad = {name: end for name, end in found["bombs"].items() if "WRONG" in end}
    seen = f"{len(found['bombs']) - len(bad)} of {len(found['bombs'])}" + (f"; {bad}" if bad else "")
    rows.append(("bombs that stay small", seen, "all", not bad and len(found["bombs"]) >= 12))
    size = found["bytes"]
    rows.append(("memory for all of it", f"{size >> 20} MiB", f"≤ {MOST_BYTES >> 20} MiB", size <= MOST_BYTES))
    return rows
