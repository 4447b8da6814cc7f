const WIDTH = 340, HEIGHT = 270, LEFT = 48, RIGHT = 10, TOP = 8, BOTTOM = 26; // of a drawing, in its own units
const SHAPES = [
  (x, y, r, more) => make("circle", { cx: x, cy: y, r, ...more }),
  (x, y, r, more) => make("rect", { x: x - r * 0.9, y: y - r * 0.9, width: 1.8 * r, height: 1.8 * r, ...more }),
  (x, y, r, more) => make("path", { d: `M${x} ${y - 1.3 * r}L${x + 1.3 * r} ${y}L${x} ${y + 1.3 * r}L${x - 1.3 * r} ${y}Z`, ...more }),
];
// The look of the i-th of many values: seven colours, then the same ones in other shapes.
const look = (i) => ({ colour: `var(--c${i % 7})`, shape: SHAPES[Math.floor(i / 7) % SHAPES.length] });
const key = (i, name) => make("span", {}, make("svg", { viewBox: "0 0 12 12", "aria-hidden": "true" }, look(i).shape(6, 6, 4, { fill: look(i).colour })), name);

function scale(values, from, to, canLog) {
  let low = Math.min(...values), high = Math.max(...values);
  const log = canLog && low > 0 && high / low > 15;
  const f = log ? Math.log10 : (v) => v;
  if (low === high) { const by = Math.abs(low) * 0.1 || 1; low -= log ? 0 : by; high += by; }
  const pad = (f(high) - f(low)) * 0.05, a = f(low) - pad, b = f(high) + pad;
  let ticks = [];
  if (log) {
    for (let e = Math.floor(a); e <= b; e++) for (const m of b - a > 3 ? [1] : [1, 3]) ticks.push(m * 10 ** e);
  } else {
    const raw = (b - a) / 5, unit = 10 ** Math.floor(Math.log10(raw)), step = unit * ([1, 2, 5].find((m) => m * unit >= raw) ?? 10);
    for (let i = Math.ceil(a / step); i <= b / step; i++) ticks.push(+(i * step).toPrecision(10));
  }
  const at = (v) => from + (f(v) - a) / (b - a) * (to - from);
  return { at, ticks: ticks.filter((t) => f(t) >= a && f(t) <= b) };
}
const short = (v) => Math.abs(v) >= 1e6 ? `${+(v / 1e6).toPrecision(3)}M` : Math.abs(v) >= 1e4 ? `${+(v / 1e3).toPrecision(3)}k` : v && Math.abs(v) < 1e-3 ? (+v.toPrecision(4)).toExponential().replace("-", "−") : String(+v.toPrecision(4));

function frame(x, y, name, width = WIDTH, height = HEIGHT) {
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": name, tabindex: "0" });
  for (const t of y.ticks) svg.append(make("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y.at(t), y2: y.at(t) }),
    make("text", { x: LEFT - 7, y: y.at(t) + 4, "text-anchor": "end" }, short(t)));
  for (const t of x.ticks) svg.append(make("line", { class: "grid", x1: x.at(t), x2: x.at(t), y1: height - BOTTOM, y2: height - BOTTOM + 4 }),
    make("text", { x: x.at(t), y: height - 8, "text-anchor": "middle" }, short(t)));
  return svg;
}

// points: {x, y in the drawing, tell() → nodes, pick()}. The nearest one is told of; arrow keys walk from left to right.
function pointing(svg, points) {
  let at = -1;
  const width = svg.viewBox.baseVal.width;
  const ordered = [...points].sort((a, b) => a.x - b.x || a.y - b.y);
  const halo = svg.appendChild(make("circle", { class: "picked", r: 8, visibility: "hidden" }));
  function show(i, event) {
    at = i;
    halo.setAttribute("visibility", i < 0 ? "hidden" : "visible");
    if (i < 0) return tip(event);
    halo.setAttribute("cx", ordered[i].x);
    halo.setAttribute("cy", ordered[i].y);
    const box = svg.getBoundingClientRect();
    tip({ clientX: box.left + ordered[i].x * box.width / width, clientY: box.top + ordered[i].y * box.width / width }, ...ordered[i].tell());
  }
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), s = width / box.width;
    const away = ordered.map((p) => Math.hypot(p.x - (event.clientX - box.left) * s, p.y - (event.clientY - box.top) * s));
    const near = away.indexOf(Math.min(...away));
    show(away[near] < 24 ? near : -1, event);
  });
  for (const leave of ["pointerleave", "blur"]) svg.addEventListener(leave, (event) => show(-1, event));
  svg.addEventListener("click", () => at >= 0 && ordered[at].pick?.());
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step && ordered.length) { show((at + step + ordered.length) % ordered.length, event); event.preventDefault(); }
    else if (event.key === "Enter" && at >= 0) ordered[at].pick?.();
    else if (event.key === "Escape") show(-1, event);
  });
}

