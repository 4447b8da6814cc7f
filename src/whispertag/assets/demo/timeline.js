"use strict";
// What was heard is drawn once; afterwards only the position changes.
const data = JSON.parse(document.getElementById("data").textContent);
const FEW = 14; // lanes that are shown at first
const $ = (selector) => document.querySelector(selector);
const percent = (seconds) => `${(100 * Math.min(seconds, data.seconds) / data.seconds).toFixed(4)}%`;
const chance = (probability) => `${Math.round(100 * probability)} %`;

// Everything from the data becomes a text node or an attribute: nothing in it is ever read as HTML.
function make(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function clock(seconds, digits = 0) {
  const whole = Math.floor(seconds * 10 ** digits + 1e-6) / 10 ** digits;
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  return (h ? `${h}:${String(m).padStart(2, "0")}` : String(m)) + ":" + s.toFixed(digits).padStart(digits ? 3 + digits : 2, "0");
}

// An item is a stretch of speech, or of one sound. It has up to two nodes: a bar in a lane, a line in the list.
const items = data.lanes.flatMap((lane, row) => lane.items.map((item) => ({ ...item, row, label: lane.label, kind: lane.kind, nodes: [] })));
const what = (item) => (item.kind === "speech" ? item.text : `${item.label}, ${chance(item.probability)}`);
const when = (item) => `${clock(item.start, 1)} – ${clock(item.end, 1)}`;
const doubt = (item) => (item.voice === undefined ? null : `no voice is heard here (${chance(item.voice)})`);

function tip(item, box) {
  const node = $("#tip");
  node.hidden = !item;
  if (!item) return;
  node.replaceChildren(make("b", {}, item.kind === "speech" ? item.text : item.label),
    make("span", {}, item.kind === "speech" ? when(item) : `${chance(item.probability)} · ${when(item)}`), ...(doubt(item) ? [make("span", {}, doubt(item))] : []));
  const { width, height } = node.getBoundingClientRect();
  const seen = { left: Math.max(box.left, 0), right: Math.min(box.right, innerWidth) };
  node.style.left = `${Math.max(8, Math.min((seen.left + seen.right - width) / 2, innerWidth - width - 8))}px`;
  node.style.top = `${box.top - height - 8 < 4 ? box.bottom + 8 : box.top - height - 8}px`;
}

function drawWave() {
  const { peaks } = data;
  if (!peaks.length) { $(".wave").hidden = true; return; }
  const half = peaks.map((peak) => Math.max(0.6, peak / 2.55 / 2));
  const up = half.map((h, i) => `L${i} ${(50 - h).toFixed(1)}`), down = half.map((h, i) => `L${i} ${(50 + h).toFixed(1)}`).reverse();
  $(".wave svg").setAttribute("viewBox", `0 0 ${Math.max(1, peaks.length - 1)} 100`);
  for (const path of document.querySelectorAll(".wave path")) path.setAttribute("d", `M0 50${up.join("")}${down.join("")}Z`);
}

function drawAxis() {
  const track = $(".axis .track"), steps = [0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400];
  const step = steps.find((s) => track.clientWidth * s / data.seconds >= 64) ?? 28800;
  const marks = Array.from({ length: Math.floor(data.seconds / step) + 1 }, (_, i) => i * step);
  const fits = (t) => (1 - t / data.seconds) * track.clientWidth > 30; // a number is not cut off at the end
  track.replaceChildren(...marks.map((t) => make("span", { style: `left:${percent(t)}` }, fits(t) ? clock(t, step < 1 ? 1 : 0) : "")));
}

function drawLanes(play) {
  const all = data.lanes.map((lane, row) => make("div", { class: `row ${lane.kind}`, role: "group", "aria-label": lane.label, hidden: row >= FEW },
    make("span", { class: "name", title: lane.label }, lane.label), make("div", { class: "track" })));
  for (const item of items) {
    const share = item.kind === "sound" ? `;--share:${(15 + 85 * item.probability).toFixed(0)}%` : "";
    const bar = make("button", { class: item.voice === undefined ? "item" : "item doubted", tabindex: "-1", style: `left:${percent(item.start)};width:${percent(Math.min(item.end, data.seconds) - item.start)}${share}`,
      "aria-label": [what(item), when(item), doubt(item)].filter(Boolean).join(", "), onclick: (event) => { event.stopPropagation(); play(item.start); },
      onpointerenter: () => tip(item, bar.getBoundingClientRect()), onpointerleave: () => tip(null),
      onfocus: () => tip(item, bar.getBoundingClientRect()), onblur: () => tip(null) }, item.kind === "speech" ? make("span", {}, item.text) : null);
    item.bar = bar;
    item.nodes.push(bar);
    all[item.row].lastChild.append(bar);
  }
  $("#lanes").append(...all);
  if (all.length > FEW) {
    const more = $("#more");
    more.hidden = false;
    const say = () => { more.textContent = all[FEW].hidden ? `${all.length - FEW} more lanes` : "fewer lanes"; };
    more.onclick = () => { all.forEach((lane, row) => { lane.hidden = row >= FEW && !lane.hidden; }); say(); };
    say();
  }
}

function drawList(play) {
  const sorted = [...items].sort((a, b) => a.start - b.start || a.row - b.row);
  const doubted = (item) => (doubt(item) ? make("small", {}, doubt(item)) : null);
  $("#heard").append(...sorted.map((item) => {
    const line = make("button", { class: item.kind, onclick: () => play(item.start) }, make("time", {}, clock(item.start)),
      item.kind === "speech" ? make("span", {}, item.text, doubted(item)) : make("span", {}, `[${item.label}]`, make("small", {}, chance(item.probability))));
    item.nodes.push(line);
    item.line = line;
    return make("li", {}, line);
  }));
  if (!sorted.length) $("#heard").replaceWith(make("p", { class: "note" }, data.words ? "No speech, and no sound above the threshold." : "No sound above the threshold."));
}

function summary() {
  const sounds = items.filter((item) => item.kind === "sound"), kinds = new Set(sounds.map((item) => item.label)).size;
  const language = data.language && (new Intl.DisplayNames(["en"], { type: "language", fallback: "code" }).of(data.language));
  const count = sounds.length ? `${sounds.length} sound${sounds.length > 1 ? "s" : ""} of ${kinds} kind${kinds > 1 ? "s" : ""}` : "no sounds";
  $("#summary").textContent = [clock(data.seconds), data.words ? language : null, count, `${data.classes} classes known`, `heard every ${data.resolution} s`].filter(Boolean).join(" · ");
}
