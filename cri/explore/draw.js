// Colours, and maps on canvases with axes. Brown to teal through white, and blue and orange, are told apart with every
// common colour vision; groups also have their names beside them.
const GROUP_COLOURS = {near: "#332288", same_answer: "#CC6677", same_operand: "#117733", same_step: "#DDAA33", rest: "#999999"};
const RIGHT = [190, 222, 240], WRONG = [213, 94, 0], HELD = [0, 114, 178], GREY = [150, 150, 150];
function diverging(x) {
  const t = Math.max(-1, Math.min(1, x)), a = Math.sqrt(Math.abs(t)), end = t < 0 ? [140, 81, 10] : [1, 102, 94];
  return [0, 1, 2].map(i => Math.round(245 + (end[i] - 245) * a));
}
function sequential(t) {
  const s = [[0, 32, 76], [65, 77, 107], [124, 123, 120], [188, 174, 108], [255, 233, 69]];
  const x = Math.max(0, Math.min(1, t)) * 4, i = Math.min(3, Math.floor(x));
  return [0, 1, 2].map(k => Math.round(s[i][k] + (s[i + 1][k] - s[i][k]) * (x - i)));
}
const VALUES = {
  correct: {label: "right or wrong", of: (c, i) => c.correct[i] ? (c.train[i] ? RIGHT : HELD) : WRONG,
    key: [["right, trained on", RIGHT], ["right, held out", HELD], ["wrong", WRONG]]},
  difference: {label: "predicted − true", of: (c, i) => Number.isNaN(c.difference[i]) ? GREY : diverging(c.difference[i] / 20),
    key: [["20 or more too low", diverging(-1)], ["right", diverging(0)], ["20 or more too high", diverging(1)], ["no number", GREY]]},
  logodds: {label: "log-odds of the right answer", of: (c, i) => sequential((c.logodds[i] + 15) / 30),
    key: [["−15 or less", sequential(0)], ["0", sequential(.5)], ["15 or more", sequential(1)]]},
  train: {label: "held out or trained on", of: (c, i) => c.train[i] ? RIGHT : HELD,
    key: [["trained on", RIGHT], ["held out", HELD]]},
};
function text(parent, name, content, className) {
  const e = document.createElement(name);
  if (content !== undefined) e.textContent = content;
  if (className) e.className = className;
  parent.append(e);
  return e;
}
function keyInto(element, entries) {
  element.textContent = "";
  for (const [label, c] of entries) {
    const s = text(element, "span");
    text(s, "i").style.background = Array.isArray(c) ? `rgb(${c})` : c;
    s.append(label);
  }
}
function ticksOf(count, first) {  // index and label of a few round numbers
  const step = count > 60 ? 20 : count > 25 ? 10 : count > 12 ? 5 : 2, out = [];
  for (let i = 0; i < count; i++) if ((first + i) % step === 0) out.push([i, first + i]);
  return out;
}
// Paints a grid of colours; `geometry` on the canvas is what clicks and cursors are placed by.
function paint(canvas, rows, cols, colourAt, {squares = [], pick = null, rings = [], first = [0, 0], names = F.axes} = {}) {
  const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth || 300, style = getComputedStyle(document.documentElement);
  const px = parseFloat(style.fontSize), fg = style.getPropertyValue("--fg").trim();
  const margin = Math.round(2.5 * px), cell = Math.min((width - margin - 4) / cols, (width - margin - 4) / rows);
  const geometry = canvas.geometry = {left: margin, top: 4, cell, rows, cols};
  if (canvas.width !== Math.round(width * ratio)) canvas.width = canvas.height = Math.round(width * ratio);
  const g = canvas.getContext("2d"), image = new ImageData(cols, rows), small = paint.small ||= document.createElement("canvas");
  for (let i = 0; i < rows * cols; i++) { const c = colourAt(i); if (c) image.data.set([c[0], c[1], c[2], 255], 4 * i); }
  small.width = cols; small.height = rows;
  small.getContext("2d").putImageData(image, 0, 0);
  g.setTransform(ratio, 0, 0, ratio, 0, 0);
  g.clearRect(0, 0, width, width);
  g.fillStyle = style.getPropertyValue("--line"); g.fillRect(geometry.left, geometry.top, cols * cell, rows * cell);
  g.imageSmoothingEnabled = false;
  g.drawImage(small, geometry.left, geometry.top, cols * cell, rows * cell);
  const x = c => geometry.left + c * cell, y = r => geometry.top + r * cell;
  g.fillStyle = g.strokeStyle = fg; g.lineWidth = 1; g.font = `${.75 * px}px system-ui, sans-serif`;
  g.textAlign = "center"; g.textBaseline = "top";
  for (const [i, label] of ticksOf(cols, first[1])) { g.fillRect(x(i + .5), y(rows), 1, 4); g.fillText(label, x(i + .5), y(rows) + 5); }
  g.fillText(names[1], x(cols / 2), y(rows) + 5 + .8 * px);
  g.textAlign = "right"; g.textBaseline = "middle";
  for (const [i, label] of ticksOf(rows, first[0])) { g.fillRect(geometry.left - 4, y(i + .5), 4, 1); g.fillText(label, geometry.left - 6, y(i + .5)); }
  g.save(); g.translate(.5 * px, y(rows / 2)); g.rotate(-Math.PI / 2); g.textAlign = "center"; g.fillText(names[0], 0, 0); g.restore();
  const outlined = (draw, thick) => { g.strokeStyle = "#fff"; g.lineWidth = thick + 2; draw(); g.strokeStyle = "#000"; g.lineWidth = thick; draw(); };
  for (const [r, c, h] of squares) outlined(() => g.strokeRect(x(c - h), y(r - h), (2 * h + 1) * cell, (2 * h + 1) * cell), 1.5);
  g.strokeStyle = style.getPropertyValue("--pick"); g.lineWidth = 1.6;
  for (const [r, c] of rings) { g.beginPath(); g.arc(x(c + .5), y(r + .5), Math.max(.42 * cell, 4), 0, 7); g.stroke(); }
  if (pick) { const s = Math.max(cell + 3, 8); outlined(() => g.strokeRect(x(pick[1] + .5) - s / 2, y(pick[0] + .5) - s / 2, s, s), 2); }
}
function cellAt(canvas, e) {  // [row, column] under the pointer
  const box = canvas.getBoundingClientRect(), q = canvas.geometry;
  const r = Math.floor((e.clientY - box.top - q.top) / q.cell), c = Math.floor((e.clientX - box.left - q.left) / q.cell);
  return r >= 0 && c >= 0 && r < q.rows && c < q.cols ? [r, c] : null;
}
function point(canvas, place) {  // the linked cursor: a ring over the cell, without painting anew
  let ring = canvas.nextElementSibling;
  if (!ring) ring = text(canvas.parentElement, "div", undefined, "cursor");
  if (!place) { ring.style.display = "none"; return; }
  const q = canvas.geometry, size = Math.max(q.cell * 2, 12);
  ring.style.cssText = `display:block;width:${size}px;height:${size}px;left:${q.left + (place[1] + .5) * q.cell - size / 2}px;top:${q.top + (place[0] + .5) * q.cell - size / 2}px`;
}
