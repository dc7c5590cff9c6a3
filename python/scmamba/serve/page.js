"use strict";
// No build step, no library: one form, its uploads, the jobs of the user.
import { show } from "/page_result.js";

const $ = (id) => document.getElementById(id);
const FINAL = ["done", "failed", "cancelled"], CHUNK = 8 << 20, TRIES = 15;
let job = null; // the job whose progress is shown
let options = {}; // of each task, as the server lists them
// The link that a local server prints carries its token behind the #, which no browser sends anywhere.
const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) history.replaceState(null, "", location.pathname);
// What this tab keeps over a reload: the token, names of files by job, uploads that were interrupted.
const memory = (key, value) => {
  if (value !== undefined) sessionStorage.setItem(key, JSON.stringify(value));
  try { return JSON.parse(sessionStorage.getItem(key)); } catch { return null; }
};
$("token").value = given || memory("token") || "";
if (given) memory("token", given);
const headers = () => ($("token").value ? { Authorization: "Bearer " + $("token").value } : {});
const ask = (path, more = {}) => fetch(path, { ...more, headers: { ...headers(), ...more.headers } });
const say = (title, text, bad) => {
  $("status").textContent = title;
  $("message").textContent = text || "";
  $("message").className = bad ? "error" : "";
};
const problem = async (answer) => {
  try { const body = await answer.json(); return typeof body.detail === "string" ? body.detail : JSON.stringify(body.detail); }
  catch { return "The server answered " + answer.status + "."; }
};
class Refused extends Error {}
const pause = (seconds) => new Promise((wake) => setTimeout(wake, 1000 * seconds));

const loadModels = async () => {
  const answer = await ask("/v2/models");
  if (!answer.ok) return;
  const body = await answer.json();
  options = body.tasks;
  $("model").replaceChildren(...body.models.map((name) => new Option(name, name, name === body.default, name === body.default)));
};
$("token").addEventListener("change", () => { memory("token", $("token").value); loadModels().then(loadJobs); });
const chooseTask = () => { for (const part of document.querySelectorAll("[data-task]")) part.hidden = part.dataset.task !== $("task").value; };
$("task").addEventListener("change", chooseTask);

// -- uploads, which continue after a break or a reload (tus) ------------------------------------------

