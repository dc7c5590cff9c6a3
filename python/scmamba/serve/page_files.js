"use strict";
// What is read from the server and written for other programs; nothing here touches the page.

// scMamba's plain form (scmamba/wire/scmb.py): a JSON header, then raw arrays.
export const readPlain = (raw) => {
  const length = Number(new DataView(raw).getBigUint64(6, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(raw, 14, length)));
  const arrays = {};
  let at = 14 + length;
  for (const about of header.arrays || []) {
    const kind = about.kind === "int32" ? Int32Array : Float64Array;
    const size = about.shape.reduce((a, b) => a * b, 1) * kind.BYTES_PER_ELEMENT;
    if (!about.name.startsWith("embedding") && about.name.length > 1) arrays[about.name] = new kind(raw.slice(at, at + size));
    at += size;
  }
  return { header, arrays };
};

// A result as one table: names of the rows, and columns of text, numbers or truths.
export const tableOf = ({ header, arrays }) => {
  if (!header.tables) {
    const columns = Object.entries(header.obs || {}).map(([name, values]) => ({ name, values }));
    return { corner: "cell", rows: header.cells, columns };
  }
  const name = header.tables.markers ? "markers" : Object.keys(header.tables)[0];
  const table = header.tables[name];
  const columns = table.columns.map((column) => {
    if (column.kind === "text") return { name: column.name, values: column.values };
    const values = Array.from(arrays[`${name}/${column.name}`]);
    return { name: column.name, values: column.kind === "flag" ? values.map(Boolean) : values };
  });
  return { corner: name === "markers" ? "gene" : "row", rows: table.rows || Array.from({ length: table.n }, (_, i) => String(i + 1)), columns };
};

export const asCsv = (table) => {
  const cell = (value) => {
    if (value === null || Number.isNaN(value)) return "";
    if (value === true || value === false) return value ? "TRUE" : "FALSE";
    if (typeof value === "number") return String(value).replace("Infinity", "Inf");
    return /[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value;
  };
  const lines = [[table.corner, ...table.columns.map((c) => c.name)].map(cell).join(",")];
  table.rows.forEach((row, i) => lines.push([row, ...table.columns.map((c) => c.values[i])].map(cell).join(",")));
  return lines.join("\n") + "\n";
};

// R's serialization (version 2, XDR, R-ints.html#Serialization-Formats) of a data.frame.
class Writer {
  constructor() { this.bytes = new Uint8Array(1 << 16); this.at = 0; }
  room(size) {
    if (this.at + size > this.bytes.length) {
      const larger = new Uint8Array(2 * (this.at + size));
      larger.set(this.bytes);
      this.bytes = larger;
    }
    const view = new DataView(this.bytes.buffer, this.at, size);
    this.at += size;
    return view;
  }
  integer(value) { this.room(4).setInt32(0, value); }
  double(value) {
    const view = this.room(8);
    if (value === null) { view.setUint32(0, 0x7ff00000); view.setUint32(4, 1954); } else view.setFloat64(0, value);
  }
  string(text) {
    if (text === null) { this.integer(0x9); this.integer(-1); return; }
    const raw = new TextEncoder().encode(text);
    this.integer(0x8009); // UTF-8
    this.integer(raw.length);
    this.room(raw.length);
    this.bytes.set(raw, this.at - raw.length);
  }
  strings(values) { this.integer(16); this.integer(values.length); values.forEach((v) => this.string(v)); }
  attribute(name, values) { this.integer(0x402); this.integer(1); this.string(name); this.strings(values); }
  column(values) {
    const known = values.find((v) => v !== null);
    if (typeof known === "boolean") {
      this.integer(10); this.integer(values.length);
      values.forEach((v) => this.integer(v === null ? -(2 ** 31) : Number(v)));
    } else if (known === undefined || typeof known === "number") {
      this.integer(14); this.integer(values.length);
      values.forEach((v) => this.double(v));
    } else this.strings(values.map((v) => (v === null ? null : String(v))));
  }
}

export const asRds = (table) => {
  const out = new Writer();
  out.room(2).setUint16(0, 0x580a); // "X\n"
  [2, 0x040202, 0x020300, 19 | 0x300, table.columns.length].forEach((v) => out.integer(v));
  table.columns.forEach((c) => out.column(c.values));
  out.attribute("names", table.columns.map((c) => c.name));
  out.attribute("row.names", table.rows);
  out.attribute("class", ["data.frame"]);
  out.integer(0xfe);
  return out.bytes.slice(0, out.at);
};

// -- the lines that repeat a job -----------------------------------------------------------------------

const quoted = (text) => JSON.stringify(String(text)).replace(/[\u007f-\uffff]/g, (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
const python = (value) => {
  if (value === true || value === false) return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (value && typeof value === "object") return `{${Object.entries(value).map(([k, v]) => `${quoted(k)}: ${python(v)}`).join(", ")}}`;
  return typeof value === "number" ? String(value) : quoted(value);
};
const r = (value) => {
  if (value === true || value === false) return value ? "TRUE" : "FALSE";
  if (Array.isArray(value)) return `c(${value.map(r).join(", ")})`;
  if (value && typeof value === "object") return `list(${Object.entries(value).map(([k, v]) => `${quoted(k)} = ${r(v)}`).join(", ")})`;
  return typeof value === "number" ? String(value) : quoted(value);
};
const VERBS = {
  impute: ["impute", "ScMambaImpute"], embed: ["embed", "ScMambaEmbed"], annotate: ["annotate", "ScMambaAnnotate"],
  doublets: ["find_doublets", "ScMambaDoublets"], markers: ["deg.find_markers", "ScMambaFindMarkers"],
};
// Names of options in R where they differ.
const IN_R = {
  impute: { batch_key: "batch" }, annotate: { label_key: "labels", donor_key: "donor", finetune_steps: "network", error_rate: "error.rate" },
  doublets: { sample_key: "sample", label_key: "labels" }, embed: {},
  markers: { groupby: "group.by", group1: "ident.1", group2: "ident.2", test: "test.use" },
};

// Lines of Python and R that give what `job` gave; `files` are the names on the user's machine.
export const linesOf = (job, files) => {
  if (!VERBS[job.task]) return null;
  const { reference, ...options } = job.options;
  const model = ["impute", "embed"].includes(job.task) || reference ? { model: job.model } : {};
  const wanted = { ...model, ...options };
  const listed = (format, rename) => Object.entries(wanted).map(([k, v]) => `, ${rename[k] || k.replaceAll("_", ".")} = ${format(v)}`).join("");
  const keywords = Object.entries(wanted).map(([k, v]) => `, ${k}=${python(v)}`).join("");
  const [verb, name] = VERBS[job.task], target = job.task === "markers" ? "table" : null;
  const inPython = ["import anndata", "import scmamba", "", `adata = anndata.read_h5ad(${quoted(files.file)})`];
  const inR = ["library(scMamba)", "", `seu <- ScMambaReadH5ad(${quoted(files.file)})`];
  if (reference) {
    inPython.push(`reference = anndata.read_h5ad(${quoted(files.reference)})`);
    inR.push(`reference <- ScMambaReadH5ad(${quoted(files.reference)})`);
  }
  if (job.task === "markers") inR.push("seu <- Seurat::NormalizeData(seu)");
  inPython.push(`${target || "adata"} = scmamba.${verb}(adata${reference ? ", reference=reference" : ""}${keywords})`);
  inR.push(`${target || "seu"} <- ${name}(seu${reference ? ", reference = reference" : ""}${listed(r, IN_R[job.task])})`);
  return { python: inPython.join("\n"), r: inR.join("\n") };
};
