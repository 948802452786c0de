// What JavaScript adds to the pages: live updates, lists that do not move while they are used, times in the reader's
// zone, keys, completion, searches that continue.
// The pages work without it. The data attributes of a page's body say how it gets updates.
"use strict";

const { root, token, view, live } = document.body.dataset;
let { digest } = document.body.dataset;
const main = document.getElementById("main");
const byId = (id) => document.getElementById(id);

// --- Times: the server writes UTC; the script adds the reader's zone and "3 m ago" ---

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
    if (!time.title) time.title = `${time.dateTime.slice(0, 19).replace("T", " ")} UTC`;
  }
}

// --- Updates: the new main part is merged into the old one, so that focus, choices and scroll position stay ---

const key = (node) => node.dataset?.key || node.id || node.getAttribute?.("aria-labelledby") || null;
const alike = (one, other) => one.nodeName === other.nodeName && !key(one) === !key(other);
// While a question is open, neither its number nor its jobs change.
const isAsking = (node) => node.matches?.("details.sure[open]") || (node.matches?.("[type=hidden]:is([name=search], [name=counted])") && node.form?.querySelector(".sure[open]"));
const isBlank = (node) => node.nodeType === Node.TEXT_NODE && !node.data.trim();

function drop(node) {
  const after = node.nextSibling;
  node.remove();
  return after;
}

// The old node for a new one without a key: the current one, or a later one that looks the same.
function match(at, want) {
  if (at && alike(at, want)) return at;
  while (at && want.className && !(alike(at, want) && at.className === want.className)) at = at.nextSibling;
  return want.className ? at : null;
}

