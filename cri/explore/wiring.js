// Pointer, keyboard, clipboard, and the first drawing.
async function copied(type, blob, name) {
  try { await navigator.clipboard.write([new ClipboardItem({[type]: blob})]); say(name + " copied"); }
  catch {  // a browser or a frame that lets no page write to the clipboard: a file instead
    const a = document.createElement("a");
    a.href = URL.createObjectURL(blob); a.download = "cri-explorer." + name.toLowerCase(); a.click();
    say("this browser lets no page copy that; it is downloaded instead");
  }
}
function csv() {
  const c = ready.get(F.runs[state.run].blobs.core), t = ready.get(F.runs[state.run].blobs.texts), quote = x => /[",\n]/.test(x) ? '"' + String(x).replaceAll('"', '""') + '"' : x;
  return `case,${F.axes.join(",")},answer,score\n` + current.list.map(([j, x]) => [j, c.row[j], c.col[j], quote(t.answer[j]), x].join(",")).join("\n") + "\n";
}
function python() {
  const run = F.runs[state.run], m = state.method, i = selected();
  const call = similar(m) ? `run.nearest(${i}, k=20, site="${run.sites[state.site]}", metric="${m}")` : m in PYTHON ? `run.influence(${i}, "${PYTHON[m]}", k=20)` : `run.influence(${i}, "${m}", target="predicted", k=50)`;
  return `import cri\n\nrun = cri.load_run(${JSON.stringify(run.name)})\nprint(${call})\nrun.explore((${state.a}, ${state.b}))\n`;
}
const PYTHON = {"same answer / distance": "same_answer_by_distance", "nearest operands": "nearest_operands"};
function picture() {  // both maps with their words, as one image
  const maps = [$("score"), $("against")], w = maps[0].width, style = getComputedStyle(document.documentElement), px = w / 32;
  const canvas = document.createElement("canvas"), g = canvas.getContext("2d"), notes = [$("scorenote"), $("againstnote")];
  canvas.width = 2 * w + 3 * px; canvas.height = w + 12 * px;
  g.fillStyle = style.getPropertyValue("--bg"); g.fillRect(0, 0, canvas.width, canvas.height);
  g.fillStyle = style.getPropertyValue("--fg"); g.font = `bold ${1.3 * px}px system-ui, sans-serif`; g.fillText($("scoretitle").textContent, px, 2 * px);
  g.font = `${px}px system-ui, sans-serif`;
  maps.forEach((map, k) => {
    const left = px + k * (w + px);
    g.drawImage(map, left, 3 * px, w, w);
    let line = "", y = w + 4.5 * px;
    for (const word of notes[k].textContent.split(" ")) { if (g.measureText(line + word).width > w - px) { g.fillText(line, left, y); line = ""; y += 1.3 * px; } line += word + " "; }
    g.fillText(line, left, y);
  });
  g.fillText(F.runs[state.run].name + " " + location.hash, px, canvas.height - px, canvas.width - 2 * px);
  return canvas;
}
async function hover(place) {  // the same case in every map, and in words
  for (let r = 0; r < F.runs.length; r++) point($("map" + r), place);
  for (const id of ["score", "against"]) point($(id), !place || state.frame === "grid" ? place : inOffsets(place));
  const i = place ? caseAt[place[0] * F.cols + place[1]] : -1;
  if (i < 0) return;
  const t0 = await texts(0), words = [`${t0.question[i]} ${t0.answer[i]} is right.`];
  for (let r = 0; r < Math.min(F.runs.length, 3); r++) { const c = await core(r), t = await texts(r); words.push(`${short(r)}: ${t.prediction[i] || t.status[i]}, log-odds ${number(c.logodds[i], 2)}, ${c.train[i] ? "trained on" : "held out"}`); }
  $("hover").textContent = words.join("\n");
}
const inOffsets = ([a, b]) => { const r = a - state.a + HALF, c = b - state.b + HALF; return r >= 0 && c >= 0 && r <= 2 * HALF && c <= 2 * HALF ? [r, c] : null; };
function hoverOffset(canvas, [r, c]) {
  const k = canvas.found && canvas.found.kernel, p = r * (2 * HALF + 1) + c, sign = x => (x > 0 ? "+" : "") + number(x, 0);
  for (const id of ["score", "against"]) point($(id), [r, c]);
  if (k) $("hover").textContent = `Offset (${sign(r - HALF)}, ${sign(c - HALF)}): ${Number.isNaN(k.mean[p]) ? "no training case" : `${number(k.mean[p])} ± ${number(k.half[p])} (95 %), n = ${k.n[p]} pairs`}`;
}
function wire(canvas, offsets) {
  const toCase = ([r, c]) => offsets && state.frame !== "grid" ? [state.a + r - HALF, state.b + c - HALF] : [r, c];
  canvas.addEventListener("click", e => { const p = cellAt(canvas, e); if (p && !(offsets && state.frame === "mean")) choose(...toCase(p)); });
  canvas.addEventListener("pointermove", e => {
    const p = cellAt(canvas, e);
    if (!p) return hover(null);
    if (offsets && state.frame === "mean") return hoverOffset(canvas, p);
    const q = toCase(p);
    return hover(q[0] >= 0 && q[1] >= 0 && q[0] < F.rows && q[1] < F.cols ? q : null);
  });
  canvas.addEventListener("pointerleave", () => hover(null));
  canvas.addEventListener("keydown", e => {
    const step = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[e.key];
    if (step) { e.preventDefault(); choose(state.a + step[0], state.b + step[1]); }
  });
}
function makeMaps() {
  F.runs.forEach((run, r) => {
    const f = text($("maps"), "figure"), canvas = text(text(f, "div", undefined, "map"), "canvas"), caption = text(f, "figcaption");
    canvas.id = "map" + r; canvas.tabIndex = 0; canvas.setAttribute("role", "application");
    text(caption, "b", short(r));
    caption.append(". Accuracy: " + F.runs[r].accuracy.map(x => `${x.part === "test" ? "held out" : "trained on"} ${span(x)}, n = ${x.cases}`).join("; ") + ".");
    wire(canvas, false);
  });
  for (const id of ["score", "against"]) wire($(id), true);
}
function titled() {  // the settings of all runs, each value once
  const all = key => [...new Set(F.runs.map(run => run[key]))].join(" and ");
  return `${all("format")}, ${all("split")} split, ${all("tokenizer")} tokens, ${all("model")}, seed ${all("seed")}`;
}
async function start() {
  $("title").textContent = `${named(F.task)}: ${titled()}`;
  document.title = "cri explorer: " + named(F.task);
  first = await core(0);
  for (let i = 0; i < first.row.length; i++) caseAt[first.row[i] * F.cols + first.col[i]] = i;
  const square = F.runs[0].squares[0];
  [state.a, state.b] = square || [Math.floor(F.rows / 2), Math.floor(F.cols / 2)];
  state.site = F.runs[0].sites.length - 1;
  [state.a, state.b] = await nearestExplained(0);
  makeMaps(); makeSwitches();
  for (const id of ["value", "method", "frame", "control"]) $(id).onchange = e => { state[id] = e.target.value; refresh(true); };
  $("site").onchange = e => { state.site = Number(e.target.value); refresh(true); };
  $("find").onchange = e => find(e.target.value.trim());
  $("png").onclick = () => picture().toBlob(blob => copied("image/png", blob, "PNG"));
  $("csv").onclick = () => copied("text/plain", new Blob([csv()], {type: "text/plain"}), "CSV");
  $("py").onclick = () => copied("text/plain", new Blob([python()], {type: "text/plain"}), "Python");
  window.onhashchange = () => { fromHash(); refresh(true); };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => refresh(true));
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; refresh(true); } });
  $("foot").textContent = "Made by cri explore. Runs: " + F.runs.map(r => r.name).join(", ");
  fromHash(location.hash || F.start || "");
  await refresh(true);
  document.body.dataset.ready = "yes";
  window.explorer = {opened: performance.now(), state, csv, python, picture, choose, refresh, current: () => current, hover};
}
start();
