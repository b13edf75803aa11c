// Draws the report from the JSON in #data. Every text enters the page as a text node: hypotheses are data.
"use strict";
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const ROWS = 50;  // utterances per page
const SYSTEMS = ["a", "b"];  // classes; labels are their upper case
const byId = (id) => document.getElementById(id);
const state = { view: 0, query: "", filter: "all", sort: null, page: 0, shown: [] };

function el(tag, attributes = {}, ...children) {
  const svg = ["svg", "path", "line", "circle", "text", "g", "rect"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}
const number = (value, digits = 1) => (value === null || value === undefined ? "–" : value.toFixed(digits));
const signed = (value, digits = 1) => (value > 0 ? "+" : value < 0 ? "−" : "±") + Math.abs(value).toFixed(digits);
const tag = (system) => el("span", { class: `tag ${SYSTEMS[system]}` }, SYSTEMS[system].toUpperCase());
const two = () => data.compared;

// ---- scores

function scoreCell(entry) {
  if (!entry) return el("td", { class: "num" }, "–");
  const range = entry.ci95 ? [el("span", { class: "ci" }, `${number(entry.ci95[0])} – ${number(entry.ci95[1])}`)] : [];
  return el("td", { class: "num", title: entry.verbose_score ?? null }, number(entry.score), ...range);
}

function drawScores() {
  const metrics = data.metrics.filter((metric) => data.table.some((row) => row.scores[metric]));
  const control = data.table.some((row) => row.control !== null);
  const heads = ["Set", "System"].map((text) => el("th", {}, text));
  for (const text of ["n", ...metrics, ...(control ? ["shuffled audio"] : []), "RTF"]) {
    heads.push(el("th", { class: "num" }, text));
  }
  const rows = data.table.map((row) => el("tr", {},
    el("td", {}, row.set), el("td", {}, ...(two() ? [tag(row.system)] : []), row.name),
    el("td", { class: "num" }, String(row.n)), ...metrics.map((metric) => scoreCell(row.scores[metric])),
    ...(control ? [el("td", { class: "num" }, number(row.control))] : []),
    el("td", { class: "num" }, number(row.rtf, 3))));
  byId("scores").append(el("table", {}, el("thead", {}, el("tr", {}, ...heads)), el("tbody", {}, ...rows)));
  const lines = data.signatures.map(([metric, text]) => el("li", {}, `${metric}  ${text}`));
  if (lines.length) {
    byId("signatures").append(el("details", { open: lines.length < 9 }, el("summary", {}, "Signatures"),
      el("ul", { class: "signatures" }, ...lines)));
  }
}

function drawTests() {
  for (const view of data.views) {
    for (const [metric, test] of Object.entries(view.tests || {})) {
      const [low, high] = test.difference_ci95;
      const chance = test.p_bootstrap === null ? "the same texts" :
        `p = ${test.p_bootstrap.toFixed(4)} by paired bootstrap, ${test.p_randomisation.toFixed(4)} by approximate randomisation`;
      byId("tests").append(el("p", {}, `${view.set}: B − A = ${signed(test.difference)} ${metric} ` +
        `[${signed(low)}, ${signed(high)}], ${chance}: `, el("strong", {}, test.verdict)));
    }
  }
}

// ---- charts

function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) found.push(Number((i * step).toPrecision(12)));
  return found;
}
const short = (value) => (Math.abs(value) >= 10000 ? `${Number((value / 1000).toPrecision(4))}k` : String(value));