function lay(old, next) {
  if (old.isEqualNode(next) || isAsking(old)) return;
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
    while (at && isBlank(at) && !isBlank(want)) at = drop(at); // otherwise all rows after a removed one would move
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

function show(text, isAsked = false) {
  const focused = document.activeElement;
  const fresh = parsed(text);
  latest = text;
  keepPicked(fresh);
  if (isAsked || hold(fresh)) layChildren(main, fresh);
  else lay(byId("verdict"), fresh.querySelector("#verdict"));
  if (isAsked) forgetArrived();
  if (focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
  judge();
  count();
}

function prepare(within) {
  times(within);
  for (const row of within.querySelectorAll("tr[data-key]")) row.tabIndex = -1;
  for (const part of within.querySelectorAll(".script")) part.hidden = false;
  listSaved(within);
}

// The title and the icon show the verdict.
function judge(verdict = byId("verdict")) {
  const { word, icon } = verdict?.dataset || {};
  if (!word) return;
  document.title = `${word} · ${document.body.dataset.title}`;
  if (byId("icon").getAttribute("href") !== icon) byId("icon").href = icon;
}

function nothingIsKnown() {
  document.title = `no answer · ${document.body.dataset.title}`;
  byId("icon").href = byId("icon").href.replace(/%23[0-9a-f]{6}/, "%23b8282b");
}

// --- Held lists: while a row is selected, pointed at, focused or has an open question, no row is added or moved ---

const PAGE = 50; // jobs
const arrived = new Set(); // keys of the rows that are not shown yet
let isMissing = false; // more jobs are new than a page holds, so some were never in the list
let latest = "";
let isHolding = false;

const label = (table) => table.getAttribute("aria-label") || table.getAttribute("aria-labelledby");
const isHeld = (table) => table.matches(":hover, :focus-within, .longer") || table.querySelector("[name=ids]:checked, [open]");
const rowsOf = (table) => [...table.tBodies[0].rows];

// Put the shown rows into the new lists, with their current content; false if a held list no longer exists.
function hold(fresh) {
  const next = new Map([...fresh.querySelectorAll("table.holds")].map((table) => [label(table), table]));
  const held = [...main.querySelectorAll("table.holds")].filter(isHeld);
  isHolding = held.length > 0;
  if (!isHolding) forgetArrived();
  for (const old of held) {
    const table = next.get(label(old));
    if (!table) return false;
    const rows = new Map(rowsOf(table).map((row) => [row.dataset.key, row]));
    const shown = new Set(rowsOf(old).map((row) => row.dataset.key));
    isMissing ||= rows.size >= PAGE && ![...rows.keys()].some((name) => shown.has(name) || arrived.has(name));
    for (const name of rows.keys()) if (!shown.has(name)) arrived.add(name);
    table.tBodies[0].replaceChildren(...rowsOf(old).map((row) => rows.get(row.dataset.key) ?? row.cloneNode(true)));
  }
  if (isLonger) fresh.querySelector("#more")?.replaceWith(byId("more").cloneNode(true));
  return true;
}

function forgetArrived() {
  arrived.clear();
  isMissing = false;
}

function release() {
  if (isHolding && ![...main.querySelectorAll("table.holds")].some(isHeld)) show(latest);
}

byId("new").addEventListener("click", () => (isLonger ? location.reload() : show(latest, true)));
for (const kind of ["pointerout", "focusout", "change"]) document.addEventListener(kind, () => setTimeout(release));
document.addEventListener("toggle", ({ target }) => latest && target.matches(".sure:not([open])") && show(latest), true);

// --- The source of updates: events, or a request each second. A hidden tab or a frozen view gets none ---

const LOOK = 1000;
let frozen = sessionStorage.getItem("flowrra-frozen") === "1";
let current = new Date(); // when the shown content was current
let source = null;
let timer = 0;
let looking = null;

const asOf = (text) => `${text}, as of ${clock(current).slice(11)}`;

function lost(how) {
  word(asOf(how), true);
  nothingIsKnown();
}

function connected() {
  current = new Date();
  word("connected", false);
  judge();
}

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
  if (!live || frozen || document.hidden) return;
  if (live === "events") listen();
  else timer = setTimeout(look, wait);
}

function listen() {
  source = new EventSource(`${root}/events?view=${encodeURIComponent(view)}&digest=${digest}`);
  source.onopen = () => {
    clearTimeout(timer);
    connected();
  };
  source.addEventListener("main", (event) => {
    digest = event.lastEventId;
    show(event.data);
    connected();
  });
  source.addEventListener("trouble", () => lost("the store does not answer"));
  source.addEventListener("gone", () => location.reload());
  source.onerror = () => {
    // A stream ends after some seconds, and the browser opens the next one, unless it was refused.
    clearTimeout(timer);
    const isRefused = source?.readyState === EventSource.CLOSED;
    if (!byId("live").classList.contains("off")) current = new Date();
    if (isRefused) lost("no updates");
    timer = setTimeout(isRefused ? start : () => lost("reconnecting"), (isRefused ? 5 : 2) * LOOK);
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
    connected();
  } catch (error) {
    if (mine.signal.aborted) return;
    lost(error.message === "503" ? "the store does not answer" : "reconnecting");
    wait = 5 * LOOK;
  }
  if (!mine.signal.aborted) timer = setTimeout(look, wait);
}

function freeze(value, wait = 0) {
  frozen = value;
  sessionStorage.setItem("flowrra-frozen", frozen ? "1" : "0");
  byId("freeze").textContent = frozen ? "Unfreeze view" : "Freeze view";
  byId("freeze").setAttribute("aria-pressed", frozen);
  current = new Date();
  word(frozen ? asOf("frozen") : "connected", frozen);
  judge();
  if (frozen) document.title = `frozen · ${document.body.dataset.title}`;
  start(wait);
}

// A hidden tab gets no updates, except for its title and its icon, which stay visible.
async function glance() {
  if (!live || frozen || !document.hidden) return;
  const answer = await fetch(root + view, { headers: { "x-flowrra-fragment": "1" } }).catch(() => null);
  if (answer?.ok) judge(parsed(await answer.text()).querySelector("#verdict"));
  else nothingIsKnown();
}

// --- Selecting jobs ---

const picked = new Map(); // from ids to tasks; the jobs may no longer be in the list
const boxes = (within = main) => [...within.querySelectorAll("[name=ids][type=checkbox]")];

function keepPicked(fresh) {
  for (const box of boxes(fresh)) box.checked = picked.has(box.value);
  const listed = new Set(boxes(fresh).map((box) => box.value));
  for (const id of picked.keys()) {
    if (listed.has(id)) continue;
    const kept = Object.assign(document.createElement("input"), { type: "hidden", name: "ids", value: id });
    kept.dataset.key = `kept ${id}`;
    fresh.querySelector("#bulk")?.append(kept);
  }
}

function count() {
  byId("new").hidden = !arrived.size;
  byId("new").textContent = `${arrived.size}${isMissing ? "+" : ""} new`;
  const form = byId("bulk");
  if (!form) return;
  for (const kept of form.querySelectorAll("[type=hidden][name=ids]")) kept.disabled = boxes().some((box) => box.value === kept.value);
  const away = form.querySelectorAll("[type=hidden][name=ids]:enabled").length;
  byId("counted").value = picked.size;
  const tasks = new Set(picked.values());
  for (const place of form.querySelectorAll(".picked")) place.textContent = picked.size + (away ? ` (${away} not in view)` : "");
  for (const place of form.querySelectorAll(".task")) place.textContent = tasks.size === 1 ? [...tasks][0] : picked.size === 1 ? "job" : "jobs";
  for (const ask of form.querySelectorAll(".sure")) ask.hidden = !picked.size;
  byId("unpick").hidden = form.querySelector(".bulk-word").hidden = !picked.size;
  byId("unpicked").hidden = picked.size > 0;
  const ticked = boxes().filter((box) => box.checked).length;
  byId("all").checked = ticked > 0 && ticked === boxes().length;
  byId("all").indeterminate = ticked > 0 && ticked < boxes().length;
}

function pick(box) {
  if (box.checked) picked.set(box.value, box.dataset.task);
  else picked.delete(box.value);
}

// A selection is kept on the other pages of its search, until an action uses it.
const PICKED = "flowrra-picked-jobs";
const searched = () => byId("saved")?.dataset.line;
const storePicked = () => sessionStorage.setItem(PICKED, JSON.stringify([searched(), ...picked]));

function recallPicked() {
  const [line, ...ids] = JSON.parse(sessionStorage.getItem(PICKED) || "[]");
  if (byId("bulk") && line === searched()) for (const [id, task] of ids) picked.set(id, task);
  boxes().forEach((box) => box.checked && pick(box)); // the browser may have kept some
  keepPicked(main);
}

document.addEventListener("change", (event) => {
  if (event.target.id === "all") for (const box of boxes()) box.checked = event.target.checked;
  boxes().forEach(pick);
  if (event.target.name === "ids" || event.target.id === "all") storePicked();
  count();
});

document.addEventListener("click", (event) => {
  if (event.target.id === "unpick") {
    picked.clear();
    storePicked();
    for (const box of boxes()) box.checked = false;
    for (const kept of byId("bulk").querySelectorAll("[type=hidden][name=ids]")) kept.remove();
    count();
    release();
  }
  if (event.target.id === "save") save();
  if (event.target.id === "stop") isStopped = event.target.parentElement.hidden = true;
  if (event.target.matches(".copy")) copy(event.target);
});

async function copy(button) {
  const { previousElementSibling: from } = button;
  getSelection().selectAllChildren(from);
  // Without HTTPS, browsers offer only this clipboard.
  await (navigator.clipboard?.writeText(from.textContent) ?? document.execCommand("copy"));
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = "Copy"), 2000);
}

