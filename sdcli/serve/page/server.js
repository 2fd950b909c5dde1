// The server's own API: requests, its key, and the events of a job as they come.

import { find } from "./dom.js";

const KEY = "sdcli.key";
let asking = null;

export class Refused extends Error {
  constructor({ message, hint = "", param = null }, status = 0) {
    super(message);
    Object.assign(this, { hint, field: param, status });
  }
}

async function send(method, path, { body, headers = {}, signal } = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const sent = { ...headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
    if (body !== undefined) sent["Content-Type"] = "application/json";
    let answer;
    try {
      answer = await fetch(path, { method, headers: sent, body: body && JSON.stringify(body), signal });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refused({ message: "The server does not answer." });
    }
    if (answer.status !== 401) return answer;
    if (key === sessionStorage.getItem(KEY)) await typedKey(key !== null);
  }
}

// One question, however many requests wait for its answer.
function typedKey(wrong) {
  asking ??= new Promise((resolve) => {
    const dialog = find("keys");
    find("key_wrong").textContent = wrong ? "The server does not take this key." : "";
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    dialog.querySelector("form").addEventListener("submit", () => {
      sessionStorage.setItem(KEY, find("key").value.trim());
      find("key").value = "";
      asking = null;
      resolve();
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

export async function ask(method, path, options) {
  const answer = await send(method, path, options);
  const content = answer.headers.get("Content-Type")?.startsWith("application/json") ? await answer.json() : null;
  if (answer.ok) return content;
  const error = content?.error ?? { message: `The server answered ${answer.status}.` };
  throw new Refused(typeof error === "string" ? { message: error } : error, answer.status);
}

export async function fetched(path) {
  const answer = await send("GET", path);
  if (!answer.ok) throw new Refused({ message: "The image is gone." }, answer.status);
  return answer.blob();
}

// --- images: an <img> cannot send a key

const lazily = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    lazily.unobserve(target);
    fetched(target.dataset.url).then(
      (blob) => {
        target.src = URL.createObjectURL(blob);
        target.addEventListener("load", () => URL.revokeObjectURL(target.src), { once: true });
      },
      () => target.removeAttribute("src"),
    );
  }
}, { rootMargin: "600px" });

export function show(image, url) {
  if (sessionStorage.getItem(KEY) === null) {
    image.src = url;
    return;
  }
  image.dataset.url = url;
  lazily.observe(image);
}

// --- events

export async function watch(job, happened, signal) {
  let last = null;
  for (let tries = 0; ; tries += 1) {
    try {
      const headers = last === null ? {} : { "Last-Event-ID": last };
      const answer = await send("GET", `/v1/jobs/${job}/events`, { headers, signal });
      if (answer.status === 404) throw new Refused({ message: "The server has forgotten this job." }, 404);
      for await (const event of blocks(answer.body)) {
        tries = 0;
        last = event.id ?? last;
        happened(event.kind, event.data);
        if (event.kind === "job" && isOver(event.data)) return;
      }
    } catch (error) {
      if (error.name === "AbortError" || error.status === 404) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, Math.min(1000 * 2 ** tries, 15000)));
    if (signal.aborted) return;
  }
}

export const isOver = (job) => ["done", "failed", "cancelled"].includes(job.status);

async function* blocks(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const fields = Object.fromEntries(part.split("\n").map((line) => {
        const colon = line.indexOf(": ");
        return [line.slice(0, colon), line.slice(colon + 2)];
      }));
      if (fields.data) yield { id: fields.id, kind: fields.event, data: JSON.parse(fields.data) };
    }
  }
}
