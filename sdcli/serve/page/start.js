// The image to start from, and the mask that is painted on it. Both outlive a reload.

import { find, notice } from "./dom.js";

const LARGEST = 14 << 20; // bytes of a file: a request may have a third more
const MASK_SIDE = 1024; // pixels of the longer side: enough for a brush
const store = "start";
let file = null;
let strokes = []; // { size, erase, points: [[x, y], …] } in shares of the width
let changed = () => {};
let erasing = false;

export const isChosen = () => file !== null;

export async function images() {
  if (file === null) return {};
  const image = await dataUrl(file);
  return strokes.some((stroke) => !stroke.erase) ? { image, mask: painted() } : { image };
}

export async function choose(blob, kept = []) {
  if (!["image/png", "image/jpeg", "image/webp"].includes(blob.type)) {
    return notice("To start from it, an image has to be a PNG, JPEG or WebP file.");
  }
  if (blob.size > LARGEST) return notice("The image is larger than 14 MiB.");
  const shown = find("begin");
  const before = shown.src;
  shown.src = URL.createObjectURL(blob);
  try {
    await shown.decode();
  } catch {
    shown.src = before;
    return notice("This file is no image that can be read.");
  }
  if (before) URL.revokeObjectURL(before);
  file = blob;
  strokes = kept;
  const share = Math.min(1, MASK_SIDE / Math.max(shown.naturalWidth, shown.naturalHeight));
  const mask = find("mask");
  mask.width = Math.max(1, Math.round(shown.naturalWidth * share));
  mask.height = Math.max(1, Math.round(shown.naturalHeight * share));
  find("choose").hidden = true;
  find("chosen").hidden = false;
  notice("");
  redraw();
  finished();
}

export function remove() {
  file = null;
  strokes = [];
  find("choose").hidden = false;
  find("chosen").hidden = true;
  find("file").value = "";
  finished();
}

export async function prepare(onChange) {
  changed = onChange;
  find("file").addEventListener("change", (event) => event.target.files[0] && choose(event.target.files[0]));
  find("without").addEventListener("click", remove);
  find("brush").addEventListener("click", () => use(false));
  find("eraser").addEventListener("click", () => use(true));
  find("undo").addEventListener("click", () => { strokes.pop(); redraw(); finished(); });
  find("clear").addEventListener("click", () => { strokes = []; redraw(); finished(); });
  const mask = find("mask");
  mask.addEventListener("pointerdown", begin);
  mask.addEventListener("pointermove", (event) => mask.hasPointerCapture(event.pointerId) && extend(event));
  mask.addEventListener("pointerup", () => finished());
  const kept = await recall();
  if (kept?.file) await choose(kept.file, kept.strokes);
}

// --- painting

function use(eraser) {
  erasing = eraser;
  find("brush").setAttribute("aria-pressed", String(!eraser));
  find("eraser").setAttribute("aria-pressed", String(eraser));
}

function begin(event) {
  if (event.button !== 0) return;
  event.preventDefault();
  event.target.setPointerCapture(event.pointerId);
  strokes.push({ size: find("brush_size").valueAsNumber / 100, erase: erasing, points: [] });
  extend(event);
}

function extend(event) {
  const box = event.target.getBoundingClientRect();
  const points = strokes.at(-1).points;
  for (const one of event.getCoalescedEvents?.().length ? event.getCoalescedEvents() : [event]) {
    points.push([(one.clientX - box.left) / box.width, (one.clientY - box.top) / box.width]);
  }
  redraw();
}

function redraw() {
  const mask = find("mask");
  const pen = mask.getContext("2d");
  pen.clearRect(0, 0, mask.width, mask.height);
  pen.lineCap = pen.lineJoin = "round";
  pen.strokeStyle = pen.fillStyle = "white";
  for (const { size, erase, points } of strokes) {
    pen.globalCompositeOperation = erase ? "destination-out" : "source-over";
    pen.lineWidth = size * mask.width;
    pen.beginPath();
    for (const [x, y] of points) pen.lineTo(x * mask.width, y * mask.width);
    pen.stroke();
    if (points.length) dot(pen, points[0], size / 2, mask.width); // a line of one point is none
  }
  pen.globalCompositeOperation = "source-over";
}

function dot(pen, [x, y], radius, side) {
  pen.beginPath();
  pen.arc(x * side, y * side, radius * side, 0, 2 * Math.PI);
  pen.fill();
}

// White where there is paint, black elsewhere.
function painted() {
  const mask = find("mask");
  const canvas = document.createElement("canvas");
  canvas.width = mask.width;
  canvas.height = mask.height;
  const pen = canvas.getContext("2d");
  pen.fillStyle = "black";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(mask, 0, 0);
  return canvas.toDataURL("image/png");
}

function finished() {
  keep();
  changed();
}

function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result));
    reader.addEventListener("error", () => reject(reader.error));
    reader.readAsDataURL(blob);
  });
}

// --- kept in the browser's database, as a file is too large for its other places

function opened() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open("sdcli", 1);
    request.addEventListener("upgradeneeded", () => request.result.createObjectStore(store));
    request.addEventListener("success", () => resolve(request.result));
    request.addEventListener("error", () => reject(request.error));
  });
}

async function keep() {
  try {
    (await opened()).transaction(store, "readwrite").objectStore(store).put({ file, strokes }, "last");
  } catch {
    // a browser that keeps nothing loses only what a reload would have to bring back
  }
}

async function recall() {
  try {
    const request = (await opened()).transaction(store).objectStore(store).get("last");
    return await new Promise((resolve) => {
      request.addEventListener("success", () => resolve(request.result));
      request.addEventListener("error", () => resolve(null));
    });
  } catch {
    return null;
  }
}
