"""A run that the nodes of a Ray cluster draw: an actor for each GPU, or for each equal share of their CPUs.

Ray starts no actor again by itself: which of them died, over which batch and how often is the pool's to know. Each
stays on its node, whose memory its plan is for; a node that goes takes its own along, one that comes brings new ones.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdcli import schema
from sdcli.errors import DeviceUnusable, SdcliError, Usage, from_json
from sdcli.events import Event, Warned
from sdcli.machine import installation, packages
from sdcli.machine.several import Seat
from sdcli.plan.batches import Batch
from sdcli.plan.plan import Plan, WorkerPlan
from sdcli.plan.planner import plan_alike
from sdcli.plan.refusal import refused
from sdcli.plan.several import LEFT_OUT
from sdcli.scale import here
from sdcli.scale.actor import Actor, Place, Way
from sdcli.scale.pool import Pool
from sdcli.terminal import show
from sdcli.workers.worker import CHILD, Died, Worker

REACHED = 5.0  # seconds within which an address answers
CHECKED = 20.0  # and Ray's own program says whether this machine is in a cluster
STARTED = 120.0  # seconds that the first actor may take
TOGETHER = 3.0  # seconds that the others have from then on, to be planned for from the beginning
LOOK = 2.0  # seconds between two looks at which nodes there are
HINT = "ray start --head"
SETTINGS = b"\x04"  # a frame's kind
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + SETTINGS + b"\0\0\0\0\0"
# It reports to nobody, and says nothing on stdout, which is for results.
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS_SKIP_REGEX": "^", "RAY_SCHEDULER_EVENTS": "0"}


class Cluster(Pool):
    def __init__(self, address: str = "", engine: str = "local", command: Sequence[str] = CHILD[1:]) -> None:
        """`address`: of a cluster that this machine belongs to; "": the one it was started for. `command` starts a
        worker's process on a node, after its Python."""
        super().__init__(engine)
        self._remote_command = tuple(command)
        self._ray = _joined(address)
        self._way = Way(ray=self._ray, is_there=self.has, looked_for=self._looked_for)
        self._actors: dict[str, Actor] = {}
        self._coming: list[Actor] = []
        self._known: set[str] = set()  # ids of nodes
        self._looked = 0.0
        self._told: list[str] = []  # of actors that are left out, before the run
        self._document = ""
        nodes = self._nodes()
        self._gpus = any(node.gpus for node in nodes)
        self._share = min((node.cpus for node in nodes if node.cpus), default=0)

    def seats(self) -> tuple[Seat, ...]:
        """What draws, once anything does; what takes longer joins the run later."""
        self._meet()
        began, first = time.monotonic(), 0.0
        seats: list[Seat] = []
        errors: list[tuple[Actor, SdcliError]] = []
        while self._coming and (not seats or time.monotonic() - first < TOGETHER):
            for actor, found in self._arrived():
                if isinstance(found, Seat):
                    first = first or time.monotonic()
                    seats.append(found)
                else:
                    errors.append((actor, found))
            if not seats and time.monotonic() - began > STARTED:
                raise DeviceUnusable(f"no actor of the cluster started within {STARTED:.0f} s", hint="ray status")
            time.sleep(0.05)
        if not seats and not errors:
            raise DeviceUnusable("no node of the cluster has a GPU or a CPU to draw with", hint="ray status")
        self._told = [f"{actor.place.name} is left out: {error.message}" for actor, error in errors]
        if not seats:
            actor, error = errors[-1]
            raise from_json({**error.to_json(), "message": f"{actor.place.name}: {error.message}"})
        return tuple(sorted(seats, key=lambda seat: list(self._actors).index(seat.name)))

    def run(
        self, plan: Plan, batches: Iterable[Batch] | None = None, kept: Mapping[int, bytes] | None = None
    ) -> Iterator[Event]:
        while self._told:
            yield Warned(code=LEFT_OUT, message=self._told.pop(0))
        self._document = _document(plan) if self._engine == "local" else ""
        yield from super().run(plan, batches, kept)

    def close(self) -> None:
        for actor in self._actors.values():
            actor.close()
        self._actors.clear()
        if self._ray.is_initialized():
            self._ray.shutdown()

    def has(self, node: str) -> bool:
        return any(one.id == node for one in self._nodes())

    # --- workers

    def _worker(self, own: WorkerPlan) -> Worker:
        return self._actors[own.name]

    def _newcomers(self, plan: Plan) -> Iterator[WorkerPlan | Warned]:
        if time.monotonic() - self._looked > LOOK:
            self._meet()
        for actor, found in self._arrived():
            name = actor.place.name
            if not isinstance(found, Seat):
                yield Warned(code=LEFT_OUT, message=f"{name} is left out: {found.message}")
                continue
            own = _alike(plan, found)
            if isinstance(own, SdcliError):
                actor.close()
                yield Warned(code=LEFT_OUT, message=f"{name} is left out: {own.message}")
                continue
            yield Warned(worker=name, code="joined", message=f"{name} joins: {show(found.hardware.name, 60)}")
            yield own

    def _arrived(self) -> Iterator[tuple[Actor, Seat | SdcliError]]:
        """Those that have said by now what they are, or cannot."""
        for actor in [actor for actor in self._coming if actor.answered]:
            self._coming.remove(actor)
            try:
                yield actor, Seat(actor.place.name, actor.hardware())
            except Died as died:
                yield actor, died.error
            except SdcliError as error:
                actor.close()
                yield actor, error

    def _meet(self) -> None:
        """Starts actors on nodes that were not there before."""
        self._looked = time.monotonic()
        for node in self._nodes():
            if node.id not in self._known:
                self._known.add(node.id)
                for place in self._places(node):
                    actor = Actor(place, self._way, self._engine, self._remote_command)
                    self._actors[place.name] = actor
                    self._coming.append(actor)
                    actor.begin()

    def _places(self, node: _Node) -> Iterator[Place]:
        count = node.gpus if self._gpus else node.cpus // self._share if self._share else 0
        name = f"{node.name}-{node.id[:6]}" if any(_on(node.name, name) for name in self._actors) else node.name
        for number in range(1, count + 1):
            of = f"{name}/{'gpu' if self._gpus else 'cpu'}:{number}" if count > 1 else name
            yield Place(name=of, node=node.id, gpu=self._gpus, cpus=self._share, of=node.cpus, workers=count)

    def _looked_for(self) -> str:
        return self._document

    def _nodes(self) -> list[_Node]:
        found = [node for node in self._ray.nodes() if node["Alive"]]
        return [
            _Node(
                id=node["NodeID"], name=node["NodeName"] or node["NodeManagerAddress"],
                gpus=int(node["Resources"].get("GPU", 0)), cpus=int(node["Resources"].get("CPU", 0)),
            )
            for node in found
        ]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Node:
    id: str
    name: str
    gpus: int
    cpus: int


