// What is chosen, and where an event leads to.
const select = document.getElementById("key");

// Names from the run log go into the page as text nodes only, never into plotly, which reads some HTML.
const places = [...new Set(data.keys.map(key => key.place))];
places.forEach((place, at) => select.add(new Option(place, at)));
let state = "h";
document.getElementById("bar").hidden = data.keys.length === 0;
if (data.omitted) document.getElementById("omitted").textContent = `${data.omitted} more are left out of this page.`;

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
    ? [drawGrid, drawLag, drawChannels, drawHorizon, drawLast].map(part => () => part(key))
    : ["grid", "lag", "horizon", "last"].map(id => () => { document.getElementById(id).parentElement.hidden = true; });
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
