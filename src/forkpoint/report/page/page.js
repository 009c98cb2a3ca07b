"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const words = data.words;
  const find = (id) => document.getElementById(id);
  const make = (tag, text, role) => {
    const made = document.createElement(tag);
    made.textContent = text;
    if (role) made.className = role;
    return made;
  };
  const short = (number) => {
    if (typeof number !== "number") return String(number);
    const rounded = Number(number.toPrecision(3));
    return rounded && Math.abs(rounded) < 1e-3 ? rounded.toExponential() : String(rounded);
  };
  const fill = (phrase, values) => phrase.replace(/\{(\w+)\}/g, (_, name) => values[name]);
  // Plotly reads markup in its labels; here every text is data.
  const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  // ---------------------------------------------------------------- the table of ops

  const COLUMNS = ["order", "module", "function", "variable", "source", "shape", "dtype", "status"];
  const PAGE = innerWidth < 640 ? 15 : 50;  // on a phone a row takes several lines
  const texts = data.ops.texts;
  const ops = data.ops.rows.map((row, index) => ({
    index, order: row[0], module: texts[row[1]], function: texts[row[2]], variable: texts[row[3]], source: texts[row[4]],
    code: texts[row[5]], shape: texts[row[6]], dtype: texts[row[7]], status: texts[row[8]], compared: row[9],
    differing: row[10], reason: texts[row[11]], passes: row[12],
  }));
  for (const op of ops)
    op.searched = [`${op.module}/${op.function}`, op.variable, op.source, op.code, op.reason].join("\n").toLowerCase();
  const view = { search: "", statuses: new Set(), row: null, sort: "order", down: false, page: 0, shown: ops };

  function within(op, row) {
    if (row.module !== null) return op.module === row.module || op.module.startsWith(row.module + ".");
    return op.order > row.after;
  }

  function refresh(page = 0) {
    const wanted = view.search.toLowerCase();
    view.shown = ops.filter((op) =>
      (!view.statuses.size || view.statuses.has(op.status)) && (!wanted || op.searched.includes(wanted)) &&
      (view.row === null || within(op, data.map.rows[view.row])));
    const key = view.sort;
    const number = key === "order";
    const value = key === "status" ? (op) => `${op.status}\n${String(op.differing).padStart(12, "0")}` : (op) => op[key];
    view.shown.sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      const found = number ? x - y : x < y ? -1 : x > y ? 1 : 0;
      return (view.down ? -found : found) || a.order - b.order;
    });
    show(page);
  }

  function show(page) {
    const last = Math.max(0, Math.ceil(view.shown.length / PAGE) - 1);
    view.page = Math.min(Math.max(page, 0), last);
    const start = view.page * PAGE;
    const rows = view.shown.slice(start, start + PAGE);
    find("ops-table").tBodies[0].replaceChildren(...rows.map(line));
    const values = { first: rows.length ? start + 1 : 0, last: start + rows.length, n: view.shown.length };
    find("ops-range").textContent = fill(words.range, values);
    find("ops-back").disabled = view.page === 0;
    find("ops-on").disabled = view.page === last;
    for (const head of find("ops-table").tHead.rows[0].cells) {
      const sorted = head.dataset.key === view.sort;
      head.setAttribute("aria-sort", !sorted ? "none" : view.down ? "descending" : "ascending");
      head.firstChild.textContent = words.heads[head.dataset.key] + (sorted ? (view.down ? " ↓" : " ↑") : "");
    }
    const filter = find("ops-filter");
    filter.hidden = view.row === null;
    if (view.row !== null) filter.firstChild.textContent = fill(words.inside, { module: data.map.rows[view.row].name });
    for (const chip of find("ops-status").children)
      chip.setAttribute("aria-pressed", String(view.statuses.has(chip.dataset.status)));
  }

  function line(op) {
    const row = document.createElement("tr");
    row.dataset.index = op.index;
    if (op.index === data.ops.first) row.className = "first";
    row.append(make("td", op.order + 1, "muted"), make("td", op.module || words.root), make("td", op.function, "strong"),
      document.createElement("td"), make("td", op.source, "muted"), make("td", op.shape), make("td", op.dtype),
      document.createElement("td"));
    if (op.variable) row.cells[3].append(make("span", op.variable, "code"));
    const status = row.cells[7];
    status.append(make("span", words.statuses[op.status] || op.status, data.ops.roles[op.status] || ""));
    if (op.status === "differs")
      status.append(make("span", " " + fill(words.differing, { part: op.differing, whole: op.compared }), "muted"));
    if (op.passes > 1) status.append(make("span", ` ×${op.passes}`, "muted"));
    row.addEventListener("click", () => {
      if (row.nextSibling && row.nextSibling.className === "more") { row.nextSibling.remove(); return; }
      const more = document.createElement("tr");
      more.className = "more";
      const cell = document.createElement("td");
      cell.colSpan = COLUMNS.length;
      if (op.code) cell.append(make("div", op.code, "code"));
      if (op.reason) cell.append(make("div", op.reason, "muted"));
      if (!cell.childNodes.length) return;
      more.append(cell);
      row.after(more);
    });
    return row;
  }

  function narrow(row) {
    view.row = row;
    refresh();
    find("ops").scrollIntoView({ block: "start" });
  }

  function table() {
    const head = find("ops-table").tHead.rows[0];
    for (const key of COLUMNS) {
      const cell = document.createElement("th");
      cell.dataset.key = key;
      const button = make("button", words.heads[key]);
      button.type = "button";
      button.addEventListener("click", () => {
        view.down = view.sort === key && !view.down;
        view.sort = key;
        refresh();
      });
      cell.append(button);
      head.append(cell);
    }
    for (const [status, number] of data.ops.counts) {
      const chip = make("button", `${words.statuses[status] || status} ${number.toLocaleString("en")}`);
      chip.type = "button";
      chip.dataset.status = status;
      chip.addEventListener("click", () => {
        if (!view.statuses.delete(status)) view.statuses.add(status);
        refresh();
      });
      find("ops-status").append(chip);
    }
    find("ops-search").addEventListener("input", (event) => { view.search = event.target.value.trim(); refresh(); });
    find("ops-filter").lastElementChild.addEventListener("click", () => { view.row = null; refresh(); });
    find("ops-back").addEventListener("click", () => show(view.page - 1));
    find("ops-on").addEventListener("click", () => show(view.page + 1));
    if (find("ops-first")) find("ops-first").addEventListener("click", toFirst);
    refresh();
  }

  function toFirst() {
    Object.assign(view, { search: "", row: null, sort: "order", down: false });
    view.statuses.clear();
    find("ops-search").value = "";
    refresh();
    const place = view.shown.findIndex((op) => op.index === data.ops.first);
    show(Math.floor(Math.max(place, 0) / PAGE));
    const row = find("ops-table").querySelector("tr.first");
    if (row) row.scrollIntoView({ block: "center" });
  }

  // ---------------------------------------------------------------- the map and the drift

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const dark = () => matchMedia("(prefers-color-scheme: dark)").matches && !matchMedia("print").matches;
  const SCALE = [[0, "#fde9a9"], [0.25, "#f9b24f"], [0.5, "#e8634f"], [0.75, "#a52c60"], [1, "#3b0f70"]];
  const finite = (value) => typeof value === "number";
  const CONFIG = { displaylogo: false, responsive: true, showSendToCloud: false, displayModeBar: false, doubleClick: false, doubleClickDelay: 1 };
  const log = Math.log10;
  const tens = (low, high) => {
    const step = Math.max(1, Math.ceil((high - low) / 6));
    const values = [];
    for (let power = Math.ceil(low); power <= high; power += step) values.push(power);
    if (values.length) return { tickvals: values, ticktext: values.map((power) => short(10 ** power)) };
    return { tickvals: [low, high], ticktext: [low, high].map((power) => short(10 ** power)) };
  };
  const thinned = (length, most) => {
    const step = Math.max(1, Math.ceil(length / most));
    const places = [...Array(length).keys()].filter((place) => place % step === 0);
    if (length && places.at(-1) !== length - 1) {
      if (length - 1 - places.at(-1) < step / 2) places.pop();
      places.push(length - 1);
    }
    return places;
  };

  function layout(height) {
    const line = css("--line");
    return {
      height, autosize: true, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: css("--text"), size: 12, family: "system-ui, sans-serif" }, margin: { l: 8, r: 8, t: 8, b: 8 },
      xaxis: { automargin: true, gridcolor: line, linecolor: line, zeroline: false },
      yaxis: { automargin: true, gridcolor: line, linecolor: line, zeroline: false },
      showlegend: false, dragmode: false,
    };
  }

  function names() {
    const parts = data.map.rows.map((row) => row.name);
    return parts.map((name) => (name.startsWith(data.map.prefix) ? name.slice(data.map.prefix.length) : name));
  }

  function drawMap() {
    const { rows, columns, cells, mark } = data.map;
    const graded = [];
    const other = [];  // 0 equal, 1 of no known scale, or only within, 2 not finite
    let [low, high] = [Infinity, -Infinity];
    cells.forEach((gaps, y) => {
      const factor = rows[y].factor;
      graded.push(gaps.map((gap) => (finite(gap) && gap > 0 && factor !== null ? log(gap * factor) : null)));
      other.push(gaps.map((gap, x) => {
        if (gap === null || graded[y][x] !== null) return null;
        if (gap === 0) return isMark(y, x) ? 1 : 0;
        return finite(gap) ? 1 : 2;
      }));
      for (const z of graded[y]) if (z !== null) { low = Math.min(low, z); high = Math.max(high, z); }
    });
    if (low === high) { low -= 0.5; high += 0.5; }
    const narrow = innerWidth < 640;
    const height = data.map.height;
    const page = layout(height);
    const shown = thinned(rows.length, Math.max(4, Math.floor((height - 90) / 15)));
    const across = thinned(columns.length, narrow ? 6 : 16);
    const labels = names();
    Object.assign(page.xaxis, {
      title: { text: plain(words.tokens), standoff: 4 }, tickvals: across, ticktext: across.map((x) => plain(columns[x])),
      range: [-0.5, columns.length - 0.5], fixedrange: true, showgrid: false, tickangle: 0,
    });
    Object.assign(page.yaxis, {
      tickvals: shown, ticktext: shown.map((y) => plain(labels[y])), range: [rows.length - 0.5, -0.5], fixedrange: true,
      showgrid: false, title: { text: plain(data.map.prefix ? data.map.prefix + "*" : ""), standoff: 6 },
    });
    const space = columns.length <= 80 && rows.length <= 80 ? 1 : 0;
    const bar = { thickness: 12, len: 1, outlinewidth: 0, title: { text: plain(words.relative), side: "top" }, ...tens(low, high) };
    const sideways = { orientation: "h", y: -0.02, yanchor: "top", title: { text: plain(words.relative), side: "bottom" } };
    if (narrow) page.xaxis.side = "top";
    const steps = [css("--equal"), css("--unknown"), css("--bad")];
    const traces = [
      { type: "heatmap", z: other, zmin: 0, zmax: 2, showscale: false, xgap: space, ygap: space, hoverinfo: "none",
        colorscale: steps.flatMap((colour, place) => [[place / 3, colour], [(place + 1) / 3, colour]]) },
      { type: "heatmap", z: graded, zmin: low, zmax: high, colorscale: SCALE, reversescale: dark(), xgap: space, ygap: space, hoverinfo: "none",
        showscale: Number.isFinite(low), colorbar: narrow ? { ...bar, ...sideways } : bar },
    ];
    if (mark) {
      const marked = { type: "scatter", mode: "markers", x: [mark[1]], y: [mark[0]], hoverinfo: "skip" };
      traces.push({ ...marked, marker: { symbol: "circle", size: 15, color: "#ffffff", line: { width: 2, color: "#000000" } } });
      traces.push({ ...marked, marker: { symbol: "x", size: 7, color: "#c00000" } });
    }
    const plot = find("map-plot");
    Plotly.purge(plot);
    Plotly.newPlot(plot, traces, page, CONFIG);
    plot.on("plotly_hover", (event) => hover(event));
    plot.on("plotly_unhover", () => { find("map-hover").style.visibility = "hidden"; });
    plot.on("plotly_click", (event) => narrowTo(event.points[0]));
  }

  function isMark(y, x) {
    const { mark } = data.map;
    return mark !== null && mark[0] === y && mark[1] === x;
  }

  function narrowTo(point) {
    find("map-hover").style.visibility = "hidden";
    narrow(point.y);
  }

  function hover(event) {
    const { x, y } = event.points[0];
    const gap = data.map.cells[y][x];
    if (gap === null) return;
    const row = data.map.rows[y];
    const parts = [row.name, data.map.hover[x]];
    if (gap === 0) parts.push(isMark(y, x) ? words.within : words.equal);
    else {
      parts.push(fill(words.gap, { gap: short(gap) }));
      if (finite(gap) && row.factor !== null) parts.push(fill(words.relatively, { gap: short(gap * row.factor) }));
    }
    if (isMark(y, x)) parts.push(words.first);
    const box = find("map-hover");
    box.textContent = parts.join("\n");
    const { clientX, clientY } = event.event;
    const left = Math.min(clientX + 14, document.documentElement.clientWidth - box.offsetWidth - 8);
    box.style.left = `${Math.max(8, left)}px`;
    box.style.top = `${Math.max(8, clientY - box.offsetHeight - 12)}px`;
    box.style.visibility = "visible";
  }

  function drawDrift() {
    const { rows } = data.map;
    const labels = names();
    const page = layout(260);
    const shown = thinned(rows.length, innerWidth < 640 ? 5 : 12);
    const drawn = rows.map((row, x) => ({ row, x })).filter(({ row }) => finite(row.relative) && row.relative > 0);
    const sizes = drawn.map(({ row }) => log(row.relative));
    Object.assign(page.xaxis, {
      tickvals: shown, ticktext: shown.map((x) => plain(labels[x])), range: [-0.5, rows.length - 0.5], fixedrange: true,
      title: { text: plain(data.map.prefix ? data.map.prefix + "*" : ""), standoff: 4 }, showgrid: false,
    });
    Object.assign(page.yaxis, { title: { text: plain(words.relative), standoff: 8 }, fixedrange: true });
    if (drawn.length) Object.assign(page.yaxis, tens(Math.min(...sizes), Math.max(...sizes)));
    const drift = {
      type: "scatter", mode: "lines+markers", x: drawn.map(({ x }) => x), y: sizes, line: { color: css("--accent"), width: 2 },
      marker: { size: 6, color: css("--accent") }, hoverinfo: "text",
      text: drawn.map(({ row }) => plain(`${row.name}: ${short(row.relative)}`)),
    };
    Plotly.purge(find("drift-plot"));
    Plotly.newPlot(find("drift-plot"), [drift], page, CONFIG);
  }

  function draw() {
    if (!data.map) return;
    if (find("map-plot")) drawMap();
    if (find("drift-plot")) drawDrift();
  }

  if (find("ops-table")) table();
  requestAnimationFrame(() => setTimeout(draw));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  matchMedia("print").addEventListener("change", draw);
  matchMedia("(max-width: 639px)").addEventListener("change", draw);
})();
