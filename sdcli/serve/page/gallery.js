// Images that were drawn, the newest first, and the one that is looked at.

import { button, bytes, duration, find, make, notice, say } from "./dom.js";
import { fill } from "./form.js";
import { ask, fetched, show } from "./server.js";
import * as start from "./start.js";

const NAMES = {
  negative_prompt: "negative", model: "model", seed: "seed", steps: "steps", guidance: "guidance",
  sampler: "sampler", strength: "strength", hires: "enlarged", lora: "LoRA", clip_skip: "CLIP skip",
};
const FLAGS = {
  negative_prompt: "--negative-prompt", model: "-m", seed: "--seed", steps: "--steps", guidance: "--guidance",
  sampler: "--sampler", strength: "--strength", clip_skip: "--clip-skip", emphasis: "--emphasis", rng: "--rng",
  hires: "--hires", hires_steps: "--hires-steps", hires_strength: "--hires-strength", upscaler: "--upscaler",
  lora: "--lora",
};
const items = new Map(); // by the image's URL: { image, job, element }
let chosen = null;

export function update(jobs) {
  const there = new Set();
  for (const job of jobs) {
    for (const image of job.images) {
      there.add(image.url);
      if (items.has(image.url)) items.get(image.url).job = job;
      else items.set(image.url, { image, job, element: thumbnail(image) });
    }
  }
  const list = find("gallery");
  for (const [url, { element }] of items) {
    if (there.has(url)) continue;
    element.remove();
    items.delete(url);
  }
  const newest = [...items.values()].sort(
    (one, other) => other.job.created - one.job.created || other.image.index - one.image.index,
  );
  newest.forEach(({ element }, place) => {
    if (list.children[place] !== element) list.insertBefore(element, list.children[place] ?? null);
  });
  find("empty").hidden = newest.length > 0;
  if (chosen !== null && !items.has(chosen)) chosen = null;
  if (chosen !== null && find("view").dataset.url === chosen) details();
  return newest;
}

function thumbnail(image) {
  const small = make("img", {
    alt: image.settings.prompt || "an image without a prompt", loading: "lazy", decoding: "async",
    width: image.width, height: image.height,
  });
  show(small, image.url);
  const pressed = () => {
    look(image.url);
    narrowly("view");
  };
  return make("li", {}, make("button", { type: "button", click: pressed, keydown: moved }, small));
}

// On a phone what happened may be far from where it was asked for.
export function narrowly(id) {
  if (matchMedia("(max-width: 60rem)").matches) find(id).scrollIntoView({ block: "start" });
}

function moved(event) {
  const step = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" }[event.key];
  const beside = step && event.currentTarget.parentElement[step]?.firstElementChild;
  if (!beside) return;
  event.preventDefault();
  beside.focus();
  beside.click();
}

export function lookAway() {
  chosen = null;
  mark();
}

export const isLooking = () => chosen !== null;

export function look(url) {
  const { image } = items.get(url);
  chosen = url;
  const view = find("view");
  const large = sized("img", image, { alt: image.settings.prompt || "an image without a prompt" });
  show(large, url);
  view.dataset.url = url;
  delete view.dataset.job;
  view.replaceChildren(make("div", { class: "frame" }, large), make("div", { id: "details" }));
  details();
  mark();
}

function mark() {
  for (const [url, { element }] of items) {
    if (url === chosen) element.firstElementChild.setAttribute("aria-current", "true");
    else element.firstElementChild.removeAttribute("aria-current");
  }
}

// Small images are shown twice as large, as far as that is still small.
export function sized(tag, { width, height }, attributes = {}) {
  const element = make(tag, tag === "img" ? { ...attributes, width, height } : attributes);
  element.style.width = `${Math.max(width, Math.min(2 * width, 512))}px`;
  element.style.aspectRatio = `${width} / ${height}`;
  return element;
}

