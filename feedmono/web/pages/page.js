"use strict";
// The page of feedmono: asks for what is now every 2 s and for what was every 10 s, and shows it.
// Whatever comes from outside (reasons of exchanges, symbols, events) is inserted as text only.

const STATE_MS = 2000;
const HISTORY_MS = 10000;
const ANSWER_MS = 8000;
const RANGES = [[5, "5 min"], [15, "15 min"], [60, "1 h"], [360, "6 h"], [1440, "24 h"]];
const SYMBOLS_SHOWN = 100;

// --- elements

const $ = (id) => document.getElementById(id);

/** An element; strings among the children become text. */
function el(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

/** The same for SVG, with attributes. */
function svg(tag, attributes, text = "") {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.textContent = text;
  return node;
}

/** Makes *nodes* the children of *parent*; those that are the same already stay untouched. */
function put(parent, nodes) {
  nodes.forEach((node, i) => {
    const old = parent.childNodes[i];
    if (!old) parent.append(node);
    else if (!old.isEqualNode(node)) old.replaceWith(node);
  });
  while (parent.childNodes.length > nodes.length) parent.lastChild.remove();
}

function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function heads(row, columns) {
  put(row, columns.map(([name, className]) => {
    const head = el("th", className, name);
    head.scope = "col";
    head.setAttribute("role", "columnheader");
    return head;
  }));
}

function tr(...cells) {
  const row = el("tr", "", ...cells);
  row.setAttribute("role", "row");
  for (const cell of cells) {
    const head = cell.tagName === "TH";
    cell.setAttribute("role", head ? "rowheader" : "cell");
    if (head) cell.scope = "row";
  }
  return row;
}

/** Terms and values, as the content of a dl. */
function terms(pairs) {
  return pairs.map(([term, value]) => el("div", "", el("dt", "", term), el("dd", "", value)));
}

// --- figures as text

const count = (n) => Math.round(n).toLocaleString("en");
const plural = (n, noun) => `${count(n)} ${noun}${n === 1 ? "" : "s"}`;
const cores = (n) => n.toFixed(2);
const rate = (n) => (n >= 100 ? count(n) : n.toFixed(1));
const known = (value, format) => (value === null || value === undefined ? "–" : format(value));

function bytes(n) {
  const [unit, size] = n >= 2 ** 30 ? ["GiB", 2 ** 30] : n >= 2 ** 20 || n === 0 ? ["MiB", 2 ** 20] : ["KiB", 1024];
  const scaled = n / size;
  return `${scaled >= 10 || Number.isInteger(scaled) ? count(scaled) : scaled.toFixed(1)} ${unit}`;
}

/** A latency, with two or three digits. */
function latency(s) {
  if (s >= 120) return lasted(s);
  const [n, unit] = s >= 1 ? [s, "s"] : [s * 1000, "ms"];
  return `${n >= 10 || Number.isInteger(n) ? Math.round(n) : n.toFixed(1)} ${unit}`;
}

/** How long something lasts, in its two largest units. */
function lasted(s) {
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const first = Math.max(0, units.findIndex(([, size]) => s >= size));
  if (s < 1) return "0 s";
  const [unit, size] = units[first];
  const [small, of] = units[first + 1] || ["", 1];
  const rest = Math.floor((s % size) / of);
  return `${Math.floor(s / size)} ${unit}${small && rest ? ` ${rest} ${small}` : ""}`;
}

/** A time of day; of another day with its date. */
function clock(at, now = at, seconds = true) {
  const [day, time] = new Date(at * 1000).toISOString().split("T");
  const short = time.slice(0, seconds ? 8 : 5);
  return day === new Date(now * 1000).toISOString().slice(0, 10) ? short : `${day} ${short}`;
}

// --- charts

/** What all charts show at the same time: the moment below the pointer, in seconds, or null. */
let pointed = null;
const charts = new Set();

function point(at) {
  pointed = at;
  for (const chart of charts) chart.point();
}

const CHARTS = [
  { title: "Trades per second", lines: [["trades_per_s", ""]], format: rate, area: true, marks: true },
  { title: "Delivery latency", lines: [["delivery_p50_s", "p50"], ["delivery_p99_s", "p99"]], format: latency, log: true },
  { title: "Trades missing", lines: [["open_trades", ""]], format: count, area: true, whole: true },
  { title: "CPU cores", lines: [["cpu_cores", "mean"], ["cpu_cores_max", "most"]], format: cores, limit: ["cpu_budget_cores", "budget"] },
  { title: "Memory, private", lines: [["memory_bytes", ""]], format: bytes, area: true, binary: true, limit: ["memory_budget_bytes", "budget"] },
  { title: "Ring in use", lines: [["ring_used_bytes", ""]], format: bytes, area: true, binary: true, limit: ["ring_capacity_bytes", "capacity"] },
];
const TREE_CHARTS = CHARTS.filter((spec) => /^(CPU|Memory)/.test(spec.title));

/** Where values lie, from 0 to 1, and which of them are named. */
function linear(spec, top) {
  const least = spec.whole ? 4 : spec.binary ? 2 ** 20 : 0.05;
  const max = Math.max(top, least) * 1.06;
  let step = 2 ** Math.ceil(Math.log2(max / 4));
  if (!spec.binary) {
    const ten = 10 ** Math.floor(Math.log10(max / 4));
    step = ten * [1, 2, 2.5, 5, 10].find((n) => n * ten >= max / 4 && !(spec.whole && (n * ten) % 1));
  }
  const ticks = [];
  for (let i = 0; i * step <= max; i++) ticks.push(i * step);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9) + (step / 10 ** Math.floor(Math.log10(step)) === 2.5 ? 1 : 0));
  const text = spec.binary || spec.whole ? spec.format : (n) => n.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  return { of: (n) => n / max, ticks, text };
}

