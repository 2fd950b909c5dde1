"""Requests become plans, plans wait in line, desks draw them: what every API stands on. Neither HTTP nor torch."""

from __future__ import annotations

import contextlib
import gc
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sdcli import data
from sdcli.asking import planning
from sdcli.errors import Cancelled, ModelMissing, SdcliError, Terminated
from sdcli.files import REAL, UNSYNCED
from sdcli.machine import survey
from sdcli.machine.folders import cache_folder, state_folder
from sdcli.machine.hardware import Hardware
from sdcli.machine.several import Seat
from sdcli.models import hub_cache, listing
from sdcli.models.families import find
from sdcli.models.listing import Entry
from sdcli.models.model import Model
from sdcli.near import near_text, nearest
from sdcli.plan.plan import Plan
from sdcli.plan.refusal import refused
from sdcli.record import names
from sdcli.request import config
from sdcli.serve import bounds, keeping, preparing
from sdcli.serve.bounds import Bounds
from sdcli.serve.decided import Decided
from sdcli.serve.desk import Desk
from sdcli.serve.line import Full, Line, Room
from sdcli.serve.preparing import Preparing
from sdcli.serve.ticket import ASKED, SHUTDOWN, Drawn, Ticket
from sdcli.serve.uploads import Uploads
from sdcli.terminal import show
from sdcli.workers.worker import Worker

