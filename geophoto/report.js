// The report's charts, map and gallery, all of one selection and one model. Data: #data, as JSON;
// pictures: #thumbnails. Nothing is loaded from anywhere. Why no library: of 2,000 photos, one map, one
// histogram and two charts by Altair 6.3 (inline) bring 0.9 MB along, take twice the time to brush in
// headless Chromium that five charts and the gallery take here (0.6 s), and stand 538 pixels out of a
// screen of 390.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const pictures = JSON.parse(document.getElementById("thumbnails").textContent);
const photos = data.photos, COUNT = photos.name.length;
const rows = Array.from({length: COUNT}, (_, i) => i);
const state = {model: data.best, selected: null, sort: "worst", filter: "all", shown: 0, depth: "gps"};
const STEP = matchMedia("(max-width:560px)").matches ? 12 : 24;
const $ = (id) => document.getElementById(id);
const finite = (values) => values.filter((v) => v != null);
const answers = (model = state.model) => data.answers[model];
const inside = (i) => !state.selected || state.selected.has(i);

// ---- words

const clock = (minutes) => {
  if (minutes == null) return "–";
  const whole = ((Math.round(minutes) % 1440) + 1440) % 1440;
  return `${String(Math.floor(whole / 60)).padStart(2, "0")}:${String(whole % 60).padStart(2, "0")}`;
};
const span = (minutes) => minutes == null ? "–" : minutes < 120 && minutes !== 60 ? `${Math.round(minutes)} min` : `${Number((minutes / 60).toPrecision(3))} h`;
const metres = (m) => (m == null ? "–" : `${(Math.round(m) || 0).toLocaleString("en")} m`);
const HEADS = {
  gps: {error: "km", half50: "r50", half90: "r90", sure: "sureGps", label: distanceLabel, title: "Position"},
  time: {error: "offMinutes", half50: "t50", half90: "t90", sure: "sureTime", label: span, title: "Time of day"},
  altitude: {error: "offMetres", half50: "a50", half90: "a90", sure: "sureAltitude", label: metres, title: "Altitude"},
};

function lines(i, model = state.model) {
  const a = answers(model), told = [];
  if (a.lat[i] != null) {
    const off = a.km[i] != null ? `${distanceLabel(a.km[i])} off` : degrees(a.lat[i], a.lon[i]);
    told.push(`${off}, 90 % within ${distanceLabel(a.r90[i])}`);
  }
  if (a.minutes[i] != null) {
    const truth = photos.minutes[i] != null ? `, true ${clock(photos.minutes[i])}` : "";
    told.push(`${clock(a.minutes[i])} ± ${span(a.t90[i])}${truth}`);
  }
  if (a.altitude[i] != null) {
    const truth = photos.altitude[i] != null ? `, true ${metres(photos.altitude[i])}` : "";
    told.push(`${metres(a.altitude[i])} ± ${metres(a.a90[i])}${truth}`);
  }
  if (photos.orientation[i] != null) {
    const right = photos.orientation[i] === a.orientation[i];
    told.push(right ? `${a.orientation[i]}: right` : `${a.orientation[i]}, true ${photos.orientation[i]}`);
  }
  return told;
}

function tags(i) {
  const a = answers(), told = [];
  if (a.km[i] != null && a.km[i] > a.r90[i]) told.push("outside its 90 %");
  if (a.lat[i] != null) told.push(a.sureGps[i] ? "confident" : "not confident");
  if (a.strange[i] > 1) told.push("unlike anything");
  return told;
}

// ---- tip

const tip = new Tip((i) => [...lines(i),
  answers().lat[i] != null && `Answer: ${degrees(answers().lat[i], answers().lon[i])}`,
  photos.lat[i] != null ? `True: ${degrees(photos.lat[i], photos.lon[i])}` : "True position unknown"], photos.name, pictures);

function light(i) {
  map?.mark(i);
  for (const dot of document.querySelectorAll(".dot.on")) dot.classList.remove("on");
  if (i >= 0) for (const dot of document.querySelectorAll(`.dot[data-i="${i}"]`)) dot.classList.add("on");
}

// ---- charts

const W = () => 340, H = 230, LEFT = 56, BOTTOM = 34, TOP = 10, RIGHT = 20;