function logarithmic(spec, values) {
  const low = Math.floor(Math.log10(Math.max(1e-4, Math.min(...values))));
  const high = Math.max(low + 1, Math.ceil(Math.log10(Math.max(1e-4, ...values))));
  const between = high - low === 1 ? [1, 2, 5] : high - low === 2 ? [1, 3] : [1];
  const ticks = [];
  for (let ten = low; ten <= high; ten++) {
    for (const n of between) if (ten < high || n === 1) ticks.push(n * 10 ** ten);
  }
  const of = (n) => (Math.log10(Math.max(n, 10 ** low)) - low) / (high - low) / 1.04;
  return { of, ticks: ticks.length > 5 ? ticks.filter((_, i) => i % 2 === 0) : ticks, text: spec.format };
}

class Chart {
  constructor(spec, of) {
    this.spec = spec;
    this.of = of;
    this.limit = null;
    this.series = null;
    this.span = [0, 1];
    this.read = el("span", "read");
    this.svg = svg("svg", { class: "chart", role: "img", tabindex: 0 });
    this.under = svg("g", {});
    this.over = svg("g", {});
    this.svg.append(this.under, this.over);
    this.node = el("figure", "", el("figcaption", "", el("b", "", spec.title), this.read), this.svg);
    this.svg.addEventListener("pointermove", (event) => this.moved(event));
    this.svg.addEventListener("pointerdown", (event) => this.moved(event));
    this.svg.addEventListener("pointerleave", () => point(null));
    this.svg.addEventListener("blur", () => point(null));
    this.svg.addEventListener("keydown", (event) => this.key(event));
    this.sizes = new ResizeObserver(() => this.draw());
    this.sizes.observe(this.svg);
    charts.add(this);
  }

  close() {
    this.sizes.disconnect();
    charts.delete(this);
  }

  show(history, series, limit) {
    this.span = [history.from_s, history.until_s];
    this.step = history.step_s;
    this.series = series;
    this.limit = limit;
    this.draw();
  }

  moved(event) {
    const x = event.clientX - this.svg.getBoundingClientRect().left;
    const [from, until] = this.span;
    const share = (x - this.left) / (this.right - this.left);
    point(from + Math.min(1, Math.max(0, share)) * (until - from));
  }

  key(event) {
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") point(null);
    if (!way) return;
    event.preventDefault();
    const [from, until] = this.span;
    const at = (pointed ?? until) + (way * (until - from)) / 120;
    point(Math.min(until, Math.max(from, at)));
  }