function front(points) { // the best of those that cost no more, from the cheapest on
  const kept = [];
  for (const p of [...points].sort((a, b) => a.cost - b.cost || b.score - a.score)) if (!kept.length || p.score > kept.at(-1).score) kept.push(p);
  return kept;
}

function scatters() {
  let colour = study.differs[0] ?? "", means = study.groups.length > 0;
  const draw = () => {
    const seen = new Set(visible);
    const keys = means ? study.keys : study.differs;
    if (!keys.includes(colour)) colour = keys[0] ?? "";
    const names = valuesOf(colour);
    const things = means
      ? study.groups.map((g) => ({ of: g, y: g.metrics[study.metric], runs: g.runs.map((i) => runs[i]) })).filter((t) => t.y && t.runs.some((run) => seen.has(run)))
      : visible.filter((run) => run.status === "done" && run.metrics[study.metric] != null).map((run) => ({ of: run, y: [run.metrics[study.metric]], runs: [run] }));
    const used = new Set(things.map((t) => names.indexOf(t.of.settings[colour] ?? "–")));
    $("#costs .legend").replaceChildren(...(colour ? names.map((name, i) => used.has(i) ? key(i, name) : null).filter(Boolean) : []));
    $("#costs .controls").replaceChildren(
      ...(keys.length ? [choice("colour", keys.map((k) => [k, k]), colour, (value) => { colour = value; draw(); })] : []),
      ...(study.groups.length ? [choice("points", [["means", "means"], ["runs", "runs"]], means ? "means" : "runs", (value) => { means = value === "means"; draw(); })] : []));
    $("#costs .panels").replaceChildren(...["parameters", "head_gmacs", "gmacs", "seconds"].map((cost) => panel(cost, things.filter((t) => t.of.costs[cost] != null), names)).filter(Boolean));
  };
  function panel(cost, things, names) {
    if (!things.length) return null;
    const x = scale(things.map((t) => t.of.costs[cost]), LEFT, WIDTH - RIGHT, true);
    const ys = things.map((t) => t.y[0]), spread = Math.max(...ys) - Math.min(...ys);
    const near = (v) => Math.min(Math.max(v, Math.min(...ys) - spread / 2), Math.max(...ys) + spread / 2);
    const y = scale(things.flatMap((t) => t.y.filter((v) => v != null).map(near)), HEIGHT - BOTTOM, TOP); // wide intervals are cut
    const svg = frame(x, y, `${study.metric} against ${COSTS[cost]}, ${things.length} points`);
    const points = things.map((t) => ({ ...t, cost: t.of.costs[cost], score: t.y[0], x: x.at(t.of.costs[cost]), y: y.at(t.y[0]),
      tell: () => [make("b", {}, `${study.metric} ${score(t.y[0])}`), t.y[1] == null ? "" : ` (${score(t.y[1])} – ${score(t.y[2])})`, make("br"),
        `${COSTS[cost]} ${figure(t.of.costs[cost])}`, make("br"), label(t.of, means ? study.keys : study.differs)],
      pick: t.runs.length === 1 ? () => choose(t.runs[0]) : undefined }));
    const best = front(points);
    svg.append(make("path", { class: "front", d: best.map((p, i) => (i ? `H${p.x}V${p.y}` : `M${p.x} ${p.y}`)).join("") }));
    for (const p of points) {
      const { colour: fill, shape } = look(Math.max(0, names.indexOf(p.of.settings[colour] ?? "–")));
      const t = things[points.indexOf(p)];
      if (t.y[1] != null) svg.append(make("line", { class: "interval", stroke: fill, x1: p.x, x2: p.x, y1: y.at(near(t.y[1])), y2: y.at(near(t.y[2])) }));
      svg.append(shape(p.x, p.y, 3.7, { fill, class: "point" }));
      if (p.runs.some((run) => chosen.has(run))) svg.append(make("circle", { class: "picked", cx: p.x, cy: p.y, r: 7 }));
    }
    svg.append(...best.map((p) => make("circle", { class: "ring", cx: p.x, cy: p.y, r: 5.5 })));
    pointing(svg, points);
    return make("figure", {}, make("figcaption", {}, `${study.metric} against ${COSTS[cost]}`), svg);
  }
  drawings.push(draw);
}

