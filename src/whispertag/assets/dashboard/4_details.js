const WIDE = 1100, HIGH = 360; // the drawing of the curves
const MOST = 12; // curves drawn at once
const FEW = 20; // classes shown at either end

function curves() {
  const found = read("curve-data"), names = [...new Set(found.flatMap((of) => Object.keys(of.curves)))].sort(collator.compare);
  if (!names.length) return;
  $("#curves").hidden = false;
  let name = [`val/${study.metric}`, "val/loss"].find((n) => names.includes(n)) ?? names[0], by = "epochs";
  const draw = () => {
    const asked = (chosen.size ? [...chosen] : visible).filter((run) => found[run.i].curves[name] && (by === "steps" || found[run.i].steps));
    const drawn = asked.slice(0, chosen.size ? MOST : 5);
    $("#curves .note").textContent = (chosen.size ? "The runs chosen" : "The best five of those shown; choose others in the table")
      + (asked.length > drawn.length && chosen.size ? ` (the first ${MOST} of ${asked.length} that have this curve).` : ".");
    $("#curves .controls").replaceChildren(choice("curve", names.map((n) => [n, n]), name, (v) => { name = v; draw(); }),
      choice("against", [["epochs", "epochs"], ["steps", "steps"]], by, (v) => { by = v; draw(); }));
    $("#curves .legend").replaceChildren(...drawn.map((run, i) => key(i, label(run) + (run.status === "done" ? "" : ` (${run.status})`))));
    if (!drawn.length) return $("#curves .panels").replaceChildren(make("p", { class: "note" }, "None of these runs has such a curve."));
    const xs = (run) => found[run.i].curves[name][0].map((step) => by === "steps" ? step + 1 : (step + 1) / found[run.i].steps);
    const x = scale(drawn.flatMap(xs), LEFT, WIDE - RIGHT), y = scale(drawn.flatMap((run) => found[run.i].curves[name][1]), HIGH - BOTTOM, TOP);
    const svg = frame(x, y, `${name} over ${by} of ${drawn.length} runs`, WIDE, HIGH);
    const points = [];
    drawn.forEach((run, i) => {
      const at = xs(run), line = at.map((v, j) => [x.at(v), y.at(found[run.i].curves[name][1][j])]);
      svg.append(make("polyline", { class: "curve", stroke: look(i).colour, "stroke-dasharray": i < 7 ? null : "5 3", points: line.map((p) => p.map((v) => v.toFixed(1)).join(",")).join(" ") }));
      if (line.length === 1) svg.append(make("circle", { cx: line[0][0], cy: line[0][1], r: 3, fill: look(i).colour }));
      line.forEach(([px, py], j) => points.push({ x: px, y: py, tell: () => [make("b", {}, `${name} ${figure(found[run.i].curves[name][1][j])}`), ` at ${figure(at[j])} ${by}`, make("br"), label(run)] }));
    });
    pointing(svg, points);
    $("#curves .panels").replaceChildren(make("figure", {}, make("figcaption", {}, `${name} over ${by}`), svg));
  };
  drawings.push(draw);
}

