// Values from outside, such as a model's name, enter the page as text, never as markup.
"use strict";

const $ = (id) => document.getElementById(id);
const make = (tag, text, name) => {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (name) made.className = name;
  return made;
};
const whole = new Intl.NumberFormat();
const short = new Intl.NumberFormat(undefined, { notation: "compact", maximumFractionDigits: 1 });
const share = (part, all) => (all > 0 ? part / all : null);
const percent = (ratio) => (ratio === null ? "–" : (100 * ratio).toFixed(1) + " %");

const WORKERS = [
  ["Worker", (w) => w.name],
  ["State", (w) => w.state],
  ["In flight", (w) => w.in_flight, 1],
  ["Waiting prefill", (w) => w.queued_prefill_tokens, 1],
  ["Hit ratio", (w) => share(w.cached_tokens, w.prompt_tokens) ?? -1, 1],
  ["Believed warm", (w) => share(w.index_blocks, w.max_blocks) ?? 0, 1],
  ["Tokens/s", (w) => w.prefill_rate, 1],
  ["URL", (w) => w.url],
  ["Since", (w) => w.since ?? ""],
  ["Last error", (w) => w.last_error ?? ""],
];
const DECISIONS = ["Request", "Model", "Worker", "Why", "Status", "Prompt", "Predicted", "Cached", "First token"];

const SILENT_MS = 5000;

let newest = null;
let order = [0, 1];

function heads() {
  WORKERS.forEach(([title, , number], at) => {
    const head = make("th", undefined, number ? "number" : "");
    head.scope = "col";
    const button = make("button", title);
    button.type = "button";
    button.addEventListener("click", () => {
      order = [at, order[0] === at ? -order[1] : number ? -1 : 1];
      showWorkers();
    });
    head.append(button);
    $("workers").tHead.rows[0].append(head);
  });
  for (const title of DECISIONS) {
    const head = make("th", title);
    head.scope = "col";
    $("decisions").tHead.rows[0].append(head);
  }
}

function cell(row, at, text, name) {
  const cells = row.cells;
  const found = cells[at] ?? row.insertCell();
  if (found.textContent !== String(text)) found.textContent = text;
  if (name !== undefined) found.className = name;
  return found;
}

function bar(row, at, ratio, text) {
  const found = cells(row, at);
  let progress = found.firstElementChild;
  if (!progress) {
    progress = make("progress");
    progress.max = 1;
    found.replaceChildren(progress, make("span"));
    found.className = "number";
  }
  progress.value = ratio ?? 0;
  progress.setAttribute("aria-label", text);
  found.lastElementChild.textContent = " " + text;
}

function cells(row, at) {
  while (row.cells.length <= at) row.insertCell();
  return row.cells[at];
}

function showWorkers() {
  const wanted = $("filter").value.trim().toLowerCase();
  const state = $("state").value;
  const [column, direction] = order;
  const value = WORKERS[column][1];
  const shown = newest.workers.filter(
    (w) => (!state || w.state === state) && (!wanted || (w.name + " " + w.url).toLowerCase().includes(wanted)),
  );
  shown.sort((a, b) => (value(a) < value(b) ? -direction : value(a) > value(b) ? direction : 0));
  [...$("workers").tHead.rows[0].cells].forEach((head, at) => {
    if (at === column) head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
    else head.removeAttribute("aria-sort");
  });
  const body = $("workers").tBodies[0];
  shown.forEach((w, at) => {
    const row = body.rows[at] ?? body.insertRow();
    cell(row, 0, w.name);
    cell(row, 1, w.state, w.state);
    cell(row, 2, whole.format(w.in_flight), "number");
    cell(row, 3, short.format(w.queued_prefill_tokens), "number");
    const hits = share(w.cached_tokens, w.prompt_tokens);
    bar(row, 4, hits, percent(hits));
    const warm = share(w.index_blocks, w.max_blocks);
    bar(row, 5, warm, percent(warm));
    cell(row, 6, short.format(w.prefill_rate), "number");
    cell(row, 7, w.url);
    cell(row, 8, w.since ? new Date(w.since).toLocaleString() : "–");
    cell(row, 9, w.last_error ?? "", "failed");
  });
  while (body.rows.length > shown.length) body.deleteRow(-1);
  say("count", shown.length + " of " + newest.workers.length);
}

function showDecisions() {
  const body = $("decisions").tBodies[0];
  newest.decisions.forEach((d, at) => {
    const row = body.rows[at] ?? body.insertRow();
    const first = d.stream && d.time_to_first_token_s > 0 ? Math.round(1000 * d.time_to_first_token_s) + " ms" : "–";
    const told = [d.request_id, d.model, d.worker || "–", d.reason || "–", d.status || d.outcome, short.format(d.prompt_tokens),
      short.format(d.predicted_cached_tokens), d.actual_cached_tokens === null ? "–" : short.format(d.actual_cached_tokens), first];
    told.forEach((text, column) => cell(row, column, text, column === 4 && !(d.status < 400) ? "failed" : column > 4 ? "number" : ""));
  });
  while (body.rows.length > newest.decisions.length) body.deleteRow(-1);
}

