// The pictures: each takes the data of the chosen gradient and draws one panel a run.
function drawGrid(key) {
  const symbol = `‖∂L/∂${["c", "x"].includes(data.keys[key].state) ? data.keys[key].state : "h"}‖`;
  panels("grid", (run, place) => {
    const found = series(run, key);
    if (!found) return absent;
    const { steps, timesteps, rows, scale: [low, high], note, beyond } = found.grid;
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
      notes: [note, ...beyond, stride > 1 ? "not every cross is drawn" : ""], marks: "timestep",
      traces: [
        { type: "heatmap", x: steps, y: timesteps, z, customdata: rows, zmin: low, zmax: high, colorscale: "Viridis", hoverongaps: false,
          colorbar: { thickness: 12, outlinewidth: 0, len: 0.94, y: 0, yanchor: "bottom", title: { text: symbol, side: "top", font: { size: 11 } }, ...ticks(low, high) },
          hovertemplate: `step %{x}<br>timestep %{y}<br>${symbol} = %{customdata:.4g}<extra></extra>` },
        { type: "scatter", mode: "markers", x: thin(crosses.x), y: thin(crosses.y), text: thin(crosses.text), showlegend: false,
          marker: { symbol: "x-thin", size: 6, line: { width: 1.5, color: css("--bad") } },
          hovertemplate: "step %{x}<br>timestep %{y}<br>%{text}<extra></extra>" },
      ],
      layout: { xaxis: { ...wholeAxis("training step", steps), showgrid: false, range: seen }, yaxis: { ...wholeAxis("timestep", timesteps), showgrid: false, range: borders(timesteps) } },
    };
  });
}

function drawLag(key) {
  const lags = data.runs.map(run => (series(run, key) || { lag: [] }).lag), shared = lagAxis(lags.filter(lag => !explodes(lag)));
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
    const reach = last.horizon !== null && last.censored ? `The last sample stays above 1 % for all of its ${last.horizon} lag${last.horizon === 1 ? "" : "s"}` : "";
    const { far, notes } = sight(found.lag), axis = explodes(found.lag) ? lagAxis([found.lag]) : shared;
    return {
      label: `lag curves; ${last.horizon === null ? "no horizon" : `horizon ${last.censored ? "at least " : ""}${last.horizon} timesteps`}`,
      notes: [reach, ...notes, last.note], traces, marks: false,
      layout: { shapes, annotations, xaxis: { ...wholeAxis("lag (timesteps back)", [0, far]), range: [0, far] }, yaxis: axis },
    };
  });
}

// One scale for all runs, so that they compare; a run that explodes has its own, or the others' curves would lie flat.
const LEAST = 1e-9, MOST = 1e3;
const largest = curve => biggest(curve.lagged.filter(positive));
const explodes = lag => lag.some(curve => largest(curve) > MOST);
const over = lag => explodes(lag.slice(-1)); // what exploded and does no longer must not flatten the last curve either

// From 1 (lag 0) to under 1 % at least, whatever the curves do; at most nine decades below 1.
function lagAxis(lags) {
  const values = lags.flatMap(lag => lag.flatMap(curve => curve.lagged.filter(positive).map(value => (over(lag) ? value : Math.min(value, MOST)))));
  const [low, high] = span([1, 0.01, ...values.map(value => Math.max(value, LEAST))], Infinity);
  return { type: "log", range: [low - 0.15, high + 0.15], exponentformat: "power", dtick: Math.ceil((high - low) / 9), title: { text: "relative to lag 0" } };
}

// As far back as a curve is within the picture, and in words what is not.
function sight(lag) {
  const longest = biggest(lag.flatMap(curve => curve.at)), seen = biggest(lag.flatMap(curve => curve.at.filter((_, place) => curve.lagged[place] >= LEAST)));
  const near = Math.ceil(Math.max(seen * 1.1 + 1, ...lag.map(curve => (curve.censored ? 0 : 1.5 * curve.horizon)))), far = near < longest / 2 ? near : Math.max(1, longest);
  const high = over(lag) ? [] : lag.filter(curve => largest(curve) > MOST).map(curve => `step ${curve.step} leaves the picture: it rises to ${short(largest(curve))}`);
  return { far, notes: [...high, far < longest ? `further back, up to lag ${longest}, all curves lie below the picture` : ""] };
}