// --- An incomplete search continues until the page is full ---

let isLonger = false; // than the first page of the search
let isStopped = false;

async function goOn() {
  const from = byId("more")?.dataset.goesOn;
  const list = main.querySelector("#list table");
  if (!from || isStopped || (list && rowsOf(list).length >= PAGE)) return;
  const began = Date.now();
  const answer = await fetch(root + from, { headers: { "x-flowrra-fragment": "1" } }).catch(() => null);
  const fresh = answer?.ok && parsed(await answer.text());
  if (fresh && !isStopped) {
    const found = fresh.querySelector("#list table");
    isLonger = true;
    if (list && found) list.tBodies[0].append(...rowsOf(found));
    else if (found) byId("list").replaceWith(fresh.querySelector("#list"));
    main.querySelector("#list table")?.classList.add("longer");
    byId("more").replaceWith(fresh.querySelector("#more"));
    count();
  }
  setTimeout(goOn, fresh ? Date.now() - began : 5 * LOOK);
}

// --- Searches that are saved in this browser ---

const SAVED = "flowrra-saved";
const saved = () => JSON.parse(localStorage.getItem(SAVED) || "[]");

function listSaved(within) {
  const place = within.querySelector("#saved");
  if (!place) return;
  const { line } = place.dataset;
  for (const one of saved()) {
    const link = document.createElement("a");
    link.href = `${root}/jobs?search=${encodeURIComponent(one)}`;
    link.textContent = one;
    place.querySelector("#save").before(link);
  }
  place.querySelector("#save").textContent = saved().includes(line) ? "Remove this search" : line && "Save this search";
}

function save() {
  const { line } = byId("saved").dataset;
  const kept = saved().filter((one) => one !== line);
  localStorage.setItem(SAVED, JSON.stringify(kept.length < saved().length ? kept : [...kept, line]));
  for (const link of byId("saved").querySelectorAll("a:not([data-key])")) link.remove();
  listSaved(main);
}

// An open question closes when the focus leaves it.
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
  n: () => byId("new").hidden || byId("new").click(),
  f: () => live && freeze(!frozen),
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

// --- The preview of a schedule, while its rule is typed ---

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
// A notice was shown; it must not be shown again if the page is loaded again.
if (location.search.includes("notice=")) {
  history.replaceState(null, "", root + view);
  sessionStorage.removeItem(PICKED);
}
setInterval(() => document.hidden || times(document), 1000);
setInterval(glance, 30 * LOOK);
byId("zone").textContent = `Times are ${zone}${zone === "UTC" ? "." : ". Point at a time to see UTC."}`;
byId("live").hidden = false;
byId("keys").addEventListener("click", () => byId("help").showModal());
byId("keys-on").checked = localStorage.getItem(KEYS) !== "off";
byId("keys-on").addEventListener("change", (event) => localStorage.setItem(KEYS, event.target.checked ? "on" : "off"));
byId("freeze").addEventListener("click", () => freeze(!frozen));
document.addEventListener("visibilitychange", () => start());
addEventListener("pagehide", stop);
// Otherwise the update of a deleted job would load the page again, instead of the answer to the form that deletes it.
document.addEventListener("submit", (event) => event.target.method === "post" && stop());
addEventListener("pageshow", (event) => event.persisted && start());
recallPicked();
count();
goOn();
if (live) freeze(frozen, LOOK); // a page that has just been loaded needs no update
else for (const part of ["freeze", "live-word"]) byId(part).hidden = true;