// series: [{name, system, thin, dots, points: [{x, y, low, high, note}]}]
function chart(title, xlabel, series) {
  const [W, H, L, R, T, B] = [420, 236, 44, 10, 8, 34];
  const points = series.flatMap((one) => one.points);
  const xs = points.map((p) => p.x);
  const ys = points.flatMap((p) => [p.y, p.low ?? p.y, p.high ?? p.y]);
  let [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const [padX, padY] = [(x1 - x0) * 0.04 || 0.5, (y1 - y0) * 0.06 || 0.5];
  [x0, x1, y0, y1] = [x0 - padX, x1 + padX, y0 - padY, y1 + padY];
  const sx = (x) => L + ((x - x0) / (x1 - x0)) * (W - L - R);
  const sy = (y) => H - B - ((y - y0) / (y1 - y0)) * (H - T - B);
  const svg = el("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": title });
  for (const y of ticks(y0, y1, 5)) {
    svg.append(el("line", { class: "grid", x1: L, x2: W - R, y1: sy(y), y2: sy(y) }),
      el("text", { x: L - 7, y: sy(y) + 4, "text-anchor": "end" }, short(y)));
  }
  for (const x of ticks(Math.max(x0, Math.min(...xs)), x1, 6)) {
    svg.append(el("text", { x: sx(x), y: H - B + 15, "text-anchor": "middle" }, short(x)));
  }
  svg.append(el("text", { x: (L + W - R) / 2, y: H - 3, "text-anchor": "middle" }, xlabel));
  for (const one of series) {
    const style = `${SYSTEMS[one.system]}${one.thin ? " thin" : ""}`;
    const aside = two() && one.points.some((p) => p.low !== undefined) ? one.system * 5 - 2.5 : 0;  // intervals side by side
    const px = (p) => sx(p.x) + aside;
    const path = one.points.map((p, i) => `${i ? "L" : "M"}${px(p).toFixed(1)},${sy(p.y).toFixed(1)}`).join("");
    svg.append(el("path", { class: `line ${style}`, d: path }));
    for (const p of one.points) {
      if (p.low !== undefined) svg.append(el("line", { class: style, x1: px(p), x2: px(p), y1: sy(p.low), y2: sy(p.high), opacity: 0.5 }));
      if (one.dots) svg.append(el("circle", { class: style, cx: px(p), cy: sy(p.y), r: 3 }));
    }
  }
  const keys = series.length > 1 ? series.map((one) => el("span", {},
    el("i", { class: `${SYSTEMS[one.system]}${one.thin ? " thin" : ""}` }), one.name)) : [];
  const box = el("div", { class: "chart" }, el("h3", {}, title), el("div", { class: "keys" }, ...keys), svg);
  hover(box, svg, series, xs, { sx, L, R, T, B, W, H });
  return box;
}

function hover(box, svg, series, xs, { sx, T, B, W, H }) {
  const hair = el("line", { class: "hair", y1: T, y2: H - B, visibility: "hidden" });
  const tip = el("div", { class: "tip", hidden: true });
  svg.append(hair);
  box.append(tip);
  svg.addEventListener("pointerleave", () => { tip.hidden = true; hair.setAttribute("visibility", "hidden"); });
  svg.addEventListener("pointermove", (event) => {
    const frame = svg.getBoundingClientRect();
    const at = ((event.clientX - frame.left) / frame.width) * W;
    const nearest = (list) => list.reduce((best, x) => (Math.abs(sx(x) - at) < Math.abs(sx(best) - at) ? x : best));
    const x = nearest(xs);
    const lines = series.flatMap((one) => {
      const point = one.points.find((p) => p.x === x);
      const range = point && point.low !== undefined ? ` [${number(point.low)}, ${number(point.high)}]` : "";
      return point ? [`${one.name}: ${Number(point.y.toPrecision(4))}${range}${point.note ? ` ${point.note}` : ""}`] : [];
    });
    hair.setAttribute("x1", sx(x)); hair.setAttribute("x2", sx(x)); hair.setAttribute("visibility", "visible");
    tip.textContent = [Number(x.toPrecision(6)), ...lines].join("\n");
    tip.hidden = false;
    const left = (sx(x) / W) * frame.width;
    tip.style.left = `${left > frame.width / 2 ? Math.max(0, left - tip.offsetWidth - 10) : left + 10}px`;
    tip.style.top = "60px";
  });
}

const label = (system, text) => (two() ? `${SYSTEMS[system].toUpperCase()} ${text}` : text);

