"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const select = document.getElementById("key");
const dark = matchMedia("(prefers-color-scheme: dark)");
const coarse = matchMedia("(pointer: coarse)");
let mark = null; // {run, step, timestep}: where an event leads to

// Names from the run log go into the page as text nodes only, never into plotly, which reads some HTML.
const places = [...new Set(data.keys.map(key => key.place))];
places.forEach((place, at) => select.add(new Option(place, at)));
let state = "h";
document.getElementById("bar").hidden = data.keys.length === 0;
if (data.omitted) document.getElementById("omitted").textContent = `${data.omitted} more are left out of this page.`;

const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const number = value => (typeof value === "number" ? value : null); // "nan" and "inf" stand in the data as words
const numbers = values => values.map(number);
const positive = value => typeof value === "number" && value > 0;
const shades = () => (dark.matches
  ? ["#6a7fc1", "#2c8fa8", "#28ae80", "#7ad151", "#fde725"]
  : ["#a5d636", "#3dbc74", "#21918c", "#39568c", "#440154"]);

function layout(extra) {
  const axis = { gridcolor: css("--grid"), zerolinecolor: css("--grid"), linecolor: css("--soft"), automargin: true };
  const titled = axis => (axis && axis.title ? { ...axis, title: { standoff: 8, ...axis.title } } : axis);
  const axes = {};
  for (const name of ["xaxis", "yaxis", "xaxis2", "yaxis2"]) if (extra[name] || !name.endsWith("2")) axes[name] = { ...axis, ...titled(extra[name]) };
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: css("--fg"), size: 12, family: getComputedStyle(document.body).fontFamily },
    margin: { l: 50, r: 12, t: 30, b: 40 },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--soft"), activecolor: css("--accent") }, dragmode: coarse.matches ? false : "zoom",
    legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom" }, hoverlabel: { namelength: 0 }, ...extra, ...axes,
  };
}

// One panel per run; `make` returns {traces, layout, label, notes}, or {words} where there is nothing to draw.
function panels(id, make) {
  const box = document.getElementById(id);
  // All panels stand before the first is drawn: each takes the width that it finds.
  while (box.children.length < data.runs.length) {
    const panel = document.createElement("div");
    panel.className = "panel";
    panel.append(document.createElement("h3"), document.createElement("div"), document.createElement("p"));
    panel.children[0].textContent = data.runs[box.children.length].name;
    box.append(panel);
  }
  data.runs.forEach((run, place) => {
    const [, plot, words] = box.children[place].children;
    const made = make(run, place);
    words.textContent = made.words || (made.notes || []).filter(Boolean).join("; ");
    if (made.words) { Plotly.purge(plot); plot.className = ""; plot.removeAttribute("role"); return; }
    plot.className = made.className || "plot";
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", `${run.name}: ${made.label}`);
    const shapes = [...(made.layout.shapes || [])], line = { type: "line", line: { color: css("--bad"), width: 2 } };
    if (mark && mark.run === place && made.marks !== false) {
      shapes.push({ ...line, x0: mark.step, x1: mark.step, yref: "paper", y0: 0, y1: 1 });
      if (made.marks === "timestep" && mark.timestep !== null) shapes.push({ ...line, xref: "paper", x0: 0, x1: 1, y0: mark.timestep, y1: mark.timestep });
    }
    Plotly.react(plot, made.traces, layout({ ...made.layout, shapes }), { responsive: true, displaylogo: false, modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] });
  });
}

const series = (run, key) => run.series[key];
const absent = { words: "This run has no such gradient." };

function span(values, decades) {
  let low = Infinity, high = -Infinity;
  for (const value of values) if (positive(value)) { low = Math.min(low, value); high = Math.max(high, value); }
  if (low > high) return [0, 1];
  [low, high] = [Math.log10(low), Math.log10(high)];
  low = Math.max(low, high - decades);
  if (high - low < 1) { const middle = (low + high) / 2; [low, high] = [middle - 0.5, middle + 0.5]; } // no pattern out of noise
  return [low, high];
}

const power = exponent => `10<sup>${exponent}</sup>`.replace("-", "−");

