"""What the server counts, as Prometheus reads it (text format 0.0.4). Labels are names of this server's own: routes,
models it lists, methods it knows. docs/serving.md has a table of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sdcli.serve import job_json
from sdcli.serve.desk import Desk
from sdcli.serve.guard import Asked
from sdcli.serve.openapi import described
from sdcli.serve.service import Service
from sdcli.serve.ticket import ASKED, LEFT, SHUTDOWN, Ticket

TYPE = "text/plain; version=0.0.4; charset=utf-8"
REQUESTS = (0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0)  # seconds, upper bounds
MOST_MODELS = 100  # labels; the models beyond them share one
WAITS = (0.01, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0)
Labels = tuple[tuple[str, str], ...]


@dataclass
class Counter:
    name: str
    help: str
    values: dict[Labels, float] = field(default_factory=dict)
    kind: ClassVar[str] = "counter"

    def add(self, amount: float = 1, **labels: str) -> None:
        key = tuple(labels.items())
        self.values[key] = self.values.get(key, 0) + amount

    def lines(self) -> Iterator[str]:
        yield from _head(self.name, self.help, self.kind)
        for labels, value in self.values.items():
            yield f"{self.name}{_labels(labels)} {_number(value)}"


class Highest(Counter):
    """The largest value that there was."""

    kind = "gauge"

    def add(self, amount: float = 1, **labels: str) -> None:
        key = tuple(labels.items())
        self.values[key] = max(self.values.get(key, amount), amount)


@dataclass
class Histogram:
    name: str
    help: str
    bounds: tuple[float, ...]
    counts: dict[Labels, list[float]] = field(default_factory=dict)  # a bound each, then all; then their sum

    def add(self, value: float, **labels: str) -> None:
        counts = self.counts.setdefault(tuple(labels.items()), [0.0] * (len(self.bounds) + 2))
        for place, bound in enumerate(self.bounds):
            counts[place] += value <= bound
        counts[-2] += 1
        counts[-1] += value

    def lines(self) -> Iterator[str]:
        yield from _head(self.name, self.help, "histogram")
        for labels, counts in self.counts.items():
            for bound, count in zip((*map(_number, self.bounds), "+Inf"), counts[:-1], strict=True):
                yield f"{self.name}_bucket{_labels((*labels, ('le', bound)))} {_number(count)}"
            yield f"{self.name}_sum{_labels(labels)} {_number(counts[-1])}"
            yield f"{self.name}_count{_labels(labels)} {_number(counts[-2])}"


class Metrics:
    def __init__(self, service: Service) -> None:
        self.service = service
        self._lock = threading.Lock()
        self.requests = Counter("sdcli_http_requests_total", "Requests that were answered.")
        self.seconds = Histogram("sdcli_http_seconds", "From a request's head to the end of its answer.", REQUESTS)
        self.rejected = Counter("sdcli_rejected_total", "Requests that were refused before an API saw them.")
        self.images = Counter("sdcli_images_total", "Images that were saved, by how they came out.")
        self.tickets = Counter("sdcli_drawn_requests_total", "Requests for images that are over, by how they ended.")
        self.cancelled = Counter(
            "sdcli_cancelled_requests_total", "Those that were cancelled, by why: asked, left, shutdown."
        )
        self.waits = Histogram("sdcli_queue_wait_seconds", "From a place in the queue to the first step.", WAITS)
        self.steps = Counter("sdcli_steps_total", "Denoising steps.")
        self.denoising = Counter("sdcli_denoise_seconds_total", "Seconds that they took.")
        self.loads = Counter("sdcli_model_loads_total", "Requests that a model was loaded for.")
        self.peaks = Highest(
            "sdcli_device_peak_bytes",
            "The most device memory while one was drawn, as measured, other models that stayed loaded included.",
        )
        service.watch(self.over)

    def told(self, asked: Asked) -> None:
        with self._lock:
            self.requests.add(route=asked.template, method=asked.method, code=str(asked.status))
            self.seconds.add(asked.seconds, route=asked.template)
            if asked.reason:
                self.rejected.add(reason=asked.reason)

    def refused(self, status: int, client: str) -> None:
        with self._lock:
            self.requests.add(route="-", method="-", code=str(status))
            self.rejected.add(reason="head")

    def over(self, ticket: Ticket) -> None:
        with self._lock:
            self.tickets.add(state=ticket.state)
            for image in ticket.images:
                self.images.add(status=image.status)
            if ticket.waited is not None:
                self.waits.add(ticket.waited)
            if ticket.state == "cancelled" and ticket.error is not None:
                why = ticket.error.details.get("because")
                self.cancelled.add(because=why if why in (ASKED, LEFT, SHUTDOWN) else "-")
            if ticket.report:
                self._drawn(ticket, self._model(ticket.plan.model.name))

    def _drawn(self, ticket: Ticket, model: str) -> None:
        for device, work in ticket.work.items():
            self.steps.add(work.steps, model=model, device=device)
            self.denoising.add(work.seconds, model=model, device=device)
            if work.loaded:
                self.loads.add(model=model, device=device)
        peak = job_json.memory(ticket)["measured"]["device"]
        if peak is not None:
            self.peaks.add(peak, model=model, device=ticket.device)

    def _model(self, name: str) -> str:
        known = {dict(labels)["model"] for labels in self.steps.values}
        return name if name in known or len(known) < MOST_MODELS else "others"

    def text(self) -> str:
        counted = (
            self.requests, self.seconds, self.rejected, self.images, self.tickets, self.cancelled, self.waits,
            self.steps, self.denoising, self.loads, self.peaks,
        )  # fmt: skip
        with self._lock:
            lines = [line for one in counted for line in one.lines()]
        return "\n".join([*lines, *self._gauges()]) + "\n"

    def _gauges(self) -> Iterator[str]:
        import psutil

        service = self.service
        values: Mapping[str, tuple[str, str, float | Mapping[str, float]]] = {
            "sdcli_queue_requests": ("gauge", "Requests that wait to be drawn.", len(service.line.waiting())),
            "sdcli_queue_images": ("gauge", "Their images.", service.line.images),
            "sdcli_drawing": (
                "gauge", "1 while the device draws.", self._each(lambda one: one.drawing is not None)
            ),
            "sdcli_ready": ("gauge", "1 once the default model is loaded.", float(service.ready is None)),
            "sdcli_worker_starts_total": (
                "counter", "Processes that were started to draw.", self._each(lambda one: one.worker.starts)
            ),
            "sdcli_worker_resident_bytes": (
                "gauge", "Memory of the process that draws.", self._each(lambda one: one.worker.resident())
            ),
            "process_resident_memory_bytes": ("gauge", "Memory of this process.", psutil.Process().memory_info().rss),
            "process_start_time_seconds": ("gauge", "When the server started.", service.started),
        }  # fmt: skip
        for name, (kind, help, value) in values.items():
            yield from _head(name, help, kind)
            for labels, one in value.items() if isinstance(value, Mapping) else [("", value)]:
                yield f"{name}{labels} {_number(one)}"

    def _each(self, of: Callable[[Desk], float]) -> Mapping[str, float]:
        """Of each device."""
        return {_labels((("device", desk.name),)): of(desk) for desk in self.service.desks}


def routes(metrics: Metrics) -> list[Route]:
    @described(kinds=("text/plain",))
    async def answer(request: Request) -> Response:
        """What this server counts, for Prometheus."""
        return Response(metrics.text(), headers={"content-type": TYPE})

    return [Route("/metrics", answer, methods=["GET"])]


def _head(name: str, help: str, kind: str) -> Iterator[str]:
    yield f"# HELP {name} {help}"
    yield f"# TYPE {name} {kind}"


def _labels(labels: Labels) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels) + "}" if labels else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))