  values(key) {
    return this.series ? this.series[key] : [];
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.svg;
    if (!width) return;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    [this.left, this.right, this.top, this.bottom] = [54, width - 6, 8, height - 18];
    const all = this.spec.lines.flatMap(([key]) => this.values(key).filter((n) => n !== null));
    const top = Math.max(0, this.limit ?? 0, ...all);
    this.scale = this.spec.log ? logarithmic(this.spec, all.length ? all : [0.001, 0.1]) : linear(this.spec, top);
    const parts = [...this.grid(), ...this.lines()];
    if (this.spec.marks) parts.push(...this.marks());
    if (!all.length) {
      parts.push(svg("text", { x: (this.left + this.right) / 2, y: (this.top + this.bottom) / 2, "text-anchor": "middle" }, "nothing recorded in this time"));
    }
    this.under.replaceChildren(...parts);
    this.svg.setAttribute("aria-label", this.summary(all));
    this.point();
  }

  x(at) {
    const [from, until] = this.span;
    return this.left + ((at - from) / (until - from)) * (this.right - this.left);
  }

  y(value) {
    return this.bottom - Math.min(1, this.scale.of(value)) * (this.bottom - this.top);
  }

  grid() {
    const { left, right, bottom } = this;
    const parts = this.scale.ticks.flatMap((value, i) => {
      const y = Math.round(this.y(value)) + 0.5;
      return [
        svg("line", { class: i ? "grid" : "base", x1: left, x2: right, y1: y, y2: y }),
        svg("text", { x: left - 7, y: y + 3.5, "text-anchor": "end" }, this.scale.text(value)),
      ];
    });
    const [from, until] = this.span;
    const room = Math.max(1, Math.floor((right - left) / 64));
    const steps = [60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400];
    const step = steps.find((s) => (until - from) / s <= room) ?? 86400;
    for (let at = Math.ceil(from / step) * step; at <= until; at += step) {
      const x = this.x(at);
      parts.push(svg("line", { class: "base", x1: x, x2: x, y1: bottom, y2: bottom + 4 }));
      if (x > left + 12 && x < right - 12) {
        parts.push(svg("text", { x, y: bottom + 15, "text-anchor": "middle" }, clock(at, at, false)));
      }
    }
    if (this.limit !== null) {
      const y = Math.round(this.y(this.limit)) + 0.5;
      parts.push(svg("line", { class: "limit", x1: left, x2: right, y1: y, y2: y }));
    }
    return parts;
  }

  /** Stretches of points without a gap between them: time that was not recorded, or a minute
   *  without a value. (A quiet exchange has no latency in a second without a trade.) */
  stretches(key) {
    const found = [];
    const times = this.values("at_s");
    const still = Math.max(60, 3 * this.step);
    let open = null;
    let last = 0;
    this.values(key).forEach((value, i) => {
      const unrecorded = i && times[i] - times[i - 1] > 1.5 * Math.max(this.step, this.series.span_s[i]) + 1.5;
      if (unrecorded || times[i] - last > still) open = null;
      if (value === null) return;
      if (!open) found.push((open = []));
      open.push([this.x(times[i]), this.y(value)]);
      last = times[i];
    });
    return found;
  }

  lines() {
    const parts = [];
    this.spec.lines.forEach(([key], i) => {
      const stretches = this.stretches(key);
      const way = (points) => points.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L");
      if (this.spec.area) {
        const d = stretches.map((p) => `M${p[0][0].toFixed(1)} ${this.bottom}L${way(p)}V${this.bottom}Z`).join("");
        parts.push(svg("path", { class: "area", d }));
      }
      // The h0 makes a lone point visible.
      const d = stretches.map((p) => `M${way(p)}h0`).join("");
      parts.push(svg("path", { class: i ? "line two" : "line", d }));
    });
    return parts.reverse();
  }

  marks() {
    const times = this.values("at_s");
    const hit = times.filter((_, i) => this.series.reconnects[i] || this.series.restarts[i]);
    this.marked = hit.length > 0;
    return [svg("path", { class: "mark", d: hit.map((at) => `M${this.x(at).toFixed(1)} ${this.bottom - 7}l4 7h-8Z`).join("") })];
  }

  /** The index of the point at a time, or -1. */
  index(at) {
    const times = this.values("at_s");
    let best = -1;
    times.forEach((time, i) => {
      if (best < 0 || Math.abs(time - at) < Math.abs(times[best] - at)) best = i;
    });
    return best >= 0 && Math.abs(times[best] - at) <= 1.5 * this.step + 1.5 ? best : -1;
  }