// Ticks of a log scale: powers of ten, or 1, 2, 5 where there are few of these.
function ticks(low, high) {
  const fine = high - low < 2.5, every = Math.max(1, Math.ceil((high - low) / 7)), vals = [], texts = [];
  for (let exponent = Math.floor(low); exponent <= high; exponent += every) {
    for (const digit of fine ? [1, 2, 5] : [1]) {
      const place = exponent + Math.log10(digit);
      if (place < low || place > high) continue;
      vals.push(place);
      texts.push(fine ? (Math.abs(exponent) < 4 ? String(Number((10 ** place).toPrecision(1))) : digit + "·" + power(exponent)) : power(exponent));
    }
  }
  return { tickvals: vals, ticktext: texts };
}

// Where the first and the last cell of a heatmap end.
function borders(places) {
  const n = places.length;
  return n > 1 ? [places[0] - (places[1] - places[0]) / 2, places[n - 1] + (places[n - 1] - places[n - 2]) / 2] : [places[0] - 0.5, places[0] + 0.5];
}

// A log axis without the clutter of 2, 3, 4 … where powers of ten do.
function logAxis(title, values) {
  const [low, high] = span(values, 30);
  return { type: "log", exponentformat: "power", title: { text: title }, ...(high - low > 1.5 ? { dtick: 1 } : { dtick: "D2" }) };
}

// A loss that fell, or jumped, by orders of magnitude needs a log axis; one that may be negative cannot have it.
function lossAxis(values) {
  const finite = values.filter(value => typeof value === "number"), least = Math.min(...finite), most = Math.max(...finite);
  return least > 0 && most > 100 * least ? logAxis("loss", finite) : { title: { text: "loss" } };
}

function drawGrid(key) {
  const shown = data.runs.map(run => series(run, key)).filter(Boolean);
  const [low, high] = span(shown.flatMap(found => found.grid.rows.flat()), 12);
  const symbol = `‖∂L/∂${data.keys[key].state === "c" ? "c" : "h"}‖`;
  panels("grid", (run, place) => {
    const found = series(run, key);
    if (!found) return absent;
    const { steps, timesteps, rows, note } = found.grid;
    const crosses = { x: [], y: [], text: [] };
    // "nan" stands where no sequence reached a timestep; a norm that is not finite is "inf".
    const z = rows.map((row, t) => row.map((value, s) => {
      if (value === "inf") { crosses.x.push(steps[s]); crosses.y.push(timesteps[t]); crosses.text.push("not finite"); }
      return typeof value !== "number" ? null : value > 0 ? Math.log10(value) : low; // a zero is darkest, a gap is a gap
    }));
    const stride = Math.ceil(crosses.x.length / 1500) || 1;
    const thin = values => values.filter((_, place) => place % stride === 0);
    const [from, to] = borders(steps), seen = mark && mark.run === place ? [Math.min(from, mark.step - 1), Math.max(to, mark.step + 1)] : [from, to];
    return {
      label: `heatmap of total gradients, ${steps.length} training steps by ${timesteps.length} timesteps`,
      notes: [note, stride > 1 ? "not every cross is drawn" : ""], marks: "timestep",
      traces: [
        { type: "heatmap", x: steps, y: timesteps, z, customdata: rows, zmin: low, zmax: high, colorscale: "Viridis", hoverongaps: false,
          colorbar: { thickness: 12, outlinewidth: 0, len: 0.94, y: 0, yanchor: "bottom", title: { text: symbol, side: "top", font: { size: 11 } }, ...ticks(low, high) },
          hovertemplate: `step %{x}<br>timestep %{y}<br>${symbol} = %{customdata:.4g}<extra></extra>` },
        { type: "scatter", mode: "markers", x: thin(crosses.x), y: thin(crosses.y), text: thin(crosses.text), showlegend: false,
          marker: { symbol: "x-thin", size: 6, line: { width: 1.5, color: css("--bad") } },
          hovertemplate: "step %{x}<br>timestep %{y}<br>%{text}<extra></extra>" },
      ],
      layout: { xaxis: { title: { text: "training step" }, showgrid: false, range: seen }, yaxis: { title: { text: "timestep" }, showgrid: false, range: borders(timesteps) } },
    };
  });
}