// Only a scan has channels of its own.
function drawChannels(key) {
  const there = data.runs.some(run => (series(run, key) || { channels: [] }).channels.length);
  document.getElementById("channels").parentElement.hidden = !there;
  if (!there) return;
  panels("channels", run => {
    const found = series(run, key);
    if (!found) return absent;
    if (!found.channels.length) return { words: "No channels were recorded." };
    const last = found.channels[found.channels.length - 1], colours = shades().slice(-found.channels.length);
    const traces = found.channels.map((curve, place) => ({
      type: "scatter", mode: "lines", x: curve.at, y: curve.percent, name: `step ${curve.step}`,
      line: { color: colours[place], width: curve === last ? 3.5 : 1.5, shape: "vh" }, hovertemplate: `step ${curve.step}<br>%{y:.3g} % reach %{x} timesteps or more<extra></extra>`,
    }));
    const end = last.at.length - 1;
    if (last.censored) traces.push({ type: "scatter", mode: "markers", x: [last.at[end]], y: [last.percent[end]], showlegend: false, cliponaxis: false,
      marker: { size: 11, symbol: "triangle-right-open", color: css("--bad"), line: { width: 2 } }, hovertemplate: `${last.censored} outlive the sequence<extra></extra>` });
    return {
      label: `share of ${last.channels} channels by how far they reach; ${last.censored || "none"} outlive the sequence`,
      notes: [`${last.channels} channel${last.channels > 1 ? "s" : ""}; in the last sample ${last.censored || "none"} outlive${last.censored === 1 ? "s" : ""} the sequence`], traces, marks: false,
      layout: { xaxis: { type: "log", title: { text: "timesteps" }, ...wholeTicks(last.at[end]) }, yaxis: { title: { text: "channels, %" }, range: [0, 103] } },
    };
  });
}

// 1, 2, 5, 10 … on a log axis of whole numbers, or powers of ten alone where there are many.
function wholeTicks(most) {
  const decades = Math.log10(Math.max(most, 2));
  return { tickmode: "array", tickvals: ticksOf(decades), range: [-0.02, decades * 1.03] };
}

const ticksOf = decades => [0, 1, 2, 3, 4, 5, 6].filter(power => power <= decades).flatMap(power => (decades < 3.5 ? [1, 2, 5] : [1]).map(digit => digit * 10 ** power));