  point() {
    if (!this.scale) return;
    const at = pointed ?? this.span[1];
    // The newest point is some seconds old.
    const i = pointed === null && this.values("at_s").at(-1) > at - 3 * this.step - 15 ? this.values("at_s").length - 1 : this.index(at);
    this.readout(i);
    if (pointed === null) {
      this.over.replaceChildren();
      return;
    }
    const x = this.x(i < 0 ? at : this.series.at_s[i]);
    const middle = Math.min(this.right - 26, Math.max(this.left + 26, x));
    const parts = [
      svg("line", { class: "cursor", x1: x, x2: x, y1: this.top, y2: this.bottom }),
      svg("rect", { class: "plate", x: middle - 46, y: this.bottom + 5, width: 92, height: 15 }),
      svg("text", { class: "at", x: middle, y: this.bottom + 15, "text-anchor": "middle" }, clock(at)),
    ];
    this.spec.lines.forEach(([key], n) => {
      const value = this.values(key)[i] ?? null;
      if (value !== null) parts.push(svg("circle", { class: n ? "two" : "", cx: x, cy: this.y(value), r: 3 }));
    });
    this.over.replaceChildren(...parts);
  }

  readout(i) {
    const { lines, format, limit, marks } = this.spec;
    const parts = lines.map(([key, name], n) => {
      const text = known(this.values(key)[i], format);
      const value = el("em", "", text);
      return lines.length > 1 ? el("span", `key ${n ? "two" : "one"}`, `${name} `, value) : el("span", "", value);
    });
    if (limit && this.limit !== null) {
      parts.push(el("span", "key limit", `${limit[1]} `, el("em", "", format(this.limit))));
    }
    if (marks && this.marked) {
      const hits = [["reconnects", "reconnect"], ["restarts", "restart"]].map(([key, noun]) => [this.values(key)[i] ?? 0, noun]);
      const here = hits.filter(([n]) => n).map(([n, noun]) => plural(n, noun)).join(", ");
      parts.unshift(el("span", "mark", `▲ ${pointed !== null && here ? here : "reconnect or restart"}`));
    }
    put(this.read, parts);
  }

  summary(all) {
    const { title, format } = this.spec;
    const what = `${title}, ${this.of}`;
    if (!all.length) return `${what}: nothing recorded in this time`;
    const figures = `between ${format(Math.min(...all))} and ${format(Math.max(...all))}`;
    return `${what}, ${lasted(this.span[1] - this.span[0])}: ${figures}. Arrow keys show values.`;
  }
}

// --- the overview

const SIGNS = {
  ok: "M12 1a11 11 0 1 0 0 22 11 11 0 0 0 0-22Zm-1.6 16.2-4.8-4.8 1.9-1.9 2.9 2.9 6.1-6.1 1.9 1.9Z",
  warn: "M12 1.5 .6 21.8h22.8ZM10.7 8.8h2.6v6.6h-2.6Zm0 8h2.6v2.6h-2.6Z",
  bad: "M7.4 1h9.2L23 7.4v9.2L16.6 23H7.4L1 16.6V7.4ZM8.3 6.4 6.4 8.3l3.7 3.7-3.7 3.7 1.9 1.9 3.7-3.7 3.7 3.7 1.9-1.9-3.7-3.7 3.7-3.7-1.9-1.9-3.7 3.7Z",
  none: "M12 1a11 11 0 1 0 0 22 11 11 0 0 0 0-22Zm0 2.6a8.4 8.4 0 1 1 0 16.8 8.4 8.4 0 0 1 0-16.8Z",
};
const MARKS = { ok: "✓", warn: "▲", bad: "✕", none: "…" };
const TONES = { ok: "#2a9d50", warn: "#d99a00", bad: "#d8323c", none: "#888" };
const STATES = { flowing: "ok", partial: "warn", starting: "warn" };
const COLUMNS = [
  ["exchange"], ["state"], ["trades/s", "num"], ["trades", "num"], ["last", "num"], ["receive\np50 / p99", "num"],
  ["delivery\np50 / p99", "num"], ["missing", "num"], ["ring", "num"], ["CPU cores\nof budget", "num"],
  ["memory\nof budget", "num"], ["recon-\nnects", "num"], ["restarts", "num"],
];

/** A cell that names its column itself where the table's head is not shown. */
function cell(name, ...children) {
  const node = el("td", "num", ...children);
  node.dataset.name = name;
  return node;
}