function heat() {
  const keys = study.differs.filter((k) => valuesOf(k).length > 1);
  if (keys.length < 2) return;
  let down = keys.includes("head") ? "head" : keys[0];
  // The fuller the table, the more it says.
  const full = (k) => new Set(runs.map((run) => JSON.stringify([run.settings[down], run.settings[k]]))).size / valuesOf(k).length;
  const fullest = keys.filter((k) => k !== down).sort((a, b) => full(b) - full(a))[0];
  let across = keys.includes("layers") && down !== "layers" ? "layers" : fullest;
  $("#heat").hidden = false;
  const draw = () => {
    const done = visible.filter((run) => run.status === "done" && run.metrics[study.metric] != null);
    const rows = valuesOf(down, visible), columns = valuesOf(across, visible);
    const cell = (r, c) => done.filter((run) => (run.settings[down] ?? "–") === r && (run.settings[across] ?? "–") === c).map((run) => run.metrics[study.metric]);
    const cells = rows.map((r) => columns.map((c) => cell(r, c)));
    const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
    const all = cells.flat().filter((v) => v.length).map(mean), low = Math.min(...all), high = Math.max(...all);
    const show = (values) => {
      if (!values.length) return make("td", { title: "no run that is done" }, "–");
      const share = high > low ? (mean(values) - low) / (high - low) : 0.5;
      return make("td", { class: share > 0.6 ? "hot" : null, title: `mean of ${values.length}: ${Math.min(...values).toFixed(4)} – ${Math.max(...values).toFixed(4)}`,
        style: `background:color-mix(in oklab, var(--accent) ${(8 + 92 * share).toFixed(0)}%, var(--raised))` }, mean(values).toFixed(3));
    };
    const options = keys.map((k) => [k, k]);
    $("#heat .controls").replaceChildren(choice("down", options, down, (v) => { if (v === across) across = down; down = v; draw(); }),
      choice("across", options, across, (v) => { if (v === down) down = across; across = v; draw(); }), make("span", { class: "note", style: "margin:0" }, `mean ${study.metric} of the runs in a cell`));
    $("#heat .scroll").replaceChildren(make("table", {}, make("thead", {}, make("tr", {}, make("th", {}, ""), ...columns.map((c) => make("th", { scope: "col" }, c)))),
      make("tbody", {}, ...rows.map((r, i) => make("tr", {}, make("th", { scope: "row" }, r), ...cells[i].map(show))))));
  };
  drawings.push(draw);
}