function drawLag(key) {
  const curves = data.runs.flatMap(run => (series(run, key) || { lag: [] }).lag);
  const [low, high] = span([1, 0.01, ...curves.flatMap(curve => curve.lagged)], 9);
  panels("lag", run => {
    const found = series(run, key);
    if (!found) return absent;
    if (!found.lag.length) return { words: "No lagged gradient was recorded." };
    const last = found.lag[found.lag.length - 1], colours = shades().slice(-found.lag.length);
    const shapes = [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: 0.01, y1: 0.01, line: { color: css("--soft"), width: 1, dash: "dash" } }];
    const annotations = [{ xref: "paper", x: 1, xanchor: "right", y: -2, yanchor: "bottom", text: "1 %", showarrow: false, font: { color: css("--soft") }, bgcolor: css("--card") }];
    const traces = found.lag.map((curve, place) => ({
      type: "scatter", mode: "lines", x: curve.at, y: numbers(curve.lagged), name: `step ${curve.step}`,
      line: { color: colours[place], width: curve === last ? 3.5 : 1.5 }, hovertemplate: `step ${curve.step}<br>lag %{x}: %{y:.3g}<extra></extra>`,
    }));
    if (last.horizon !== null && !last.censored) {
      traces.push({ type: "scatter", mode: "markers", x: [last.horizon], y: [0.01], showlegend: false, marker: { size: 10, color: css("--bad") }, hovertemplate: `horizon: ${last.horizon} timesteps<extra></extra>` });
      annotations.push({ x: last.horizon, y: -2, text: `horizon ${last.horizon}`, ax: 30, ay: -34, arrowcolor: css("--bad"), font: { color: css("--bad") }, bgcolor: css("--card") });
    }
    const reach = last.horizon === null ? "" : last.censored ? `The last sample stays above 1 % for all of its ${last.horizon} lags.` : "";
    return {
      label: `lag curves; ${last.horizon === null ? "no horizon" : `horizon ${last.censored ? "at least " : ""}${last.horizon} timesteps`}`,
      notes: [reach, last.note], traces, marks: false,
      layout: { shapes, annotations, xaxis: { title: { text: "lag (timesteps back)" } }, yaxis: { type: "log", range: [low - 0.15, high + 0.15], exponentformat: "power", dtick: 1, title: { text: "relative to lag 0" } } },
    };
  });
}

function drawHorizon(key) {
  panels("horizon", run => {
    const found = series(run, key);
    if (!found) return absent;
    const { steps, horizon, censored, timesteps, growth, note } = found.horizon, ink = css("--accent");
    return {
      label: "horizon beside the sequence length, and growth rate, over training", notes: [note],
      traces: [
        { type: "scatter", mode: "lines", x: steps, y: timesteps, name: "sequence length", line: { color: css("--soft"), dash: "dash", width: 1.5 } },
        { type: "scatter", mode: "lines+markers", x: steps, y: horizon, name: "horizon", line: { color: ink, width: 1.5 },
          marker: { size: 7, color: ink, symbol: censored.map(cut => (cut ? "triangle-up-open" : "circle")) },
          text: censored.map(cut => (cut ? "at least " : "")), hovertemplate: "step %{x}<br>horizon %{text}%{y} timesteps<extra></extra>" },
        { type: "scatter", mode: "lines", x: steps, y: numbers(growth), yaxis: "y2", name: "growth rate", showlegend: false, line: { color: ink, width: 1.5 }, hovertemplate: "step %{x}<br>%{y:.3g} nats per timestep<extra></extra>" },
      ],
      layout: {
        xaxis: { title: { text: "training step" }, anchor: "y2" }, yaxis: { title: { text: "timesteps" }, rangemode: "tozero", domain: [0.48, 1] },
        yaxis2: { title: { text: "growth rate" }, domain: [0, 0.4], zeroline: true, zerolinecolor: css("--soft"), rangemode: "tozero" },
      },
    };
  });
}

