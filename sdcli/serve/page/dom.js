// Elements from plain values: text is only ever text.

export const find = (id) => document.getElementById(id);

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

export const button = (text, pressed, more = {}) => make("button", { type: "button", click: pressed, ...more }, text);

export function say(text) {
  find("said").textContent = text;
}

export function notice(text, ...more) {
  find("notice").replaceChildren(text, ...more);
}

export function bytes(count) {
  const gib = count / 2 ** 30;
  return gib >= 1 ? `${gib.toFixed(gib < 10 ? 2 : 1)}\u00a0GiB` : `${Math.round(count / 2 ** 20)}\u00a0MiB`;
}

export function duration(seconds) {
  if (seconds < 10) return `${seconds.toFixed(1)}\u00a0s`;
  if (seconds < 90) return `${Math.round(seconds)}\u00a0s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 90 ? `${minutes}\u00a0min` : `${(seconds / 3600).toFixed(1)}\u00a0h`;
}
