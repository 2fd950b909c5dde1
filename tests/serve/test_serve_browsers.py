"""What a page of somebody else's can do with the server, in a real browser: nothing. It may lie at another port of this
machine, under another name, or under a name that points at the server itself once the page is there."""

from __future__ import annotations

import http.server
import shutil
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import playwright.sync_api as playwright
import pytest
from openai_clients import until

NAME = "elsewhere.test"
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync",
    f"--host-resolver-rules=MAP {NAME} 127.0.0.1",
    # Not every browser keeps pages of the internet from asking this machine: the server has to.
    "--disable-features=LocalNetworkAccessChecks,BlockInsecurePrivateNetworkRequests",
)  # fmt: skip
# Each way to ask gives what the page learns of the answer: null where that is nothing, or a refusal.
ASK = """async ([base, job, result]) => {
    const cat = JSON.stringify({ prompt: "a stolen cat", size: "64x64", steps: 1 });
    const read = async (path, options) => {
        const answer = await fetch(base + path, options);
        return answer.ok ? await answer.text() : null;
    };
    const loaded = (element, address, place) => new Promise((done) => {
        element.onload = () => done("loaded");
        element.onerror = () => done(null);
        element.src = address;
        if (place) document.documentElement.append(element);
    });
    const framed = (frame) => {
        const text = frame.contentDocument?.documentElement.textContent || null;
        return text === null || text.includes('"error"') ? null : text;
    };
    const sent = (path, type, fields) => new Promise((done) => {
        const form = document.createElement("form"), frame = document.createElement("iframe");
        Object.assign(form, { method: "post", action: base + path, enctype: type, target: frame.name = "answer" });
        for (const [name, value] of Object.entries(fields)) {
            form.append(Object.assign(document.createElement("textarea"), { name, value }));
        }
        document.documentElement.append(frame, form);
        form.submit();
        frame.onload = () => {
            try { done(framed(frame)); } catch { done(null); }
            frame.remove();
            form.remove();
        };
    });
    const ways = {
        "fetch": () => read("/v1/models"),
        "fetch without CORS": () => read("/v1/models", { mode: "no-cors" }),
        "posted JSON": () => read("/v1/jobs", {
            method: "POST", body: cat, headers: { "Content-Type": "application/json" },
        }),
        "posted JSON as text": () => read("/v1/images/generations", { method: "POST", body: cat, mode: "no-cors" }),
        "posted without a body": () => read("/sdapi/v1/interrupt", { method: "POST", mode: "no-cors" }),
                "beacon": async () => {
            navigator.sendBeacon(base + "/sdapi/v1/txt2img", new Blob([cat], { type: "text/plain" }));
            return null;
        },
        "form": () => sent("/v1/images/generations", "text/plain", { [cat.slice(0, -1) + ', "user": "']: '"}' }),
        "form with parts": () => sent("/v1/images/edits", "multipart/form-data", { prompt: "a stolen cat" }),
        "image": () => loaded(new Image(), base + result),
        "deleted": () => read(result, { method: "DELETE", mode: "cors" }),
        "script": () => loaded(document.createElement("script"), base + "/app.js", true),
        "frame": async () => {
            const frame = document.createElement("iframe");
            await loaded(frame, base + "/", true);
            return framed(frame);
        },
        "events": () => new Promise((done) => {
            const source = new EventSource(base + `/v1/jobs/${job}/events`);
            source.addEventListener("job", (event) => { source.close(); done(event.data); });
            source.onerror = () => { source.close(); done(null); };
        }),
        "socket": () => new Promise((done) => {
            const socket = new WebSocket(base.replace("http", "ws") + "/v1/jobs");
            socket.onopen = () => done("open");
            socket.onerror = () => done(null);
        }),
    };
    const learned = {};
    for (const [name, way] of Object.entries(ways)) {
        try { learned[name] = await way(); } catch { learned[name] = null; }
    }
    return learned;
}"""


class Empty(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>elsewhere</title>")

    def log_message(self, *about: Any) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    """Where somebody else's pages lie."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Empty)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


@pytest.fixture
def page() -> Iterator[Any]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert program, "chromium is needed for the tests marked system"
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=program, args=list(FLAGS))
        yield browser.new_page()
        browser.close()


@pytest.mark.system
def test_a_page_of_another_origin_learns_nothing_and_has_nothing_drawn(
    serve: Callable[..., Any], page: Any, port: int
) -> None:
    server = serve()
    ticket = server.service.submit(server.service.plan({"words": ("a cat",), "size": "64x64", "steps": "1"}))
    until(lambda: ticket.over)
    result = f"/v1/results/{ticket.id}{0:08x}"
    asked: list[tuple[str, str, int]] = []
    told = server.guard._told
    server.guard._told = lambda one: (asked.append((one.method, one.template, one.status)), told(one))

    own_port = urlsplit(server.url).port
    pages = [f"http://127.0.0.1:{port}/", f"http://{NAME}:{port}/", f"http://{NAME}:{own_port}/"]
    page.route(pages[-1], lambda route: route.fulfill(content_type="text/html", body="<!doctype html>"))
    for address in pages:
        asked.clear()
        page.goto(address)
        base = address.rstrip("/") if address == pages[-1] else server.url
        learned = page.evaluate(ASK, [base, ticket.id, result])
        assert learned == dict.fromkeys(learned)
        until(lambda: ("POST", "/sdapi/v1/txt2img") in {one[:2] for one in asked})
        assert len(asked) >= 10 and [one for one in asked if one[2] < 400] == []
        assert set(server.service.tickets) == {ticket.id} and len(ticket.images) == 1

    page.goto(server.url)
    learned = page.evaluate(ASK, [server.url, ticket.id, result])
    ways = ("fetch", "posted JSON", "image", "events")
    assert [way for way in ways if learned[way] is None] == [], "the server's own page may ask"