function frame(title, x, y, xTicks, yTicks, xName, yName) {
  const width = W(), svg = shape("svg", {viewBox: `0 0 ${width} ${H}`, role: "img", "aria-label": title});
  const axis = shape("g", {class: "axis"});
  for (const [v, name] of yTicks) {
    axis.append(shape("path", {d: `M${LEFT} ${y(v)}H${width - RIGHT}`}),
                shape("text", {x: LEFT - 5, y: y(v) + 4, "text-anchor": "end"}, name));
  }
  for (const [v, name] of xTicks) {
    const last = x(v) > width - RIGHT - 12 && name.length > 5;  // else it would be cut off
    axis.append(shape("path", {d: `M${x(v)} ${TOP}V${H - BOTTOM}`}),
                shape("text", {x: last ? width - 1 : x(v), y: H - BOTTOM + 14, "text-anchor": last ? "end" : "middle"}, name));
  }
  axis.append(shape("path", {class: "base", d: `M${LEFT} ${TOP}V${H - BOTTOM}H${width - RIGHT}`}),
    shape("text", {x: width - RIGHT, y: H - 4, "text-anchor": "end"}, xName));
  if (yName) axis.append(shape("text", {x: LEFT + 4, y: TOP + 9}, yName));
  svg.append(axis);
  return svg;
}

const linear = (low, high, from, to) => (v) => from + ((v - low) / (high - low || 1)) * (to - from);
const xScale = (low, high) => linear(low, high, LEFT, W() - RIGHT);
const yScale = (low, high) => linear(low, high, H - BOTTOM, TOP);

function niceTicks(low, high, count, label) {
  const raw = (high - low || 1) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
  const found = [];
  for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-6; v += step) found.push([v, label(v)]);
  return found;
}

function logTicks(low, high, label) {  // 1, 2 and 5 within a decade or two, else powers of ten
  const decades = Math.log10(high / low), of = decades < 1.2 ? [1, 2, 3, 5, 7] : decades < 2.5 ? [1, 3] : [1];
  const every = decades > 5 ? 2 : 1, found = [];
  for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); p++) {
    if (p % every) continue;
    for (const m of of) {
      const v = m * 10 ** p;
      if (v >= low * 0.999 && v <= high * 1.001) found.push([v, label(v)]);
    }
  }
  return found;
}

const MINUTES = [1, 2, 5, 10, 20, 30, 60, 120, 180, 360, 720];  // what clocks are read by

function timeTicks(low, high, log) {
  const step = MINUTES.find((m) => m * 5 >= high - low) ?? 720;
  const found = log ? MINUTES.filter((m, k) => high / low < 12 || k % 2 === 0)
    : Array.from({length: 6}, (_, k) => k * step);
  return found.filter((m) => m >= low * 0.999 && m <= high * 1.001).map((m) => [m, span(m)]);
}

function ticksOf(head, low, high, log) {
  const label = HEADS[head].label;
  return head === "time" ? timeTicks(low, high, log) : log ? logTicks(low, high, label) : niceTicks(low, high, 4, label);
}

const shares = [0, 0.25, 0.5, 0.75, 1].map((v) => [v, `${v * 100} %`]);
const median = (values) => {
  const s = [...values].sort((a, b) => a - b), n = s.length;
  return n ? (s[(n - 1) >> 1] + s[n >> 1]) / 2 : null;
};

