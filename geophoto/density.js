// The density page: the map of all photos, their clusters, and those of the selected area.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const pictures = JSON.parse(document.getElementById("thumbnails").textContent);
const $ = (id) => document.getElementById(id);
const STEP = 24;
let chosen = null, shown = STEP;

const tip = new Tip((i) => [degrees(data.lat[i], data.lon[i])], data.name, pictures);
const map = new PlaceMap($("map"), {...data.map, lat: data.lat, lon: data.lon, on: {
  hover: (i) => tip.show(i), pick: (i) => tip.show(i),
  select: (rows) => { chosen = rows; shown = STEP; list(); },
  heat: (peak, km) => {
    const most = peak >= 0.01 ? `${Number(peak.toPrecision(2)).toLocaleString("en")} photos per km²`
                              : `one photo on ${Number((1 / peak).toPrecision(2)).toLocaleString("en")} km²`;
    $("heat").textContent = `Kernel ${distanceLabel(km)}, at most ${most} in this view.`;
  },
}});

function list() {
  const rows = chosen ? [...chosen] : data.name.map((_, i) => i);
  $("count").textContent = chosen ? `${rows.length} of ${data.name.length} photos selected` : `All ${rows.length} photos`;
  $("clear").disabled = !chosen;
  $("more").hidden = shown >= rows.length;
  $("gallery").replaceChildren(...rows.slice(0, shown).map((i) => element("li", {}, element("button", {
    type: "button", "data-i": i, title: data.name[i], onpointerenter: () => map.mark(i), onfocus: () => map.mark(i),
    onpointerleave: () => map.mark(-1), onclick: (event) => tip.show(i, event)},
    pictures[i] ? element("img", {src: pictures[i], alt: ""}) : element("span", {class: "blank"}, "no picture"),
    element("span", {class: "text"}, element("b", {}, data.name[i].split("/").pop()), element("i", {}, degrees(data.lat[i], data.lon[i])))))));
}

$("clear").addEventListener("click", () => map.select(null));
$("more").addEventListener("click", () => { shown += 4 * STEP; list(); });
for (const button of document.querySelectorAll("[data-cluster]")) {
  button.addEventListener("click", () => map.show(data.clusters[button.dataset.cluster].box));
}
list();