function drawCharts() {
  const view = data.views[state.view];
  const drawn = [];
  const lines = view.buckets.map((points, system) => ({ name: label(system, view.metric), system, dots: true, points }));
  if (lines.some((line) => line.points.length)) {
    drawn.push(chart(`${view.metric} by duration`, "seconds of speech", lines.filter((line) => line.points.length)));
  }
  const curves = view.curves.map((name) => data.curves[name]);
  const names = [...new Set(curves.flatMap((curve) => (curve ? Object.keys(curve.series) : [])))];
  for (const name of names) {
    const series = curves.flatMap((curve, system) => Object.entries(curve?.series[name] || {}).map(([part, points]) => ({
      name: label(system, part), system, thin: part === "train", dots: part !== "train" && points.length < 40,
      points: points.map(([x, y]) => ({ x, y })),
    })));
    drawn.push(chart(`Training: ${name}`, "iterations", series));
  }
  byId("charts").replaceChildren(...drawn);
  if (!drawn.length) byId("charts").append("Neither durations nor a record of the training were found.");
}

// ---- differences between two texts

const WORD = /[\p{L}\p{M}\p{N}]+(?:['’.,:-][\p{L}\p{M}\p{N}]+)*|[^\s]/gu;
function tokens(text, unspaced) {
  return Array.from(text.matchAll(unspaced ? /[\p{Script=Latin}\p{N}]+|[^\s]/gu : WORD), (m) => [m.index, m[0]]);
}

// Which tokens of two lists are in no longest common subsequence: [flags of left, flags of right].
function differing(left, right) {
  const [n, m] = [left.length, right.length];
  const table = new Uint16Array((n + 1) * (m + 1));
  for (let i = n - 1; i >= 0; i -= 1) {
    for (let j = m - 1; j >= 0; j -= 1) {
      table[i * (m + 1) + j] = left[i][1] === right[j][1] ? table[(i + 1) * (m + 1) + j + 1] + 1 :
        Math.max(table[(i + 1) * (m + 1) + j], table[i * (m + 1) + j + 1]);
    }
  }
  const flags = [new Array(n).fill(true), new Array(m).fill(true)];
  for (let i = 0, j = 0; i < n && j < m;) {
    if (left[i][1] === right[j][1]) { flags[0][i] = false; flags[1][j] = false; i += 1; j += 1; }
    else if (table[(i + 1) * (m + 1) + j] >= table[i * (m + 1) + j + 1]) i += 1;
    else j += 1;
  }
  return flags;
}

// The text as nodes; classes[i] is the class of token i, "" for none; equal neighbours share one element.
function marked(text, found, classes, name) {
  const nodes = [];
  let [end, open, style] = [0, 0, ""];
  const close = (upTo) => {
    if (upTo > open) nodes.push(style ? el(name, { class: style }, text.slice(open, upTo)) : text.slice(open, upTo));
    open = upTo;
  };
  found.forEach(([start, token], i) => {
    if (classes[i] !== style) { close(classes[i] ? start : end); style = ""; close(start); style = classes[i]; }
    end = start + token.length;
  });
  close(end);
  style = "";
  close(text.length);
  return nodes;
}

function textCell(view, i) {
  const ref = view.ref[0][i];
  const refTokens = tokens(ref, view.unspaced);
  const missed = refTokens.map(() => "");
  const hyps = view.hyps.map((column, system) => {
    const found = tokens(column[i], view.unspaced);
    const [lost, wrong] = differing(refTokens, found);
    lost.forEach((is, k) => { if (is) missed[k] += SYSTEMS[system]; });
    const body = column[i].trim() ? marked(column[i], found, wrong.map((is) => (is ? SYSTEMS[system] : "")), "mark") :
      [el("span", { class: "empty" }, "empty")];
    return labelled("hyp", two() ? tag(system) : el("span", { class: "tag" }, "hyp"), body);
  });
  const said = view.source && view.source[i] ? [labelled("said", el("span", { class: "tag" }, "src"), [view.source[i]])] : [];
  const refs = view.ref.map((column, k) => labelled("ref", el("span", { class: "tag" }, "ref"),
    k ? [column[i]] : marked(ref, refTokens, missed, "u")));
  return el("td", { class: "text" }, ...said, ...refs, el("div", { class: "hyps" }, ...hyps));
}

function labelled(kind, mark, nodes) {
  return el("p", { class: kind }, mark, el("span", { dir: "auto" }, ...nodes));
}

// ---- the list

function columns(view) {
  const chrf = view.hyps.map((_, system) => ({ key: `chrf${system}`, head: label(system, "").trim() ? `chrF ${SYSTEMS[system].toUpperCase()}` : "chrF",
    title: "sentence chrF2", value: (i) => view.chrf[system][i], show: (i) => number(view.chrf[system][i]) }));
  const list = [{ key: "id", head: "Utterance", value: (i) => view.ids[i] }];
  if (view.seconds) list.push({ key: "s", head: "s", title: "seconds of speech", value: (i) => view.seconds[i], show: (i) => number(view.seconds[i]) });
  list.push(...chrf);
  if (chrf.length > 1) {
    const gain = (i) => view.chrf[1][i] - view.chrf[0][i];
    list.push({ key: "gain", head: "B − A", title: "gain in sentence chrF2", value: gain, show: (i) => signed(gain(i)) });
    list.push({ key: "change", value: (i) => Math.abs(gain(i)) });  // the first order; no column of its own
  }
  return list;
}

function haystack(view, i) {
  view.hay ??= [];
  view.hay[i] ??= [view.ids[i], view.source?.[i] ?? "", ...view.ref.map((c) => c[i]), ...view.hyps.map((c) => c[i])].join("\n").toLowerCase();
  return view.hay[i];
}

const FILTERS = {
  all: ["all", () => true],
  wrong: ["not equal to the reference", (view, i) => view.hyps.some((column) => view.ref.every((ref) => ref[i] !== column[i]))],
  differ: ["A and B differ", (view, i) => view.hyps[0][i] !== view.hyps[1][i]],
  worse: ["B worse than A", (view, i) => view.chrf[1][i] < view.chrf[0][i]],
  better: ["B better than A", (view, i) => view.chrf[1][i] > view.chrf[0][i]],
  empty: ["empty hypothesis", (view, i) => view.hyps.some((column) => !column[i].trim())],
};

function select() {
  const view = data.views[state.view];
  const words = state.query.toLowerCase().split(/\s+/).filter(Boolean);
  const keep = FILTERS[state.filter][1];
  const { value } = columns(view).find((column) => column.key === state.sort.key) ?? columns(view)[0];
  const shown = view.ids.map((_, i) => i).filter((i) => keep(view, i) && words.every((word) => haystack(view, i).includes(word)));
  const values = shown.map(value);
  const order = shown.map((_, k) => k).sort((p, q) => state.sort.sign * (values[p] < values[q] ? -1 : values[p] > values[q] ? 1 : 0));
  state.shown = order.map((k) => shown[k]);
  state.page = 0;
  drawList();
}

function playButton(view, i) {
  if (!view.audio[i]) return el("td", {});
  return el("td", {}, el("button", { class: "play", type: "button", "data-utt": view.ids[i], "aria-label": `Play ${view.ids[i]}`,
    onclick: () => play(view.audio[i], view.ids[i]) }, sounding(view.ids[i]) ? "❚❚" : "▶"));
}

function sounding(id) {
  return byId("playing").textContent === id && !byId("audio").paused;
}

function play(source, id) {
  const audio = byId("audio");
  if (sounding(id)) { audio.pause(); return; }
  if (byId("playing").textContent !== id) audio.src = source;
  byId("player").hidden = false;
  byId("playing").textContent = id;
  audio.play().catch(() => {
    if (audio.error) byId("playing").textContent = `${id}: the audio cannot be read (${source.slice(0, 120)})`;
  });
}

function drawHead(view) {
  const cells = columns(view).filter((column) => column.head).map((column) => {
    const sorted = state.sort.key === column.key;
    const arrow = sorted ? (state.sort.sign > 0 ? " ↑" : " ↓") : "";
    return el("th", { class: column.key === "id" ? null : "num", title: column.title ?? null,
      "aria-sort": sorted ? (state.sort.sign > 0 ? "ascending" : "descending") : null },
    el("button", { type: "button", "data-sort": column.key, onclick: () => {
      state.sort = { key: column.key, sign: sorted ? -state.sort.sign : 1 };
      select();
    } }, column.head + arrow));
  });
  const said = view.source ? "Source, reference, hypothesis" : "Reference, hypothesis";
  byId("list").tHead.replaceChildren(el("tr", {}, el("th", {}, el("span", { class: "hidden" }, "Audio")), ...cells, el("th", {}, said)));
}

function drawList() {
  const view = data.views[state.view];
  const first = state.page * ROWS;
  const rows = state.shown.slice(first, first + ROWS).map((i) => el("tr", { class: view.hyps.length > 1 ? "two" : null },
    playButton(view, i), el("td", { class: "id" }, view.ids[i]),
    ...columns(view).filter((column) => column.show).map((column) => el("td", { class: "num" }, column.show(i))),
    textCell(view, i)));
  drawHead(view);
  byId("list").tBodies[0].replaceChildren(...rows);
  byId("count").textContent = `${state.shown.length} of ${view.ids.length}`;
  const last = Math.max(0, Math.ceil(state.shown.length / ROWS) - 1);
  const go = (text, page, able) => el("button", { type: "button", disabled: !able, onclick: () => {
    state.page = page;
    drawList();
    byId("list-head").scrollIntoView();
  } }, text);
  byId("pages").replaceChildren(...(last ? [go("First", 0, state.page > 0), go("Back", state.page - 1, state.page > 0),
    el("span", {}, `${first + 1} – ${first + rows.length} of ${state.shown.length}`),
    go("Next", state.page + 1, state.page < last), go("Last", last, state.page < last)] : []));
}

// ---- start

function openView(index) {
  state.view = index;
  const view = data.views[index];
  const both = view.hyps.length > 1;
  state.sort = both ? { key: "change", sign: -1 } : { key: "chrf0", sign: 1 };
  const known = Object.entries(FILTERS).filter(([key]) => both || !["differ", "worse", "better"].includes(key));
  if (!known.some(([key]) => key === state.filter)) state.filter = "all";
  byId("filter").replaceChildren(...known.map(([key, [text]]) => el("option", { value: key, selected: key === state.filter }, text)));
  byId("legend").replaceChildren("Words of a hypothesis that the reference lacks are ", el("mark", { class: "a" }, "shaded"),
    ", words of the reference that it lacks are ", el("u", { class: "a" }, "underlined"), both ? " in the system's colour: " : ".",
    ...(both ? view.systems.map((name, system) => el("span", { class: "name" }, tag(system), name)) : []));
  byId("opened").textContent = data.views.length > 1 ? viewName(view) : "";
  drawCharts();
  select();
}

const viewName = (view) => [view.set, ...view.systems].join("  ·  ");

function start() {
  byId("title").textContent = data.title;
  byId("systems").textContent = data.subtitle;
  drawScores();
  drawTests();
  byId("view").append(...data.views.map((view, i) => el("option", { value: i }, viewName(view))));
  byId("view-label").hidden = data.views.length < 2;
  byId("view").addEventListener("change", (event) => openView(Number(event.target.value)));
  byId("filter").addEventListener("change", (event) => { state.filter = event.target.value; select(); });
  let waiting = 0;
  byId("search").addEventListener("input", (event) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => { state.query = event.target.value; select(); }, 120);
  });
  for (const event of ["play", "pause", "ended"]) {
    byId("audio").addEventListener(event, () => {
      for (const button of document.querySelectorAll(".play")) button.textContent = sounding(button.dataset.utt) ? "❚❚" : "▶";
    });
  }
  byId("made").append("Made by ", el("code", {}, data.command), ` on ${data.date}. ${data.environment}`);
  openView(0);
}
start();
})();