function errorChart(head) {
  const {error, label, title} = HEADS[head], least = head === "gps" ? 1e-3 : 1;
  const a = answers(), series = [
    [state.model, data.titles[state.model], a[error], ""],
    ["knn", "neighbours", a.knn[head], "dash"], ["trivial", "one fixed answer", a.trivial[head], "dash"],
  ].map(([who, name, values, style]) => [who, name, style,
    rows.filter((i) => values[i] != null && a[error][i] != null).map((i) => [i, Math.max(values[i], least)])]);
  const all = series.flatMap((s) => s[3].map((v) => v[1]));
  if (!all.length) return null;
  const sorted = [...all].sort((p, q) => p - q);
  let [low, high] = [sorted[Math.floor(sorted.length * 0.01)], sorted[sorted.length - 1]];
  if (high / low < 3) [low, high] = [low / 2, high * 1.5];
  const log = linear(Math.log(low), Math.log(high), LEFT, W() - RIGHT), x = (v) => log(Math.log(Math.max(v, low)));
  const y = yScale(0, 1), told = [];
  const chosen = series.map(([who, name, style, values]) => [who, name, style, values.filter(([i]) => inside(i)).map((v) => v[1]).sort((p, q) => p - q)]);
  for (const [, name, , values] of chosen) if (values.length) told.push(`${name} ${label(median(values))}`);
  const svg = frame(`${title}, share of ${chosen[0][3].length} photos by error; median ${told.join(", ")}`,
                    x, y, ticksOf(head, low, high, true), shares, "error");
  const path = (values) => {
    let d = "";
    values.forEach((v, k) => { d += `${k ? "H" : "M"}${x(v).toFixed(1)}${k ? "" : " " + y(0)}V${y((k + 1) / values.length).toFixed(1)}`; });
    return d + (values.length ? `H${W() - RIGHT}` : "");
  };
  if (state.selected) svg.append(shape("path", {class: `curve faint ${state.model}`, d: path(series[0][3].map((v) => v[1]).sort((p, q) => p - q))}));
  for (const [who, , style, values] of [...chosen].reverse()) svg.append(shape("path", {class: `curve ${who} ${style}`, d: path(values)}));
  const caption = element("p", {class: "legend"}, ...chosen.filter((s) => s[3].length).map(([who, name, , values]) =>
    element("span", {class: who}, `${name}: median ${label(median(values))}`)));
  return [`${title}: how far off (${chosen[0][3].length} photos)`, svg, caption];
}

function agreementChart(head) {
  const a = answers(), time = head === "time", truth = time ? photos.minutes : photos.altitude;
  const guess = time ? a.minutes : a.altitude;
  const known = rows.filter((i) => truth[i] != null && guess[i] != null);
  if (!known.length) return null;
  const near24 = (g, t) => t + ((((g - t + 720) % 1440) + 1440) % 1440) - 720;
  const shown = known.map((i) => (time ? near24(guess[i], truth[i]) : guess[i]));
  const both = [...known.map((i) => truth[i]), ...shown];
  const [low, high] = time ? [0, 1440] : [Math.min(...both), Math.max(...both)];
  const bottom = Math.min(low, ...shown), top = Math.max(high, ...shown);
  const x = xScale(low, high), y = yScale(bottom, top);
  const hours = [0, 6, 12, 18, 24].map((h) => [h * 60, `${h} h`]);
  const yHours = [-12, -6, 0, 6, 12, 18, 24, 30, 36].filter((h) => h * 60 >= bottom && h * 60 <= top).map((h) => [h * 60, `${(h + 24) % 24} h`]);
  const svg = frame(`${HEADS[head].title}: answer against truth of ${known.length} photos`, x, y,
    time ? hours : niceTicks(low, high, 4, metres), time ? yHours : niceTicks(bottom, top, 4, metres), "true", "answer");
  svg.append(shape("path", {class: "diagonal", d: `M${x(low)} ${y(low)}L${x(high)} ${y(high)}`}));
  known.forEach((i, k) => svg.append(shape("circle", {class: `dot ${state.model} ${inside(i) ? "in" : "out"}`, r: 3.2,
    "data-i": i, cx: x(truth[i]).toFixed(1), cy: y(shown[k]).toFixed(1)})));
  hoverDots(svg);
  return [`${HEADS[head].title}: answer against truth`, svg];
}

function hoverDots(svg) {
  svg.addEventListener("pointerover", (event) => {
    const i = event.target.dataset?.i;
    if (i !== undefined) { light(+i); tip.show(+i); }
  });
  svg.addEventListener("pointerout", () => { light(-1); tip.show(-1); });
}

function put(id, charts) {
  $(id).replaceChildren(...charts.filter(Boolean).map(([title, svg, caption]) =>
    element("div", {class: "chart"}, element("h3", {}, title), svg, caption)));
}

function drawCharts() {
  put("charts", [...Object.keys(HEADS).map(errorChart), agreementChart("time"), agreementChart("altitude")]);
}

