// What all pictures share: the data, colours, scales, and a panel for each run.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const coarse = matchMedia("(pointer: coarse)");
let mark = null; // {run, step, timestep}: where an event leads to

const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const number = value => (typeof value === "number" ? value : null); // "nan" and "inf" stand in the data as words
const numbers = values => values.map(number);
const positive = value => typeof value === "number" && value > 0;
const smallest = values => values.reduce((least, value) => Math.min(least, value), Infinity);
const biggest = values => values.reduce((most, value) => Math.max(most, value), -Infinity);
const short = value => String(Number(value.toPrecision(2)));
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

const power = exponent => (exponent === 0 || exponent === 1 ? String(10 ** exponent) : `10<sup>${exponent}</sup>`.replace("-", "−"));

// Ticks of a log scale: powers of ten, or 1, 2, 5 where there are few of these.
function ticks(low, high, most = 7) {
  const fine = (high - low) * 3 <= most + 0.5, every = Math.max(1, Math.ceil((high - low) / most)), vals = [], texts = [];
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

// A log axis of few ticks, each with its whole value: a lone 2 or 5 would not tell of which decade it is.
function logAxis(title, values, most = 7) {
  let [low, high] = span(values, Infinity);
  const edge = (high - low) * 0.04;
  [low, high] = [low - edge, high + edge];
  const { tickvals, ticktext } = ticks(low, high, most);
  return { type: "log", range: [low, high], tickvals: tickvals.map(place => 10 ** place), ticktext, title: { text: title } };
}

// A loss that fell, or jumped, by orders of magnitude needs a log axis; one that may be negative cannot have it.
function lossAxis(values, most) {
  const finite = values.filter(value => typeof value === "number"), least = smallest(finite), largest = biggest(finite);
  if (!finite.length) return { title: { text: "loss" }, showticklabels: false }; // its crosses stand at no value
  return least > 0 && largest > 100 * least ? logAxis("loss", finite, most) : { title: { text: "loss" } };
}

// An axis of what is counted has no ticks between whole numbers, nor under 0.
function wholeAxis(title, values) {
  const few = biggest(values) - smallest(values) < 6;
  return { title: { text: title }, ...(few ? { tickmode: "linear", tick0: 0, dtick: 1, autorangeoptions: { clipmin: -0.5 } } : {}) };
}