function showGlance() {
  const up = newest.workers.filter((w) => w.state === "up").length;
  const s = newest.sessions;
  const figures = [
    ["Workers up", up + " of " + newest.workers.length],
    ["Live requests", whole.format(newest.live_requests)],
    ["Waiting", whole.format(newest.queued)],
    ["GPU seconds saved", short.format(newest.saved_prefill_s)],
  ];
  if (s) {
    figures.push(["Turns", short.format(s.turns)], ["Sessions in memory", short.format(s.cached)]);
    figures.push(["Session store", s.store_up ? "up" : "away"]);
    if (s.waiting) figures.push(["Ends yet to be stored", whole.format(s.waiting)]);
  }
  const list = $("glance");
  figures.forEach(([name, value], at) => {
    let each = list.children[at];
    if (!each) {
      each = make("div");
      each.append(make("dt"), make("dd"));
      list.append(each);
    }
    each.firstElementChild.textContent = name;
    each.lastElementChild.textContent = value;
    each.lastElementChild.className = value === "away" ? "ejected" : "";
  });
  while (list.children.length > figures.length) list.lastElementChild.remove();
  $("about").textContent = "version " + newest.version + ", policy " + newest.policy;
}

function showHits() {
  const points = { actual: [], predicted: [] };
  const samples = newest.history;
  let last = null;
  for (let at = 1; at < samples.length; at++) {
    const [, prompt, predicted, cached] = samples[at].map((sum, of) => sum - samples[at - 1][of]);
    if (prompt <= 0) continue;
    const x = (600 * at) / Math.max(samples.length - 1, 1);
    last = [cached / prompt, Math.min(predicted / prompt, 1)];
    points.actual.push(x.toFixed(1) + "," + (118 - 116 * last[0]).toFixed(1));
    points.predicted.push(x.toFixed(1) + "," + (118 - 116 * last[1]).toFixed(1));
  }
  const drawing = $("hits");
  for (const name of ["predicted", "actual"]) {
    let line = drawing.querySelector("." + name);
    if (!line) {
      line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
      line.setAttribute("class", name);
      drawing.append(line);
    }
    line.setAttribute("points", points[name].join(" "));
  }
  if (last) $("hits-text").textContent = percent(last[0]) + " of prompt tokens were found in caches in the last ten seconds with traffic; " + percent(last[1]) + " were predicted.";
}

function show(event) {
  newest = event;
  showGlance();
  showHits();
  showWorkers();
  showDecisions();
}

// Screen readers read this out whenever it is set, so it is set only when it changes.
function say(id, text) {
  if ($(id).textContent !== text) $(id).textContent = text;
}

function tell(text, isLive) {
  document.body.classList.toggle("old", !isLive && newest !== null);
  say("link", isLive || !newest ? text : text + "; figures are of " + new Date(1000 * newest.now).toLocaleTimeString());
}

function askForToken(why) {
  sessionStorage.removeItem("token");
  say("refused", why);
  $("login").hidden = false;
  $("token").focus();
  tell("a token is asked for", false);
}

// Ends the stream when the router sends nothing for a while, as on a network that drops everything.
function patience(given) {
  const gone = new AbortController();
  given.addEventListener("abort", () => gone.abort(given.reason), { signal: gone.signal });
  let timer;
  const heard = () => {
    clearTimeout(timer);
    timer = setTimeout(() => gone.abort(new Error("the router is silent")), SILENT_MS);
  };
  const end = () => {
    clearTimeout(timer);
    gone.abort();
  };
  heard();
  return { signal: gone.signal, heard, end };
}

// False if a token is needed. True if the router has ended the stream, as it does after a while.
async function follow(token, { signal, heard }) {
  const answer = await fetch("events", { signal, headers: token ? { Authorization: "Bearer " + token } : {} });
  if (answer.status === 401) {
    askForToken(token ? "This is not the token." : "");
    return false;
  }
  if (!answer.ok) throw new Error(await answer.text());
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return true;
    heard();
    text += value;
    for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
      show(JSON.parse(text.slice(6, end)));
      text = text.slice(end + 2);
      $("login").hidden = true;
      tell("live", true);
    }
  }
}

let looking = new AbortController();

// Ends the stream that runs, and begins another one.
async function look() {
  looking.abort();
  const { signal } = (looking = new AbortController());
  while (!signal.aborted) {
    const waits = patience(signal);
    try {
      if (!(await follow(sessionStorage.getItem("token"), waits))) return;
    } catch (error) {
      if (!signal.aborted) tell("not connected: " + error.message, false);
    } finally {
      waits.end();
    }
    await new Promise((goOn) => setTimeout(goOn, 2000));
  }
}

$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  if (/[^\x20-\x7e]/.test($("token").value)) {
    askForToken("This is not the token.");
    return;
  }
  sessionStorage.setItem("token", $("token").value);
  look();
});
for (const id of ["filter", "state"]) $(id).addEventListener("input", () => newest && showWorkers());
heads();
look();