function reliabilityChart() {
  const x = xScale(0, 1), y = yScale(0, 1), all = data.reliability, blocks = [];
  for (const head of Object.keys(all)) {
    const svg = frame(`${all[head].title}: share of truths inside the intervals against the share promised`, x, y, shares, shares, "promised", "held");
    svg.append(shape("path", {class: "diagonal", d: `M${x(0)} ${y(0)}L${x(1)} ${y(1)}`}));
    for (const [model, found] of Object.entries(all[head].models)) {
      if (found.said) svg.append(shape("path", {class: `curve ${model} ${model === "depth" ? "dash" : ""}`,
        d: "M" + found.said.map((v, k) => `${x(v).toFixed(1)} ${y(found.held[k]).toFixed(1)}`).join("L")}));
      for (const [said, held, low, high] of found.levels || []) {
        const shift = model === "depth" ? 3 : -3;
        if (low != null) svg.append(shape("path", {class: `error-bar ${model}`, d: `M${x(said) + shift} ${y(low)}V${y(high)}`}));
        svg.append(shape("circle", {class: `dot ${model}`, r: 4, cx: x(said) + shift, cy: y(held)}));
      }
    }
    blocks.push([all[head].title, svg]);
  }
  put("reliability", blocks);
}

function riskChart() {
  const blocks = [];
  for (const head of Object.keys(HEADS)) {
    const curves = Object.entries(data.risk[head] || {});
    if (!curves.length) continue;
    const values = curves.flatMap(([, curve]) => curve), label = HEADS[head].label;
    const log = head === "gps", low = log ? Math.min(...values) / 1.2 : 0, high = Math.max(...values) * (log ? 1.2 : 1.1);
    const down = linear(Math.log(low), Math.log(high), H - BOTTOM, TOP), x = xScale(0, 1);
    const y = log ? (v) => down(Math.log(v)) : yScale(low, high);
    const svg = frame(`${HEADS[head].title}: error of the most confident share of the photos`, x, y, shares,
      ticksOf(head, low, high, log), "most confident share", "error");
    for (const [model, curve] of curves) svg.append(shape("path", {class: `curve ${model} ${model === "depth" ? "dash" : ""}`,
      d: "M" + curve.map((v, k) => `${x((k + 1) / curve.length).toFixed(1)} ${y(v).toFixed(1)}`).join("L")}));
    blocks.push([HEADS[head].title, svg]);
  }
  put("risk", blocks);
}

// ---- gallery

const far = (values, sign) => (i) => (values[i] == null ? Infinity : sign * values[i]);
const change = (sign, head = "gps") => {  // from RGB to RGB + depth, in logarithms
  const [rgb, depth] = ["rgb", "depth"].map((model) => data.answers[model]?.[HEADS[head].error]);
  const least = head === "gps" ? 1e-3 : 1;
  return (i) => rgb?.[i] == null || depth?.[i] == null ? Infinity
    : sign * Math.log(Math.max(depth[i], least) / Math.max(rgb[i], least));
};
const SORTS = {
  worst: ["worst position", () => far(answers().km, -1)], best: ["best position", () => far(answers().km, 1)],
  time: ["worst time", () => far(answers().offMinutes, -1)], altitude: ["worst altitude", () => far(answers().offMetres, -1)],
  unsure: ["widest radius", () => far(answers().r90, -1)], strange: ["most unlike the training photos", () => far(answers().strange, -1)],
  helps: ["depth helps most", () => change(1)], hurts: ["depth hurts most", () => change(-1)], name: ["file name", () => (i) => i],
};
const FILTERS = {
  all: ["all photos", () => true],
  outside: ["outside their 90 % radius", (i) => answers().km[i] != null && answers().km[i] > answers().r90[i]],
  sure: ["confident position", (i) => answers().sureGps[i] && answers().lat[i] != null],
  unsure: ["not confident", (i) => !answers().sureGps[i]],
  strange: ["unlike anything", (i) => answers().strange[i] > 1],
  turned: ["orientation wrong", (i) => photos.orientation[i] != null && photos.orientation[i] !== answers().orientation[i]],
};

function galleryRows() {
  const cost = SORTS[state.sort][1](), keep = FILTERS[state.filter][1];
  return rows.filter((i) => inside(i) && keep(i) && answers().known[i])
    .map((i) => [cost(i), i]).sort((a, b) => a[0] - b[0] || a[1] - b[1]).map((pair) => pair[1]);
}

