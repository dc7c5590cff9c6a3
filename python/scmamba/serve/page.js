"use strict";
// No build step, no library: one form, one job, its progress, its answer.
const $ = (id) => document.getElementById(id);
let job = null;
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
  $("model").replaceChildren(...body.models.map((name) => new Option(name, name, name === body.default)));
};
$("token").addEventListener("change", loadModels);
for (const kind of ["dragover", "dragleave", "drop"]) {
  $("drop").addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") $("file").files = event.dataTransfer.files;
  });
}
$("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  $("answer").hidden = true;
  $("send").disabled = true;
  say("Sending", $("file").files[0].name);
  try {
    const path = `/v2/models/${encodeURIComponent($("model").value || "brain-mini")}/${$("task").value}`;
    const answer = await fetch(path, { method: "POST", headers: headers(), body: $("file").files[0] });
    if (!answer.ok) { say("Refused", await problem(answer), true); return; }
    const body = await answer.json();
    job = body.id;
    $("cancel").hidden = false;
    await watch(`${body.cells} cells x ${body.genes} genes`);
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
    if (now.state === "done") { say("Done", size); await show(); return; }
    if (now.state === "failed" || now.state === "cancelled") { say(now.state === "failed" ? "Failed" : "Cancelled", now.message, true); return; }
    say(now.state === "queued" ? "Waiting" : "Working", `${size}. ${now.message}`);
    await new Promise((wake) => setTimeout(wake, 500));
  }
};
const show = async () => {
  const raw = await (await fetch(`/v2/jobs/${job}/result?format=scmb`, { headers: headers() })).arrayBuffer();
  const length = Number(new DataView(raw).getBigUint64(6, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(raw, 14, length)));
  const counts = new Map();
  const kind = header.obs.scmamba_type || header.obs.scmamba_doublet || header.obs.scmamba_low_depth || [];
  for (const value of kind) counts.set(String(value), (counts.get(String(value)) || 0) + 1);
  const rows = [...counts].sort((a, b) => b[1] - a[1]).map(([name, n]) => {
    const row = document.createElement("tr");
    for (const text of [name, n]) { const cell = document.createElement("td"); cell.textContent = text; row.append(cell); }
    return row;
  });
  $("table").tBodies[0].replaceChildren(...rows);
  draw(header.obs.scmamba_probability || header.obs.scmamba_doublet_score || []);
  $("answer").hidden = false;
};
const draw = (values) => {
  const canvas = $("plot"), pen = canvas.getContext("2d"), bins = new Array(40).fill(0);
  canvas.hidden = values.length === 0;
  for (const v of values) if (v !== null) bins[Math.min(39, Math.floor(v * 40))]++;
  const top = Math.max(1, ...bins);
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.fillStyle = "#0b57d0";
  bins.forEach((n, i) => pen.fillRect(i * 16 + 1, 220 - (200 * n) / top, 14, (200 * n) / top));
  pen.fillStyle = "#1a1a1a";
  pen.fillText("0", 2, 236); pen.fillText("probability or score", 260, 236); pen.fillText("1", 630, 236);
};
$("download").addEventListener("click", async () => {
  const blob = await (await fetch(`/v2/jobs/${job}/result`, { headers: headers() })).blob();
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = "scmamba.h5ad";
  link.click();
});
loadModels();