/** Used against allowed, as text and as a bar. */
function against(name, used, limit, text) {
  const over = used > limit;
  const bar = el("span", `meter ${over ? "bad" : ""}`, el("i", ""));
  bar.setAttribute("aria-hidden", "true");
  bar.firstChild.style.width = `${limit > 0 ? Math.min(100, (100 * used) / limit).toFixed(0) : 0}%`;
  return cell(name, over ? el("span", "tone bad", `▲ ${text}`) : text, bar);
}

const cpuCell = (used, limit) => against("CPU cores of budget", used, limit, `${cores(used)} / ${cores(limit)}`);
const mebi = (n) => count(n / 2 ** 20);
const memoryCell = (used, limit) => against("memory of budget", used, limit, `${mebi(used)} / ${mebi(limit)} MiB`);
const both = (a, b) => (a === null ? "–" : `${latency(a)} / ${known(b, latency)}`);

function exchangeRow(e) {
  const level = STATES[e.state] || "bad";
  const state = el("td", "", el("span", `tone ${level}`, `${MARKS[level]} ${e.state}`));
  state.dataset.name = "state";
  const missing = e.counts.open_trades || 0;
  const full = e.ring_capacity_bytes > 0 ? (100 * e.ring_used_bytes) / e.ring_capacity_bytes : 0;
  return tr(
    el("th", "", e.name), state,
    cell("trades/s", rate(e.trades_per_s)),
    cell("trades", e.trades < 1e8 ? count(e.trades) : `${count(e.trades / 1e6)} M`),
    cell("last", known(e.last_trade_age_s, (s) => (s < 1 ? "< 1 s" : lasted(s)))),
    cell("receive p50 / p99", both(e.receive_p50_s, e.receive_p99_s)),
    cell("delivery p50 / p99", both(e.delivery_p50_s, e.delivery_p99_s)),
    cell("missing", missing ? el("span", "tone warn", `▲ ${count(missing)}`) : "0",
      missing ? el("small", "", `in ${plural(e.counts.holes_open || 0, "gap")}`) : ""),
    against("ring", e.ring_used_bytes, e.ring_capacity_bytes, `${full.toFixed(full >= 0.05 && full < 9.95 ? 1 : 0)} %`),
    cpuCell(e.cpu_cores, e.cpu_budget_cores),
    memoryCell(e.memory_bytes, e.memory_budget_bytes),
    cell("reconnects", count(e.reconnects)),
    cell("restarts", count(e.restarts)),
  );
}

function budgets(snapshot) {
  const sum = (key) => snapshot.exchanges.reduce((total, e) => total + e[key], 0);
  return { cpu_budget_cores: sum("cpu_budget_cores"), memory_budget_bytes: sum("memory_budget_bytes") };
}

function treeRow(snapshot) {
  const { tree } = snapshot;
  const all = budgets(snapshot);
  const blank = () => el("td", "blank");
  const row = tr(
    el("th", "", "all processes"), blank(),
    blank(), blank(), blank(), blank(), blank(), blank(), blank(),
    cpuCell(tree.cpu_cores, all.cpu_budget_cores),
    memoryCell(tree.memory_bytes, all.memory_budget_bytes),
    blank(), blank(),
  );
  row.className = "sum";
  return row;
}

// --- an exchange in detail

const COUNTS = [
  ["frames", "frames"], ["bytes", "received", bytes], ["duplicates", "duplicates dropped"],
  ["holes", "gaps found"], ["hole_trades", "trades in gaps"], ["backfilled", "trades backfilled"],
  ["late", "came late"], ["absent", "the exchange lacks"], ["beyond", "missing for good"],
  ["ring_full", "ring was full"], ["lost_frames", "frames without room"], ["damaged_records", "damaged records"],
  ["unknown_messages", "unknown messages"], ["rotations", "connections renewed"], ["pages", "REST pages"],
  ["pages_failed", "REST pages failed"], ["ledger_errors", "ledger errors"],
];
const reasons = (mapping) => Object.entries(mapping).filter(([, n]) => n).map(([why, n]) => `${why} ${count(n)}`).join(", ") || "none";

