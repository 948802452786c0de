// What the pages gain where scripts run: news as they come, times as one says them, keys, completion.
// Everything can be read and done without it. A page says in its body's data how it gets news.
"use strict";

const { root, token, view, live } = document.body.dataset;
let { digest } = document.body.dataset;
const main = document.getElementById("main");
const byId = (id) => document.getElementById(id);

// --- Times: the server writes UTC, the reader's clock and "3 m ago" come from here ---

const skew = Date.parse(document.body.dataset.now) - Date.now();
const zone = Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC";
const two = (number) => String(number).padStart(2, "0");
const UNITS = [[86400, "d", 3600, "h"], [3600, "h", 60, "m"], [60, "m", 1, "s"]];

function length(seconds) {
  for (const [size, unit, small, smallUnit] of UNITS) {
    if (seconds >= size) return `${Math.floor(seconds / size)} ${unit} ${Math.floor((seconds % size) / small)} ${smallUnit}`;
  }
  return `${Math.floor(seconds)} s`;
}

function about(seconds) {
  const size = Math.abs(seconds);
  if (size < 1) return "now";
  const [whole, unit] = size < 60 ? [size, "s"] : size < 3600 ? [size / 60, "m"] : size < 86400 ? [size / 3600, "h"] : [size / 86400, "d"];
  return seconds < 0 ? `in ${Math.floor(whole)} ${unit}` : `${Math.floor(whole)} ${unit} ago`;
}

function clock(moment) {
  const day = `${moment.getFullYear()}-${two(moment.getMonth() + 1)}-${two(moment.getDate())}`;
  return `${day} ${two(moment.getHours())}:${two(moment.getMinutes())}:${two(moment.getSeconds())}`;
}

function say(time, now) {
  const moment = new Date(time.dateTime);
  const seconds = (now - moment) / 1000;
  const kind = time.className;
  if (kind === "since") return length(Math.max(0, seconds));
  if (kind === "mine") return time.previousElementSibling?.dataset.zone === zone ? "" : `${clock(moment)} ${zone}`;
  if (kind === "full") return `${clock(moment)} · ${about(seconds)}`;
  return about(seconds);
}

function times(within) {
  const now = Date.now() + skew;
  for (const time of within.querySelectorAll("time")) {
    const said = say(time, now);
    if (time.textContent !== said) time.textContent = said;
    if (!time.title) time.title = clock(new Date(time.dateTime));
  }
}

// --- News: the new main part is laid over the old one, so that focus, choices and scroll stay ---

const key = (node) => node.dataset?.key || node.id || node.getAttribute?.("aria-labelledby") || null;
const alike = (one, other) => one.nodeName === other.nodeName && !key(one) === !key(other);
const isBlank = (node) => node.nodeType === Node.TEXT_NODE && !node.data.trim();

function drop(node) {
  const after = node.nextSibling;
  node.remove();
  return after;
}

// The old node for a new one without a key: where we are, or further on if it looks the same.
function match(at, want) {
  if (at && alike(at, want)) return at;
  while (at && want.className && !(alike(at, want) && at.className === want.className)) at = at.nextSibling;
  return want.className ? at : null;
}

function lay(old, next) {
  if (old.isEqualNode(next)) return;
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.data !== next.data) old.data = next.data;
    return;
  }
  for (const { name, value } of next.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  for (const { name } of [...old.attributes]) {
    if (!next.hasAttribute(name) && !(name === "open" && old.nodeName === "DETAILS")) old.removeAttribute(name);
  }
  layChildren(old, next);
}

function layChildren(old, next) {
  const wanted = new Set([...next.childNodes].map(key));
  const keyed = new Map();
  for (const child of [...old.childNodes]) {
    if (!key(child)) continue;
    if (wanted.has(key(child))) keyed.set(key(child), child);
    else child.remove();
  }
  let at = old.firstChild;
  for (const want of [...next.childNodes]) {
    while (at && isBlank(at) && !isBlank(want)) at = drop(at); // or all rows behind a removed one would move
    const have = key(want) ? keyed.get(key(want)) : match(at, want);
    if (have?.nodeName !== want.nodeName) old.insertBefore(want, at);
    else {
      if (have === at) at = at.nextSibling;
      else old.insertBefore(have, at);
      lay(have, want);
    }
  }
  while (at) at = drop(at);
}

function parsed(text) {
  const fresh = new DOMParser().parseFromString(`<main>${text}</main>`, "text/html").querySelector("main");
  for (const field of fresh.querySelectorAll("[name=token]")) field.setAttribute("value", token);
  prepare(fresh);
  return fresh;
}

function show(text) {
  const held = document.activeElement;
  layChildren(main, parsed(text));
  if (held !== document.activeElement && held.isConnected) held.focus({ preventScroll: true });
  count();
}

