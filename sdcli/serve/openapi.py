"""What can be asked, as OpenAPI 3.1: assembled from the routes that answer and from the settings' own declarations, so
that it says what the server does."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from sdcli import __version__
from sdcli.request import request as requests
from sdcli.request.jobs import SIDES
from sdcli.request.options import OPTIONS, Option
from sdcli.serve.bounds import Bounds
from sdcli.serve.refusals import is_a1111
from sdcli.serve.rules import JSON, Rules, body_of, is_open

Schema = dict[str, Any]
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])

EMPTY = (204, 304)  # statuses of answers without a body
TEXT: Schema = {"type": "string"}
ERROR: Schema = {
    "type": "object", "required": ["error"],
    "properties": {"error": {
        "type": "object", "required": ["message", "type", "param", "code"],
        "properties": {
            "message": {"type": "string"}, "type": {"type": "string"}, "param": {"type": ["string", "null"]},
            "code": {"type": ["string", "null"]},
        },
    }},
}  # fmt: skip
A1111_ERROR: Schema = {
    "type": "object", "required": ["error", "detail"],
    "properties": {"error": {"type": "string"}, "detail": {}, "errors": {}, "body": {}},
}  # fmt: skip


def described(
    *, body: Schema | None = None, answer: Schema | None = None, kinds: tuple[str, ...] = (JSON,), status: int = 200,
    others: Mapping[int, str] | None = None, query: Mapping[str, Schema] | None = None,
    parts: Mapping[str, str] | None = None,
) -> Callable[[Endpoint], Endpoint]:  # fmt: skip
    """Says of an endpoint what it takes and gives; its docstring says what it does. `body` is the schema of what a POST
    holds, `answer` that of what is answered in JSON, where that is among the media types `kinds`; `others` are further
    statuses, in words; `parts` says what types the files of a form have."""

    def mark(endpoint: Endpoint) -> Endpoint:
        endpoint.described = {  # type: ignore[attr-defined]
            "body": body, "answer": answer or {}, "kinds": kinds, "status": status, "others": others or {},
            "query": query or {}, "parts": parts or {},
        }  # fmt: skip
        return endpoint

    return mark


def routes(others: Sequence[BaseRoute], rules: Rules) -> list[Route]:
    made: dict[str, Any] = {}

    @described(answer={"type": "object", "required": ["openapi", "paths"]})
    async def answer(request: Request) -> Response:
        """This document."""
        if not made:
            made.update(document([*others, own], rules))
        return JSONResponse(made)

    own = Route("/openapi.json", answer, methods=["GET"])
    return [own]


def document(routes: Iterable[BaseRoute], rules: Rules) -> dict[str, Any]:
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        if isinstance(route, Route):
            path = re.sub(r"\{(\w+):\w+\}", r"{\1}", route.path)
            paths.setdefault(path, {}).update(_operations(route, rules))
    keyed: dict[str, Any] = {"security": [{"key": []}]} if rules.keys else {}
    schemes = {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}} if rules.keys else {}
    return {
        "openapi": "3.1.0",
        "info": {"title": "sdcli serve", "version": __version__},
        "paths": paths,
        "components": {"schemas": {"Error": ERROR, "A1111Error": A1111_ERROR}, **schemes},
        **keyed,
    }


def _operations(route: Route, rules: Rules) -> dict[str, Any]:
    return {
        method.lower(): _operation(route, method, rules)
        for method in sorted(route.methods or ())
        if method not in ("HEAD", "OPTIONS")
    }


def _operation(route: Route, method: str, rules: Rules) -> dict[str, Any]:
    said: Mapping[str, Any] = getattr(route.endpoint, "described", {})
    text = inspect.getdoc(route.endpoint) or ""
    error = "A1111Error" if is_a1111(route.path) else "Error"
    described_as = {said.get("status", 200): "The answer.", **said.get("others", {})}
    statuses = {str(status): _answer(status, words, said) for status, words in described_as.items()}
    refusal = {"description": "An error.", "content": {JSON: {"schema": {"$ref": f"#/components/schemas/{error}"}}}}
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in route.param_convertors
    ]
    parameters += [{"name": name, "in": "query", "schema": schema} for name, schema in said.get("query", {}).items()]
    return {
        **({"summary": " ".join(text.split())} if text else {}),
        **({"parameters": parameters} if parameters else {}),
        **(_body(route, said) if method in ("POST", "PUT", "PATCH") else {}),
        "responses": {**statuses, "default": refusal},
        **({"security": []} if rules.keys and is_open(route.path, method) else {}),
    }


def _answer(status: int, words: str, said: Mapping[str, Any]) -> dict[str, Any]:
    if status in EMPTY:
        return {"description": words}
    schemas = {kind: said.get("answer", {}) if kind == JSON else {} for kind in said.get("kinds", (JSON,))}
    return {"description": words, "content": {kind: {"schema": schema} for kind, schema in schemas.items()}}


def _body(route: Route, said: Mapping[str, Any]) -> dict[str, Any]:
    if said and said["body"] is None:
        return {}
    schema = said["body"] if said else {"type": "object"}
    encoding = {name: {"contentType": kinds} for name, kinds in said.get("parts", {}).items()}
    content = {
        kind: {"schema": schema, **({"encoding": encoding} if encoding else {})} for kind in body_of(route.path).kinds
    }
    return {"requestBody": {"required": bool(said), "content": content}}


# --- settings


def settings(names: Iterable[str], bounds: Bounds) -> dict[str, Schema]:
    """Properties of a body: settings by their own names, as far as this server draws them."""
    return {name: setting(name, bounds) for name in sorted(names)}


def setting(name: str, bounds: Bounds | None = None) -> Schema:
    """A setting of generate: its type, its bounds, its choices and its help."""
    option = next(option for option in OPTIONS if option.field == name)
    return {**_type(option, within(name, bounds)), "description": option.help}


def within(name: str, bounds: Bounds | None = None) -> tuple[float, float] | None:
    """The lowest and the highest value of a number; the highest that a server with `bounds` draws."""
    option = next(option for option in OPTIONS if option.field == name)
    own = {"width": SIDES, "height": SIDES}.get(name, option.within)
    most = {} if bounds is None else bounds.highest
    if name not in most:
        return own
    return (1, most[name]) if own is None else (own[0], min(own[1], most[name]))


def bounded(within: tuple[float, float] | None) -> Schema:
    return {} if within is None else {"minimum": within[0], "maximum": within[1]}


def _type(option: Option, within: tuple[float, float] | None) -> Schema:
    text = TEXT
    declared = next((str(field.type) for field in fields(requests.Request) if field.name == option.field), "str")
    if option.repeatable:
        return {"type": "array", "items": text}
    if option.switch:
        return {"type": "boolean"}
    if option.choices:
        return {**text, "enum": list(option.choices)}
    if not re.fullmatch(r"(int|float)( \| None)?", declared):
        return text
    bounds = bounded(within)
    return {"type": "integer" if declared.startswith("int") else "number", **bounds}