SOON = 10.0  # seconds after its end in which a request's previews may still be asked for
PULSE = 5.0  # seconds between two looks at the worker
MOMENT = 0.1  # seconds
STEP_SECONDS = 10.0  # what is drawn has to end within, once it is cancelled


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the server draws, whatever is asked of it."""

    typed: Mapping[str, Any] = field(default_factory=dict)  # generate's flags: the defaults of every request
    engine: str = "local"
    store: bool = True  # images are kept in the output folder, as generate keeps them
    room: Room = field(default_factory=Room)
    preload: bool = True  # the default model is loaded before anybody asks for an image
    bounds: Bounds = field(default_factory=Bounds)
    idle: float | None = None  # seconds without a request after which the model is unloaded
    keep: float = 24 * 3600.0  # seconds that what came of a request can be asked for
    most_kept: int = 1000  # tickets


class Service:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.line = Line(settings.room)
        files, preparing = REAL if settings.store else UNSYNCED, Preparing(self._without_own)
        self.desks = tuple(
            Desk(
                seat, self.line, Worker(settings.engine), self._over, preparing, settings.idle, self._prepare, files
            )
            for seat in _seats(settings.typed)
        )  # fmt: skip
        self._unready = "the model is being loaded" if settings.preload else None
        self._watching: list[Callable[[Ticket], None]] = []
        self.tickets: dict[str, Ticket] = {}  # oldest first
        self.closing = False
        self.started = time.time()
        self.drawn = 0
        self._left: list[str] = []
        self._lock = threading.Lock()
        self._decided = Decided()
        self._models: dict[str, Model] = {}
        self._ended = threading.Event()
        self._away = None if settings.store else tempfile.TemporaryDirectory(prefix="sdcli-serve-")
        away = None if self._away is None else Path(self._away.name)
        self._uploads = Uploads((away or state_folder()) / "uploads", settings.keep)

    def start(self) -> None:
        for desk in self.desks:
            desk.start()
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def plan(self, values: Mapping[str, Any]) -> Plan:
        """Of one request: `values` by the names of generate's settings. Whatever is wrong with it is said here."""
        bounds.check(values, self.settings.bounds)
        typed = {**self.settings.typed, **values}
        if "model" in values:
            typed["model"] = self._typed_model(str(values["model"]))
        model = self._model(str(typed.get("model", "")))
        asked = planning.plan_for(typed, "plan", model, without_own=self._without_own, decide=self._decided)
        plan = asked.plan
        bounds.check_plan(plan, self.settings.bounds)
        if not plan.fits:
            raise refused(plan)
        return plan

    def default_plan(self) -> Plan:
        """Of a request that asks for nothing but an image."""
        return self.plan({"words": (preparing.PROMPT,)})

    def upload(self, content: bytes) -> str:
        """The path of an image that came with a request, as generate would be given it."""
        return self._uploads.path_of(content)

    def submit(self, plan: Plan, client: str = "", seconds: float | None = None) -> Ticket:
        """A place in the line, or Full."""
        if self.closing:
            raise Terminated("the server is shutting down")
        request = plan.request if self._away is None else replace(plan.request, output=self._away.name)
        destination = names.prepare(request, count=len(plan.jobs), model=plan.model.name, origins=plan.origins)
        deadline = None if seconds is None else time.monotonic() + seconds
        ticket = Ticket(plan=plan, destination=destination, client=client, deadline=deadline)
        try:
            self.line.put(ticket)
        except Full as full:
            raise Full(str(full), self.seconds_ahead()) from None
        with self._lock:
            self.tickets[ticket.id] = ticket
            self._forget()
        return ticket

    def seconds_ahead(self) -> float | None:
        """How long what is drawn and what waits will take, as far as drawing was measured here; None if it was not."""
        ahead = [ticket.plan.seconds for ticket in (*self.line.waiting(), *self.drawing)]
        known = [seconds.total - seconds.load for seconds in ahead if seconds is not None]
        return sum(known) / len(self.desks) if len(known) == len(ahead) else None

    @property
    def drawing(self) -> tuple[Ticket, ...]:
        """What is being drawn, by one or several."""
        return tuple(dict.fromkeys(ticket for desk in self.desks if (ticket := desk.drawing) is not None))

    def _without_own(self, hardware: Hardware) -> Hardware:
        """The hardware as if no worker held anything."""
        for desk in self.desks:
            hardware = desk.worker.without_own(hardware)
        return hardware

    def cancel(self, ticket: Ticket, because: str = ASKED) -> None:
        """Takes it out of the line, or ends it after the step it is at; one that is over stays as it is."""
        error = Cancelled("cancelled", because=because)
        if self.line.remove(ticket):
            ticket.end("cancelled", error)
            self._over(ticket)
        elif not ticket.over:
            self._end_drawing_of(ticket, error)

    def _end_drawing_of(self, ticket: Ticket, error: SdcliError) -> None:
        for desk in self.desks:
            desk.cancel(ticket, error)

    def discard(self, ticket: Ticket, drawn: Drawn) -> None:
        """An image that nobody can ask for any more; its file stays where generate would have kept it."""
        with contextlib.suppress(ValueError):  # another was faster
            ticket.images.remove(drawn)
        if self._away is not None:
            Path(drawn.path).unlink(missing_ok=True)

    def of_client(self, client: str) -> list[Ticket]:
        """What a client waits for now."""
        with self._lock:
            return [ticket for ticket in self.tickets.values() if ticket.client == client and not ticket.over]

    def seen_with(self, key: str) -> list[Ticket]:
        """What a key may look at and end, oldest first: what was asked for with it. Without keys: everything."""
        with self._lock:
            return [ticket for ticket in self.tickets.values() if belongs(ticket, key)]

    def models(self) -> dict[str, Entry]:
        """The models that a request may name: what is on this machine and draws from a prompt alone, by name."""
        found = reversed(self.entries())
        return {entry.name: entry for entry in found if entry.drawn and not find(entry.family).refines}

    def entries(self) -> list[Entry]:
        """Everything on this machine that is drawn with, remembered for the next who asks."""
        cache = listing.recall(cache_folder() / "listing.json")
        folders, hub = planning.added_folders(), hub_cache.folder(os.environ)
        found = listing.listed(folders=folders, hub=hub, builtin=data.builtin_model(), cache=cache)
        listing.save(cache)
        return found

    def _model(self, name: str) -> Model:
        """Read once: what a worker has loaded does not change with its files either."""
        if name not in self._models:
            sources = planning.read_sources(config.from_flags({"model": name} if name else {}))
            self._models[name] = planning.find_model(sources)
        return self._models[name]

    def default_model(self) -> str:
        """What draws where a request names no model: of the flags, else of the environment or the config file."""
        return _setting(self.settings.typed, "model") or planning.default_model()

    def listed(self, name: str) -> Entry:
        """The model of that name; ModelMissing where a request may name none such."""
        known = self.models()
        if name not in known:
            near = near_text(nearest(name, known, 1))
            raise ModelMissing(f"no model {show(name, 80)} on this server{near}", hint="GET /v1/models")
        return known[name]

    def _typed_model(self, name: str) -> str:
        """What -m would be: never a path out of a request, only names of what was found here."""
        if name == self.default_model():  # most requests: the disk need not be looked through
            return name
        found = self.listed(name)
        return found.path if found.source == "folder" else name

    def stop(self, grace: float) -> None:
        """Refuses what comes, draws on what is begun for as long as `grace` allows, and ends the workers."""
        self.closing = True
        for ticket in self.line.close():
            if self._away is None and keeping.kept(ticket):
                self._left.append(ticket.destination.run)
            ticket.end("cancelled", _shut_down())
            self._over(ticket)
        self._end_drawing(grace)
        self._ended.set()
        for desk in self.desks:
            desk.worker.close()
        self.clean_up()

    def _end_drawing(self, grace: float) -> None:
        self._join(MOMENT)  # one may just have been taken
        if drawing := self.drawing:
            self._join(grace)
            for ticket in drawing:
                self._end_drawing_of(ticket, _shut_down())
            self._join(STEP_SECONDS)
        for desk in self._at_work():
            desk.worker.kill()
        self._join(STEP_SECONDS)
        for ticket in reversed(drawing if self._away is None else ()):
            begun = isinstance(ticket.error, Terminated)
            if begun and (ticket.destination.records.exists() or keeping.kept(ticket)):
                self._left.insert(0, ticket.destination.run)

    def _at_work(self) -> list[Desk]:
        return [desk for desk in self.desks if desk.is_alive()]

    def _join(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        for desk in self._at_work():
            desk.join(max(0.0, until - time.monotonic()))

    def clean_up(self) -> None:
        """Without a store nothing stays of what came with requests, and of what was drawn."""
        if self._away is not None:
            self._away.cleanup()

    @property
    def ready(self) -> str | None:
        """Why a request would not be drawn now; None if it would."""
        if self.closing:
            return "the server is shutting down"
        if self.line.full:
            return "the queue is full"
        return self._unready

    @property
    def unfinished(self) -> tuple[str, ...]:
        """The runs that the end of the server left to be resumed, those that were being drawn first."""
        return tuple(self._left)

    def watch(self, told: Callable[[Ticket], None]) -> None:
        """Is told of each ticket that is over, by the thread that draws or the one that cancelled it."""
        self._watching.append(told)

    def _prepare(self, desk: Desk) -> None:
        """Loads what most requests will be drawn with, so that the first one does not wait for it."""
        if not self.settings.preload:
            return
        try:
            loaded = desk.load(self.default_plan())
        except Exception as error:  # requests are told what is wrong when they come
            if self._unready is not None:  # where another is ready, they are drawn there
                self._unready = show(error)
        else:
            self._unready = None if loaded else self._unready

    def _watch(self) -> None:
        """Until the server ends: a worker that does nothing any more is replaced, and garbage collected."""
        while not self._ended.wait(PULSE):
            for desk in self.desks:
                desk.end_if_stuck()
            gc.collect()

    def _over(self, ticket: Ticket) -> None:
        if ticket.images:  # only who draws gets here
            self.drawn += len(ticket.images)
            self._unready = None
        for told in self._watching:
            told(ticket)

    def _forget(self) -> None:
        """Tickets that are over are kept for a while, and never more than a number of them."""
        now = time.time()
        for ticket in [ticket for ticket in self.tickets.values() if ticket.previews]:
            if ticket.over_since is not None and time.monotonic() - ticket.over_since > SOON:
                ticket.previews.clear()
        for key in [key for key, ticket in self.tickets.items() if ticket.over]:
            old = now - self.tickets[key].created > self.settings.keep
            if not old and len(self.tickets) <= self.settings.most_kept:
                break
            ticket = self.tickets.pop(key)
            for image in ticket.images if self._away is not None else ():
                Path(image.path).unlink(missing_ok=True)


def _seats(typed: Mapping[str, Any]) -> tuple[Seat, ...]:
    """What draws: all that --devices names, or one device."""
    if "devices" in typed:
        return planning.seats_of(typed)
    hardware = survey.choose(_setting(typed, "device") or "auto", survey.look())
    return (Seat(hardware.device, hardware),)


def _setting(typed: Mapping[str, Any], name: str) -> str | None:
    """Of the flags, else of the environment or the config file."""
    flags = config.from_flags({one: typed[one] for one in (name, "preset") if one in typed})
    values, _ = config.resolve(planning.read_sources(flags), family={}, model={})
    return str(values[name]) if values.get(name) else None


def belongs(ticket: Ticket, key: str) -> bool:
    return not key or ticket.client == key


def _shut_down() -> Terminated:
    return Terminated("the server was shut down before it was drawn", because=SHUTDOWN)
