"use strict";
// No build step, no library: one form, one job, its progress, its answer.
const $ = (id) => document.getElementById(id);
// Told apart by people with any colour vision (Okabe and Ito), then darker again.
const COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8c7a00", "#5b3f8c", "#7a2e0e", "#1b5e46", "#4a6a8a", "#a04060"];
const GREY = "#9a9a9a";
let job = null;
// The link that a local server prints carries its token behind the #, which no browser sends anywhere.
const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) {
  $("token").value = given;
  history.replaceState(null, "", location.pathname);
}
const headers = () => ($("token").value ? { Authorization: "Bearer " + $("token").value } : {});
const say = (title, text, bad) => {
  $("status").textContent = title;
  $("message").textContent = text || "";
  $("message").className = bad ? "error" : "";
};
const problem = async (answer) => {
  try { const body = await answer.json(); return typeof body.detail === "string" ? body.detail : JSON.stringify(body.detail); }
  catch { return "The server answered " + answer.status + "."; }
};
const loadModels = async () => {
  const answer = await fetch("/v2/models", { headers: headers() });
  if (!answer.ok) return;
  const body = await answer.json();
  $("model").replaceChildren(...body.models.map((name) => new Option(name, name, name === body.default, name === body.default)));
};
$("token").addEventListener("change", loadModels);
$("task").addEventListener("change", () => { $("annotate").hidden = $("task").value !== "annotate"; });
for (const zone of document.querySelectorAll(".drop")) {
  for (const kind of ["dragover", "dragleave", "drop"]) {
    zone.addEventListener(kind, (event) => {
      event.preventDefault();
      zone.classList.toggle("over", kind === "dragover");
      if (kind === "drop") zone.querySelector("input").files = event.dataTransfer.files;
    });
  }
}
const send = async (path, file) => {
  say("Sending", file.name);
  const answer = await fetch(path, { method: "POST", headers: headers(), body: file });
  if (answer.ok) return answer.json();
  say("Refused", await problem(answer), true);
  return null;
};
const askedFor = async () => {
  const options = $("force").checked ? { force: true } : {};
  const reference = $("task").value === "annotate" ? $("reference").files[0] : undefined;
  if (!reference) return options;
  const known = await send("/v2/references", reference);
  return known && { ...options, reference: known.id, label_key: $("labels").value, ...($("network").checked ? { finetune_steps: 400 } : {}) };
};
$("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  $("answer").hidden = true;
  $("send").disabled = true;
  try {
    const options = await askedFor();
    if (options === null) return;
    const model = encodeURIComponent($("model").value || "brain-mini");
    const body = await send(`/v2/models/${model}/${$("task").value}?options=${encodeURIComponent(JSON.stringify(options))}`, $("file").files[0]);
    if (body !== null) {
      job = body.id;
      $("cancel").hidden = false;
      await watch(`${body.cells} cells x ${body.genes} genes`);
    }
    if (options.reference) await fetch("/v2/references/" + options.reference, { method: "DELETE", headers: headers() });
  } catch (error) { say("The server cannot be reached", String(error), true); }
  finally { $("send").disabled = false; $("cancel").hidden = true; }
});
$("cancel").addEventListener("click", () => fetch("/v2/jobs/" + job, { method: "DELETE", headers: headers() }));
const watch = async (size) => {
  for (;;) {
    const answer = await fetch("/v2/jobs/" + job, { headers: headers() });
    if (!answer.ok) { say("Lost", await problem(answer), true); return; }
    const now = await answer.json();
    $("bar").value = now.state === "done" ? 1 : now.done;
    if (now.state === "done") { say("Working", `${size}. Fetching the answer`); await show(size); return; }
    if (now.state === "failed" || now.state === "cancelled") { say(now.state === "failed" ? "Failed" : "Cancelled", now.message, true); return; }
    say(now.state === "queued" ? "Waiting" : "Working", `${size}. ${now.message}`);
    await new Promise((wake) => setTimeout(wake, 500));
  }
};
const row = (kind, texts, colour) => {
  const line = document.createElement("tr");
  texts.forEach((text, i) => {
    const cell = document.createElement(i === 0 ? kind : "td");
    if (kind === "th" && i === 0) cell.scope = "row";
    if (i === 0 && colour) {
      const dot = document.createElement("span");
      dot.className = "swatch";
      dot.style.backgroundColor = colour;
      cell.append(dot);
    }
    cell.append(String(text));
    line.append(cell);
  });
  return line;
};
const show = async (size) => {
  const raw = await (await fetch(`/v2/jobs/${job}/result?format=scmb`, { headers: headers() })).arrayBuffer();
  const length = Number(new DataView(raw).getBigUint64(6, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(raw, 14, length)));
  const { obs, provenance } = header;
  const answers = (obs.scmamba_type || obs.scmamba_doublet || obs.scmamba_low_depth || []).map(named);
  const scores = obs.scmamba_type ? obs.scmamba_probability : obs.scmamba_doublet_score || obs.scmamba_probability;
  const counts = new Map();
  for (const value of answers) counts.set(value, (counts.get(value) || 0) + 1);
  const order = [...counts].sort((a, b) => b[1] - a[1]).map(([name]) => name);
  const colour = new Map(order.map((name, i) => [name, name === "Unassigned" ? GREY : COLOURS[i % COLOURS.length]]));
  const share = (n) => (100 * n / answers.length).toFixed(1) + "%";
  $("table").tBodies[0].replaceChildren(...order.map((name) => row("th", [name, counts.get(name), share(counts.get(name))], colour.get(name))));
  const known = { model: provenance.model, version: provenance.version, ...provenance.params, ...provenance.summary };
  const facts = Object.entries(known).filter(([, value]) => ["string", "number", "boolean"].includes(typeof value));
  facts.unshift(["cells", header.cells.length], ["genes in the file", header.genes]);
  $("coverage").tBodies[0].replaceChildren(...facts.map(([key, value]) => row("th", [key.replaceAll("_", " "), value])));
  histogram(scores || [], obs.scmamba_type ? "probability" : "doublet score");
  $("map").hidden = true;
  $("answer").hidden = false;
  $("answer").focus();
  say("Done", `${size}; drawing the map of the cells`);
  const picture = await fetch(`/v2/jobs/${job}/picture`, { headers: headers() });
  if (picture.ok) map(await picture.json(), answers, order, colour);
  say("Done", size);
};
const named = (value) => (value === true ? "yes" : value === false ? "no" : value === null ? "none" : String(value))
  .replace(/^yes$/, $("task").value === "doublets" ? "doublet" : "fewer than 200 counts")
  .replace(/^no$/, $("task").value === "doublets" ? "single cell" : "enough counts");