function prepare(within) {
  times(within);
  for (const row of within.querySelectorAll("tr[data-key]")) row.tabIndex = -1;
  for (const part of within.querySelectorAll(".script")) part.hidden = false;
}

// --- Where news come from: events, or a look each second. None for a hidden tab or while paused ---

const LOOK = 1000;
let paused = sessionStorage.getItem("flowrra-paused") === "1";
let source = null;
let timer = 0;
let looking = null;

function word(text, isOff) {
  if (byId("live-word").textContent !== text) byId("live-word").textContent = text;
  byId("live").classList.toggle("off", isOff);
}

function stop() {
  source?.close();
  looking?.abort();
  clearTimeout(timer);
  source = looking = null;
}

function start(wait = 0) {
  stop();
  if (!live || paused || document.hidden) return;
  if (live === "events") listen();
  else timer = setTimeout(look, wait);
}

function listen() {
  source = new EventSource(`${root}/events?view=${encodeURIComponent(view)}&digest=${digest}`);
  source.onopen = () => {
    clearTimeout(timer);
    word("live", false);
  };
  source.addEventListener("main", (event) => {
    digest = event.lastEventId;
    show(event.data);
    word("live", false);
  });
  source.addEventListener("trouble", () => word("no news", true));
  source.addEventListener("gone", () => location.reload());
  source.onerror = () => {
    // A stream ends now and then, and the browser goes on with the next one, unless it was turned away.
    clearTimeout(timer);
    const isRefused = source?.readyState === EventSource.CLOSED;
    if (isRefused) word("no news", true);
    timer = setTimeout(isRefused ? start : () => word("reconnecting", true), (isRefused ? 5 : 2) * LOOK);
  };
}

async function look() {
  const mine = (looking = new AbortController());
  let wait = LOOK;
  try {
    const headers = { "x-flowrra-fragment": "1", "if-none-match": `"${digest}"` };
    const answer = await fetch(root + view, { headers, signal: mine.signal, cache: "no-store" });
    if (answer.ok) {
      const text = await answer.text();
      digest = (answer.headers.get("etag") || "").replace(/^W\/|"/g, "");
      show(text);
    } else if (answer.status !== 304) throw new Error(answer.status);
    word("live", false);
  } catch {
    if (mine.signal.aborted) return;
    word("reconnecting", true);
    wait = 5 * LOOK;
  }
  if (!mine.signal.aborted) timer = setTimeout(look, wait);
}

function pause(value, wait = 0) {
  paused = value;
  sessionStorage.setItem("flowrra-paused", paused ? "1" : "0");
  byId("pause").textContent = paused ? "Go on" : "Pause";
  byId("pause").setAttribute("aria-pressed", paused);
  word(paused ? "paused" : "live", paused);
  start(wait);
}

// --- Choosing jobs ---

function count() {
  const form = byId("bulk");
  if (!form) return;
  const boxes = [...document.querySelectorAll("[name=ids]")];
  const picked = boxes.filter((box) => box.checked).length;
  byId("picked").textContent = picked || "";
  for (const button of form.querySelectorAll("button")) button.disabled = !picked;
  const all = byId("all");
  all.checked = picked === boxes.length;
  all.indeterminate = picked > 0 && picked < boxes.length;
}

document.addEventListener("change", (event) => {
  if (event.target.id === "all") for (const box of document.querySelectorAll("[name=ids]")) box.checked = event.target.checked;
  count();
});

// What asks "sure?" closes when one turns elsewhere.
function dismiss(but = null) {
  for (const box of document.querySelectorAll(".sure[open]")) if (!box.contains(but)) box.open = false;
}

document.addEventListener("click", (event) => dismiss(event.target));

// --- Keys ---

const KEYS = "flowrra-keys";
const ROWS = "main tr[data-key]";

function step(by) {
  const rows = [...document.querySelectorAll(ROWS)];
  const at = rows.indexOf(document.activeElement?.closest(ROWS));
  const row = rows[at < 0 ? (by > 0 ? 0 : rows.length - 1) : at + by];
  row?.focus();
  row?.scrollIntoView({ block: "nearest" });
}

function choose() {
  document.activeElement?.closest(ROWS)?.querySelector("[name=ids]")?.click();
}

const ACTIONS = {
  "/": () => byId("search").select(),
  j: () => step(1),
  k: () => step(-1),
  x: choose,
  p: () => live && pause(!paused),
  "?": () => byId("help").showModal(),
};

document.addEventListener("keydown", (event) => {
  const { target } = event;
  if (event.key === "Escape") dismiss();
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || byId("help").open) return;
  if (target.matches("textarea, select, input:not([type=checkbox])")) return;
  if (event.key === "Enter" && target.matches(ROWS)) target.querySelector("td a")?.click();
  else if (ACTIONS[event.key] && localStorage.getItem(KEYS) !== "off") {
    event.preventDefault();
    ACTIONS[event.key]();
  }
});

