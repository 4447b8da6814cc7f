"use strict";
// What is shown follows from three things: the runs, those that the filters let through, and those chosen.
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const study = read("data");
const runs = study.runs;
const COSTS = { parameters: "parameters", head_gmacs: "GMACs, head", gmacs: "GMACs, all", seconds: "seconds",
  clips_per_second: "clips/s", skipped_clips: "skipped clips" };
let visible = runs;
const chosen = new Set();
const drawings = []; // functions that draw what depends on visible and chosen
const redraw = () => drawings.forEach((draw) => draw());
const $ = (selector) => document.querySelector(selector);

// Everything from the data becomes a text node or an attribute: nothing in it is ever read as HTML.
function make(name, attributes = {}, ...children) {
  const svg = /^(svg|g|path|line|circle|rect|text|polyline)$/.test(name);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function figure(value, digits = 4) {
  if (value === null || value === undefined) return "";
  if (Number.isInteger(value)) return value.toLocaleString("en-US");
  if (Math.abs(value) >= 1000) return Math.round(value).toLocaleString("en-US");
  if (Math.abs(value) < 1e-4) return (+value.toPrecision(digits)).toExponential().replace("-", "−");
  return String(+value.toPrecision(digits));
}
const score = (value) => (value === null || value === undefined ? "" : value.toFixed(4));
const label = (run, keys = study.differs) => keys.map((key) => `${key}=${run.settings[key] ?? "–"}`).join(", ") || run.name || "all runs";
const collator = new Intl.Collator("en", { numeric: true });
const valuesOf = (key, of = runs) => [...new Set(of.map((run) => run.settings[key] ?? "–"))].sort(collator.compare);

function choice(text, options, value, change) {
  const select = make("select", { onchange: () => change(select.value) },
    ...options.map(([key, name]) => make("option", { value: key }, name)));
  select.value = value;
  return make("label", {}, text, select);
}

function choose(run) {
  if (!chosen.delete(run)) chosen.add(run);
  redraw();
}

function tip(event, ...content) {
  const box = $("#tip");
  box.hidden = !content.length;
  if (!content.length) return;
  box.replaceChildren(...content);
  const { width, height } = box.getBoundingClientRect();
  box.style.left = `${Math.max(8, Math.min(event.clientX + 16, innerWidth - width - 8))}px`;
  box.style.top = `${Math.max(8, Math.min(event.clientY + 16, innerHeight - height - 8))}px`;
}

function filters() {
  const counts = {};
  for (const run of runs) counts[run.status] = (counts[run.status] ?? 0) + 1;
  const hidden = new Set();
  const asked = {};
  const haystack = new Map(runs.map((run) => [run, [run.name, run.status, label(run), run.last].join(" ").toLowerCase()]));
  const search = make("input", { type: "search", placeholder: "filter: words, head=tl_tr, -word", "aria-label": "filter runs by words", oninput: apply });
  function apply() {
    const words = search.value.toLowerCase().split(/\s+/).filter((word) => word && word !== "-");
    const has = (run, word) => { // head=wa_tr means that head, not wa_tr_512 too
      const [key, value] = word.split("=", 2), known = study.differs.find((k) => k.toLowerCase() === key);
      return value && known ? (run.settings[known] ?? "–").toLowerCase() === value : haystack.get(run).includes(word);
    };
    const fits = (run) => words.every((word) => (word[0] === "-" ? !has(run, word.slice(1)) : has(run, word)));
    visible = runs.filter((run) => !hidden.has(run.status) && fits(run)
      && Object.entries(asked).every(([key, value]) => value === "" || (run.settings[key] ?? "–") === value));
    redraw();
  }
  const chips = Object.entries(counts).map(([status, n]) => {
    const chip = make("button", { class: `chip ${status}`, "aria-pressed": "true", onclick: () => {
      if (!hidden.delete(status)) hidden.add(status);
      chip.setAttribute("aria-pressed", String(!hidden.has(status)));
      apply();
    } }, make("span", { class: "dot" }), `${n} ${status}`);
    return chip;
  });
  const selects = study.differs.map((key) => [key, valuesOf(key)]).filter(([, values]) => values.length <= 40).map(([key, values]) =>
    choice(key, [["", "all"], ...values.map((value) => [value, value])], "", (value) => { asked[key] = value; apply(); }));
  $("#filters").append(search, ...chips, ...selects, make("button", { onclick: () => { chosen.clear(); redraw(); }, id: "clear" }, "clear choice"));
  drawings.push(() => {
    $("#clear").hidden = !chosen.size;
    $("#clear").textContent = `clear choice (${chosen.size})`;
  });

  const of = (thing) => study.groups.length ? thing.metrics[study.metric]?.[0] : thing.metrics[study.metric];
  const best = (study.groups.length ? study.groups : runs.filter((run) => run.status === "done")).find((thing) => of(thing) != null);
  $("#summary").append(`${runs.length} runs, ${counts.done ?? 0} done`,
    ...(best ? [`; best ${study.groups.length ? "mean " : ""}${study.metric} `, make("b", {}, score(of(best))), ` with ${label(best, study.groups.length ? study.keys : study.differs)}`] : []));
  const troubles = {};
  for (const [path, why] of Object.entries(study.unreadable)) (troubles[why] ??= []).push(path);
  if (Object.keys(troubles).length) $("#unreadable").append(make("div", { class: "warning" }, "Not shown, because it cannot be read:",
    make("ul", {}, ...Object.entries(troubles).map(([why, paths]) => paths.length === 1
      ? make("li", {}, make("code", {}, paths[0]), ` ${why}`)
      : make("li", {}, make("details", {}, make("summary", {}, `${paths.length} × ${why}`), ...paths.map((path) => make("div", {}, make("code", {}, path)))))))));
}