function drawLast(key) {
  panels("last", run => {
    const found = series(run, key);
    if (!found) return absent;
    const { step, at, total, total_max: most, direct, note } = found.last, [, mid, , strong] = shades();
    const line = (values, name, style) => ({ type: "scatter", x: at, y: numbers(values).map(value => (value > 0 ? value : null)), name, hovertemplate: `timestep %{x}<br>${name} %{y:.3g}<extra></extra>`, ...style });
    const traces = [line(total, "total", { mode: "lines", line: { color: strong, width: 2.5 } })];
    if (most) traces.push(line(most, "largest of a sequence", { mode: "lines", line: { color: strong, width: 1, dash: "dot" } }));
    if (direct) traces.push(line(direct, "direct", { mode: "markers", marker: { color: mid, size: 5 } }));
    return {
      label: `direct beside total gradient at step ${step}`, notes: [`Step ${step}`, direct ? "" : "direct gradients were not recorded", note], traces, marks: false,
      layout: { xaxis: { title: { text: "timestep" } }, yaxis: logAxis("gradient norm", [total, most || [], direct || []].flat()) },
    };
  });
}

function drawClip() {
  panels("clip", run => {
    const norms = run.clipping.length > 0, losses = run.loss.steps.length > 0;
    const advice = "No optimizer step was recorded: train with AdaptiveClip() to see gradient norm, threshold and clipped steps";
    if (!norms && !losses) return { words: `${advice}.` };
    const traces = [], notes = norms ? [] : [advice], lines = [css("--accent"), ...shades()];
    const own = norms ? "y2" : "y"; // an axis without a curve would be drawn too
    if (losses) {
      const { steps, loss, sampled, note } = run.loss, finite = loss.filter(value => typeof value === "number");
      const top = finite.reduce((most, value) => Math.max(most, value), -Infinity), broken = steps.filter((_, at) => typeof loss[at] !== "number");
      notes.push(sampled ? "loss of the sampled steps" : "", note);
      traces.push({ type: "scatter", mode: sampled ? "lines+markers" : "lines", x: steps, y: numbers(loss), yaxis: own, name: "loss", showlegend: false,
        line: { color: css("--accent"), width: 1.5 }, marker: { size: 4 }, hovertemplate: "step %{x}<br>loss %{y:.4g}<extra></extra>" });
      if (broken.length) traces.push({ type: "scatter", mode: "markers", x: broken, y: broken.map(() => (finite.length ? top : 1)), yaxis: own, name: "loss not finite",
        marker: { symbol: "x-thin", size: 9, line: { width: 2, color: css("--bad") } }, hovertemplate: "step %{x}<br>the loss is not finite<extra></extra>" });
    }
    run.clipping.forEach((found, place) => {
      const { steps, norm, threshold, clipped, skipped, counts, note } = found;
      const of = run.clipping.length > 1 ? ` (optimizer ${found.optimizer})` : "", where = flags => steps.filter((_, at) => flags[at]);
      const top = norm.filter(positive).reduce((most, value) => Math.max(most, value), 0) || 1;
      notes.push(`${counts.steps} steps${of}, ${counts.clipped} clipped, ${counts.skipped} skipped`, note);
      traces.push(
        { type: "scatter", mode: "lines", x: steps, y: norm.map(value => (positive(value) ? value : null)), name: `gradient norm${of}`, line: { color: lines[place % lines.length], width: 1 }, hovertemplate: "step %{x}<br>norm %{y:.4g}<extra></extra>" },
        { type: "scatter", mode: "lines", x: steps, y: numbers(threshold), name: `threshold${of}`, line: { color: css("--soft"), dash: "dash", width: 1.5 }, hovertemplate: "step %{x}<br>threshold %{y:.4g}<extra></extra>" },
        { type: "scatter", mode: "markers", x: where(clipped), y: norm.filter((_, at) => clipped[at]).map(number), name: `clipped${of}`, marker: { symbol: "triangle-down", size: 9, color: css("--warn") }, hovertemplate: "step %{x}<br>%{y:.4g}, clipped<extra></extra>" },
        { type: "scatter", mode: "markers", x: where(skipped), y: where(skipped).map(() => top), name: `skipped${of}`, text: norm.filter((_, at) => skipped[at]).map(String), marker: { symbol: "x-thin", size: 9, line: { width: 2, color: css("--bad") } }, hovertemplate: "step %{x}<br>norm %{text}: skipped<extra></extra>" },
      );
    });
    const both = norms && losses, up = both ? [0, 0.56] : [0, 1];
    return {
      label: [losses ? "loss" : "", norms ? "gradient norm with threshold, clipped and skipped steps" : ""].filter(Boolean).join(", "), notes, traces,
      className: both ? "plot two" : "plot",
      layout: {
        xaxis: { title: { text: "training step" } },
        ...(norms ? { yaxis: { ...logAxis("gradient norm", run.clipping.flatMap(found => found.norm)), domain: up } } : {}),
        ...(losses ? { [norms ? "yaxis2" : "yaxis"]: { ...lossAxis(run.loss.loss), domain: both ? [0.66, 1] : up } } : {}),
      },
    };
  });
}