// --- Completion of the search line ---

const search = byId("search");
const words = byId("words");
let turn = 0;

const lastWord = () => search.value.match(/(?:[^\s"]|"[^"]*"?)*$/)[0];

function close() {
  words.hidden = true;
  words.replaceChildren();
  search.setAttribute("aria-expanded", "false");
  search.removeAttribute("aria-activedescendant");
}

async function complete() {
  const mine = ++turn;
  const answer = await fetch(`${root}/api/complete?word=${encodeURIComponent(lastWord())}`).catch(() => null);
  const found = answer?.ok ? (await answer.json()).words : [];
  if (mine !== turn || document.activeElement !== search) return;
  close();
  found.forEach((text, index) => {
    const item = document.createElement("li");
    item.id = `word-${index}`;
    item.textContent = text;
    item.setAttribute("role", "option");
    item.setAttribute("aria-selected", "false");
    words.append(item);
  });
  words.hidden = !found.length;
  search.setAttribute("aria-expanded", String(!words.hidden));
}

function take(item) {
  search.value = search.value.slice(0, search.value.length - lastWord().length) + item.textContent;
  if (/[:.]$/.test(search.value)) complete();
  else {
    search.value += " ";
    close();
  }
  search.focus();
}

function move(by) {
  const items = [...words.children];
  const at = items.findIndex((item) => item.getAttribute("aria-selected") === "true");
  const next = items.at(at < 0 && by < 0 ? -1 : (at + by) % items.length);
  items[at]?.setAttribute("aria-selected", "false");
  next.setAttribute("aria-selected", "true");
  next.scrollIntoView({ block: "nearest" });
  search.setAttribute("aria-activedescendant", next.id);
}

search.setAttribute("role", "combobox");
search.setAttribute("aria-controls", "words");
search.setAttribute("aria-expanded", "false");
search.setAttribute("aria-autocomplete", "list");
search.addEventListener("input", complete);
search.addEventListener("blur", () => setTimeout(close, 100));
words.addEventListener("mousedown", (event) => {
  event.preventDefault();
  take(event.target);
});
search.addEventListener("keydown", (event) => {
  if (words.hidden) return;
  const chosen = words.querySelector("[aria-selected=true]");
  if (event.key === "ArrowDown") move(1);
  else if (event.key === "ArrowUp") move(-1);
  else if (event.key === "Escape") close();
  else if (chosen && ["Enter", "Tab"].includes(event.key)) take(chosen);
  else return;
  event.preventDefault();
});

// --- What a schedule means, while it is being typed ---

const schedule = byId("schedule");
let typing = 0;

async function preview() {
  const fields = new URLSearchParams(new FormData(schedule));
  const headers = { "x-flowrra-fragment": "1" };
  const mine = ++typing;
  const answer = await fetch(`${byId("look").formAction}?${fields}`, { headers }).catch(() => null);
  const text = answer?.ok ? await answer.text() : null;
  const meaning = text && parsed(text).querySelector("#preview");
  if (meaning && mine === typing) byId("preview").replaceChildren(...meaning.childNodes);
}

if (schedule) {
  byId("look").hidden = true;
  let later = 0;
  schedule.addEventListener("input", (event) => {
    if (!["rule", "tz"].includes(event.target.name)) return;
    clearTimeout(later);
    later = setTimeout(preview, 120);
  });
}

// --- Begin ---

prepare(document);
// What was done has been said; it need not be said again when the page is loaded anew.
if (location.search.includes("notice=")) history.replaceState(null, "", root + view);
setInterval(() => document.hidden || times(document), 1000);
byId("zone").textContent = `Times are ${zone}.`;
byId("live").hidden = false;
byId("keys").addEventListener("click", () => byId("help").showModal());
byId("keys-on").checked = localStorage.getItem(KEYS) !== "off";
byId("keys-on").addEventListener("change", (event) => localStorage.setItem(KEYS, event.target.checked ? "on" : "off"));
byId("pause").addEventListener("click", () => pause(!paused));
document.addEventListener("visibilitychange", () => start());
addEventListener("pagehide", stop);
// News that what a page shows is gone would load it anew, in place of the answer to the form that deletes it.
document.addEventListener("submit", (event) => event.target.method === "post" && stop());
addEventListener("pageshow", (event) => event.persisted && start());
count();
if (live) pause(paused, LOOK); // a page that has just been loaded is no news
else for (const part of ["pause", "live-word"]) byId(part).hidden = true;