class Panel {
  constructor(name) {
    this.name = name;
    this.title = name || "all processes";
    this.charts = (name ? CHARTS : TREE_CHARTS).map((spec) => new Chart(spec, this.title));
    this.text = el("p", "");
    this.text.hidden = true;
    this.facts = el("dl", "counts");
    const head = el("h3", "", this.title);
    head.id = `of-${name}`;
    this.node = el("article", "", el("header", "", head, this.text), el("div", "charts", ...this.charts.map((c) => c.node)));
    this.node.setAttribute("aria-labelledby", head.id);
    if (!name) {
      this.node.append(this.facts);
      return;
    }
    this.workers = el("tbody", "");
    const table = el("table", "", el("thead", "", el("tr", "")), this.workers);
    heads(table.tHead.rows[0], [["worker"], ["pid", "num"], ["CPU cores", "num"], ["CPU seconds", "num"], ["memory", "num"], ["open files", "num"], ["restarts"]]);
    this.inner = details(el("div", "scroll", table), this.facts);
    this.inner.firstChild.append("Workers and counters");
    this.symbols = new Symbols();
    this.node.append(this.inner, this.symbols.node);
    this.inner.addEventListener("toggle", () => this.state && this.fill(this.state));
  }

  close() {
    this.charts.forEach((chart) => chart.close());
    this.node.remove();
  }

  /** What is now. */
  fill(e) {
    this.state = e;
    const parts = [e.detail, ...Object.entries(e.refused).slice(0, 20).map(([symbol, why]) => `${symbol} is refused: ${why}`)];
    say(this.text, parts.filter(Boolean).join(" · "));
    this.text.hidden = !this.text.textContent;
    if (!this.inner.open) return;
    put(this.workers, e.workers.map((w) => tr(
      el("th", "", w.role), el("td", "num", w.pid === null ? "down" : String(w.pid)), el("td", "num", cores(w.cpu_cores)),
      el("td", "num", w.cpu_s.toFixed(1)), el("td", "num", bytes(w.memory_bytes)), el("td", "num", count(w.open_files)),
      el("td", "", reasons(w.restarts)),
    )));
    put(this.facts, terms([
      ["symbols subscribed", `${count(e.subscribed)} of ${count(e.symbols)}`],
      ["connections", `${count(e.counts.connected || 0)} of ${count(e.counts.connections || 0)}`],
      ["trades delivered", count(e.delivered)],
      ["dead letters", count(e.dead_letters)],
      ["reconnects", reasons(e.reconnect_reasons)],
      ["sink errors", reasons(e.sink_errors)],
      ["over budget", reasons(e.budget_exceeded)],
      ["clock ahead, at most", known(e.clock_offset_s, (s) => `${s < 0 ? "−" : ""}${latency(Math.abs(s))}`)],
      ...COUNTS.filter(([key]) => key in e.counts).map(([key, text, format = count]) => [text, format(e.counts[key])]),
    ]));
  }

  /** The same for all processes. */
  fillTree(snapshot) {
    const { tree } = snapshot;
    this.state = budgets(snapshot);
    put(this.facts, terms([
      ["processes", count(tree.processes)],
      ["CPU since the start", lasted(tree.cpu_s)],
      ["most open files", `${count(tree.open_files)} of ${count(tree.open_files_limit)}`],
      ...snapshot.disks.map((d) => [`${d.name} ${d.path}`, `${bytes(d.free_bytes)} of ${bytes(d.total_bytes)} free`]),
    ]));
  }

  /** What was. */
  past(history) {
    for (const chart of this.charts) {
      const { limit } = chart.spec;
      chart.show(history, history.series[this.name] || null, limit && this.state ? this.state[limit[0]] : null);
    }
    if (this.symbols) this.symbols.show(history.symbols[this.name]);
  }
}

function details(...content) {
  return el("details", "", el("summary", ""), ...content);
}

/** The table of an exchange's symbols, made when it is opened. */
class Symbols {
  constructor() {
    this.known = { total: 0, rows: [], trouble: "" };
    this.rows = el("tbody", "");
    const table = (this.table = el("table", "", el("thead", "", el("tr", "")), this.rows));
    heads(table.tHead.rows[0], [["symbol"], ["from id", "num"], ["to id", "num"], ["trades", "num"], ["missing", "num"], ["backfilled", "num"], ["exchange lacks", "num"], ["for good", "num"], ["newest", "num"]]);
    this.filter = el("input", "");
    Object.assign(this.filter, { type: "search", placeholder: "only symbols with …" });
    this.filter.setAttribute("aria-label", "Only symbols with");
    this.filter.addEventListener("input", () => this.fill());
    this.note = el("p", "note");
    this.node = details(this.filter, el("div", "scroll", table), this.note);
    this.node.addEventListener("toggle", () => this.fill());
  }