function drawGallery(more = 0) {
  const found = galleryRows();
  state.shown = more ? Math.min(found.length, state.shown + more) : Math.min(found.length, STEP);
  $("gallery").replaceChildren(...found.slice(0, state.shown).map((i) => element("li", {}, tile(i))));
  $("count").textContent = `${found.length} of ${COUNT} photos${state.shown < found.length ? `, ${state.shown} shown` : ""}`;
  $("more").hidden = state.shown >= found.length;
}

function picture(i) {
  return pictures[i] ? element("img", {src: pictures[i], alt: ""}) : element("span", {class: "blank"}, "no picture");
}

function tile(i) {
  const name = photos.name[i].split("/").pop();
  return element("button", {type: "button", "data-i": i, title: photos.name[i],
    onpointerenter: () => light(i), onfocus: () => light(i), onpointerleave: () => light(-1), onblur: () => light(-1),
    onclick: (event) => { light(i); tip.show(i, event); }},
  picture(i), element("span", {class: "text"}, element("b", {}, name), ...lines(i).map((line) => element("i", {}, line)),
    ...tags(i).map((text) => element("span", {class: "tag"}, text))));
}

function depthPhotos() {
  if (!$("helped") || data.models.length < 2) return;
  const {error, label} = HEADS[state.depth];
  for (const [id, sign] of [["helped", 1], ["hurt", -1]]) {
    const cost = change(sign, state.depth), found = rows.map((i) => [cost(i), i]).filter(([c]) => c < -0.005)
      .sort((a, b) => a[0] - b[0]).slice(0, 6).map((pair) => pair[1]);
    $(id).replaceChildren(...found.map((i) => element("figure", {}, picture(i), element("figcaption", {},
      `${label(data.answers.rgb[error][i])} off with RGB, ${label(data.answers.depth[error][i])} with depth`))));
    if (!found.length) $(id).replaceChildren(element("p", {class: "note"}, "No photo."));
  }
}

// ---- one state

function refresh() {
  $("explore").className = `explore ${state.model}`;
  const chosen = state.selected ? `${state.selected.size} photos selected on the map` : `All ${COUNT} photos`;
  $("selection").textContent = `${chosen}, ${data.titles[state.model]}.`;
  $("clear").disabled = !state.selected;
  drawCharts();
  drawGallery();
}

function options(id, table, key, then = drawGallery) {
  if (!$(id)) return;
  $(id).replaceChildren(...Object.entries(table).map(([value, [text]]) => element("option", {value}, text)));
  $(id).addEventListener("change", (event) => { state[key] = event.target.value; then(); });
}

let map = null;
if (data.map) {
  map = new PlaceMap($("map"), {...data.map, lat: photos.lat, lon: photos.lon, ...guesses(),
    on: {hover: (i) => { light(i); tip.show(i); }, pick: (i) => { light(i); tip.show(i); },
         select: (chosen) => { state.selected = chosen; refresh(); }}});
}
function guesses() {
  const a = answers();
  return {guessLat: a.lat, guessLon: a.lon, radius: a.r90, radius50: a.r50};
}

for (const button of document.querySelectorAll("[data-model]")) {
  button.addEventListener("click", () => {
    state.model = button.dataset.model;
    for (const one of document.querySelectorAll("[data-model]")) one.setAttribute("aria-pressed", one === button);
    map?.setAnswers(guesses());
    refresh();
  });
}
$("clear").addEventListener("click", () => (map ? map.select(null) : null));
$("more").addEventListener("click", () => drawGallery(4 * STEP));
if (data.models.length < 2) { delete SORTS.helps; delete SORTS.hurts; }
options("sort", SORTS, "sort");
options("filter", FILTERS, "filter");
const known = Object.entries(HEADS).filter(([, head]) => finite(answers()[head.error]).length);
options("depth-head", Object.fromEntries(known.map(([name, {title}]) => [name, [title]])), "depth", depthPhotos);
if (known.length) state.depth = known[0][0];
reliabilityChart();
riskChart();
depthPhotos();
refresh();
addEventListener("beforeprint", () => { for (const one of document.querySelectorAll("details")) one.open = true; });
