// The panels, and what the page shows now: `state`, restored from the address and written to it.
const state = {a: 0, b: 0, run: 0, value: "correct", method: "cosine", site: 0, frame: "grid", control: "", element: ""};
const FRAMES = {grid: "over the grid", offset: "by offset from the case", mean: "by offset, mean of all cases"};
const SWITCHES = ["format", "split", "tokenizer", "model", "seed"], HALF = 20;
const caseAt = new Int32Array(N).fill(-1), METHODS = [...F.metrics, ...F.methods, ...FREE];
let first, current = {list: []};
const selected = () => caseAt[state.a * F.cols + state.b];
const short = r => { const x = F.runs[r]; return `${x.format}, ${x.split} split, ${x.tokenizer} tokens, seed ${x.seed}`; };
const named = m => m.replaceAll("_", " ");
const place = site => site.replace("@prompt_end", "");
const similar = m => F.metrics.includes(m);
const number = (x, digits = 3) => x === null || x === undefined || Number.isNaN(x) ? "–" : x.toFixed(digits).replace("-", "−");
const span = row => `${number(row.mean)} ${row.low === null ? "(no interval)" : `[${number(row.low)}, ${number(row.high)}]`}`;
function say(words) { $("said").textContent = words; clearTimeout(say.timer); say.timer = setTimeout(() => { $("said").textContent = ""; }, 8000); }
function head(table, names) { table.textContent = ""; const row = text(text(table, "thead"), "tr"); for (const n of names) text(row, "th", n).scope = "col"; return text(table, "tbody"); }

// What stands beside the scores: the untrained model, another run, or a baseline that knows no model.
function controls() {
  const out = [];
  F.runs.forEach((run, r) => { if (r !== state.run) out.push(["run" + r, "same, in " + short(r)]); });
  if (similar(state.method)) out.push(["untrained", "same, before training"]);
  for (const m of FREE) if (m !== state.method) out.push([m, "model-free: " + m]);
  return out;
}
function usualControl() {
  const other = F.runs.findIndex((run, r) => r !== state.run && run.split === "random" && ["format", "tokenizer", "seed"].every(k => run[k] === F.runs[state.run][k]));
  if (!similar(state.method)) return state.method === FREE[0] ? FREE[1] : FREE[0];  // another run explains other cases
  return other >= 0 ? "run" + other : "untrained";
}
function beside() {  // [run, method, site, role] of the control
  const c = state.control, of = r => Math.min(state.site, F.runs[r].sites.length - 1);
  if (c.startsWith("run")) return [Number(c.slice(3)), state.method, of(Number(c.slice(3))), "own"];
  if (c === "untrained") return [state.run, state.method, state.site, "untrained"];
  return [state.run, c, state.site, "own"];
}