function details() {
  const { image, job } = items.get(chosen);
  const more = [["size", `${image.width}×${image.height}`], ["file", `${image.file}, ${kilobytes(image.bytes)}`]];
  if (job.memory.measured.host !== null) more.push(["memory", memory(job)]);
  if (job.seconds !== null) more.push(["time", took(job)]);
  const actions = make("div", { class: "actions" },
    button("Use these settings", () => use(image.settings)),
    button("Start from it", () => begin(image)),
    button("Copy as a command", () => copy(command(image))),
    button("Download", () => download(image)),
    button("Remove", () => remove(image), { title: "Remove it from this page; its file stays where it is" }),
  );
  const suspect = image.status === "suspect" ? make("p", { class: "wrong" }, "It came out as one flat colour.") : "";
  find("details").replaceChildren(...described(image.settings, more), suspect, actions);
}

export function described(settings, more) {
  const rows = Object.entries(NAMES)
    .filter(([name]) => settings[name] !== undefined && settings[name] !== "")
    .map(([name, title]) => [title, String(settings[name])]);
  const terms = [...rows, ...more].flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]);
  const prompt = settings.prompt ?? settings.prompts.join("\n");
  return [make("p", { class: "prompt" }, prompt), make("dl", {}, ...terms)];
}

const kilobytes = (count) => `${Math.max(1, Math.round(count / 1000)).toLocaleString("en")} kB`;

function memory({ memory: { predicted, measured, beside }, plan }) {
  const others = (kind) => (beside ? ` and ${bytes(beside[kind])} of other models` : "");
  const text = (kind) => `${bytes(measured[kind])} measured, ${bytes(predicted[kind])} predicted${others(kind)}`;
  if (plan.device.kind === "cpu" || measured.device === null) return text("host");
  return `${text("device")} on the device; ${text("host")} beside it`;
}

const took = (job) => `${duration(job.seconds)}${job.count > 1 ? ` for ${job.count} images` : ""}`;

// --- what can be done with one

export function use(settings) {
  fill(settings);
  if (settings.image && !start.isChosen()) {
    notice("It was drawn from another image: choose that one again to draw it alike.");
  } else notice("");
  say("The settings are in the form.");
  find("prompt").focus();
}

async function begin(image) {
  try {
    await start.choose(await fetched(image.url));
    find("start").scrollIntoView({ block: "nearest" });
  } catch (error) {
    notice(error.message);
  }
}

function command({ settings }) {
  const words = [settings.prompt];
  for (const [name, flag] of Object.entries(FLAGS)) {
    for (const value of [settings[name] ?? []].flat()) if (value !== "") words.push(flag, String(value));
  }
  words.push("--size", `${settings.width}x${settings.height}`);
  if (settings.image) words.push("--image", "FILE");
  if (settings.mask) words.push("--mask", "FILE");
  return `sdcli generate ${words.map(quoted).join(" ")}`;
}

function quoted(word) {
  return /^[A-Za-z0-9_.,:/=+-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // no clipboard without https, but on this machine
    const area = make("textarea", {}, text);
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  say("Copied.");
  notice(`Copied: ${text}`);
}

async function download(image) {
  try {
    const href = URL.createObjectURL(await fetched(image.url));
    make("a", { href, download: image.file.split("/").at(-1) }).click();
    setTimeout(() => URL.revokeObjectURL(href), 10000);
  } catch (error) {
    notice(error.message);
  }
}

async function remove(image) {
  const { element } = items.get(image.url);
  const beside = element.nextElementSibling ?? element.previousElementSibling;
  try {
    await ask("DELETE", image.url);
  } catch (error) {
    if (error.status !== 404) return notice(error.message);
  }
  items.delete(image.url);
  element.remove();
  chosen = null;
  find("view").replaceChildren();
  find("empty").hidden = items.size > 0;
  say("Removed.");
  beside?.firstElementChild.click();
  beside?.firstElementChild.focus();
}