function drawHorizon(key) {
  panels("horizon", run => {
    const found = series(run, key);
    if (!found) return absent;
    const { steps, horizon, censored, timesteps, growth, note } = found.horizon, ink = css("--accent"), known = horizon.filter(value => value !== null);
    if (!known.length) return { words: "In no sample could a gradient be followed back through time." };
    const wide = smallest(known) >= 1 && biggest(timesteps) > 20 * biggest(known), lengths = [...known, ...timesteps];
    const axis = wide ? logAxis("timesteps", lengths, 5) : { ...wholeAxis("timesteps", [0, ...lengths]), rangemode: "tozero" };
    return {
      label: "horizon beside the sequence length, and growth rate, over training", notes: [growth.some(value => number(value) !== null) ? "" : "no sample has a growth rate", note],
      traces: [
        { type: "scatter", mode: steps.length > 1 ? "lines" : "markers", x: steps, y: timesteps, name: "sequence length", line: { color: css("--soft"), dash: "dash", width: 1.5 }, marker: { symbol: "line-ew-open", size: 14, color: css("--soft") } },
        { type: "scatter", mode: "lines+markers", x: steps, y: horizon, name: "horizon", line: { color: ink, width: 1.5 },
          marker: { size: 7, color: ink, symbol: censored.map(cut => (cut ? "triangle-up-open" : "circle")) },
          text: censored.map(cut => (cut ? "at least " : "")), hovertemplate: "step %{x}<br>horizon %{text}%{y} timesteps<extra></extra>" },
        { type: "scatter", mode: "lines+markers", x: steps, y: numbers(growth), yaxis: "y2", name: "growth rate", showlegend: false, marker: { size: 4, color: ink }, line: { color: ink, width: 1.5 }, hovertemplate: "step %{x}<br>%{y:.3g} nats per timestep<extra></extra>" },
      ],
      layout: {
        xaxis: { ...wholeAxis("training step", steps), anchor: "y2" }, yaxis: { ...axis, domain: [0.48, 1] },
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
    if (!total.some(positive) && total.includes("inf")) return { words: `In the last sample, of step ${step}, the gradient is not finite.` };
    const dots = (direct || []).some(positive), none = direct ? "nothing is sent directly to these timesteps" : "in a loop the direct part is not told apart from the total";
    if (dots) traces.push(line(direct, "direct", { mode: "markers", marker: { color: mid, size: 5 } }));
    return {
      label: `${dots ? "direct beside " : ""}total gradient at step ${step}`, notes: [`Step ${step}`, dots ? "" : none, note], traces, marks: false,
      layout: { xaxis: wholeAxis("timestep", at), yaxis: logAxis("gradient norm", [total, most || [], direct || []].flat()) },
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
    const values = []; // that the axis of the norms shows: a threshold far over all norms would press them to its floor
    const mode = (values, marked) => (marked || values.filter(value => number(value) !== null).length < 2 ? "lines+markers" : "lines");
    if (losses) {
      const { steps, loss, sampled, note } = run.loss, finite = loss.filter(value => typeof value === "number");
      const top = biggest(finite), broken = steps.filter((_, at) => typeof loss[at] !== "number");
      notes.push(sampled ? "loss of the sampled steps" : "", note);
      traces.push({ type: "scatter", mode: mode(loss, sampled), x: steps, y: numbers(loss), yaxis: own, name: "loss", showlegend: false,
        line: { color: css("--accent"), width: 1.5 }, marker: { size: 4 }, hovertemplate: "step %{x}<br>loss %{y:.4g}<extra></extra>" });
      if (broken.length) traces.push({ type: "scatter", mode: "markers", x: broken, y: broken.map(() => (finite.length ? top : 1)), yaxis: own, name: "loss not finite",
        marker: { symbol: "x-thin", size: 9, line: { width: 2, color: css("--bad") } }, hovertemplate: "step %{x}<br>the loss is not finite<extra></extra>" });
    }
    run.clipping.forEach((found, place) => {
      const { steps, norm, threshold, clipped, skipped, counts, note } = found;
      const of = run.clipping.length > 1 ? ` (optimizer ${found.optimizer})` : "", where = flags => steps.filter((_, at) => flags[at]);
      const top = norm.filter(positive).reduce((most, value) => Math.max(most, value), 0) || 1;
      const over = threshold.filter(value => value > 100 * top);
      notes.push(`${counts.steps} step${counts.steps === 1 ? "" : "s"}${of}, ${counts.clipped} clipped, ${counts.skipped} skipped`,
        over.length ? `the threshold${of} lies above the picture at ${over.length} step${over.length === 1 ? "" : "s"}, at up to ${short(biggest(over))}` : "", note);
      values.push(...norm, ...threshold.filter(value => value <= 100 * top));
      traces.push(
        { type: "scatter", mode: mode(norm), x: steps, y: norm.map(value => (positive(value) ? value : null)), name: `gradient norm${of}`, line: { color: lines[place % lines.length], width: 1 }, marker: { size: 4 }, hovertemplate: "step %{x}<br>norm %{y:.4g}<extra></extra>" },
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
        xaxis: wholeAxis("training step", [...run.loss.steps, ...run.clipping.flatMap(found => found.steps)]),
        ...(norms ? { yaxis: { ...logAxis("gradient norm", values), domain: up } } : {}),
        ...(losses ? { [norms ? "yaxis2" : "yaxis"]: { ...lossAxis(run.loss.loss, both ? 4 : 7), domain: both ? [0.66, 1] : up } } : {}),
      },
    };
  });
}
