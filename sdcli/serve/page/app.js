// The page: what waits and is drawn, from the server's word; everything else is in the files beside this one.

import { button, bytes, duration, find, make, notice, say } from "./dom.js";
import * as form from "./form.js";
import * as gallery from "./gallery.js";
import { ask, isOver, watch } from "./server.js";
import * as start from "./start.js";

const PAGE = 60; // jobs asked for at once
const SOON = 2500; // milliseconds between two looks at the queue while something is in it
const LATER = 15000;
const DISMISSED = "sdcli.dismissed";
const jobs = new Map(); // by id
const happening = new Map(); // by id, what events said: { words, pace }
let followed = null; // the job whose events are read
let showing = null; // the job whose preview is looked at
let next = true; // whether the next job is looked at as soon as there is something to see
let older = true;
let timer = 0;

const active = () => [...jobs.values()].filter((job) => !isOver(job)).sort((a, b) => a.position - b.position);

// --- what the server says

async function refresh(limit = PAGE) {
  clearTimeout(timer);
  try {
    const answer = await ask("GET", `/v1/jobs?limit=${limit}`);
    if (limit === PAGE && answer.jobs.length < PAGE) older = false;
    answer.jobs.forEach(take);
    await greet();
    draw();
  } catch (error) {
    find("server").textContent = `${error.message} Trying again.`;
    find("server").className = "wrong";
  }
  timer = setTimeout(() => refresh(), active().length ? SOON : LATER);
}

function take(job) {
  const before = jobs.get(job.id);
  if (before && isOver(before) && !isOver(job)) return; // an older answer
  jobs.set(job.id, job);
  if (before && !isOver(before) && isOver(job)) ended(job);
}

function ended(job) {
  happening.delete(job.id);
  if (job.status === "done") say(job.count > 1 ? `${job.count} images are done.` : "The image is done.");
  else say(job.status === "cancelled" ? "Cancelled." : `Failed: ${job.error.message}`);
  if (showing === job.id) {
    showing = null;
    next = true;
    gallery.update(jobs.values());
    const last = job.images.at(-1);
    if (last) gallery.look(last.url);
    else find("view").replaceChildren();
  }
  form.changed(); // what was measured is known to the next plan
}

function count(values) {
  const times = new Map();
  for (const value of values) times.set(value, (times.get(value) ?? 0) + 1);
  return times;
}

async function greet() {
  const { devices, model, queue, version } = await ask("GET", "/v1/status");
  const held = devices.flatMap(({ holds }) => holds);
  const names = count(devices.map(({ name }) => name));
  const free = count(devices.map(({ free }) => bytes(free))).keys();
  const on = [...names].map(([name, times]) => (times > 1 ? `${times} × ${name}` : name)).join(" and ");
  const parts = [`${held[0] ?? model} on ${on}`, held.length ? "loaded" : "not loaded yet", `${[...free].join(", ")} free`];
  if (queue.requests) parts.push(`${queue.requests} waiting`);
  find("server").textContent = parts.join(" · ");
  find("server").title = `sdcli ${version}`;
  find("server").className = "";
}

function see(id) {
  showing = id;
  next = false;
  gallery.lookAway();
}

function draw() {
  const newest = gallery.update(jobs.values());
  find("older").hidden = !older;
  follow();
  drawQueue();
  if (showing === null && !gallery.isLooking()) {
    if (active().length) see(active()[0].id);
    else if (newest.length) gallery.look(newest[0].image.url);
  }
  drawView();
}

// One stream for the page, of the job that is drawn: browsers open few connections to a server.
function follow() {
  const first = active()[0];
  if (!first || followed?.id === first.id) return;
  followed?.abort.abort();
  const abort = new AbortController();
  const mine = { id: first.id, abort };
  followed = mine;
  watch(first.id, (kind, data) => happened(first.id, kind, data), abort.signal).catch(() => {}).finally(() => {
    if (followed === mine) followed = null;
    if (!abort.signal.aborted) refresh();
  });
}

