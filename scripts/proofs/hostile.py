"""Model files that would run code if somebody let them: refused, or drawn with while what is planted stays unread."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import os
import pickle
import shutil
import signal
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from scripts import forked  # noqa: E402

NAME = "hostile"
CLAIM = (
    "Pickles in every slot and disguise, configs that name code, planted modules, foreign classes and links that lead "
    "out: exit 6 or 9, or an image where what is planted has no part in it. No payload ran (each would leave a file), "
    "and Python's audit hook saw no code from the model executed, no class unpickled, no program started, no "
    "connection."
)

REFUSED, DRAWN = (6, 9), (0,)
LONGEST = 60  # seconds; then it hangs
DRAW = ("--size", "64x64", "-s", "1", "--seed", "1", "--dtype", "fp32", "--compile", "off", "-q", "-o", "out")

Row = tuple[str, str, str, bool]


@dataclass(frozen=True)
class Artefact:
    """`make` puts it into an empty folder, beside `model` (a good one), and says the command to run there."""

    kind: str
    name: str
    make: Callable[[Path], list[str]]
    codes: tuple[int, ...] = REFUSED
    real: bool = False  # in a process that starts from nothing, which finds its modules itself


# --- payloads: each would leave the file `canary` where the command runs


CANARY = "canary"
PLANTED = f"open({CANARY!r}, 'w').close()\n"  # the command runs in the artefact's folder


class Opens:
    def __reduce__(self) -> Any:
        return open, (CANARY, "w")


class Shell:
    def __reduce__(self) -> Any:
        return os.system, (f"touch {CANARY}",)


class Executes:
    def __reduce__(self) -> Any:
        return exec, (PLANTED,)


def zipped(inside: str, payload: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(inside, payload)
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()


def saved_by_torch(thing: Any, zipped: bool) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save({"state_dict": thing}, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def headed(rest: bytes) -> bytes:
    """A good safetensors header in front."""
    head = json.dumps({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}).encode()
    return len(head).to_bytes(8, "little") + head + bytes(4) + rest


def array() -> bytes:
    import numpy

    buffer = io.BytesIO()
    numpy.save(buffer, numpy.array([Opens()], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def disguises() -> dict[str, bytes]:
    """Files that run code where they are loaded as what they are."""
    plain = pickle.dumps(Opens(), protocol=2)
    return {
        "a pickle of protocol 0": pickle.dumps(Opens(), protocol=0),
        "a pickle of protocol 2": plain,
        "a pickle of protocol 5": pickle.dumps(Executes(), protocol=5),
        "a pickle that starts a shell": pickle.dumps(Shell(), protocol=4),
        "torch's zip": saved_by_torch(Opens(), True),
        "torch's old format": saved_by_torch(Executes(), False),
        "a zip with a pickle inside": zipped("archive/data.pkl", plain),
        "a zip with a pickle of another name": zipped("weights/tensors.dat", plain),
        "a pickle packed by gzip": gzip.compress(plain),
        "a 7z of a pickle": b"7z\xbc\xaf\x27\x1c" + plain,
        "an array of objects": array(),
        "a pickle after a safetensors header": headed(plain),
        "a zip after a safetensors header": headed(zipped("archive/data.pkl", plain)),
    }


# --- slots: where a file can be named


def _photo(folder: Path) -> str:
    from PIL import Image

    Image.effect_noise((64, 64), 60).convert("RGB").save(folder / "photo.png")
    return "photo.png"


SLOTS: dict[str, Callable[[str, Path], list[str]]] = {
    "-m": lambda file, _: ["generate", "a cat", *DRAW, "-m", file],
    "--lora": lambda file, _: ["generate", "a cat", *DRAW, "-m", "model", "--lora", file],
    "--embedding": lambda file, _: ["generate", "a cat", *DRAW, "-m", "model", "--embedding", file],
    "--vae": lambda file, _: ["generate", "a cat", *DRAW, "-m", "model", "--vae", file],
    "--refiner": lambda file, _: ["generate", "a cat", *DRAW, "-m", "model", "--refiner", file],
    "--control": lambda file, at: ["generate", "a cat", *DRAW, "-m", "model", "--control", f"{file}={_photo(at)}"],
    "--reference-model": lambda file, at: [
        "generate", "a cat", *DRAW, "-m", "model", "--reference", _photo(at), "--reference-model", file,
    ],
    "--upscaler": lambda file, _: ["generate", "a cat", *DRAW, "-m", "model", "--hires", "2", "--upscaler", file],
    "upscale": lambda file, at: ["upscale", _photo(at), "--upscaler", file, "-o", "out"],
    "models check": lambda file, _: ["models", "check", file],
    "inspect-unet": lambda file, _: ["inspect-unet", file],
}  # fmt: skip


def in_slots() -> Iterator[Artefact]:
    """Every slot with each of a few disguises under its own name, and each disguise as a checkpoint under several."""
    made = disguises()

    def put(content: bytes, name: str, slot: str) -> Callable[[Path], list[str]]:
        def make(folder: Path) -> list[str]:
            (folder / name).write_bytes(content)
            return SLOTS[slot](name, folder)

        return make

    for slot, (disguise, name) in itertools.product(
        SLOTS,
        (
            ("a pickle of protocol 2", "x.safetensors"),
            ("torch's zip", "x.pt"),
            ("torch's zip", "x.safetensors"),
            ("a pickle after a safetensors header", "x.safetensors"),
        ),
    ):
        yield Artefact("pickles in slots", f"{slot} {name}: {disguise}", put(made[disguise], name, slot))
    for disguise, content in made.items():
        for name in ("x.ckpt", "x.bin", "x.safetensors"):
            yield Artefact("disguised checkpoints", f"{name}: {disguise}", put(content, name, "-m"))


# --- folders


def _edited(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.unlink(missing_ok=True)  # a hard link
    path.write_text(json.dumps(content | changes))


def _replaced(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def folder_of(change: Callable[[Path], None]) -> Callable[[Path], list[str]]:
    """A copy of the good model, changed."""

    def make(folder: Path) -> list[str]:
        copied(folder / "model", folder / "bad")
        change(folder / "bad")
        return SLOTS["-m"]("bad", folder)

    return make


def copied(source: Path, target: Path) -> None:
    shutil.copytree(source.resolve(), target, copy_function=os.link)


WEIGHTS = {
    "unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model",
}  # fmt: skip
KEYS: dict[str, Any] = {
    "auto_map": {"AutoModel": "evil.Model"},
    "trust_remote_code": True,
    "custom_pipeline": "evil",
    "_attn_implementation": "someone/kernels",
    "_attn_implementation_internal": "someone/kernels",
}


def in_folders() -> Iterator[Artefact]:
    code = pickle.dumps(Opens(), protocol=2)
    for part, stem in WEIGHTS.items():

        def only_bin(bad: Path, part: str = part, stem: str = stem) -> None:
            (bad / part / f"{stem}.safetensors").unlink()
            (bad / part / f"{stem}.bin").write_bytes(code)

        def renamed(bad: Path, part: str = part, stem: str = stem) -> None:
            _replaced(bad / part / f"{stem}.safetensors", code)

        def sharded(bad: Path, part: str = part, stem: str = stem) -> None:
            (bad / part / f"{stem}.safetensors").unlink()
            (bad / part / f"{stem}-1.bin").write_bytes(code)
            _edited(bad / part / f"{stem}.safetensors.index.json", weight_map={"a": f"{stem}-1.bin"})

        def beside(bad: Path, part: str = part, stem: str = stem) -> None:
            (bad / part / f"{stem}.bin").write_bytes(code)
            (bad / part / f"{stem}.fp16.bin").write_bytes(code)

        yield Artefact("pickles in folders", f"{part}: only a .bin", folder_of(only_bin))
        yield Artefact("pickles in folders", f"{part}: renamed", folder_of(renamed))
        yield Artefact("pickles in folders", f"{part}: a table of shards names a .bin", folder_of(sharded))
        yield Artefact("pickles in folders", f"{part}: beside the weights", folder_of(beside), DRAWN)


def in_configs() -> Iterator[Artefact]:
    files = ["model_index.json", *(f"{part}/config.json" for part in WEIGHTS), "scheduler/scheduler_config.json"]
    for file, key in itertools.product(files, KEYS):
        yield Artefact(
            "configs that name code",
            f"{file}: {key}",
            folder_of(lambda bad, f=file, k=key: _edited(bad / f, **{k: KEYS[k]})),
        )
    nested = {"text_config": [{"deep": {"auto_map": KEYS["auto_map"]}}]}
    yield Artefact("configs that name code", "nested", folder_of(lambda bad: _edited(bad / files[3], **nested)))
    tokenizer = {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}, "tokenizer_class": "EvilTokenizer"}
    template = {"chat_template": "{{ ''.__class__.__mro__[1].__subclasses__() }}"}
    for name, more in (("a tokenizer's class", tokenizer), ("a tokenizer's template", template)):
        yield Artefact(
            "configs that name code", name,
            folder_of(lambda bad, m=more: _edited(bad / "tokenizer/tokenizer_config.json", **m)), (*REFUSED, *DRAWN),
        )  # fmt: skip


CLASSES: dict[str, dict[str, Any]] = {
    "a pipeline in the folder": {"_class_name": ["pipeline", "EvilPipeline"]},
    "an unknown pipeline": {"_class_name": "EvilPipeline"},
    "os.system": {"_class_name": "os.system"},
    "no pipeline": {"_class_name": None},
    "a module of its own": {"unet": ["evil", "Net"]},
    "os": {"unet": ["os", "system"]},
    "modules from the Hub": {"unet": ["transformers_modules.evil", "Net"]},
    "a path": {"vae": ["diffusers", "../../evil"]},
    "a class of another library": {"text_encoder": ["sentence_transformers", "Evil"]},
    "a class of a library's inside": {"unet": ["diffusers.pipelines.evil", "UNet2DConditionModel"]},
    "builtins": {"tokenizer": ["builtins", "exec"]},
    "another component": {"extra": ["evil", "Extra"]},
    "a scheduler of its own": {"scheduler": ["evil", "Scheduler"]},
}


def foreign_classes() -> Iterator[Artefact]:
    for name, change in CLASSES.items():
        yield Artefact("foreign classes", name, folder_of(lambda bad, c=change: _edited(bad / "model_index.json", **c)))
    for part in (*WEIGHTS, "scheduler"):
        file = f"{part}/scheduler_config.json" if part == "scheduler" else f"{part}/config.json"
        named = {"_class_name": "os.system", "architectures": ["evil"]}
        yield Artefact(
            "foreign classes", f"{part} calls itself os.system",
            folder_of(lambda bad, f=file, n=named: _edited(bad / f, **n)), (*REFUSED, *DRAWN),
        )  # fmt: skip


MODULES = ("pipeline.py", "evil.py", "__init__.py", "unet/modeling.py", "unet/diffusion_pytorch_model.py",
           "scheduler/scheduler.py", "tokenizer/tokenization.py")  # fmt: skip
SHADOWS = ("torch.py", "json.py", "numpy.py", "sitecustomize.py", "safetensors.py", "diffusers/__init__.py")


def planted() -> Iterator[Artefact]:
    """Modules in the model, and in the folder that one works in, under the names of libraries."""
    for name in MODULES:
        yield Artefact(
            "planted modules", name, folder_of(lambda bad, n=name: _replaced(bad / n, PLANTED.encode())), DRAWN
        )

    def here(folder: Path) -> list[str]:
        for name in SHADOWS:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(PLANTED)
        return SLOTS["-m"]("model", folder)

    yield Artefact("planted modules", "in the folder one works in", here, DRAWN, real=True)


def _linked(file: str, target: str) -> Callable[[Path], None]:
    def change(bad: Path) -> None:
        (bad / file).unlink()
        (bad / file).symlink_to(target)

    return change


def _pipe(bad: Path) -> None:
    (bad / "unet/config.json").unlink()
    os.mkfifo(bad / "unet/config.json")


def leading_out() -> Iterator[Artefact]:
    weights = "unet/diffusion_pytorch_model.safetensors"
    for file, target in itertools.product(
        (weights, "unet/config.json", "model_index.json"), ("/etc/passwd", "/dev/zero")
    ):
        yield Artefact("leading out", f"{file} to {target}", folder_of(_linked(file, target)))
    yield Artefact("leading out", "a pipe", folder_of(_pipe))
    for name in ("../../etc/passwd", "/etc/passwd", "..\\x.safetensors"):

        def table(bad: Path, name: str = name) -> None:
            (bad / weights).unlink()
            _edited(bad / f"{weights}.index.json", weight_map={"a": name})

        yield Artefact("leading out", f"shards in {name}", folder_of(table))


def artefacts() -> list[Artefact]:
    every = (in_slots, in_folders, in_configs, foreign_classes, planted, leading_out)
    return [artefact for some in every for artefact in some()]


# --- watched


def watched(log: Path, folder: Path) -> Callable[[], None]:
    """Writes down, from now on, what Python says of code from `folder`, of unpickling, programs and connections."""

    def begin() -> None:
        os.chdir(folder)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        inside, programs = str(folder), ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork")

        def hook(event: str, given: tuple[Any, ...]) -> None:
            said = ""
            if event == "exec":
                said = str(given[0].co_filename)
            elif event in ("compile", "import"):
                said = str(given[1] or "")
            elif event == "ctypes.dlopen":
                said = str(given[0])
            elif event in (*programs, "pickle.find_class", "socket.connect", "socket.getaddrinfo"):
                os.write(file, f"{event} {given}\n".encode())
            if said.startswith(inside):
                os.write(file, f"{event} {said}\n".encode())

        sys.addaudithook(hook)

    return begin


def _started(artefact: Artefact, words: list[str], said: Path, log: Path, folder: Path) -> int:
    if not artefact.real:
        return forked.started(words, said, watched(log, folder))
    before = os.getcwd()
    os.chdir(folder)
    try:
        return forked.really_started(words, said)  # only the payload's own file tells
    finally:
        os.chdir(before)


def attempt(artefact: Artefact, model: Path, folder: Path) -> list[str]:
    """What was wrong with how sdcli took it."""
    folder.mkdir()
    (folder / "model").symlink_to(model)
    words, said, log = artefact.make(folder), folder.parent / "said", folder.parent / "audit"
    for file in (said, log):
        file.write_bytes(b"")
    process = _started(artefact, words, said, log, folder)
    signal.alarm(LONGEST)
    try:
        code = forked.ended(process)
    except TimeoutError:
        os.kill(process, signal.SIGKILL)
        forked.ended(process)
        return [f"still running after {LONGEST} s"]
    finally:
        signal.alarm(0)
    wrong = [] if code in artefact.codes else [f"exit {code}: {said.read_text()[-300:].strip()}"]
    wrong += ["its code ran"] if (folder / CANARY).exists() else []
    wrong += log.read_text().splitlines()[:2]
    wrong += ["a traceback"] if "Traceback" in said.read_text() else []
    return wrong


def _too_long(*_: object) -> None:
    raise TimeoutError


def attempted(one_of: int = 1) -> list[tuple[str, str, list[str]]]:
    """Of each artefact, or of one of so many: its kind, its name, what was wrong. In a process of its own, which forks:
    its libraries have started no threads yet."""
    import platform

    import torch
    from PIL import PngImagePlugin  # noqa: F401

    from scripts import make_checkpoint
    from sdcli.draw import local, upscale  # noqa: F401

    torch.set_num_threads(1)
    platform.processor()  # asks `uname`, once
    signal.signal(signal.SIGALRM, _too_long)
    ends = []
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        os.environ["SDCLI_HOME"], os.environ["HF_HUB_OFFLINE"] = str(root / "home"), "1"
        model = make_checkpoint.write_folder(root / "good", "sd15", tiny=True)
        for number, artefact in enumerate(artefacts()):
            if number % one_of == 0:
                ends.append((artefact.kind, artefact.name, attempt(artefact, model, root / str(number))))
    return ends


def tried(one_of: int = 1) -> list[tuple[str, str, list[str]]]:
    return [tuple(end) for end in forked.answer_of("hostile", f"attempted({one_of})")]


def main() -> list[Row]:
    ends = tried()
    rows = []
    for kind in dict.fromkeys(kind for kind, _, _ in ends):
        of_kind = [(name, wrong) for found, name, wrong in ends if found == kind]
        bad = [(name, wrong) for name, wrong in of_kind if wrong]
        first = f"; first: {bad[0][0]}: {bad[0][1][0]}" if bad else ""
        rows.append((kind, f"{len(of_kind) - len(bad)} of {len(of_kind)}{first}", "all", not bad))
    return [*rows, ("artefacts", str(len(ends)), "≥ 120", len(ends) >= 120)]
