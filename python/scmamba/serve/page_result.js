"use strict";
// The result of a job: map, tables, histogram, downloads.
import { asCsv, asRds, linesOf, readPlain, tableOf } from "/page_files.js";

const $ = (id) => document.getElementById(id);
// Distinguished by people with any color vision (Okabe and Ito), then darker again.
const COLORS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8c7a00", "#5b3f8c", "#7a2e0e", "#1b5e46", "#4a6a8a", "#a04060"];
const GREY = "#9a9a9a", EDGE = 12, SHOWN = 50;
const SHADES = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]]; // viridis
let now = null; // the result on the page
let ask = null;

const row = (kind, texts, color) => {
  const line = document.createElement("tr");
  texts.forEach((text, i) => {
    const cell = document.createElement(i === 0 ? kind : "td");
    if (kind === "th" && i === 0) cell.scope = "row";
    if (i === 0 && color) cell.append(swatch(color));
    cell.append(String(text));
    line.append(cell);
  });
  return line;
};
const swatch = (color) => {
  const dot = document.createElement("span");
  dot.className = "swatch";
  dot.style.backgroundColor = color;
  return dot;
};
const headed = (texts) => {
  const line = document.createElement("tr");
  for (const text of texts) {
    const cell = document.createElement("th");
    cell.scope = "col";
    cell.append(text);
    line.append(cell);
  }
  $("table").tHead.replaceChildren(line);
};
const short = (value) => {
  if (value === null || value === undefined) return "none";
  return typeof value === "number" && !Number.isInteger(value) ? String(Number(value.toPrecision(4))) : String(value);
};

// -- plots ---------------------------------------------------------------------------------------------

const shade = (share) => {
  const at = Math.max(0, Math.min(1, share)) * (SHADES.length - 1), k = Math.min(SHADES.length - 2, Math.floor(at));
  return `rgb(${SHADES[k].map((v, i) => Math.round(v + (at - k) * (SHADES[k + 1][i] - v))).join(",")})`;
};
// Values as colors: `paints` by cell, the text of each, and a legend.
const paintNumbers = (numbers, low, high) => {
  const range = high > low ? high - low : 1;
  return { colors: numbers.map((v) => (v === null ? GREY : shade((v - low) / range))), texts: numbers.map(short),
    legend: [[`${short(low)} (lowest)`, shade(0)], [`${short(high)} (highest)`, shade(1)]] };
};
const paintNames = (names, order) => {
  const colors = new Map(order.map((name, i) => [name, name === "Unassigned" || name === "none" ? GREY : COLORS[i % COLORS.length]]));
  return { colors: names.map((v) => colors.get(v) || GREY), texts: names.map(short), legend: order.slice(0, 30).map((name) => [name, colors.get(name)]) };
};
const bounds = (...lists) => {
  let low = Infinity, high = -Infinity;
  for (const list of lists) for (const v of list) if (v !== null) { low = Math.min(low, v); high = Math.max(high, v); }
  return low <= high ? [low, high] : [0, 0];
};
const byFrequency = (names) => {
  const counts = new Map();
  for (const name of names) counts.set(name, (counts.get(name) || 0) + 1);
  return [...counts].sort((a, b) => b[1] - a[1]);
};