const parts = new Map(); // by input: the file, its upload and what it holds
const keyOf = (input, file) => `upload ${input.id} ${file.name} ${file.size} ${file.lastModified}`;
const offsetOf = async (place) => {
  const answer = await ask(place, { method: "HEAD" });
  return answer.ok ? Number(answer.headers.get("Upload-Offset")) : null;
};
const begin = async ({ file, key }) => {
  const kept = memory(key);
  const offset = kept ? await offsetOf(kept) : null;
  if (offset !== null) return [kept, offset];
  const answer = await ask("/v2/uploads", { method: "POST", headers: { "Upload-Length": String(file.size) } });
  if (!answer.ok) throw new Refused(await problem(answer));
  memory(key, answer.headers.get("Location"));
  return [answer.headers.get("Location"), 0];
};
// Sends a file in parts; after a break it continues from where the server is.
const upload = async (part) => {
  const { file } = part;
  let place = null, offset = 0, failed = 0;
  while (place === null || offset < file.size) {
    if (part.given_up) throw new Refused("Another file was chosen.");
    try {
      if (place === null) [place, offset] = await begin(part);
      part.place = place;
      if (failed > 0) offset = (await offsetOf(place)) ?? offset;
      if (offset >= file.size) break;
      say("Sending", `${file.name}: ${(offset / 2 ** 20).toFixed(0)} of ${(file.size / 2 ** 20).toFixed(1)} MiB`);
      $("bar").value = offset / file.size;
      const body = file.slice(offset, offset + CHUNK);
      const answer = await ask(place, { method: "PATCH", body, signal: part.looking.signal,
        headers: { "Content-Type": "application/offset+octet-stream", "Upload-Offset": String(offset) } });
      if (answer.ok) { offset = Number(answer.headers.get("Upload-Offset")); failed = 0; continue; }
      if (answer.status === 404) { sessionStorage.removeItem(part.key); place = null; }
      else if (answer.status < 500 && ![408, 409, 429].includes(answer.status)) throw new Refused(await problem(answer));
    } catch (error) {
      if (error instanceof Refused) throw error;
    }
    if (++failed > TRIES) throw new Refused(`The connection keeps breaking; ${(offset / 2 ** 20).toFixed(0)} of ${(file.size / 2 ** 20).toFixed(1)} MiB were sent. Send again to continue.`);
    say("Sending", `${file.name}: the connection broke, trying again`);
    await pause(Math.min(0.5 * 2 ** (failed - 1), 8));
  }
  $("bar").value = 0;
  return place.slice(place.lastIndexOf("/") + 1);
};
const leave = (part, key) => {
  part.given_up = true;
  part.looking.abort();
  if (part.key === key || part.used) return; // the same file again: it continues
  sessionStorage.removeItem(part.key);
  if (part.place) ask(part.place, { method: "DELETE" }).catch(() => {});
};
// The upload of the file that an input holds, begun when the file is chosen.
const uploaded = (input) => {
  const file = input.files[0], old = parts.get(input.id), key = file && keyOf(input, file);
  if (old && old.file === file && !old.used) return old;
  if (old) leave(old, key);
  parts.delete(input.id);
  if (!file) return null;
  const part = { file, key, used: false, given_up: false, place: null, looking: new AbortController() };
  part.id = upload(part);
  part.id.catch(() => { part.used = true; }); // the next click on Send tries again
  parts.set(input.id, part);
  return part;
};
const used = (part) => { part.used = true; part.looking.abort(); sessionStorage.removeItem(part.key); };
const listed = (id, names) => $(id).replaceChildren(...names.map((name) => new Option("", name)));
let levels = new Map();
const look = async (input, list, note) => {
  const part = uploaded(input);
  listed(list, []);
  if (note) note.textContent = "";
  if (part === null) return;
  try {
    const id = await part.id;
    const answer = await ask(`/v2/uploads/${id}/columns`, { signal: part.looking.signal });
    if (parts.get(input.id) !== part || part.used) return;
    say("Ready", "");
    if (!answer.ok) { if (note) note.textContent = await problem(answer); return; }
    const found = await answer.json();
    listed(list, found.columns.map((column) => column.name));
    if (!note) return;
    levels = new Map(found.columns.map((column) => [column.name, column.levels]));
    const names = found.columns.length ? `; columns: ${found.columns.map((column) => column.name).join(", ")}` : "";
    note.textContent = `${found.cells} cells, ${found.genes} genes${names}`;
    chooseGroups();
  } catch (error) {
    if (parts.get(input.id) === part && !part.looking.signal.aborted) say("Not sent", error.message, true);
  }
};
const chooseGroups = () => listed("levels", levels.get($("groupby").value) || []);
$("groupby").addEventListener("input", chooseGroups);
$("file").addEventListener("change", () => look($("file"), "columns", $("cells")));
$("reference").addEventListener("change", () => look($("reference"), "known", null));
for (const zone of document.querySelectorAll(".drop")) {
  for (const kind of ["dragover", "dragleave", "drop"]) {
    zone.addEventListener(kind, (event) => {
      event.preventDefault();
      zone.classList.toggle("over", kind === "dragover");
      if (kind !== "drop") return;
      const input = zone.querySelector("input");
      input.files = event.dataTransfer.files;
      input.dispatchEvent(new Event("change"));
    });
  }
}
$("demo").addEventListener("click", async () => {
  $("demo").disabled = true;
  say("Working", "Simulating nuclei");
  try {
    const answer = await ask("/v2/demo");
    if (!answer.ok) { say("Refused", await problem(answer), true); return; }
    const data = new DataTransfer();
    data.items.add(new File([await answer.blob()], "demo.h5ad", { lastModified: 0 }));
    $("file").files = data.files;
    await look($("file"), "columns", $("cells"));
  } catch (error) { say("The server cannot be reached", String(error), true); }
  finally { $("demo").disabled = false; }
});

// -- a new job -----------------------------------------------------------------------------------------

const ownMarkers = (text) => {
  const found = {};
  for (const line of text.split("\n").filter((part) => part.trim())) {
    const [type, genes] = [line.slice(0, line.indexOf(":")).trim(), line.slice(line.indexOf(":") + 1).split(/[\s,;]+/).filter(Boolean)];
    if (!line.includes(":") || !type || genes.length === 0) throw new Refused(`Marker genes: the line '${line.trim()}' is not of the form 'Type: GENE1, GENE2'; correct it.`);
    found[type] = [...(found[type] || []), ...genes];
  }
  return found;
};
const filled = (values) => Object.fromEntries(Object.entries(values).filter(([, value]) => value !== ""));
const wantedOptions = (task) => {
  const force = $("force").checked && (options[task] || []).includes("force") ? { force: true } : {};
  if (task === "impute") return { ...force, ...filled({ batch_key: $("batch").value.trim() }) };
  if (task === "doublets") return filled({ sample_key: $("sample").value.trim() });
  if (task === "markers") {
    const groups = filled({ groupby: $("groupby").value.trim(), group1: $("group1").value.trim(), group2: $("group2").value.trim(), test: $("test").value });
    if (!groups.groupby || !groups.group1) throw new Refused("Choose the column with the groups and the first group.");
    return groups;
  }
  const markers = task === "annotate" && !$("reference").files[0] ? ownMarkers($("markers").value) : {};
  return { ...force, ...(Object.keys(markers).length ? { markers } : {}) };
};
const withReference = async (wanted) => {
  const part = $("task").value === "annotate" ? uploaded($("reference")) : null;
  if (part === null) return wanted;
  const id = await part.id;
  used(part);
  const answer = await ask(`/v2/references?upload=${id}`, { method: "POST" });
  if (!answer.ok) throw new Refused(await problem(answer));
  const more = $("network").checked ? { finetune_steps: 400 } : {};
  return { ...wanted, reference: (await answer.json()).id, label_key: $("labels").value, ...more };
};
const submit = async (task, wanted, key) => {
  const part = uploaded($("file")), id = await part.id;
  used(part);
  const path = `/v2/models/${encodeURIComponent($("model").value || "brain-mini")}/${task}?upload=${id}&options=${encodeURIComponent(JSON.stringify(wanted))}`;
  const answer = await ask(path, { method: "POST", headers: { "Idempotency-Key": key } });
  if (!answer.ok) throw new Refused(await problem(answer));
  return answer.json();
};
$("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  $("answer").hidden = true;
  $("send").disabled = true;
  say("Sending", $("file").files[0].name);
  let wanted = {};
  try {
    const task = $("task").value, files = { file: $("file").files[0].name, reference: ($("reference").files[0] || {}).name };
    wanted = await withReference(wantedOptions(task));
    const body = await submit(task, wanted, Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join(""));
    memory("files " + body.id, files);
    await follow(body.id, `${body.cells} cells x ${body.genes} genes`);
  } catch (error) {
    if (error instanceof Refused) say("Refused", error.message, true);
    else say("The server cannot be reached", String(error), true);
  } finally {
    if (wanted.reference) ask("/v2/references/" + wanted.reference, { method: "DELETE" }).catch(() => {});
    $("send").disabled = false;
    $("cancel").hidden = true;
  }
});
$("cancel").addEventListener("click", () => ask("/v2/jobs/" + job, { method: "DELETE" }));