async function drawMaps() {
  keyInto($("key"), VALUES[state.value].key);
  const i = selected();
  for (let r = 0; r < F.runs.length; r++) {
    const [c, t] = await Promise.all([core(r), texts(r)]), canvas = $("map" + r);
    paint(canvas, F.rows, F.cols, p => caseAt[p] < 0 ? null : VALUES[state.value].of(c, caseAt[p]), {squares: F.runs[r].squares, pick: [state.a, state.b]});
    canvas.setAttribute("aria-label", `Map of ${short(r)}: ${VALUES[state.value].label}. Selected ${t.question[i]} answered ${t.prediction[i] || t.status[i]}, right is ${t.answer[i]}. Arrow keys move.`);
  }
}
async function drawOne(canvas, note, [r, method, site, role], i) {
  const run = F.runs[r];
  let found = {list: [], note: ""}, label = method === state.method ? named(method) : "model-free: " + method;
  if (similar(method)) label += ` at ${place(run.sites[site])}`;
  const middleCell = [HALF, HALF], at = j => found.clip ? Math.max(0, (found.map[j] - found.middle) / found.limit) : (found.map[j] - found.middle) / found.limit;
  const offsets = {pick: middleCell, first: [-HALF, -HALF], names: F.axes.map(n => "Δ" + n)}, w = 2 * HALF + 1;
  if (state.frame === "mean") {
    const key = role === "untrained" ? method + ", untrained" : method, k = F.kernels.find(x => x.method === key && x.kind === run.kind);
    found.note = k ? `Mean of ${k.cases} explained cases and ${k.seeds} ${k.seeds === 1 ? "seed; intervals over patches of cases" : "seeds; intervals over seeds"} (point at a cell), each case's scores divided by its largest${similar(method) ? ", less the median" : ""}.` : "No mean was computed of this one; choose the cosine at the last layer.";
    const kernel = k && await arrays(k.blob);
    if (kernel) { const top = kernel.mean.reduce((a, x) => Math.max(a, Number.isNaN(x) ? 0 : Math.abs(x)), 1e-9); found.kernel = kernel; found.limit = top; }
    paint(canvas, w, w, p => kernel && !Number.isNaN(kernel.mean[p]) ? diverging(kernel.mean[p] / found.limit) : null, offsets);
  } else {
    found = await scoresOf(r, method, site, role, i);
    found.clip = method === "nearest operands";
    const c = await core(r), colour = j => j < 0 || Number.isNaN(found.map[j]) ? null : diverging(at(j));
    if (state.frame === "grid") paint(canvas, F.rows, F.cols, p => colour(caseAt[p]), {squares: run.squares, pick: [state.a, state.b], rings: found.list.slice(0, 10).map(([j]) => [c.row[j], c.col[j]])});
    else paint(canvas, w, w, p => { const y = state.a + Math.floor(p / w) - HALF, x = state.b + p % w - HALF; return y < 0 || x < 0 || y >= F.rows || x >= F.cols ? null : colour(caseAt[y * F.cols + x]); }, offsets);
  }
  note.textContent = "";
  text(note, "b", label + (role === "untrained" ? ", before training. " : ". "));
  if (F.runs.length > 1) note.append(`In ${short(r)}. `);
  note.append(found.note);
  canvas.setAttribute("aria-label", `${label}, ${FRAMES[state.frame]}. ${found.list.length} training cases in the list. Arrow keys move.`);
  canvas.found = found; canvas.run = r;
  return found;
}
async function drawScores() {
  const token = drawScores.token = {}, i = selected(), t = await texts(state.run), c = await core(state.run);
  const own = [state.run, state.method, state.site, "own"];
  const found = await drawOne($("score"), $("scorenote"), own, i);
  await drawOne($("against"), $("againstnote"), beside(), i);
  if (token !== drawScores.token) return;
  current = state.frame === "mean" ? await scoresOf(...own, i) : found;
  $("scoretitle").textContent = state.frame === "mean" ? `${named(state.method)}, mean over the explained cases` : `${named(state.method)}, to ${t.question[i]}${t.prediction[i] || t.status[i]}`;
  keyInto($("scorekey"), similar(state.method) ? [["far", diverging(-1)], ["median", diverging(0)], ["close", diverging(1)], ["ten best", "var(--pick)"]] : [["against", diverging(-1)], ["none", diverging(0)], ["for", diverging(1)], ["ten best", "var(--pick)"]]);
  const groups = await groupsOf(state.run, i), body = head($("list"), ["", F.axes[0], F.axes[1], "answer", "distance", "group", "score"]);
  keyInto($("groupkey"), groups ? F.groups.map(g => [named(g), GROUP_COLOURS[g]]) : []);
  current.list.forEach(([j, x], p) => {
    const line = text(body, "tr", undefined, "go");
    line.onclick = () => choose(c.row[j], c.col[j]);
    for (const v of [p + 1, c.row[j], c.col[j], t.answer[j], Math.max(Math.abs(c.row[j] - c.row[i]), Math.abs(c.col[j] - c.col[i]))]) text(line, "td", v);
    const cell = text(line, "td"), g = groups && groups.get(j);
    if (g) { text(cell, "span", undefined, "dot").style.background = GROUP_COLOURS[g]; cell.append(named(g)); }
    text(line, "td", x.toPrecision(4), "num");
  });
  const goal = current.list.length ? null : await nearestExplained(state.run);
  if (token !== drawScores.token) return;
  const top = current.list.slice(0, 10), near = groups ? top.filter(([j]) => groups.get(j) === "near").length : 0;
  $("listnote").textContent = !current.list.length ? current.note + " " : groups ? `${near} of the first ${top.length} are near on the grid (one case: no interval; over all cases see below).` : "Groups are known for the explained cases only.";
  if (goal) { const b = text($("listnote"), "button", `Go to the nearest that is: ${goal.join(", ")}`, "link"); b.type = "button"; b.onclick = () => choose(...goal); }
}
async function nearestExplained(r) {  // [row, column] of the explained case nearest to the selected one
  const [c, {cases}] = await Promise.all([core(r), arrays(F.runs[r].blobs.near)]);
  let best = Infinity, at = null;
  for (const i of cases) { const d = Math.hypot(c.row[i] - state.a, c.col[i] - state.b); if (d < best) { best = d; at = [c.row[i], c.col[i]]; } }
  return at;
}
async function drawFacts() {
  const i = selected(), box = document.createDocumentFragment(), all = await Promise.all(F.runs.map(async (_, r) => [await core(r), await texts(r)]));
  text(box, "h2", all[0][1].question[i] + all[0][1].answer[i]);
  const body = head(text(box, "table"), ["run", "answers", "", "log-odds of the right answer"]);
  all.forEach(([c, t], r) => {
    const line = text(body, "tr");
    for (const v of [short(r), t.prediction[i] || t.status[i], (c.correct[i] ? "right" : "wrong") + (c.train[i] ? ", trained on" : ", held out")]) text(line, "td", v);
    text(line, "td", number(c.logodds[i], 2), "num");
  });
  $("facts").replaceChildren(box);
}
async function drawLens() {
  const run = F.runs[state.run], lens = await arrays(run.blobs.lens), i = selected(), body = head($("lenstable"), ["after", "comes first", "rank of the right first token (0: first)"]);
  run.sites.forEach((site, s) => { const line = text(body, "tr"); text(line, "td", place(site)); text(line, "td", run.tokens[lens["top" + s][i]]); text(line, "td", lens["rank" + s][i], "num"); });
}
async function drawSummary() {
  const kind = F.runs[state.run].kind;
  if (drawSummary.kind === kind) return;  // it is of no single case
  drawSummary.kind = kind;
  const groups = F.groups, body = head($("sumtable"), ["among the ten best by", ...groups.map(named)]);
  const rows = F.summary.shares.filter(x => x.kindNumber === kind), accuracy = F.summary.accuracy;
  const line = (label, of) => { const tr = text(body, "tr"); text(tr, "td", label); for (const g of groups) text(tr, "td", of(g)); };
  line("base: share of the training cases", g => number(rows.find(x => x.group === g).base));
  for (const m of [...new Set(rows.map(x => x.method))]) line(named(m), g => span(rows.find(x => x.group === g && x.method === m)));
  $("sumnote").textContent = `${F.kinds[kind].join(", ")}: n = ${rows[0].cases} explained cases, ${rows[0].seeds} ${rows[0].seeds === 1 ? "seed (intervals over patches of cases)" : "seeds (intervals over patches of cases and seeds)"}, 95 %. Similarities at the last layer. Accuracy: ` +
    accuracy.map(x => `${F.kinds[x.kindNumber][1]} split, ${x.part} ${span(x)}, n = ${x.cases}, seeds ${x.seeds}`).join("; ") + ".";
}
async function drawTrace() {
  const blob = F.runs[state.run].blobs.traces;
  $("trace").hidden = !blob;
  if (!blob) return;
  const t = await json(blob), i = selected(), found = t.traces[i];
  for (const id of ["lines", "steps", "edits"]) $(id).textContent = "";
  if (!found) { $("lines").textContent = "Not kept for this case: traces are those of the explained cases (held out, those of the square first)."; return; }
  found.lines.forEach((line, n) => {
    const row = text($("lines"), "div", undefined, line.step && line.trained === 0 ? "untrained" : line.step && line.in_column === 0 ? "uncolumn" : "");
    const spans = Object.entries(line.elements).filter(([, [s, e]]) => e > s).sort((x, y) => x[1][0] - y[1][0] || x[1][1] - y[1][1]);
    let at = 0;
    for (const [name, [s, e]] of spans) {
      if (s < at) continue;
      row.append(line.text.slice(at, s));
      const b = text(row, "button", line.text.slice(s, e), "element"), key = n + ":" + name;
      b.type = "button"; b.title = name; at = e;
      b.setAttribute("aria-label", `${name}, ${line.text.slice(s, e)}, line ${n}`);
      b.setAttribute("aria-pressed", state.element === key);
      b.onclick = () => { state.element = state.element === key ? "" : key; refresh(true); };
    }
    row.append(line.text.slice(at));
    if (row.className) text(row, "span", row.className === "untrained" ? "  ← never trained" : "  ← never trained in this column", "tag");
  });
  drawStep(t, i, found);
  drawEdits(t, i, found);
}
function drawStep(t, i, found) {
  const n = Number(state.element.split(":")[0]), steps = found.lines.map((line, k) => [line, k]).filter(([line]) => line.step);
  const chosen = state.element ? steps.find(([, k]) => k === n) : steps.find(([line]) => line.trained === 0) || steps.find(([line]) => line.in_column === 0) || steps[0], box = $("steps");
  if (!chosen) { text(box, "p", "No rule step is executed on this line.", "soft"); return; }
  const [line, k] = chosen, near = (t.near[i] || {})[k];
  text(box, "h3", `The step of line ${k}: ${line.step}`);
  text(box, "p", `Executed in ${line.trained} training cases, in ${line.in_column} of them in this column.${line.trained === 0 ? " It was never trained." : line.in_column === 0 ? " It was never trained in this column." : ""}`);
  const count = role => near[role].filter(([c, l]) => t.steps[c][l].split("),")[0] === line.step.slice(0, -1)).length;
  text(box, "p", `Nearest training steps by cosine after the last layer, where the result is predicted. The same step: ${count("own")} of ${near.own.length}; control, before training: ${count("untrained")} of ${near.untrained.length} (one step: no interval).`, "soft");
  const c = ready.get(F.runs[state.run].blobs.core), body = head(text(box, "table"), ["", F.axes[0], F.axes[1], "step", "cosine", "before training", "cosine"]);
  near.own.forEach(([j, l, x], p) => { const tr = text(body, "tr", undefined, "go"), [q, m, y] = near.untrained[p]; tr.onclick = () => choose(c.row[j], c.col[j]); for (const v of [p + 1, c.row[j], c.col[j], t.steps[j][l], x.toFixed(4), t.steps[q][m], y.toFixed(4)]) text(tr, "td", v); });
}
function drawEdits(t, i, found) {
  const box = $("edits"), all = t.edits.filter(e => e.id === i), mine = all.filter(e => !state.element || state.element === e.line + ":" + e.element);
  text(box, "h3", "The model's own text");
  text(box, "pre", found.written);
  if (mine.length) text(box, "h3", state.element ? "After an edit of this element" : `After an edit (${mine.length} were computed; click an element for one)`);
  for (const e of mine.slice(0, state.element ? 9 : 2)) {
    text(box, "p", `Line ${e.line}, ${e.element}: ${e.old} → ${e.new}. The rule then answers ${e.expected}; without the edit the model answers ${e.unedited || "nothing"}; now ${e.answer || "nothing"}: ${e.outcome}.`);
    text(box, "pre", e.text);
  }
  if (mine.length) return;
  const p = text(box, "p", all.length ? "No edit of this element changes the rule's answer. " : "Edits were computed for some cases: ", "soft"), c = ready.get(F.runs[state.run].blobs.core);
  if (!all.length) for (const j of t.edited) { const b = text(p, "button", `${c.row[j]}, ${c.col[j]}`, "link"); b.type = "button"; b.onclick = () => choose(c.row[j], c.col[j]); }
}