const scatter = (canvas, points, paint, what) => {
  const pen = canvas.getContext("2d");
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  const radius = points.x.length > 2000 ? 1.5 : 3;
  const place = (i) => [EDGE + points.x[i] * (canvas.width - 2 * EDGE), canvas.height - EDGE - points.y[i] * (canvas.height - 2 * EDGE)];
  points.x.forEach((_, i) => {
    pen.fillStyle = paint.colors[i];
    pen.beginPath();
    pen.arc(...place(i), radius, 0, 7);
    pen.fill();
  });
  canvas.plotted = { place, n: points.x.length, text: (i) => `${points.name(i)}: ${paint.label}: ${paint.texts[i]}`, at: -1 };
  canvas.setAttribute("aria-label", what);
};
const read = (canvas, i) => {
  canvas.plotted.at = i;
  $("tip").textContent = canvas.plotted.text(i);
};
for (const canvas of [$("plot"), $("plot2")]) {
  canvas.addEventListener("mousemove", (event) => {
    if (!canvas.plotted) return;
    const scale = canvas.width / canvas.clientWidth, x = event.offsetX * scale, y = event.offsetY * scale;
    let best = -1, least = 100;
    for (let i = 0; i < canvas.plotted.n; i++) {
      const [px, py] = canvas.plotted.place(i), far = (px - x) ** 2 + (py - y) ** 2;
      if (far < least) { least = far; best = i; }
    }
    if (best >= 0 && best !== canvas.plotted.at) read(canvas, best);
  });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step || !canvas.plotted) return;
    event.preventDefault();
    read(canvas, (canvas.plotted.at + step + canvas.plotted.n) % canvas.plotted.n);
  });
}
const draw = (first, second, what) => {
  const { points, picture } = now, note = `${picture.method}, ${points.x.length} ${picture.things || "cells"}, ${what}`;
  scatter($("plot"), points, first, `Map of the cells: ${note}: ${first.legend.slice(0, 12).map(([name]) => name).join(", ")}`);
  if (second) scatter($("plot2"), points, second, `Map of the cells after imputation: ${note}`);
  $("second").hidden = $("before").hidden = !second;
  $("legend").replaceChildren(...first.legend.map(([name, color]) => {
    const item = document.createElement("li");
    item.append(swatch(color), String(name));
    return item;
  }));
  $("mapped").textContent = note;
  $("map").hidden = $("png").hidden = false;
};
const paintBy = () => {
  const by = $("by").value;
  if (by === "") { draw({ ...paintNames(now.answers, now.order), label: "result" }, null, "colored by result"); return; }
  const column = now.picture.columns[by];
  const paint = column.numbers ? paintNumbers(column.numbers, ...bounds(column.numbers)) : (() => {
    const names = column.codes.map((code) => (code < 0 ? "none" : column.levels[code]));
    return paintNames(names, byFrequency(names).map(([name]) => name));
  })();
  draw({ ...paint, label: by }, null, `colored by ${by}`);
};
$("by").addEventListener("change", paintBy);
const paintGene = async () => {
  const gene = $("gene").value.trim(), shown = now;
  $("no_gene").textContent = "";
  if (!gene) return;
  const answer = await ask(`/v2/jobs/${now.job.id}/genes/${encodeURIComponent(gene)}`);
  const body = await answer.json();
  if (!answer.ok) { $("no_gene").textContent = body.detail; return; }
  if (now !== shown) return;
  const label = `${body.gene}, log1p(CP10k)`, range = bounds(body.measured, body.imputed || []);
  const paint = (values) => ({ ...paintNumbers(values, ...range), label });
  draw(paint(body.measured), body.imputed && paint(body.imputed), `colored by ${label}`);
};
$("color").addEventListener("click", paintGene);
$("gene").addEventListener("keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); paintGene(); } });

const histogram = (values, what) => {
  const canvas = $("histogram"), pen = canvas.getContext("2d"), bins = new Array(40).fill(0), known = values.filter((v) => v !== null);
  $("confidence").hidden = known.length === 0;
  if (known.length === 0) return;
  for (const v of known) bins[Math.max(0, Math.min(39, Math.floor(v * 40)))]++;
  const top = Math.max(1, ...bins), median = [...known].sort((a, b) => a - b)[Math.floor(known.length / 2)];
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.fillStyle = COLORS[0];
  bins.forEach((n, i) => pen.fillRect(i * 16 + 1, 180 - (170 * n) / top, 14, (170 * n) / top));
  pen.fillStyle = "#1a1a1a";
  pen.fillText("0", 2, 195); pen.fillText(what, 290, 195); pen.fillText("1", 630, 195);
  $("spread").textContent = `${what[0].toUpperCase()}${what.slice(1)} of the results, median ${median.toFixed(2)}`;
  canvas.setAttribute("aria-label", `Histogram: ${$("spread").textContent}, ${known.length} cells`);
};

// -- results -------------------------------------------------------------------------------------------

const named = (task) => (value) => (value === true ? "yes" : value === false ? "no" : value === null ? "none" : String(value))
  .replace(/^yes$/, task === "doublets" ? "doublet" : "fewer than 200 counts")
  .replace(/^no$/, task === "doublets" ? "single cell" : "enough counts");

const facts = (about) => {
  const shown = Object.entries(about).filter(([, value]) => ["string", "number", "boolean"].includes(typeof value));
  $("coverage").tBodies[0].replaceChildren(...shown.map(([key, value]) => row("th", [key.replaceAll("_", " "), value])));
};
const showCells = (header) => {
  const { obs, provenance } = header, task = now.job.task;
  const all = (obs.scmamba_type || obs.scmamba_doublet || obs.scmamba_low_depth || []).map(named(task));
  const scores = obs.scmamba_type ? obs.scmamba_probability : obs.scmamba_doublet_score || obs.scmamba_probability;
  const counts = byFrequency(all);
  now.order = counts.map(([name]) => name);
  now.all = all;
  const colors = new Map(paintNames([], now.order).legend);
  headed(["Result", "Cells", "Share"]);
  $("counted").textContent = "Cells by result";
  $("table").tBodies[0].replaceChildren(...counts.map(([name, n]) => row("th", [name, n, (100 * n / all.length).toFixed(1) + "%"], colors.get(name))));
  facts({ cells: header.cells.length, "genes in the file": header.genes, model: provenance.model, version: provenance.version,
    ...provenance.params, ...provenance.summary });
  histogram(scores || [], obs.scmamba_type ? "probability" : "doublet score");
};
const showTable = (header) => {
  const { rows, columns, corner } = now.table, first = rows.slice(0, SHOWN);
  headed([corner, ...columns.map((c) => c.name)]);
  $("counted").textContent = rows.length > SHOWN ? `The first ${SHOWN} of ${rows.length} rows; the .csv file holds all` : `${rows.length} rows`;
  $("table").tBodies[0].replaceChildren(...first.map((name, i) => row("th", [name, ...columns.map((c) => short(c.values[i]))])));
  facts({ ...now.job.options, ...header.about });
  $("confidence").hidden = true;
  if (now.job.task === "markers") volcano();
};
const volcano = () => {
  const column = (name) => (now.table.columns.find((c) => c.name === name) || {}).values;
  const change = column("avg_log2FC") || column("avg_logFC"), p = column("p_val_adj");
  if (!change || !p || p.length === 0) return;
  const height = p.map((v) => -Math.log10(Math.max(v, 1e-300))), far = Math.max(...bounds(change).map(Math.abs), 1e-9), top = Math.max(...height, 1);
  now.picture = { method: "Volcano plot", things: "genes" };
  now.points = { x: change.map((v) => 0.5 + v / far / 2), y: height.map((v) => v / top), name: (i) => now.table.rows[i] };
  const kinds = change.map((v, i) => (p[i] >= 0.05 ? "p adjusted at least 0.05" : v > 0 ? "higher in the first group" : "lower in the first group"));
  const paint = paintNames(kinds, ["higher in the first group", "lower in the first group"]);
  paint.legend.push(["p adjusted at least 0.05", GREY]);
  paint.texts = change.map((v, i) => `${short(v)}, adjusted p ${short(p[i])}`);
  draw({ ...paint, label: "log2 fold change" }, null, `log2 fold change (${(-far).toFixed(1)} to ${far.toFixed(1)}) and -log10 of the adjusted p (0 to ${top.toFixed(0)})`);
  $("paint").hidden = true;
};

// Show the result of a job; `request` fetches with the user's token, `note` shows a state.
export const show = async (job, files, request, note) => {
  ask = request;
  const model = job.task === "finetune";
  const raw = model ? null : await (await ask(`/v2/jobs/${job.id}/result?format=scmb`)).arrayBuffer();
  const plain = raw && readPlain(raw), cells = plain && !plain.header.tables;
  now = { job, plain, table: plain && tableOf(plain), names: (files.file || "scmamba").replace(/\.[^.]*$/, "") };
  const shown = now;
  $("map").hidden = $("second").hidden = $("png").hidden = true;
  $("paint").hidden = !cells;
  $("csv").hidden = $("rds").hidden = model;
  $("download").textContent = model ? "Download the model (.zip)" : "Download .h5ad";
  $("about_rds").textContent = cells ? "The .csv and .rds files hold the results of each cell; in R: seu <- SeuratObject::AddMetaData(seu, readRDS(\"FILE.rds\"))" : "";
  $("table").parentElement.hidden = model;
  if (cells) showCells(plain.header); else if (plain) showTable(plain.header); else facts(job.options);
  const lines = linesOf(job, { file: files.file || "cells.h5ad", reference: files.reference || "reference.h5ad" });
  for (const language of ["python", "r"]) {
    $(language).textContent = lines ? lines[language] : "";
    for (const element of [$(language), $(language).previousElementSibling, $(language).nextElementSibling]) element.hidden = !lines;
  }
  $("answer").hidden = false;
  $("answer").focus();
  if (!cells) return;
  note("drawing the map of the cells");
  const picture = await ask(`/v2/jobs/${job.id}/picture`);
  if (now !== shown || !picture.ok) return;
  now.picture = { columns: {}, ...await picture.json() };
  now.answers = now.picture.cells.map((cell) => now.all[cell]);
  now.points = { x: now.picture.x, y: now.picture.y, name: (i) => plain.header.cells[now.picture.cells[i]] };
  $("by").replaceChildren(new Option("result", ""), ...Object.keys(now.picture.columns).map((name) => new Option(name, name)));
  $("no_gene").textContent = $("gene").value = "";
  paintBy();
};

// -- downloads -----------------------------------------------------------------------------------------

const keep = (blob, ending) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `${now.names}-${now.job.task}.${ending}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
};
$("download").addEventListener("click", async () => {
  const form = now.job.task === "finetune" ? "zip" : "h5ad";
  keep(await (await ask(`/v2/jobs/${now.job.id}/result?format=${form}`)).blob(), form);
});
$("csv").addEventListener("click", () => keep(new Blob([asCsv(now.table)], { type: "text/csv" }), "csv"));
$("rds").addEventListener("click", () => keep(new Blob([asRds(now.table)]), "rds"));
$("png").addEventListener("click", () => {
  const parts = $("second").hidden ? [$("plot")] : [$("plot"), $("plot2")];
  const whole = document.createElement("canvas");
  whole.width = parts.length * 640;
  whole.height = 480;
  parts.forEach((part, i) => whole.getContext("2d").drawImage(part, i * 640, 0));
  whole.toBlob((blob) => keep(blob, "png"));
});
for (const button of document.querySelectorAll("[data-copies]")) {
  button.addEventListener("click", async () => {
    const lines = $(button.dataset.copies);
    getSelection().selectAllChildren(lines); // without permission to write, the lines are selected
    try { await navigator.clipboard.writeText(lines.textContent); } catch { /* not over plain HTTP */ }
  });
}
