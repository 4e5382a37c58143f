// A map of places inside one HTML file: no library, no request to anywhere unless a button that
// says so is pressed. Web Mercator, so that tiles of the usual kind fit under it.
//
//   new PlaceMap(box, {lat, lon, guessLat, guessLon, radius, radius50, coast, home, heatKm, tiles,
//                      on: {hover(i), pick(i), select(rows or null)}})
//
// lat, lon … are arrays; a point without truth or answer is null there. `home` is the first view
// [south, west, north, east]; photos outside it are told, and one press shows all.
"use strict";

const EARTH_KM = 6371.0088;
const SVG = "http://www.w3.org/2000/svg";

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

function shape(tag, attributes = {}, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function distanceLabel(km) {
  if (km == null) return "–";
  if (km < 1) return `${Number((km * 1000).toPrecision(3))} m`;
  return km >= 10 ? `${Math.round(km).toLocaleString("en")} km` : `${Number(km.toPrecision(3))} km`;
}

const degrees = (lat, lon) =>
  `${Math.abs(lat).toFixed(4)}° ${lat < 0 ? "S" : "N"} ${Math.abs(lon).toFixed(4)}° ${lon < 0 ? "W" : "E"}`;

const worldX = (lon) => (lon + 180) / 360;
const worldY = (lat) => {
  const clipped = Math.max(-85.05, Math.min(85.05, lat));
  return 0.5 - Math.asinh(Math.tan((clipped * Math.PI) / 180)) / (2 * Math.PI);
};
const latOf = (y) => (Math.atan(Math.sinh(Math.PI * (1 - 2 * y))) * 180) / Math.PI;
const near = (lon, middle) => middle + ((((lon - middle + 180) % 360) + 360) % 360) - 180;

function circleAround(lat, lon, km, steps = 72) {
  // points at a distance on the sphere; a map of Mercator shows no circles
  const away = km / EARTH_KM, p = (lat * Math.PI) / 180;
  return Array.from({length: steps}, (_, i) => {
    const a = (2 * Math.PI * i) / steps;
    const q = Math.asin(Math.sin(p) * Math.cos(away) + Math.cos(p) * Math.sin(away) * Math.cos(a));
    const turn = Math.atan2(Math.sin(a) * Math.sin(away) * Math.cos(p),
                            Math.cos(away) - Math.sin(p) * Math.sin(q));
    return [(q * 180) / Math.PI, lon + (turn * 180) / Math.PI];
  });
}

class Tip {  // the picture of a photo and what is known of it, beside the pointer
  constructor(lines, names, pictures) {
    Object.assign(this, {lines, names, pictures, pointer: [40, 40]});
    this.box = element("div", {class: "tip", role: "status", hidden: true});
    document.body.append(this.box);
    for (const kind of ["pointermove", "pointerdown"]) addEventListener(kind, (event) => this.place(event));
    addEventListener("scroll", () => this.show(-1), {passive: true});
    addEventListener("keydown", (event) => event.key === "Escape" && this.show(-1));
  }

  show(i, event) {
    this.box.hidden = i < 0;
    if (i < 0) return;
    const text = this.lines(i).filter(Boolean).flatMap((line) => [line, element("br")]);
    const picture = this.pictures[i] && element("img", {src: this.pictures[i], alt: ""});
    this.box.replaceChildren(...[picture, element("div", {}, element("b", {}, this.names[i]), ...text)].filter(Boolean));
    this.place(event);
  }

  place(event) {
    if (event?.clientX) this.pointer = [event.clientX, event.clientY];
    if (this.box.hidden) return;
    const [x, y] = this.pointer, wide = this.box.offsetWidth, high = this.box.offsetHeight;
    this.box.style.left = `${Math.max(4, x + 16 + wide > innerWidth ? x - wide - 16 : x + 16)}px`;
    this.box.style.top = `${Math.max(4, Math.min(innerHeight - high - 4, y + 12))}px`;
  }
}

class PlaceMap {
  constructor(box, options) {
    Object.assign(this, {box, ...options});
    this.selected = null;
    this.active = -1;
    this.tool = "select";
    this.middle = (this.home[1] + this.home[3]) / 2;
    this.place();
    this.build();
    new ResizeObserver(() => this.resize()).observe(this.stage);
    this.resize();
    this.show(this.home);
  }

  place() {
    const unwrap = (values, middle) => values.map((v, i) => v == null ? null : near(v, middle(i)));
    this.lon = unwrap(this.lon, () => this.middle);
    this.x = this.lon.map((v) => (v == null ? null : worldX(v)));
    this.y = this.lat.map((v) => (v == null ? null : worldY(v)));
    this.setAnswers(this, false);
  }

  setAnswers({guessLat, guessLon, radius, radius50}, draw = true) {
    Object.assign(this, {guessLat, guessLon, radius, radius50});
    const known = (i) => guessLat && guessLat[i] != null;
    this.guessLon = this.lat.map((_, i) => known(i) ? near(guessLon[i], this.lon[i] ?? this.middle) : null);
    this.gx = this.guessLon.map((v) => (v == null ? null : worldX(v)));
    this.gy = this.lat.map((_, i) => (known(i) ? worldY(guessLat[i]) : null));
    if (draw) this.draw();
  }

  build() {
    const button = (label, text, action) =>
      element("button", {type: "button", "aria-label": label, title: label, onclick: action}, text);
    this.tools = ["select", "move"].map((name) =>
      element("button", {type: "button", "data-tool": name, "aria-pressed": String(name === this.tool),
                         onclick: () => this.useTool(name, true)},
              name === "select" ? "Select an area" : "Move"));
    const bar = element("div", {class: "bar", role: "group", "aria-label": "Map tools"}, ...this.tools,
      button("Zoom in", "+", () => this.zoom(2)), button("Zoom out", "−", () => this.zoom(0.5)),
      button("Show all photos", "All", () => this.show(this.everything())));
    if (this.guessLat) {
      this.circles = element("input", {type: "checkbox", onchange: () => this.draw()});
      bar.append(element("label", {class: "check"}, this.circles, " all radii"));
    }
    if (this.tiles) {
      this.online = element("button", {type: "button", "aria-pressed": "false", class: "online",
        title: `Loads pictures from ${new URL(this.tiles.url).hostname}, which then knows the area`,
        onclick: () => this.goOnline()}, "Street map (goes online)");
      bar.append(this.online);
    }
    this.note = element("p", {class: "note", "aria-live": "polite"});
    this.canvas = this.heatKm ? element("canvas", {"aria-hidden": "true"}) : null;
    this.svg = shape("svg", {tabindex: "0", role: "application",
      "aria-label": "Map of the photos. Arrow keys move it, plus and minus zoom, Enter selects what is in view, Escape clears the selection."});
    this.ground = shape("svg", {"aria-hidden": "true"});  // under the density: land, streets, grid
    this.stage = element("div", {class: "stage"}, this.ground, this.canvas, this.svg);
    this.box.append(bar, this.stage, this.note);
    this.listen();
  }

  listen() {
    const at = (event) => {
      const seen = this.svg.getBoundingClientRect();
      return [event.clientX - seen.left, event.clientY - seen.top];
    };
    this.svg.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      this.drag = {from: at(event), to: at(event), cx: this.cx, cy: this.cy};
      this.svg.setPointerCapture(event.pointerId);
    });
    this.svg.addEventListener("pointermove", (event) => {
      if (!this.drag) return this.hover(this.nearest(...at(event)));
      this.drag.to = at(event);
      if (this.tool === "move") {
        this.cx = this.drag.cx - (this.drag.to[0] - this.drag.from[0]) / this.k;
        this.cy = this.drag.cy - (this.drag.to[1] - this.drag.from[1]) / this.k;
      }
      this.draw();
    });
    this.svg.addEventListener("pointerup", () => this.drop());
    this.svg.addEventListener("pointercancel", () => { this.drag = null; this.draw(); });
    this.svg.addEventListener("pointerleave", (event) => {  // a finger leaves when it is lifted
      if (!this.drag && event.pointerType === "mouse") this.hover(-1);
    });
    this.svg.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey) return;  // else the page could not be scrolled past
      event.preventDefault();
      this.zoom(event.deltaY < 0 ? 1.3 : 1 / 1.3, ...at(event));
    }, {passive: false});
    this.svg.addEventListener("keydown", (event) => {
      const step = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
      if (step) {
        this.cx += (step[0] * this.width) / 6 / this.k;
        this.cy += (step[1] * this.height) / 6 / this.k;
        this.draw();
      } else if (event.key === "+" || event.key === "=") this.zoom(2);
      else if (event.key === "-") this.zoom(0.5);
      else if (event.key === "Enter") this.select([this.lonAt(0), this.lonAt(this.width), this.latAt(this.height), this.latAt(0)]);
      else if (event.key === "Escape") this.select(null);
      else return;
      event.preventDefault();
    });
  }

  useTool(name, chosen) {
    this.tool = name;
    for (const one of this.tools) one.setAttribute("aria-pressed", one.dataset.tool === name);
    // until a tool is chosen, a finger that strokes up or down scrolls the page
    this.svg.style.touchAction = chosen ? "none" : "pan-y";
  }

  drop() {
    const drag = this.drag;
    this.drag = null;
    if (!drag) return;
    const [x0, x1] = [drag.from[0], drag.to[0]].sort((a, b) => a - b);
    const [y0, y1] = [drag.from[1], drag.to[1]].sort((a, b) => a - b);
    if (x1 - x0 < 5 && y1 - y0 < 5) {
      const found = this.nearest(...drag.to);
      this.hover(found);
      if (found >= 0) this.on.pick?.(found);
      else if (this.area) this.select(null);
    } else if (this.tool === "select") {
      this.select([this.lonAt(x0), this.lonAt(x1), this.latAt(y1), this.latAt(y0)]);
    }
    this.draw();
  }

  select(area) {
    this.area = area;
    const inside = (i) => this.lat[i] != null && this.lon[i] >= area[0] && this.lon[i] <= area[1] &&
                          this.lat[i] >= area[2] && this.lat[i] <= area[3];
    this.selected = area && new Set(this.lat.map((_, i) => i).filter(inside));
    this.on.select?.(this.selected);
    this.draw();
  }

  nearest(px, py, within = 16) {
    let best = -1, least = within * within;
    for (const [x, y] of [[this.gx, this.gy], [this.x, this.y]]) {
      for (let i = 0; i < x.length; i++) {
        if (x[i] == null) continue;
        const dx = this.sx(x[i]) - px, dy = this.sy(y[i]) - py, away = dx * dx + dy * dy;
        if (away <= least) [best, least] = [i, away];
      }
    }
    return best;
  }

  hover(i) {
    if (i === this.active) return;
    this.active = i;
    this.drawActive();
    this.on.hover?.(i);
  }

  mark(i) {
    this.active = i;
    this.drawActive();
  }

  // ---- views

  sx = (x) => (x - this.cx) * this.k + this.width / 2;
  sy = (y) => (y - this.cy) * this.k + this.height / 2;
  lonAt = (px) => ((px - this.width / 2) / this.k + this.cx) * 360 - 180;
  latAt = (py) => latOf((py - this.height / 2) / this.k + this.cy);

  resize() {
    const width = Math.max(this.stage.clientWidth, 50), height = Math.max(this.stage.clientHeight, 50);
    if (matchMedia("print").matches || (width === this.width && height === this.height)) return;
    Object.assign(this, {width, height});
    this.stage.style.setProperty("--ratio", width / height);  // paper scales what the screen shows
    for (const one of [this.ground, this.svg]) one.setAttribute("viewBox", `0 0 ${width} ${height}`);
    if (this.shown) this.show(this.shown);
  }

  everything() {
    const known = (values) => values.filter((v) => v != null);
    const lat = known(this.lat), lon = known(this.lon);
    return [Math.min(...lat), Math.min(...lon), Math.max(...lat), Math.max(...lon)];
  }

  show([south, west, north, east]) {
    this.shown = [south, west, north, east];
    this.cx = (worldX(west) + worldX(east)) / 2;
    this.cy = (worldY(south) + worldY(north)) / 2;
    const wide = Math.max(worldX(east) - worldX(west), 1e-9), high = Math.max(worldY(south) - worldY(north), 1e-9);
    const most = this.width / ((0.2 / 40030) / Math.cos((latOf(this.cy) * Math.PI) / 180));
    this.k = Math.min(0.86 * Math.min(this.width / wide, this.height / high), most);
    this.k = Math.max(this.k, this.width / 1.02);
    this.draw();
  }

  zoom(factor, px = this.width / 2, py = this.height / 2) {
    const [x, y] = [(px - this.width / 2) / this.k + this.cx, (py - this.height / 2) / this.k + this.cy];
    this.k = Math.max(this.k * factor, this.width / 2);
    this.cx = x - (px - this.width / 2) / this.k;
    this.cy = y - (py - this.height / 2) / this.k;
    this.draw();
  }

  kmAcross() {
    return (this.width / this.k) * 2 * Math.PI * EARTH_KM * Math.cos((latOf(this.cy) * Math.PI) / 180);
  }

  goOnline() {
    this.loaded = !this.loaded;
    this.online.setAttribute("aria-pressed", this.loaded);
    this.failed = false;
    this.draw();
  }

  // ---- drawing

  draw() {
    if (!this.k) return;
    const parts = [], ground = [];
    const add = (tag, attributes, text) => parts.push(shape(tag, attributes, text));
    const below = (tag, attributes, text) => ground.push(shape(tag, attributes, text));
    if (this.loaded) this.drawTiles(ground);
    else if (this.kmAcross() > 150) this.drawCoast(below);
    this.drawGrid(below);
    this.ground.replaceChildren(...ground);
    if (this.canvas) this.drawHeat();
    this.drawPlaces(add);
    this.drawScale(add);
    if (this.area) this.drawArea(add, [this.area[0], this.area[3]], [this.area[1], this.area[2]]);
    if (this.drag && this.tool === "select") {
      const [a, b] = [this.drag.from, this.drag.to];
      add("rect", {class: "area", x: Math.min(a[0], b[0]), y: Math.min(a[1], b[1]),
                   width: Math.abs(a[0] - b[0]), height: Math.abs(a[1] - b[1])});
    }
    this.light = shape("g", {class: "active"});
    this.svg.replaceChildren(...parts, this.light);
    this.drawActive();
    this.tellOutside();
  }

  drawArea(add, [west, north], [east, south]) {
    const [x, y] = [this.sx(worldX(west)), this.sy(worldY(north))];
    add("rect", {class: "area", x, y, width: this.sx(worldX(east)) - x, height: this.sy(worldY(south)) - y});
  }

  drawCoast(add) {
    if (!this.coast) return;
    const turns = [-1, 0, 1].filter((turn) => this.sx(turn - 0.5) < this.width && this.sx(turn + 1.5) > 0);
    let path = "";
    for (const turn of turns) {
      for (const rings of this.coast) {
        for (const ring of rings) {
          path += "M" + ring.map(([lon, lat]) =>
            `${this.sx(worldX(lon) + turn).toFixed(1)} ${this.sy(worldY(lat)).toFixed(1)}`).join("L") + "Z";
        }
      }
    }
    add("path", {class: "land", d: path});
  }

  drawGrid(add) {
    const steps = [45, 30, 20, 10, 5, 2, 1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001,
                   0.0005, 0.0002, 0.0001];
    const perDegree = this.k / 360;
    const step = [...steps].reverse().find((s) => s * perDegree >= 90) ?? 45;
    const digits = Math.max(0, Math.ceil(-Math.log10(step) - 1e-9));
    const name = (v, plus, minus) => `${Math.abs(v).toFixed(digits)}° ${v < -1e-9 ? minus : v > 1e-9 ? plus : ""}`;
    for (let v = Math.ceil(this.lonAt(0) / step) * step; v <= this.lonAt(this.width); v += step) {
      const x = this.sx(worldX(v)).toFixed(1);
      add("path", {class: "grid", d: `M${x} 0V${this.height}`});
      add("text", {class: "degree", x: Number(x) + 3, y: this.height - 5}, name(near(v, 0), "E", "W"));
    }
    for (let v = Math.ceil(this.latAt(this.height) / step) * step; v <= this.latAt(0); v += step) {
      if (Math.abs(v) > 85) continue;
      const y = this.sy(worldY(v)).toFixed(1);
      add("path", {class: "grid", d: `M0 ${y}H${this.width}`});
      add("text", {class: "degree", x: 4, y: Number(y) - 3}, name(v, "N", "S"));
    }
  }

  drawScale(add) {
    const across = this.kmAcross();
    if (across > 12000) return;  // Mercator's scale differs too much from top to bottom
    const least = (across * 70) / this.width, power = 10 ** Math.floor(Math.log10(least));
    const km = [1, 2, 5, 10].map((m) => m * power).find((v) => v >= least);
    const length = (km / across) * this.width, x = this.width - length - 14, y = 20;
    add("path", {class: "scale", d: `M${x} ${y - 5}V${y}H${x + length}V${y - 5}`});
    add("text", {class: "scale-text", x: x + length / 2, y: y + 14, "text-anchor": "middle"}, distanceLabel(km));
  }

  drawPlaces(add) {
    const layers = {in: ["", "", "", ""], out: ["", "", "", ""]};  // radii, lines, answers, truths
    for (let i = 0; i < this.x.length; i++) {
      const layer = layers[!this.selected || this.selected.has(i) ? "in" : "out"];
      const truth = this.x[i] != null && [this.sx(this.x[i]), this.sy(this.y[i])].map((v) => v.toFixed(1)).join(" ");
      const guess = this.gx[i] != null && [this.sx(this.gx[i]), this.sy(this.gy[i])].map((v) => v.toFixed(1)).join(" ");
      if (guess && this.circles?.checked) layer[0] += this.circlePath(i, this.radius);
      if (truth && guess) layer[1] += `M${truth}L${guess}`;
      if (guess) layer[2] += `M${guess}h0`;
      if (truth) layer[3] += `M${truth}h0`;
    }
    const crowd = this.x.length > 5000 ? " crowd" : this.x.length > 600 ? " many" : "";
    for (const [which, paths] of [["out", layers.out], ["in", layers.in]]) {
      ["radius", "line", "guess", "truth"].forEach((name, n) => {
        if (paths[n]) add("path", {class: `${name} ${which}${crowd}`, d: paths[n]});
      });
    }
  }

  circlePath(i, radius) {
    if (radius?.[i] == null || radius[i] > 9000) return "";  // anywhere
    const points = circleAround(this.guessLat[i], this.guessLon[i], radius[i]);
    return "M" + points.map(([lat, lon]) =>
      `${this.sx(worldX(lon)).toFixed(1)} ${this.sy(worldY(lat)).toFixed(1)}`).join("L") + "Z";
  }

  drawActive() {
    if (!this.light) return;
    const i = this.active;
    this.light.replaceChildren();
    if (i < 0) return;
    const add = (tag, attributes) => this.light.append(shape(tag, attributes));
    if (this.gx[i] != null) {
      for (const radius of [this.radius, this.radius50]) add("path", {class: "radius", d: this.circlePath(i, radius)});
      if (this.x[i] != null) add("path", {class: "line", d: `M${this.sx(this.x[i])} ${this.sy(this.y[i])}L${this.sx(this.gx[i])} ${this.sy(this.gy[i])}`});
      add("circle", {class: "guess", cx: this.sx(this.gx[i]), cy: this.sy(this.gy[i]), r: 6});
    }
    if (this.x[i] != null) add("circle", {class: "truth", cx: this.sx(this.x[i]), cy: this.sy(this.y[i]), r: 6});
  }

  drawTiles(parts) {
    const level = Math.max(0, Math.min(19, Math.round(Math.log2(this.k / 256))));
    const count = 2 ** level, size = this.k / count;
    const range = (middle, half) => [Math.floor((middle - half / this.k) * count), (middle + half / this.k) * count];
    const [[x0, x1], [y0, y1]] = [range(this.cx, this.width / 2), range(this.cy, this.height / 2)];
    for (let x = x0; x <= x1; x++) {
      for (let y = Math.max(0, y0); y <= Math.min(count - 1, y1); y++) {
        const href = this.tiles.url.replace("{z}", level).replace("{x}", ((x % count) + count) % count).replace("{y}", y);
        const tile = shape("image", {class: "tile", href, x: this.sx(x / count), y: this.sy(y / count),
                                     width: size + 0.5, height: size + 0.5});
        tile.addEventListener("error", () => { this.failed = true; this.tellOutside(); });
        parts.push(tile);
      }
    }
  }

  tellOutside() {
    const seen = (i) => {
      const x = this.sx(this.x[i]), y = this.sy(this.y[i]);
      return x >= 0 && x <= this.width && y >= 0 && y <= this.height;
    };
    const placed = this.x.map((v, i) => (v == null ? -1 : i)).filter((i) => i >= 0);
    const outside = placed.filter((i) => !seen(i)).length;
    const told = [outside ? `${outside} of ${placed.length} photos lie outside this view.` : `All ${placed.length} photos are in view.`];
    if (this.failed) told.push("The street map did not load: is this computer online?");
    if (this.loaded) told.push(this.tiles.credit);
    else if (this.coast && this.kmAcross() > 150) told.push("Land: Natural Earth.");
    this.note.textContent = told.join(" ");
  }

  // ---- density

  drawHeat() {
    const cell = 4, columns = Math.ceil(this.width / cell), rows = Math.ceil(this.height / cell);
    const perKm = this.width / this.kmAcross(), width = Math.max((this.heatKm * perKm) / cell, 1.5);
    this.heatNow = (width * cell) / perKm;  // what is drawn: never narrower than six pixels
    const value = new Float32Array(columns * rows), reach = Math.ceil(3.5 * width);
    for (let i = 0; i < this.x.length; i++) {
      if (this.x[i] == null) continue;
      const cx = this.sx(this.x[i]) / cell - 0.5, cy = this.sy(this.y[i]) / cell - 0.5;
      for (let y = Math.max(0, Math.floor(cy - reach)); y <= Math.min(rows - 1, cy + reach); y++) {
        for (let x = Math.max(0, Math.floor(cx - reach)); x <= Math.min(columns - 1, cx + reach); x++) {
          value[y * columns + x] += Math.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * width * width));
        }
      }
    }
    const most = value.reduce((a, b) => Math.max(a, b), 1e-9);
    this.canvas.width = columns;
    this.canvas.height = rows;
    const context = this.canvas.getContext("2d"), picture = context.createImageData(columns, rows);
    for (let i = 0; i < value.length; i++) {
      const level = Math.max(0, 1 + Math.log10(value[i] / most) / 2.5);  // two and a half decades
      const [r, g, b] = heatColour(level);
      picture.data.set([r, g, b, level > 0 ? 70 + 160 * level : 0], 4 * i);
    }
    context.putImageData(picture, 0, 0);
    this.peak = most / (2 * Math.PI * this.heatNow * this.heatNow);  // photos per km²
    this.on.heat?.(this.peak, this.heatNow);
  }
}

function heatColour(level) {  // pale yellow, green, blue: darker is denser, also in grey
  const stops = [[255, 243, 178], [127, 205, 187], [44, 127, 184], [37, 52, 148]];
  const at = Math.max(0, Math.min(2.999, level * 3)), n = Math.floor(at), part = at - n;
  return stops[n].map((v, c) => Math.round(v + (stops[n + 1][c] - v) * part));
}