// -- jobs ----------------------------------------------------------------------------------------------

const filesOf = (id) => memory("files " + id) || {};
const open = async (found, size) => {
  say("Working", `${size}Fetching the result`);
  await show(found, filesOf(found.id), ask, (text) => say("Done", size + text));
  say("Done", size.replace(/\. $/, ""));
};
const follow = async (id, about = "") => {
  const size = about && `${about}. `;
  job = id;
  $("cancel").hidden = false;
  await loadJobs();
  while (job === id) {
    const answer = await ask("/v2/jobs/" + id);
    if (!answer.ok && answer.status < 500) { say("Lost", await problem(answer), true); break; }
    if (answer.ok) {
      const now = await answer.json();
      $("bar").value = now.state === "done" ? 1 : now.done;
      if (FINAL.includes(now.state)) {
        $("cancel").hidden = true;
        loadJobs();
        if (now.state === "done") await open(now, size);
        else say(now.state === "failed" ? "Failed" : "Cancelled", now.message, true);
        break;
      }
      say(now.state === "queued" ? "Waiting" : "Working", size + now.message);
    }
    await pause(0.5);
  }
};
const button = (text, about, act) => {
  const made = document.createElement("button");
  made.type = "button";
  made.append(text);
  made.setAttribute("aria-label", `${text}: ${about}`);
  made.addEventListener("click", async () => {
    made.disabled = true;
    try { await act(); } catch (error) { say("The server cannot be reached", String(error), true); }
    made.disabled = false;
  });
  return made;
};
const WORDS = { queued: "waiting", running: "running", done: "done", failed: "failed", cancelled: "cancelled" };
const jobRow = (one) => {
  const line = document.createElement("tr"), sent = new Date(1000 * one.created).toLocaleString();
  const task = ([...$("task").options].find((o) => o.value === one.task) || { text: one.task }).text;
  const file = filesOf(one.id).file || "";
  for (const text of [task, file, sent, WORDS[one.state] + (one.state === "failed" ? `: ${one.message}` : "")]) {
    const cell = document.createElement(line.children.length ? "td" : "th");
    if (!line.children.length) cell.scope = "row";
    cell.append(text);
    line.append(cell);
  }
  const actions = document.createElement("td"), about = `${task}, ${sent}`, ended = FINAL.includes(one.state);
  if (one.state === "done") actions.append(button("Open", about, () => open(one, "")), " ");
  if (!ended && one.id !== job) actions.append(button("Follow", about, () => follow(one.id)), " ");
  actions.append(button(ended ? "Delete" : "Cancel", about, async () => {
    await ask("/v2/jobs/" + one.id, { method: "DELETE" });
    await loadJobs();
  }));
  line.append(actions);
  line.dataset.job = one.id;
  return line;
};
async function loadJobs() {
  const answer = await ask("/v2/jobs");
  if (!answer.ok) return [];
  const { jobs } = await answer.json();
  const seen = JSON.stringify([job, jobs.map((one) => [one.id, one.state, filesOf(one.id).file])]);
  if (seen !== $("jobs").seen) $("jobs").tBodies[0].replaceChildren(...jobs.map(jobRow)); // the focus stays if nothing changed
  $("jobs").seen = seen;
  $("mine").hidden = jobs.length === 0;
  clearTimeout($("jobs").later);
  if (jobs.some((one) => !FINAL.includes(one.state))) $("jobs").later = setTimeout(() => loadJobs().catch(() => {}), 5000);
  return jobs;
}
chooseTask();
loadModels().then(async () => {
  const waiting = (await loadJobs()).find((one) => !FINAL.includes(one.state) && memory("files " + one.id));
  if (waiting && job === null) await follow(waiting.id); // after a reload
}).catch((error) => say("The server cannot be reached", String(error), true));
