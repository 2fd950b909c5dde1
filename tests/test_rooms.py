"""Who may import whom. The table below is the architecture; every file of sdcli/ is read against it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

BASE = {"errors", "schema", "data", "files", "live", "near", "reading", "sizes", "terminal"}

# room → the rooms it may import, itself apart
MAY_IMPORT: dict[str, set[str]] = {
    **dict.fromkeys(sorted(BASE), BASE),
    "images": BASE,
    "request": BASE | {"images"},
    "machine": BASE,
    "models": BASE,
    "plan": BASE | {"images", "request", "machine", "models"},
    "events": BASE | {"images", "request", "machine", "models", "plan"},
    "draw": BASE | {"images", "request", "machine", "models", "plan", "events"},
    "record": BASE | {"images", "request", "machine", "models", "plan", "events"},
    "asking": BASE | {"images", "request", "machine", "models", "plan", "events", "draw", "record"},
    "workers": BASE | {"images", "request", "machine", "models", "plan", "events", "draw", "record", "asking"},
    "scale": BASE | {"images", "request", "machine", "models", "plan", "events", "workers"},
    "inspect": BASE | {"images", "request", "machine", "models", "plan", "events", "draw", "record"},
    "bench": BASE | {"images", "request", "machine", "models", "plan", "events", "draw", "record", "workers"},
    "explore": BASE | {"images", "request", "machine", "models", "plan", "events", "record"},
    "serve": BASE | {"images", "request", "machine", "models", "plan", "events", "record", "workers", "asking"},
}
MAY_IMPORT["cli"] = set(MAY_IMPORT)

# Slow to import; each has its rooms, and outside draw they stand inside functions only.
HEAVY = {
    "torch", "diffusers", "transformers", "accelerate", "numpy", "PIL", "rich", "pydantic", "ray", "peft", "pynvml",
    "psutil", "tomlkit", "openvino",
}  # fmt: skip
TORCH = {"torch", "diffusers", "transformers", "accelerate", "peft", "openvino"}

# The files outside draw that lead into torch, and which modules of draw may be entered, from anywhere, in functions.
LEADS_INTO_TORCH = {"inspect/measure.py", "inspect/modules.py"}
DOORS_OF_DRAW = {
    "sdcli.draw.engines", "sdcli.draw.local", "sdcli.draw.fake", "sdcli.draw.quiet", "sdcli.draw.oom",
    "sdcli.draw.exhausted", "sdcli.draw.devices",
}  # fmt: skip

# In draw, but free of torch: the engine for tests, and the engine's own door.
LIGHT_IN_DRAW = ("sdcli.draw.engines", "sdcli.draw.fake", "sdcli.draw.local", "sdcli.draw.oom", "sdcli.draw.exhausted")


@dataclass(frozen=True)
class Import:
    file: str  # as "plan/planner.py"
    line: int
    module: str  # as "sdcli.draw.local" or "torch"
    inside: bool  # a function
    typing: bool  # under `if TYPE_CHECKING`

    @property
    def top(self) -> str:
        return self.module.split(".")[0]

    @property
    def room(self) -> str:
        return self.module.split(".")[1] if "." in self.module else ""

    def __str__(self) -> str:
        return f"sdcli/{self.file}:{self.line} imports {self.module}"


def room_of(file: str) -> str:
    first = file.split("/")[0].removesuffix(".py")
    return "cli" if first == "__main__" else first


def imports_of(path: Path) -> Iterator[Import]:
    file = path.relative_to(ROOT / "sdcli").as_posix()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = ["sdcli", *path.relative_to(ROOT / "sdcli").parent.parts]
    yield from _walk(tree, file, package, inside=False, typing=False)


def _walk(node: ast.AST, file: str, package: list[str], inside: bool, typing: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        for module in _modules(child, package):
            yield Import(file, child.lineno, module, inside, typing)  # type: ignore[attr-defined]
        within = inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        checking = typing or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test))
        yield from _walk(child, file, package, within, checking)


def _modules(node: ast.AST, package: list[str]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            base = ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])
        # `from sdcli.draw import quiet` names a module or a thing in one; both spellings are looked up
        found = [f"{base}.{alias.name}" if is_module(f"{base}.{alias.name}") else base for alias in node.names]
        return sorted(set(found))
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "import_module"):
        first = node.args[0] if node.args else None
        if isinstance(first, ast.Constant) and isinstance(first.value, str):
            return [first.value]
    return []


def is_module(name: str) -> bool:
    if not name.startswith("sdcli."):
        return False
    path = ROOT / Path(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


FILES = sorted((ROOT / "sdcli").rglob("*.py"))
IMPORTS = [found for path in FILES for found in imports_of(path)]
OWN = [found for found in IMPORTS if found.top == "sdcli" and found.room and is_module(found.module)]


def test_every_file_stands_in_a_room_of_the_table() -> None:
    rooms = {room_of(path.relative_to(ROOT / "sdcli").as_posix()) for path in FILES} - {"__init__"}
    assert rooms <= set(MAY_IMPORT)
    assert {"request", "machine", "models", "plan", "draw", "record", "cli"} <= rooms


def test_rooms_import_only_what_stands_before_them() -> None:
    assert len(OWN) > 50
    wrong = [
        str(found)
        for found in OWN
        if found.room != room_of(found.file) and found.room not in MAY_IMPORT[room_of(found.file)]
    ]
    assert wrong == []


def test_the_table_itself_is_one_way() -> None:
    order = list(MAY_IMPORT)
    for room, allowed in MAY_IMPORT.items():
        if room not in BASE:
            assert all(order.index(other) < order.index(room) for other in allowed), room
    assert "record" not in MAY_IMPORT["draw"] and "draw" not in MAY_IMPORT["record"]
    assert not any("cli" in allowed for allowed in MAY_IMPORT.values())


def test_no_module_leads_back_to_itself() -> None:
    """Inside rooms too, and imports in functions and for types count: a circle hidden there is one all the same."""
    imported: dict[str, set[str]] = {}
    for one in OWN:
        imported.setdefault(one.file, set()).add(file_of(one.module))
    assert len(imported) > 50
    circles = {file for file in imported if file in reachable(file, imported)}
    assert circles == set()


def reachable(start: str, imported: Mapping[str, set[str]]) -> set[str]:
    """The files that one leads to, by any chain."""
    reached: set[str] = set()
    frontier = {start}
    while frontier:
        following = {other for file in frontier for other in imported.get(file, ())} - reached
        reached |= following
        frontier = following
    return reached


def test_slow_libraries_are_imported_at_module_level_in_draw_only() -> None:
    wrong = [
        str(found)
        for found in IMPORTS
        if found.top in HEAVY and not found.inside and not found.typing and room_of(found.file) != "draw"
    ]
    assert wrong == []


def test_ray_has_one_address() -> None:
    assert {found.file for found in IMPORTS if found.top == "ray"} == {"scale/cluster.py"}


def test_torch_is_reached_from_draw_and_from_the_measuring_of_inspect_only() -> None:
    wrong = [
        str(found)
        for found in IMPORTS
        if found.top in TORCH
        and not found.typing
        and room_of(found.file) != "draw"
        and found.file not in LEADS_INTO_TORCH
    ]
    assert wrong == []


def test_draw_is_entered_through_its_doors_and_inside_functions_only() -> None:
    entries = [found for found in OWN if found.room == "draw" and room_of(found.file) != "draw"]
    assert [str(found) for found in entries if not found.inside and not found.typing] == []
    assert [str(found) for found in entries if found.module not in DOORS_OF_DRAW] == []


def test_plan_leads_to_no_slow_library_by_any_chain_of_imports() -> None:
    """Functions' imports count too: planning never loads torch, whatever is planned."""
    reached, frontier = set(), [found.file for found in IMPORTS if room_of(found.file) == "plan"]
    while frontier:
        file = frontier.pop()
        if file in reached:
            continue
        reached.add(file)
        frontier += [file_of(found.module) for found in OWN if found.file == file and not found.typing]
    assert not [file for file in reached if room_of(file) in ("draw", "record", "inspect", "bench", "cli")]
    assert [str(found) for found in IMPORTS if found.file in reached and found.top in TORCH and not found.typing] == []


def file_of(module: str) -> str:
    path = Path(*module.split(".")[1:])
    return (path / "__init__.py" if (ROOT / "sdcli" / path).is_dir() else path.with_suffix(".py")).as_posix()


def test_modules_do_nothing_when_imported_that_the_outside_could_see() -> None:
    """No folder is made, no variable is set, no argument is read at module level."""
    acting = ("os.environ[", "os.environ.setdefault(", "os.putenv(", "sys.argv", ".mkdir(", "os.makedirs(", "open(")
    wrong = []
    for path in FILES:
        for statement in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            wrong += [f"{path.relative_to(ROOT)}:{statement.lineno}" for act in acting if act in ast.unparse(statement)]
    assert wrong == []


@pytest.mark.parametrize("module", LIGHT_IN_DRAW)
def test_the_engines_doors_are_free_of_torch(module: str) -> None:
    code = f"import sys, {module}; print(sorted(set(sys.modules) & {TORCH | {'numpy', 'PIL'}}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment(), check=True
    )
    assert done.stdout.strip() == "[]"


def environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT)}