function happened(id, kind, data) {
  const job = jobs.get(id);
  const now = happening.get(id) ?? {};
  happening.set(id, now);
  if (kind === "job") {
    take(data);
  } else if (kind === "step") {
    job.step = { step: data.step, of: data.of };
    now.pace = now.pace === undefined || data.step === 2 ? data.seconds : now.pace * 0.8 + data.seconds * 0.2;
    now.words = null;
  } else if (kind === "preview") {
    now.preview = data;
    if (next && showing !== id) see(id);
  } else if (kind === "saved") {
    job.step = null;
    now.preview = null;
    now.words = "saved";
    if (job.count > 1) say(`Image ${data.index + 1} of ${job.count} is done.`);
    ask("GET", `/v1/jobs/${id}`).then((whole) => { take(whole); draw(); }, () => {});
  } else if (kind === "denoised") now.words = "decoding";
  else if (kind === "encoded") now.words = "starting";
  else if (kind === "degraded") notice(`Memory ran out; going on with less: ${data.because}`);
  draw();
}

// --- the queue

function words(job) {
  const { step, images, count } = job;
  const now = happening.get(job.id) ?? {};
  if (job.status === "queued") {
    const before = job.position ? `Waiting, ${job.position} before it` : "Next";
    return job.eta === null ? before : `${before}; ready in about ${duration(job.eta)}`;
  }
  const which = count > 1 ? `image ${Math.min(images.length + 1, count)} of ${count}, ` : "";
  if (!step || now.words) return `${which}${now.words ?? "loading the model"}`.replace(/^./, (letter) => letter.toUpperCase());
  const calls = step.of - step.step + step.of * (count - images.length - 1);
  const left = now.pace === undefined ? job.eta : now.pace * calls;
  const time = left === null ? "" : left < 1 ? ", less than a second left" : `, about ${duration(left)} left`;
  return `${which}step ${step.step} of ${step.of}${time}`.replace(/^./, (letter) => letter.toUpperCase());
}

function share(job) {
  const step = job.step ? job.step.step / job.step.of : 0;
  return Math.min(1, (job.images.length + step) / job.count);
}

function drawQueue() {
  const list = find("now");
  const hidden = new Set(dismissed());
  const failed = [...jobs.values()].filter((job) => job.status === "failed" && !hidden.has(job.id)).slice(0, 3);
  const shown = [...active(), ...failed];
  for (const element of [...list.children]) {
    if (!shown.some((job) => job.id === element.dataset.id && kindOf(job) === element.className)) element.remove();
  }
  shown.forEach((job, place) => {
    let element = [...list.children].find((one) => one.dataset.id === job.id);
    if (!element) element = kindOf(job) === "failed" ? failure(job) : waiting(job);
    if (list.children[place] !== element) list.insertBefore(element, list.children[place] ?? null);
    if (kindOf(job) === "failed") return;
    element.querySelector(".words").textContent = words(job);
    const bar = element.querySelector("progress");
    if (job.status === "queued" || (!job.step && job.images.length === 0)) bar.removeAttribute("value");
    else bar.value = share(job);
    bar.hidden = job.status === "queued";
  });
  const first = active()[0];
  document.title = first?.status === "drawing" && first.step ? `${Math.round(share(first) * 100)} % · sdcli` : "sdcli";
}

const kindOf = (job) => (job.status === "failed" ? "failed" : `active ${job.status}`);
const titleOf = (job) => job.settings.prompt ?? job.settings.prompts[0];

function waiting(job) {
  const title = titleOf(job) || "An image without a prompt";
  const cancel = button("Cancel", async () => {
    cancel.disabled = true;
    try {
      take(await ask("POST", `/v1/jobs/${job.id}/cancel`));
      draw();
    } catch (error) {
      notice(error.message);
    }
    cancel.disabled = false;
  }, { "aria-label": `Cancel: ${title}` });
  const look = button(title, () => { see(job.id); drawView(); }, { class: "title" });
  return make("li", { class: kindOf(job), "data-id": job.id }, look, make("span", { class: "words" }),
    cancel, make("progress", { max: 1, "aria-label": `Progress: ${title}` }));
}

function failure(job) {
  const hint = job.error.hint ? ` Try: ${job.error.hint}` : "";
  return make("li", { class: "failed", "data-id": job.id },
    make("span", { class: "title" }, titleOf(job)), make("span", { class: "words wrong" }, `${job.error.message}${hint}`),
    button("Use its settings", () => gallery.use(job.settings)),
    button("Dismiss", () => {
      localStorage.setItem(DISMISSED, JSON.stringify([...dismissed(), job.id].slice(-200)));
      drawQueue();
    }, { "aria-label": `Dismiss: ${titleOf(job)}` }));
}