const map = (picture, answers, order, colour) => {
  const canvas = $("plot"), pen = canvas.getContext("2d"), edge = 12;
  pen.clearRect(0, 0, canvas.width, canvas.height);
  const radius = picture.cells.length > 2000 ? 1.5 : 3;
  picture.cells.forEach((cell, i) => {
    pen.fillStyle = colour.get(answers[cell]) || GREY;
    pen.beginPath();
    pen.arc(edge + picture.x[i] * (canvas.width - 2 * edge), canvas.height - edge - picture.y[i] * (canvas.height - 2 * edge), radius, 0, 7);
    pen.fill();
  });
  const what = `${picture.method}, ${picture.cells.length} cells, colored by result`;
  $("mapped").textContent = what;
  canvas.setAttribute("aria-label", `Map of the cells: ${what}: ${order.slice(0, 12).join(", ")}`);
  $("map").hidden = false;
};
const histogram = (values, what) => {
  const canvas = $("histogram"), pen = canvas.getContext("2d"), bins = new Array(40).fill(0), known = values.filter((v) => v !== null);
  $("confidence").hidden = known.length === 0;
  if (known.length === 0) return;
  for (const v of known) bins[Math.max(0, Math.min(39, Math.floor(v * 40)))]++;
  const top = Math.max(1, ...bins), median = [...known].sort((a, b) => a - b)[Math.floor(known.length / 2)];
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.fillStyle = COLOURS[0];
  bins.forEach((n, i) => pen.fillRect(i * 16 + 1, 180 - (170 * n) / top, 14, (170 * n) / top));
  pen.fillStyle = "#1a1a1a";
  pen.fillText("0", 2, 195); pen.fillText(what, 290, 195); pen.fillText("1", 630, 195);
  $("spread").textContent = `${what[0].toUpperCase()}${what.slice(1)} of the results, median ${median.toFixed(2)}`;
  canvas.setAttribute("aria-label", `Histogram: ${$("spread").textContent}, ${known.length} cells`);
};
$("download").addEventListener("click", async () => {
  const blob = await (await fetch(`/v2/jobs/${job}/result`, { headers: headers() })).blob();
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `scmamba-${$("task").value}.h5ad`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
});
loadModels();