def _on(node: str, worker: str) -> bool:
    return worker == node or worker.startswith(f"{node}/")


def _document(plan: Plan) -> str:
    """What a node needs to find the model."""
    model, name = plan.model, plan.request.model
    if model.source in ("folder", "file") and os.path.exists(name):
        name = os.path.abspath(name)
    found = {"name": name, "hashes": here.hashes(model), "offline": plan.request.offline}
    return json.dumps({"model": schema.to_json(model, whole=True), **found})


def _alike(plan: Plan, seat: Seat) -> WorkerPlan | SdcliError:
    """Who comes later draws the pixels of those that were there, or nothing."""
    own = next((worker for worker in plan.workers if worker.hardware.backend == seat.hardware.backend), None)
    if own is None:
        return DeviceUnusable("the run began without a device of its kind", hint="ray status")
    made = plan_alike(plan.of(own), seat.hardware, {})
    if made is None:
        return DeviceUnusable("it cannot draw the pixels of the others", hint="ray status")
    return made.worker(seat.name) if made.fits else refused(made)


# --- joining it


def _joined(address: str) -> Any:
    """Ray, connected. It would end this process where it cannot, so another asks first."""
    if not packages.has("ray"):
        raise Usage(
            "--engine ray needs a package that is not installed", hint=installation.adding("ray", installation.find())
        )
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    _check(address)
    with _own_signals():
        try:
            ray.init(address=address or "auto", log_to_driver=False, logging_level=logging.CRITICAL)
        except (OSError, RuntimeError, ValueError, AssertionError, ray.exceptions.RayError) as error:
            raise _unreached(address, str(error)) from None
    return ray


def _check(address: str) -> None:
    """Where Ray finds no cluster it ends the process that asks, after half a minute."""
    if address:
        _check_answer(address)
        return
    command = [sys.executable, "-P", "-c", "from ray.scripts.scripts import main; main()", "status"]
    soon = {"RAY_gcs_rpc_server_connect_timeout_s": "2", "RAY_gcs_rpc_server_reconnect_timeout_s": "3"}
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=CHECKED, env={**os.environ, **soon}, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise _unreached(address, "it does not answer") from None
    if done.returncode:
        raise _unreached(address, "")


def _check_answer(address: str) -> None:
    """Whoever speaks gRPC greets with a frame of settings, as HTTP/2 has it."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        named = f'--engine: "{show(address, 80)}" is no address of a Ray cluster'
        raise Usage(named, hint="--engine ray=10.0.0.1:6379")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), REACHED) as asked:
            asked.sendall(GREETING)
            answer = asked.recv(4)
    except (OSError, OverflowError) as error:
        raise _unreached(address, str(error)) from None
    if answer[3:4] != SETTINGS:
        raise _unreached(address, "something else answers there")


def _unreached(address: str, because: str) -> DeviceUnusable:
    where = f"no Ray cluster can be reached at {show(address, 80)}" if address else "this machine is in no Ray cluster"
    return DeviceUnusable(where + (f": {show(because, 200)}" if because else ""), hint=HINT)


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Ray takes SIGTERM for itself; this process has a better use for it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
