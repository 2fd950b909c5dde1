"""A worker whose process runs on a node of a cluster: orders and events go through an actor there."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import IO, Any, cast

from sdcli import __version__, schema
from sdcli.errors import Cancelled, DeviceUnusable, OutOfMemory, SdcliError, from_json, names_memory
from sdcli.events import Event
from sdcli.machine.hardware import Hardware
from sdcli.models.model import Model
from sdcli.plan.batches import Batch
from sdcli.plan.plan import Plan
from sdcli.scale.node import Node
from sdcli.workers.worker import Died, Process, Worker

PAUSE = 1.0  # seconds before another actor is started in the place of one that died
LOOK = 1.0  # seconds between two looks at whether the node is still there
AT_ONCE = 1 << 20  # bytes


@dataclass(frozen=True, kw_only=True)
class Place:
    """On a node: a GPU, or some of its CPUs, for one of so many workers."""

    name: str
    node: str  # its id
    gpu: bool
    cpus: int
    of: int
    workers: int


@dataclass(frozen=True, kw_only=True)
class Way:
    """How actors are reached, and what is asked of them."""

    ray: Any
    is_there: Callable[[str], bool]  # a node of this id
    looked_for: Callable[[], str]  # what Node.find takes to find the model that is drawn with; "": none is needed


class Actor(Worker):
    """Its actor starts with `begin`, and again after it has died, if its node is still there."""

    def __init__(self, place: Place, way: Way, engine: str, command: Sequence[str]) -> None:
        super().__init__(engine, command)
        self.place = place
        self._way = way
        self._handle: Any = None
        self._told: Any = None  # what Node.tell will have answered
        self._found_for = ""
        self._model: Model | None = None
        self._stopped = False
        self._began = 0.0

    def begin(self) -> None:
        from_now = self._began + PAUSE - time.monotonic()
        if self._began and from_now > 0:
            time.sleep(from_now)
        self._began = time.monotonic()
        place, scheduling = self.place, self._way.ray.util.scheduling_strategies
        self._handle = self._way.ray.remote(Node).options(
            num_gpus=int(place.gpu), num_cpus=0 if place.gpu else place.cpus, max_restarts=0, max_task_retries=0,
            max_concurrency=4, scheduling_strategy=scheduling.NodeAffinitySchedulingStrategy(place.node, soft=False),
        ).remote()  # fmt: skip
        asked = {"gpu": place.gpu, "cpus": place.cpus, "of": place.of, "workers": place.workers}
        self._told = self._handle.tell.remote(json.dumps(asked))
        self._found_for = ""

    @property
    def answered(self) -> bool:
        return bool(self._way.ray.wait([self._told], timeout=0)[0])

    def hardware(self) -> Hardware:
        """As this worker may use it. An actor that cannot start is Died, one of another version an error."""
        told = json.loads(self._wait(self._told))
        if told["version"] != __version__:
            raise DeviceUnusable(f"sdcli is {told['version']} there, and {__version__} here", hint="sdcli doctor")
        return schema.from_json(Hardware, _unless_wrong(told)["hardware"], whole=True)

    # --- as a worker

    def ready(self) -> None:
        """Once the actor is there, has found the model, and its process is started."""
        self._stopped = False
        if self._handle is None:
            self.begin()
        self.hardware()
        asked = self._way.looked_for()
        if asked and asked != self._found_for:
            found = _unless_wrong(json.loads(self._wait(self._handle.find.remote(asked))))
            self._model, self._found_for = schema.from_json(Model, found["model"], whole=True), asked
        self._running()

    def begun(
        self, plan: Plan, batches: Iterable[Batch] | None = None, kept: Mapping[int, bytes] | None = None
    ) -> Generator[Event, None, None]:
        here = replace(plan, model=self._model) if self._model is not None else plan
        return super().begun(here, plan.numbered() if batches is None else batches, kept)

    def cancel(self) -> None:
        self._stopped = self._drawing is None
        super().cancel()

    def kill(self, because: str = "") -> None:
        self._stopped = True
        super().kill(because)
        self._let_go()

    def close(self) -> None:
        super().close()
        self._let_go()

    def resident(self) -> int:
        return 0

    def _let_go(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            self._way.ray.kill(handle)

    def _end(self) -> None:
        self.process = None  # the actor ends it

    def _start(self) -> Process:
        if self._handle is None:
            self.ready()
        self._wait(self._handle.start.remote([*self.command, self.engine]))
        return _Process(self._way.ray, self._handle)

    def _died(self, process: Process, because: str = "") -> Exception:
        assert isinstance(process, _Process)
        process.wait()
        return super()._died(process, because) if process.lost is None else self._gone(process.lost, because)

    def _last_words(self) -> str:
        return self.process.words if isinstance(self.process, _Process) else ""

    # --- the actor

    def _wait(self, answer: Any) -> Any:
        """Where its node has no room an actor waits, perhaps for ever."""
        ray = self._way.ray
        while not ray.wait([answer], timeout=LOOK)[0]:
            if self._stopped:
                raise Cancelled("cancelled")
            if not self._way.is_there(self.place.node):
                raise self._left()
        try:
            return ray.get(answer)
        except ray.exceptions.RayError as error:
            raise self._gone(error) from None

    def _gone(self, error: Exception, because: str = "") -> Exception:
        self._handle = None
        said = because or self._because
        if said:
            return Died(DeviceUnusable(f"its actor was ended: {said}", hint="ray status"))
        if not self._way.is_there(self.place.node):
            return self._left()
        text = str(error)
        if "ModuleNotFoundError" in text or "ImportError" in text:
            return DeviceUnusable(f"sdcli {__version__} is not installed there", hint="sdcli doctor")
        if names_memory(text) or "low on memory" in text:
            return Died(OutOfMemory("its actor was killed, since memory ran out on its node", hint="sdcli doctor"))
        return Died(DeviceUnusable("its actor was lost", hint="ray status"))

    def _left(self) -> SdcliError:
        self._handle = None
        return DeviceUnusable("its node left the cluster", hint="ray status")


def _unless_wrong(answer: dict[str, Any]) -> dict[str, Any]:
    if "error" in answer:
        raise from_json(answer["error"])
    return answer


# --- its process, as if it were here


class _Process:
    """`lost`: why the actor, and with it the process, is out of reach."""

    def __init__(self, ray: Any, handle: Any) -> None:
        self.lost: Exception | None = None
        self.words = ""
        self.pid = 0
        self._ray, self._handle = ray, handle
        self._code: int | None = None
        self.stdin: IO[bytes] | None = cast(IO[bytes], _Orders(self))
        self.stdout: IO[bytes] | None = cast(IO[bytes], io.BufferedReader(_Answers(self), AT_ONCE))

    def asked(self, name: str, *about: Any) -> Any:
        try:
            return self._ray.get(getattr(self._handle, name).remote(*about))
        except self._ray.exceptions.RayTaskError:  # the process is gone, the actor is not
            raise BrokenPipeError from None
        except self._ray.exceptions.RayError as error:
            self.lost = error
            raise BrokenPipeError from None

    def poll(self) -> int | None:
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        if self._code is None:
            try:
                self._code, self.words = self.asked("ended")
            except OSError:
                self._code = 1
        return self._code

    def kill(self) -> None:
        self._ray.kill(self._handle)


class _Orders(io.RawIOBase):
    def __init__(self, process: _Process) -> None:
        self._process = process

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._process.asked("write", bytes(data))
        return len(data)


class _Answers(io.RawIOBase):
    """Ends with the process."""

    def __init__(self, process: _Process) -> None:
        self._process = process
        self._waiting = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        if not self._waiting:
            try:
                self._waiting = memoryview(self._process.asked("read"))
            except OSError:
                return 0
        count = min(len(into), len(self._waiting))
        into[:count] = self._waiting[:count]
        self._waiting = self._waiting[count:]
        return count
