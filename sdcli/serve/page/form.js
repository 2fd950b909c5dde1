// The settings of the next images, what they will need, and where they are kept between visits.

import { bytes, duration, find, make } from "./dom.js";
import { ask } from "./server.js";
import * as start from "./start.js";

const KEPT = "sdcli.form";
const TEXT = ["prompt", "negative_prompt", "model", "sampler"];
const NUMBERS = ["num_images", "width", "height", "steps", "guidance", "seed", "strength"];
const SHOWN = ["width", "height", "steps", "guidance", "strength"]; // as placeholders where nothing is typed
let planning = null;
let usualModel = "";
let timer = 0;

export async function body() {
  const asked = { prompt: find("prompt").value };
  for (const name of [...TEXT.slice(1), ...NUMBERS]) {
    const { value } = find(name);
    if (value !== "" && (name !== "strength" || start.isChosen())) {
      asked[name] = NUMBERS.includes(name) ? Number(value) : value;
    }
  }
  return { ...asked, ...(await start.images()) };
}

export function fill(settings) {
  if (settings.model === usualModel) settings = { ...settings, model: "" };
  for (const name of [...TEXT, ...NUMBERS]) {
    if (name === "num_images") continue;
    const field = find(name);
    const value = name in settings ? String(settings[name]) : "";
    const known = field.tagName !== "SELECT" || [...field.options].some((option) => option.value === value);
    if (name in settings && known) field.value = value;
    else if (["negative_prompt", "strength"].includes(name)) field.value = "";
  }
  if ("seed" in settings) lock(true);
  changed();
}

// --- the seed

const isLocked = () => find("lock").getAttribute("aria-pressed") === "true";

export function lock(locked) {
  find("lock").setAttribute("aria-pressed", String(locked));
  keep();
}

export function anotherSeed() {
  find("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
  keep();
}

export function nextSeed() {
  if (!isLocked() || find("seed").value === "") anotherSeed();
}

// --- kept, and planned for

export function changed() {
  keep();
  grow();
  clearTimeout(timer);
  timer = setTimeout(plan, 400);
}

function keep() {
  const values = Object.fromEntries([...TEXT, ...NUMBERS].map((name) => [name, find(name).value]));
  localStorage.setItem(KEPT, JSON.stringify({ ...values, locked: isLocked() }));
}

function grow() {
  for (const name of ["prompt", "negative_prompt"]) {
    const text = find(name);
    text.style.height = "auto";
    text.style.height = `${text.scrollHeight + 2}px`;
  }
}

export async function plan() {
  planning?.abort();
  planning = new AbortController();
  const { signal } = planning;
  try {
    const asked = await body();
    tell(await ask("POST", "/v1/plan", { body: { ...asked, prompt: asked.prompt.trim() || "an image" }, signal }));
  } catch (error) {
    if (error.name !== "AbortError") doubt(error);
  }
}

function tell({ settings, images, plan }) {
  for (const name of SHOWN) find(name).placeholder = settings[name] ?? "";
  const usual = find("sampler").options[0];
  if (find("sampler").value === "") usual.textContent = `${settings.sampler} (usual)`;
  const need = plan.predicted.device;
  const room = plan.available.device;
  const about = plan.seconds === null ? "" : `, about ${duration(plan.seconds)}`;
  const many = images > 1 ? `${images} images` : "It";
  find("need").textContent = `${many} will need ${bytes(need)} of the ${bytes(room)} free${about}.`;
  find("need").className = "";
  find("share").hidden = false;
  find("share").value = need / room;
  const rows = plan.decisions.map(({ slot, choice, because }) => row(slot.replaceAll("_", " "), choice, because));
  const workers = plan.workers.map(({ device, name, predicted, available }) =>
    row(device, name, `${bytes(predicted.device)} of ${bytes(available.device)} free`));
  rows.unshift(...(workers.length ? workers : [row("device", plan.device.name, "")]));
  if (plan.measured_before) rows.push(row("memory", bytes(need), "as measured here before"));
  find("decisions").replaceChildren(...rows.flat(), ...plan.warnings.flatMap((text) => row("note", text, "")));
}

function row(name, value, why) {
  const reason = why.startsWith(`${value}: `) ? why.slice(value.length + 2) : why;
  return [make("dt", {}, name), make("dd", {}, make("b", {}, value), reason ? `: ${reason}` : "")];
}

function doubt(error) {
  find("need").textContent = error.message + (error.hint ? ` Try: ${error.hint}` : "");
  find("need").className = "wrong";
  find("share").hidden = true;
  find("decisions").replaceChildren();
}

export function prepare(models, usual, samplers, most) {
  find("num_images").max = most.images;
  find("steps").max = most.steps;
  find("prompt").maxLength = find("negative_prompt").maxLength = most.prompt;
  usualModel = usual;
  const others = models.filter((name) => name !== usual).map((name) => make("option", { value: name }, name));
  find("model").replaceChildren(make("option", { value: "" }, usual), ...others);
  find("sampler").replaceChildren(
    make("option", { value: "" }, "Usual"), ...samplers.map((name) => make("option", { value: name }, name)),
  );
  recall();
  for (const name of [...TEXT, ...NUMBERS]) find(name).addEventListener("input", changed);
  find("seed").addEventListener("input", () => lock(find("seed").value !== ""));
  find("dice").addEventListener("click", anotherSeed);
  find("lock").addEventListener("click", () => lock(!isLocked()));
  find("swap").addEventListener("click", () => {
    const [width, height] = ["width", "height"].map((name) => find(name).value || find(name).placeholder);
    [find("width").value, find("height").value] = [height, width];
    changed();
  });
  if (find("seed").value === "") anotherSeed();
  changed();
}

function recall() {
  try {
    const kept = JSON.parse(localStorage.getItem(KEPT)) ?? {};
    for (const name of [...TEXT, ...NUMBERS]) if (typeof kept[name] === "string") find(name).value = kept[name];
    for (const name of ["model", "sampler"]) if (find(name).selectedIndex < 0) find(name).selectedIndex = 0;
    lock(kept.locked === true);
  } catch {
    localStorage.removeItem(KEPT);
  }
}
