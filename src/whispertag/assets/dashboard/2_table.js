function table(columns, rows, { classOf = () => "", first = 0, down = true, click = null } = {}) {
  // columns: {name, value(row) → to sort by, cell(row) → node, number}; → {node, lines: row → tr}
  const lines = new Map(rows.map((row) => [row, make("tr", { class: classOf(row) }, ...columns.map((column) => column.cell(row)))]));
  const body = make("tbody", {}, ...lines.values());
  let by = first, falling = down;
  const heads = columns.map((column, i) => make("th", { scope: "col", class: column.number ? "number" : null },
    column.name === "" ? "" : make("button", { onclick: () => {
      falling = by === i ? !falling : Boolean(column.number);
      by = i;
      sort();
    } }, column.name)));
  function sort() {
    heads.forEach((head, i) => i === by ? head.setAttribute("aria-sort", falling ? "descending" : "ascending") : head.removeAttribute("aria-sort"));
    const value = columns[by].value, none = (v) => v === null || v === undefined || v === "";
    const sorted = [...lines.keys()].sort((a, b) => {
      const x = value(a), y = value(b);
      if (none(x) || none(y)) return none(x) - none(y); // what has no value comes last, either way
      return (columns[by].number ? x - y : collator.compare(x, y)) * (falling ? -1 : 1);
    });
    body.append(...sorted.map((row) => lines.get(row)));
  }
  if (click) for (const [row, line] of lines) line.addEventListener("click", (event) => event.target.closest("input, a, button") || click(row));
  return { node: make("table", {}, make("thead", {}, make("tr", {}, ...heads)), body), lines, sort };
}

const column = (name, value, more = {}) => ({ name, value, cell: (row) => make("td", {}, value(row) ?? ""), ...more });
const numeric = (name, value, show) => column(name, value, { number: true, cell: (row) => make("td", { class: "number" }, show(value(row))) });

function runTable() {
  const scores = runs.filter((run) => run.status === "done").map((run) => run.metrics[study.metric]).filter((v) => v != null);
  const low = Math.min(...scores), high = Math.max(...scores);
  const boxes = new Map(runs.map((run) => [run, make("input", { type: "checkbox", "aria-label": `choose ${run.name}`, onchange: () => choose(run) })]));
  const main = numeric(study.metric, (run) => run.metrics[study.metric], score);
  main.cell = (run) => {
    const value = run.metrics[study.metric], share = run.status === "done" && high > low ? (value - low) / (high - low) : 0;
    return make("td", { class: "number main", style: `--share:${(100 * share).toFixed(1)}%` }, score(value));
  };
  const columns = [
    column("", () => "", { cell: (run) => make("td", {}, boxes.get(run)) }),
    column("status", (run) => run.status, { cell: (run) => make("td", { class: run.status }, make("span", { class: "dot" }), run.status) }),
    ...study.differs.map((key) => column(key, (run) => run.settings[key] ?? "–")),
    main,
    ...study.metrics.slice(1).map((name) => numeric(name, (run) => run.metrics[name], score)),
    ...study.costs.map((name) => numeric(COSTS[name], (run) => run.costs[name], figure)),
    column("run", (run) => run.name, { cell: (run) => make("td", { class: "run name", title: run.name }, run.name,
      run.last ? make("span", { class: "why", title: run.last }, run.last) : null) }),
  ];
  const made = table(columns, runs, { classOf: (run) => run.status, first: 2 + study.differs.length, click: choose });
  made.sort();
  $("#runs .scroll").append(made.node);
  drawings.push(() => {
    const seen = new Set(visible);
    for (const [run, line] of made.lines) {
      line.hidden = !seen.has(run);
      line.classList.toggle("chosen", chosen.has(run));
      boxes.get(run).checked = chosen.has(run);
    }
    $("#runs .note").textContent = `${visible.length} of ${runs.length} shown. A click chooses a run for the curves and, two of them, for the classes.`;
  });
  $("#same dl").append(...[...study.implied.map((key) => [key, "differs, as the columns do"]), ...Object.entries(study.same)]
    .flatMap(([key, value]) => [make("dt", {}, key), make("dd", {}, value)]));
}

function groupTable() {
  if (!study.groups.length) return;
  const [of, ...over] = study.by;
  $("#groups").hidden = false;
  $("#groups .note").textContent = `Means of runs that differ in ${study.by.join(", ")} alone, with 95 % intervals (Student) over ${of}`
    + (over.length ? `, each averaged over ${over.join(", ")} first` : "")
    + (study.against ? `; minus ${study.against}: pair by pair, of the runs that both have.` : ".");
  const withInterval = (name, of, show) => ({ ...numeric(name, (group) => of(group)?.[0], show), cell: (group) => {
    const [value, low, high] = of(group) ?? [];
    return make("td", { class: "number" }, make("b", {}, show(value)), make("span", { class: "interval" }, low == null ? "" : `${show(low)} – ${show(high)}`));
  } });
  const signed = (value) => (value > 0 ? "+" : "") + score(value).replace(/^-(?=0\.0+$)/, "").replace("-", "−");
  const [main, ...others] = study.metrics.map((name) => withInterval(name, (group) => group.metrics[name], score));
  const columns = [
    ...study.keys.map((key) => column(key, (group) => group.settings[key] ?? "–")),
    numeric("runs done", (group) => group.done, figure),
    main,
    ...(study.against ? [withInterval(`minus ${study.against}`, (group) => group.difference, signed)] : []),
    ...others,
    ...study.costs.map((name) => numeric(COSTS[name], (group) => group.costs[name], figure)),
  ];
  columns[study.keys.length].cell = (group) => make("td", { class: "number" }, `${group.done} of ${group.n}`);
  const made = table(columns, study.groups, { classOf: () => "done", first: study.keys.length + 1 });
  made.sort();
  $("#groups .scroll").append(made.node);
  drawings.push(() => {
    const seen = new Set(visible);
    for (const [group, line] of made.lines) line.hidden = !group.runs.some((i) => seen.has(runs[i]));
  });
}