function toHash() {
  const shown = {a: state.a, b: state.b, run: state.run, value: state.value, method: state.method, site: state.site, frame: state.frame, control: state.control};
  if (state.element) shown.element = state.element;
  const h = "#" + new URLSearchParams(shown);
  try { if (location.hash !== h) history.replaceState(null, "", h); } catch { /* a notebook's frame has no address of its own */ }
}
const plain = x => x.toLowerCase().replaceAll(/[^a-z0-9]/g, "");
function fromHash(hash = location.hash) {
  const q = new URLSearchParams(hash.slice(1)), whole = (key, high) => { const x = Number(q.get(key)); if (q.has(key) && Number.isInteger(x) && x >= 0 && x < high) state[key] = x; };
  whole("a", F.rows); whole("b", F.cols); whole("run", F.runs.length); whole("site", F.runs[state.run].sites.length);
  if (Object.hasOwn(VALUES, q.get("value"))) state.value = q.get("value");
  if (Object.hasOwn(FRAMES, q.get("frame"))) state.frame = q.get("frame");
  if (q.has("method")) { const m = METHODS.find(x => plain(x) === plain(q.get("method"))); if (m) state.method = m; else say(`method: ${q.get("method").slice(0, 40)} was not scored; choose from ${METHODS.join(", ")}`); }
  if (controls().some(([key]) => key === q.get("control"))) state.control = q.get("control");
  state.element = /^\d+:/.test(q.get("element") || "") ? q.get("element") : "";
  if (selected() < 0) nearestCell();
}
function nearestCell() {
  let best = Infinity, at = 0;
  for (let p = 0; p < N; p++) if (caseAt[p] >= 0) { const d = Math.hypot(Math.floor(p / F.cols) - state.a, p % F.cols - state.b); if (d < best) { best = d; at = p; } }
  [state.a, state.b] = [Math.floor(at / F.cols), at % F.cols];
}
function options(select, pairs, value) {
  const known = pairs.map(([v]) => v).join("|");
  if (select.known !== known) { select.textContent = ""; for (const [v, label] of pairs) text(select, "option", label).value = v; select.known = known; }
  select.value = value;
}
function switches() {
  options($("value"), Object.entries(VALUES).map(([k, v]) => [k, v.label]), state.value);
  options($("method"), METHODS.map(m => [m, similar(m) ? "similarity: " + named(m) : FREE.includes(m) ? "model-free: " + m : m]), state.method);
  state.site = Math.min(state.site, F.runs[state.run].sites.length - 1);
  options($("site"), F.runs[state.run].sites.map((s, i) => [i, place(s)]), state.site);
  options($("frame"), Object.entries(FRAMES), state.frame);
  if (!controls().some(([key]) => key === state.control)) state.control = usualControl();
  options($("control"), controls(), state.control);
  $("site").disabled = !similar(state.method);
  for (const key of SWITCHES) if ($("run-" + key)) $("run-" + key).value = F.runs[state.run][key];
}
function makeSwitches() {  // one select a setting in which the runs differ
  for (const key of SWITCHES) {
    const values = [...new Set(F.runs.map(x => x[key]))];
    if (values.length < 2) continue;
    const label = text($("switches"), "label", key), select = text(label, "select");
    select.id = "run-" + key;
    for (const v of values) text(select, "option", v).value = v;
    select.onchange = () => {
      const agree = r => SWITCHES.reduce((n, k) => n + (String(F.runs[r][k]) === (k === key ? select.value : String(F.runs[state.run][k])) ? (k === key ? 100 : 1) : 0), 0);
      const order = F.runs.map((_, r) => r).sort((x, y) => agree(y) - agree(x));
      if (agree(order[0]) < 99 + SWITCHES.length) say("no run has just that; the closest is shown");
      state.run = order[0]; refresh();
    };
  }
}
async function refresh(keep) {
  const began = performance.now();
  if (!keep) state.element = "";
  switches(); toHash();
  await Promise.all([drawMaps(), drawFacts(), drawScores(), drawLens(), drawTrace(), drawSummary()]);
  refresh.took = performance.now() - began;
  document.body.dataset.shown = `${state.run}:${state.a},${state.b}:${state.method}`;
}
function choose(a, b) {
  if (!(a >= 0 && b >= 0 && a < F.rows && b < F.cols) || caseAt[a * F.cols + b] < 0) return null;
  state.a = a; state.b = b;
  return refresh();
}
async function find(q) {
  const n = q.match(/\d+/g), t = await texts(0), i = t.question.findIndex(x => x === q || x === q + "=");
  if (i >= 0) return choose(first.row[i], first.col[i]);
  if (!n || n.length !== 2) return say("write two numbers, such as 57 42");
  return choose(Number(n[0]), Number(n[1])) || say(`no case at ${n[0]}, ${n[1]}`);
}