  show(found) {
    if (found) this.known = found;
    const { total, rows, trouble } = this.known;
    const open = rows.filter((row) => row.open_holes).length;
    const told = total ? `Symbols: ${count(total)}, ${open ? `${count(open)} with gaps` : "none with a gap"}` : "Symbols";
    say(this.node.firstChild, trouble || told);
    this.fill();
  }

  fill() {
    if (!this.node.open) return;
    const { total, rows } = this.known;
    this.table.hidden = !rows.length;
    this.filter.hidden = rows.length <= 20;
    const wanted = this.filter.value.trim().toUpperCase();
    const matching = rows.filter((row) => row.symbol.toUpperCase().includes(wanted));
    put(this.rows, matching.slice(0, SYMBOLS_SHOWN).map((row) => tr(
      el("th", "", row.symbol), el("td", "num", count(row.first_id)), el("td", "num", count(row.last_id)), el("td", "num", count(row.trades)),
      el("td", "num", row.open_holes ? el("span", "tone warn", `▲ ${count(row.open_ids)} in ${plural(row.open_holes, "gap")}`) : "0"),
      el("td", "num", count(row.backfilled)), el("td", "num", count(row.absent)), el("td", "num", count(row.beyond)),
      el("td", "num", known(row.newest_s, (at) => clock(at, serverNow()))),
    )));
    const more = matching.length - SYMBOLS_SHOWN;
    const unsent = total > rows.length ? ` ${count(total - rows.length)} more: feedmono ledger.` : "";
    say(this.note, !rows.length ? "Nothing has been delivered yet." : (more > 0 ? `The first ${SYMBOLS_SHOWN} of ${count(matching.length)}.` : "") + unsent);
  }
}

// --- showing the answers

const panels = new Map();
let version = null;
let heard = null;

/** The server's time, in seconds, as far as it is known here. */
function serverNow() {
  return heard ? heard.now_s + (performance.now() - heard.at_ms) / 1000 : Date.now() / 1000;
}

function showVerdict(level, text, entries, now) {
  $("verdict").className = `verdict ${level}`;
  $("sign").setAttribute("d", SIGNS[level]);
  say($("headline"), text);
  put($("reasons"), entries.map((r) => {
    const parts = r.exchange === null ? [r.text] : [el("b", "", r.exchange || "the machine"), ": ", r.text];
    if (r.since_s) parts.push(el("span", "", ` · since ${clock(r.since_s, now)}, ${lasted(now - r.since_s)}`));
    return el("li", "", ...parts);
  }));
  const title = `${MARKS[level]} feedmono${level === "ok" ? "" : ` – ${text}`}`;
  if (document.title === title) return;
  document.title = title;
  const sign = `<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 24 24'><path fill='${TONES[level]}' d='${SIGNS[level]}'/></svg>`;
  document.querySelector("link[rel=icon]").href = `data:image/svg+xml,${encodeURIComponent(sign)}`;
}

function showState(answer) {
  if (version !== null && version !== answer.version) {
    location.reload(); // another feedmono answers: its page may be another one, too
    return;
  }
  version = answer.version;
  document.body.className = "";
  heard = { now_s: answer.now_s, at_ms: performance.now() };
  const { verdict, snapshot, now_s: now } = answer;
  showVerdict(verdict.level, verdict.text, verdict.reasons, now);
  showEvents(answer.events, now);
  if (!snapshot) return;
  put($("facts"), terms([
    ["host", answer.host], ["sink", snapshot.sink], ["up", lasted(now - snapshot.started_at_s)],
    ["sampled", clock(snapshot.taken_at_s, now)],
  ]));
  put(document.querySelector("#overview tbody"), [...snapshot.exchanges.map(exchangeRow), treeRow(snapshot)]);
  showPanels(snapshot);
}