// The gradient that is chosen: of a place that has no such state, its first.
function chosen() {
  const place = places[Number(select.value)];
  const exact = data.keys.findIndex(key => key.place === place && key.state === state);
  return exact >= 0 ? exact : data.keys.findIndex(key => key.place === place);
}

function choose(key) {
  select.value = places.indexOf(data.keys[key].place);
  state = data.keys[key].state;
}

// Buttons for h and c, where there are both.
function offerStates(key) {
  const box = document.getElementById("states"), there = data.keys.filter(other => other.place === data.keys[key].place);
  const focused = box.contains(document.activeElement);
  box.replaceChildren(...(there.length < 2 ? [] : there).map(other => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = button.dataset.state = other.state;
    button.setAttribute("aria-pressed", other.state === data.keys[key].state);
    return button;
  }));
  if (focused) box.querySelector("[aria-pressed=true]")?.focus();
}

// One part after the other, so that the first is seen and the page answers while the rest is drawn.
let turn = 0;
async function draw() {
  const mine = ++turn, key = chosen();
  if (data.keys.length) offerStates(key);
  delete document.body.dataset.drawn;
  const parts = data.keys.length
    ? [drawGrid, drawLag, drawHorizon, drawLast].map(part => () => part(key))
    : ["grid", "lag", "horizon", "last"].map(id => () => panels(id, () => ({ words: "No profile was recorded." })));
  for (const part of [...parts, drawClip]) {
    if (mine !== turn) return; // another gradient was chosen meanwhile
    part();
    await new Promise(resolve => setTimeout(resolve));
  }
  document.body.dataset.drawn = key;
}

function sort(heading) {
  const table = heading.closest("table"), body = table.tBodies[0], column = heading.cellIndex;
  const down = heading.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
  heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  const value = row => row.cells[column].dataset.order ?? row.cells[column].textContent;
  const compare = new Intl.Collator(undefined, { numeric: true }).compare;
  body.append(...[...body.rows].sort((a, b) => (down ? -1 : 1) * compare(value(a), value(b))));
}

function show(heading) {
  const target = document.getElementById(heading);
  target.tabIndex = -1;
  target.focus({ preventScroll: true });
  target.scrollIntoView({ block: "start" });
}

// One kind of event, or all again.
function filter(chip) {
  const only = chip.getAttribute("aria-pressed") === "true" ? null : chip.dataset.kind;
  for (const other of document.querySelectorAll(".chip")) other.setAttribute("aria-pressed", other.dataset.kind === only);
  for (const row of document.getElementById("events").tBodies[0].rows) row.hidden = only !== null && row.dataset.kind !== only;
}

document.addEventListener("click", event => {
  const heading = event.target.closest("th"), goto = event.target.closest(".goto"), chip = event.target.closest(".chip");
  const pick = event.target.closest(".pick"), own = event.target.closest("#states button");
  if (heading) sort(heading);
  if (chip) filter(chip);
  if (own) { state = own.dataset.state; draw(); }
  if (pick) { choose(Number(pick.dataset.key)); draw(); show("h-grid"); }
  if (!goto) return;
  const { run, step, timestep } = goto.dataset;
  mark = { run: Number(run), step: Number(step), timestep: timestep === undefined ? null : Number(timestep) };
  document.querySelectorAll("tr.marked").forEach(row => row.classList.remove("marked"));
  goto.closest("tr").classList.add("marked"); // the way back
  const drawn = goto.dataset.key !== "" && Number(goto.dataset.key) < data.keys.length;
  if (drawn) choose(Number(goto.dataset.key));
  draw();
  show(drawn ? "h-grid" : "h-clip");
});
select.addEventListener("change", draw);
dark.addEventListener("change", draw);
draw();