function dismissed() {
  try {
    return JSON.parse(localStorage.getItem(DISMISSED)) ?? [];
  } catch {
    return [];
  }
}

// --- what is looked at

function drawView() {
  const job = jobs.get(showing);
  if (!job || gallery.isLooking()) return;
  const view = find("view");
  const preview = happening.get(job.id)?.preview;
  if (view.dataset.job !== job.id) {
    view.dataset.job = job.id;
    delete view.dataset.url;
    const { width, height } = job.settings;
    const more = [["size", `${width}×${height}`], ["memory", `${bytes(job.plan.predicted.device)} predicted`]];
    const frame = make("div", { class: "frame" }, gallery.sized("div", job.settings));
    view.replaceChildren(frame, make("div", { id: "details" }, ...gallery.described(job.settings, more)));
  }
  if (!preview) return;
  let image = view.querySelector("img");
  if (!image) {
    image = gallery.sized("img", job.settings, { alt: "A rough preview" });
    view.querySelector(".frame").replaceChildren(image);
  }
  image.src = preview.image;
}

// --- what is asked

async function generate(event) {
  event.preventDefault();
  const main = find("generate");
  if (main.disabled) return;
  main.disabled = true;
  notice("");
  form.nextSeed();
  try {
    const { id } = await ask("POST", "/v1/jobs", { body: await form.body() });
    take(await ask("GET", `/v1/jobs/${id}`));
    say("In the queue.");
    if (active()[0]?.id === id) see(id);
    else next = true;
    draw();
    gallery.narrowly("now");
    refresh();
  } catch (error) {
    notice(error.message + (error.hint ? ` Try: ${error.hint}` : ""));
    find(error.field ?? "")?.focus();
  }
  main.disabled = false;
}

async function readSettings(file) {
  notice("");
  try {
    const image = await new Promise((resolve, reject) => {
      const reader = new FileReader();
      reader.addEventListener("load", () => resolve(reader.result));
      reader.addEventListener("error", () => reject(new Error("The file cannot be read.")));
      reader.readAsDataURL(file);
    });
    const { settings } = await ask("POST", "/v1/settings", { body: { image } });
    form.fill(settings);
    say("The settings are in the form.");
    notice(`The settings of ${file.name} are in the form.`);
  } catch (error) {
    const begin = button("Start from it", () => start.choose(file));
    notice(`${error.message} `, begin);
  }
}

function dropping() {
  const file = (event) => [...(event.dataTransfer?.files ?? [])].find((one) => one.type.startsWith("image/"));
  addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  });
  addEventListener("dragleave", (event) => event.relatedTarget ?? document.body.classList.remove("dragging"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    const dropped = file(event);
    if (!dropped) return;
    if (find("start").contains(event.target)) start.choose(dropped);
    else readSettings(dropped);
  });
  addEventListener("paste", (event) => {
    const pasted = [...(event.clipboardData?.files ?? [])].find((one) => one.type.startsWith("image/"));
    if (pasted) start.choose(pasted);
  });
}

async function showOlder() {
  const last = [...jobs.values()].sort((a, b) => a.created - b.created)[0];
  const answer = await ask("GET", `/v1/jobs?limit=${PAGE}&before=${last.id}`);
  answer.jobs.forEach(take);
  if (answer.jobs.length < PAGE) older = false;
  draw();
}

async function begin() {
  find("form").addEventListener("submit", generate);
  addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !find("keys").open) find("form").requestSubmit();
  });
  find("older").addEventListener("click", showOlder);
  find("gallery").addEventListener("click", () => { showing = null; next = false; });
  find("settings_file").addEventListener("change", (event) => event.target.files[0] && readSettings(event.target.files[0]));
  document.addEventListener("visibilitychange", () => document.hidden || refresh());
  dropping();
  for (;;) {
    try {
      const { model, samplers, most } = await ask("GET", "/v1/status");
      const models = await ask("GET", "/v1/models");
      form.prepare(models.data.map(({ id }) => id), model, samplers, most);
      break;
    } catch (error) {
      find("server").textContent = `${error.message} Trying again.`;
      await new Promise((resolve) => setTimeout(resolve, 3000));
    }
  }
  await start.prepare(form.changed);
  await refresh();
}

begin();