function showPanels(snapshot) {
  const names = [...snapshot.exchanges.map((e) => e.name), ""];
  for (const [name, panel] of panels) {
    if (!names.includes(name)) {
      panel.close();
      panels.delete(name);
    }
  }
  names.forEach((name, i) => {
    const old = panels.get(name);
    const panel = old || new Panel(name);
    panels.set(name, panel);
    const place = $("details").children[i];
    if (place !== panel.node) $("details").insertBefore(panel.node, place || null);
    if (name) panel.fill(snapshot.exchanges[i]);
    else panel.fillTree(snapshot);
    if (!old && lately) panel.past(lately);
  });
}

function showEvents(events, now) {
  const rows = events.map((e) => {
    const level = { warning: "warn", error: "bad", critical: "bad" }[e.level];
    const fields = Object.entries(e.fields).map(([key, value]) => `${key} ${value}`).join(" · ");
    return tr(
      el("td", "when", clock(e.at_s, now)),
      el("td", "short", level ? el("span", `tone ${level}`, `${MARKS[level]} ${e.level}`) : e.level),
      el("td", "short", [e.exchange, e.worker].filter(Boolean).join(" ")),
      el("td", "event", e.event), el("td", "", fields),
    );
  });
  const none = el("td", "note", "nothing has happened yet");
  none.colSpan = 5;
  put(document.querySelector("#events tbody"), rows.length ? rows : [tr(none)]);
}

let lately = null;

function showHistory(answer) {
  lately = answer;
  for (const panel of panels.values()) panel.past(answer);
  const points = answer.step_s > 1.5 ? `, a point every ${lasted(answer.step_s)}` : "";
  say($("past-note"), `${clock(answer.from_s, answer.until_s, false)} to ${clock(answer.until_s, answer.until_s, false)}${points}`);
}

function showLost(why) {
  const since = heard ? ` since ${clock(heard.now_s, serverNow())}` : "";
  const text = `${why}. ${heard ? "What is below is from then. " : ""}Trying again every ${STATE_MS / 1000} s.`;
  showVerdict("bad", `No connection to feedmono${since}`, [{ exchange: null, text }], serverNow());
  document.body.className = "lost";
}

// --- asking

/** Asks for a path again and again while the page is seen. */
class Poll {
  constructor(path, everyMs, show, lost) {
    Object.assign(this, { path, everyMs, show, lost, busy: false, timer: 0 });
  }

  async ask() {
    if (this.busy || document.hidden) return;
    this.busy = true;
    clearTimeout(this.timer);
    const path = this.path();
    let answer = null;
    try {
      const response = await fetch(path, { signal: AbortSignal.timeout(ANSWER_MS), cache: "no-store" });
      if (!response.ok) throw new Error(`It answers with status ${response.status}`);
      answer = await response.json();
    } catch (error) {
      this.lost(error.name === "TimeoutError" ? `No answer within ${ANSWER_MS / 1000} s` : error.name === "TypeError" ? "It can't be reached" : error.message);
    }
    this.busy = false;
    this.timer = setTimeout(() => this.ask(), answer ? this.everyMs(answer) : STATE_MS);
    if (answer && path === this.path()) this.show(answer);
    else if (answer) this.ask();
  }
}

const minutes = () => Number(document.querySelector("#range :checked").value);
const statePoll = new Poll(() => "api/state", () => STATE_MS, showState, showLost);
const historyPoll = new Poll(
  () => `api/history?minutes=${minutes()}`,
  (answer) => Math.max(HISTORY_MS, 1000 * answer.step_s), showHistory, () => {},
);

function makeRange() {
  const wanted = Number((/^#minutes=(\d+)$/.exec(location.hash) || [])[1] || 60);
  const chosen = RANGES.some(([value]) => value === wanted) ? wanted : 60;
  for (const [value, text] of RANGES) {
    const input = el("input", "");
    Object.assign(input, { type: "radio", name: "range", value, checked: value === chosen });
    $("range").append(el("label", "", input, text));
  }
  $("range").addEventListener("change", () => {
    history.replaceState(null, "", `#minutes=${minutes()}`);
    historyPoll.ask();
  });
}

heads(document.querySelector("#overview thead tr"), COLUMNS);
heads(document.querySelector("#events thead tr"), [["time"], ["level"], ["where"], ["event"], ["details"]]);
showVerdict("none", "Looking …", [], 0);
makeRange();
document.addEventListener("visibilitychange", () => {
  statePoll.ask();
  historyPoll.ask();
});
statePoll.ask();
historyPoll.ask();
