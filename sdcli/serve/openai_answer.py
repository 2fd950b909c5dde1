"""What came of a request, as OpenAI's client reads it: one JSON object, or events of a stream."""

from __future__ import annotations

import base64
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sdcli.errors import Bug
from sdcli.events import Event, Preview, Saved, Step, Warned
from sdcli.record.encode import saved
from sdcli.serve import results, waiting
from sdcli.serve.openai_errors import described, in_fields
from sdcli.serve.openai_fields import Asked
from sdcli.serve.ticket import Drawn, Ticket

QUIET = 15.0  # seconds after which a stream says that it is still there
STILL_THERE = b": still drawing\n\n"  # a comment: the client fails on a block of other lines without data
FORMATS = {"png": "png", "jpg": "jpeg", "webp": "webp"}
PREVIEW_QUALITY = 80
NOTHING_METERED = {
    "total_tokens": 0, "input_tokens": 0, "output_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Answer:
    """How a ticket is told of. `base`: the server's own address, with a slash at its end."""

    ticket: Ticket
    asked: Asked
    base: str
    given: Mapping[str, str]

    def whole(self) -> bytes:
        """Of a ticket that is over; what was not drawn is said beside what was."""
        warned = [event.message for _, event in self.ticket.events if isinstance(event, Warned)]
        images = [self._image(drawn, warned) for drawn in sorted(self.ticket.images, key=lambda drawn: drawn.index)]
        sizes = {image["size"] for image in images}
        about = {
            "created": int(self.ticket.created), "background": "opaque", "output_format": self._format(),
            **({"size": sizes.pop()} if len(sizes) == 1 else {}), "data": images, "id": self.ticket.id,
        }  # fmt: skip
        if self.asked.ignored:
            about["ignored"] = self.asked.ignored
        if self.ticket.error is not None:
            about["errors"] = [described(self.ticket.error, self.given)]
        return dumped(about)

    def completed(self, kind: str, drawn: Drawn, warned: Iterable[str]) -> bytes:
        about = {"created_at": int(time.time()), "usage": NOTHING_METERED, **self._shown(drawn.width, drawn.height)}
        return block({"type": f"{kind}.completed", **about, **self._image(drawn, warned), "index": drawn.index})

    def partial(self, kind: str, preview: Preview, number: int) -> bytes:
        """As large as the image will be: who shows it puts one in the other's place."""
        width, height = self.ticket.plan.jobs[preview.index].size
        content = base64.b64encode(_enlarged(preview, width, height, self.ticket.destination.format)).decode()
        about = {"created_at": int(time.time()), "index": preview.index, "step": preview.step}
        return block(
            {"type": f"{kind}.partial_image", "b64_json": content, "partial_image_index": number, **about,
             **self._shown(width, height)}
        )  # fmt: skip

    def error(self) -> bytes:
        assert self.ticket.error is not None
        return block({"type": "error", "error": described(self.ticket.error, self.given)})

    def _image(self, drawn: Drawn, warned: Iterable[str]) -> dict[str, Any]:
        others = [other.file for other in self.ticket.images if other is not drawn]
        messages = [*(warning.message for warning in self.ticket.plan.warnings), *warned]
        own = [message for message in messages if not any(other in message for other in others)]
        about = {
            "seed": drawn.job.seed, "size": f"{drawn.width}x{drawn.height}", "file": drawn.file,
            "warnings": [in_fields(message, self.given) for message in dict.fromkeys(own)],
        }  # fmt: skip
        if self.asked.url:
            return {"url": self.base + results.url_of(self.ticket, drawn).removeprefix("/"), **about}
        return {"b64_json": base64.b64encode(_content(drawn)).decode(), **about}

    def _shown(self, width: int, height: int) -> dict[str, str]:
        return {
            "size": f"{width}x{height}", "quality": "auto", "background": "opaque", "output_format": self._format(),
        }  # fmt: skip

    def _format(self) -> str:
        return FORMATS[self.ticket.destination.format]


async def stream(answer: Answer, kind: str, threaded: Any) -> AsyncIterator[bytes]:
    """`kind`: image_generation or image_edit. Images are encoded where they hold nobody up."""
    ticket, asked = answer.ticket, answer.asked
    warned: list[str] = []
    shown: Counter[int] = Counter()
    sent: set[int] = set()

    async def told(event: Event) -> bytes:
        if isinstance(event, Preview) and shown[event.index] < asked.partial_images:
            shown[event.index] += 1
            return bytes(await threaded(answer.partial, kind, event, shown[event.index] - 1))
        if isinstance(event, Step) and asked.step_events:
            of = {"batch": event.batch, "stage": event.stage, "step": event.step, "of": event.of}
            return block({"type": "sdcli.step", **of})
        if isinstance(event, Saved):
            return b"".join([block async for block in finished()])
        return b""

    async def finished() -> AsyncIterator[bytes]:
        for drawn in [drawn for drawn in ticket.images if drawn.index not in sent]:
            sent.add(drawn.index)
            yield await threaded(answer.completed, kind, drawn, list(warned))

    async for numbered in waiting.happening(ticket, pause=QUIET):
        if numbered is None:
            yield STILL_THERE
            continue
        if isinstance(numbered[1], Warned):
            warned.append(numbered[1].message)
        if block_ := await told(numbered[1]):
            yield block_
    async for block_ in finished():
        yield block_
    if ticket.error is not None:
        yield answer.error()


def block(data: Mapping[str, Any]) -> bytes:
    return f"event: {data['type']}\ndata: ".encode() + dumped(data) + b"\n\n"


def dumped(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, ensure_ascii=False).encode("utf-8", "backslashreplace")


def _content(drawn: Drawn) -> bytes:
    content = results.content(drawn)
    if content is None:
        raise Bug(f"{drawn.file} is no longer there as it was drawn", hint="the same request again")
    return content


def _enlarged(preview: Preview, width: int, height: int, format: str) -> bytes:
    from PIL import Image

    small = Image.frombytes("RGB", (preview.width, preview.height), preview.pixels)
    image = small.resize((width, height), Image.Resampling.BICUBIC)
    if format == "png":
        return saved(image, "PNG", compress_level=1)
    return saved(image, "JPEG" if format == "jpg" else "WEBP", quality=PREVIEW_QUALITY)
