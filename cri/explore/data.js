// What the page holds, decoded when it is first needed, and what is computed from it.
const $ = id => document.getElementById(id);
const F = JSON.parse($("facts-json").textContent), N = F.rows * F.cols;
const KINDS = {f4: Float32Array, u1: Uint8Array, i1: Int8Array, u2: Uint16Array, u4: Uint32Array};
const FREE = ["same answer / distance", "nearest operands"];
const pending = new Map(), ready = new Map();

// gzipped base64 -> bytes
async function unpack(name) {
  const packed = $("blob-" + name).textContent;
  let bytes;
  if (Uint8Array.fromBase64) bytes = Uint8Array.fromBase64(packed);
  else {  // browsers before 2025
    const binary = atob(packed);
    bytes = new Uint8Array(binary.length);
    for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  }
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}
function once(key, make) {
  if (!pending.has(key)) pending.set(key, make().then(value => { ready.set(key, value); return value; }));
  return pending.get(key);
}
const arrays = name => once(name, async () => {
  const buffer = await unpack(name), out = {};
  for (const [key, d] of Object.entries(F.index[name])) {
    out[key] = new KINDS[d.type](buffer, d.at, d.shape.reduce((a, b) => a * b, 1));
    out[key].shape = d.shape;
  }
  return out;
});
const json = name => once(name, async () => JSON.parse(new TextDecoder().decode(await unpack(name))));
const core = r => arrays(F.runs[r].blobs.core);
const texts = r => json(F.runs[r].blobs.texts);

// Activations at one site: centred vectors [case, direction], their lengths, and what the cosines need.
const vectors = name => once("v:" + name, async () => {
  const {z, step, mean} = await arrays(name), [d, n] = z.shape, x = new Float32Array(n * d), spread = new Float64Array(d);
  for (let k = 0; k < d; k++) for (let i = 0; i < n; i++) {
    const v = z[k * n + i] * step[k];
    x[i * d + k] = v;
    spread[k] += v * v / n;
  }
  const average = spread.reduce((a, b) => a + b, 0) / d, white = new Float32Array(n * d);
  const square = new Float64Array(n), along = new Float64Array(n), length = new Float64Array(n);
  const far = mean.reduce((a, m) => a + m * m, 0);
  for (let i = 0; i < n; i++) {
    let w = 0;
    for (let k = 0; k < d; k++) {
      const v = x[i * d + k], u = v / Math.sqrt(spread[k] + .01 * average || 1);
      square[i] += v * v; along[i] += v * mean[k]; white[i * d + k] = u; w += u * u;
    }
    length[i] = Math.sqrt(Math.max(square[i] + 2 * along[i] + far, 1e-24));
    for (let k = 0; k < d; k++) white[i * d + k] /= Math.sqrt(w) || 1;
  }
  return {n, d, x, white, square, along, length, far};
});
function similarities(v, metric, i) {  // of every case to case i
  const m = metric === "whitened_cosine" ? v.white : v.x, q = m.subarray(i * v.d, (i + 1) * v.d), out = new Float32Array(v.n);
  for (let j = 0; j < v.n; j++) {
    let dot = 0;
    const at = j * v.d;
    for (let k = 0; k < v.d; k++) dot += m[at + k] * q[k];
    if (metric === "cosine") out[j] = (v.far + v.along[i] + v.along[j] + dot) / (v.length[i] * v.length[j]);
    else if (metric === "euclidean") out[j] = -Math.sqrt(Math.max(v.square[i] + v.square[j] - 2 * dot, 0));
    else out[j] = dot;
  }
  return out;
}

// Scores of the training cases for case i: {map by case (NaN where there is none), list [[case, score]], limit, middle,
// note}. `role` is "own" or "untrained".
async function scoresOf(r, method, site, role, i) {
  const run = F.runs[r], c = await core(r), n = c.row.length, map = new Float32Array(n).fill(NaN);
  const near = await arrays(run.blobs.near), at = near.cases.indexOf(i);
  const away = j => Math.max(Math.abs(c.row[j] - c.row[i]), Math.abs(c.col[j] - c.col[i]));
  if (F.metrics.includes(method)) {
    const all = similarities(await vectors(run.blobs[role][site]), method, i), order = [];
    for (let j = 0; j < n; j++) if (c.train[j] && j !== i) { map[j] = all[j]; order.push(j); }
    order.sort((x, y) => all[y] - all[x]);
    const exact = role === "own" && at >= 0, m = F.metrics.indexOf(method);
    let list = order.slice(0, 20).map(j => [j, all[j]]);
    if (exact) {
      const found = near[`ids${site}-${m}`], value = near[`score${site}-${m}`], k = found.shape[1];
      list = Array.from({length: k}, (_, p) => [found[at * k + p], value[at * k + p]]);
    }
    const middle = order.length ? all[order[order.length >> 1]] : 0;
    const limit = order.length ? Math.max(all[order[0]] - middle, middle - all[order[order.length - 1]], 1e-9) : 1;
    return {map, list, middle, limit, note: (exact ? "The list is exact, the map rounded" : "From rounded vectors") + (method === "whitened_cosine" ? ", and whitened by all cases." : ".")};
  }
  if (FREE.includes(method)) {
    const t = await texts(r), list = [];
    for (let j = 0; j < n; j++) if (c.train[j] && j !== i) {
      map[j] = method === "nearest operands" ? -away(j) : t.said[i] && t.label[j] === t.said[i] ? 1 / away(j) : 0;
      list.push([j, map[j]]);
    }
    list.sort((x, y) => y[1] - x[1]);
    const middle = method === "nearest operands" ? -25 : 0;
    return {map, list: list.slice(0, 20), middle, limit: Math.max(...list.slice(0, 1).map(x => x[1] - middle), 1e-9), note: "Knows the cases and answers alone, no model."};
  }
  const s = await arrays(run.blobs.scores[F.methods.indexOf(method)]);
  if (at < 0) return {map, list: [], middle: 0, limit: 1, note: c.train[i] ? "In this run the case was trained on; held-out cases are explained." : "Not among the explained cases of this run."};
  const w = s.ids.shape[1], list = [];
  let p = 0;
  for (let j = 0; j < n; j++) if (c.train[j]) {
    const level = s.map[at * s.map.shape[1] + p++] / F.levels;
    map[j] = Math.sign(level) * level * level * s.largest[at];
  }
  for (let q = 0; q < w; q++) list.push([s.ids[at * w + q], s.score[at * w + q]]);
  return {map, list, middle: 0, limit: s.largest[at], note: `Explains what the model answers. Listed: the ${w / 2} strongest either way.`};
}
// Group of each training case relative to an explained one, by case id; null where the case is not explained.
async function groupsOf(r, i) {
  const near = await arrays(F.runs[r].blobs.near), at = near.cases.indexOf(i);
  if (at < 0) return null;
  const [c, g] = await Promise.all([core(r), arrays(F.runs[r].blobs.groups)]), out = new Map(), w = g.groups.shape[1];
  let p = 0;
  for (let j = 0; j < c.train.length; j++) if (c.train[j]) out.set(j, F.groups[g.groups[at * w + p++]]);
  return out;
}