function classes() {
  const { tables, runs: scores } = read("class-data");
  const able = runs.filter((run) => scores[run.i]);
  if (able.length < 2) return;
  $("#classes").hidden = false;
  const other = able.find((run) => run !== able[0] && run.settings[study.differs[0]] !== able[0].settings[study.differs[0]]);
  let a = able[0], b = other ?? able[1], words = "", all = false, taken = "";
  const options = able.map((run) => [String(run.i), `${score(run.metrics[study.metric])}  ${label(run)}`]);
  const search = make("input", { type: "search", placeholder: "filter classes", "aria-label": "filter classes", oninput: () => { words = search.value.toLowerCase(); draw(); } });
  const pick = (text, run, set) => choice(text, options, String(run.i), (value) => { set(runs[+value]); draw(); });
  const controls = () => $("#classes .controls").replaceChildren(pick("first", a, (run) => { a = run; }), pick("minus second", b, (run) => { b = run; }), search,
    make("button", { onclick: () => { all = !all; draw(); }, id: "all-classes" }, ""));
  function draw() {
    const of = (run) => { const [t, values] = scores[run.i]; return new Map(tables[t].names.map((n, i) => [n, { value: values[i] == null ? null : values[i] / 1e4, clips: tables[t].clips[i] }])); };
    const what = tables[scores[a.i][0]].column, first = of(a), second = of(b);
    const rows = [...first].filter(([n, { value }]) => value != null && second.get(n)?.value != null)
      .map(([n, { value, clips }]) => ({ n, clips, a: value, b: second.get(n).value, d: value - second.get(n).value })).sort((p, q) => q.d - p.d || collator.compare(p.n, q.n));
    const mean = rows.reduce((s, r) => s + r.d, 0) / rows.length;
    $("#classes .note").textContent = rows.length ? `${what} of the first minus that of the second: ${mean >= 0 ? "+" : "−"}${Math.abs(mean).toFixed(4)} on average; better in `
      + `${rows.filter((r) => r.d > 0).length}, worse in ${rows.filter((r) => r.d < 0).length} of ${rows.length} classes.` : "These runs have no class in common.";
    const fits = rows.filter((r) => r.n.toLowerCase().includes(words)), most = Math.max(0.01, ...rows.map((r) => Math.abs(r.d)));
    const cut = !all && fits.length > 2 * FEW + 5;
    const line = (r) => make("div", { class: "bar" }, make("span", { title: r.n }, r.n), make("span", { class: "clips" }, String(r.clips)), make("span", { class: "figures" }, `${r.a.toFixed(3)} − ${r.b.toFixed(3)}`),
      make("span", { class: "track" }, make("i", { class: r.d >= 0 ? "more" : "less", style: `width:${(50 * Math.abs(r.d) / most).toFixed(2)}%;${r.d >= 0 ? "left" : "right"}:50%` })),
      make("span", { class: "value" }, `${r.d >= 0 ? "+" : "−"}${Math.abs(r.d).toFixed(3)}`));
    const gap = make("div", { class: "bar head" }, `… ${fits.length - 2 * FEW} more`);
    $("#all-classes").textContent = all ? `the ${FEW} at either end` : `all ${fits.length}`;
    $("#all-classes").hidden = fits.length <= 2 * FEW + 5;
    $("#classes .bars").replaceChildren(make("div", { class: "bar head" }, make("span", {}, "class"), make("span", { class: "clips" }, "clips"), make("span", { class: "figures" }, what), make("span"), make("span")),
      ...(cut ? [...fits.slice(0, FEW).map(line), gap, ...fits.slice(-FEW).map(line)] : fits.map(line)));
  }
  controls();
  drawings.push(() => { // two runs chosen are the two compared; the first time and whenever the choice changes
    const two = [...chosen].filter((run) => scores[run.i]), id = two.map((run) => run.i).join();
    if (two.length === 2 && id !== taken) { [a, b] = two; controls(); draw(); }
    else if (taken === "" && !$("#classes .bars").childElementCount) draw();
    taken = id;
  });
}

function unfinished() {
  const lost = runs.filter((run) => run.status !== "done");
  $("#unfinished").hidden = !lost.length;
  $("#unfinished .list").append(...lost.map((run) => make("details", {}, make("summary", { class: run.status },
    make("span", { class: "dot" }), make("b", {}, run.status), " ", label(run), run.last ? make("span", { class: "why" }, run.last) : null),
    make("div", { class: "name" }, run.name), make("pre", { tabindex: "0" }, run.error ?? "No traceback: see train.log in the run's folder."))));
}

for (const part of [filters, scatters, groupTable, runTable, heat, curves, classes, unfinished]) part();
redraw();
