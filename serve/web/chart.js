// A curve: points of a step each, and a smooth line through them. Drawn anew when there is more.

const SPACE = "http://www.w3.org/2000/svg";
const [W, H, LEFT, RIGHT, TOP, BOTTOM] = [560, 230, 46, 10, 10, 24];
/** Points that are drawn; of more, every so many's mean. */
const MOST = 600;

function s(tag, attributes, text) {
  const element = document.createElementNS(SPACE, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

/** Round numbers from `low` to `high`, about `n`. */
function ticks(low, high, n) {
  const raw = (high - low) / n || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((candidate) => candidate >= raw);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-9; at += step) found.push(Number(at.toPrecision(12)));
  return found;
}

export function short(n) {
  if (!Number.isFinite(n)) return "–";
  const size = Math.abs(n);
  if (size >= 1e9) return `${(n / 1e9).toPrecision(3)} B`;
  if (size >= 1e6) return `${(n / 1e6).toPrecision(3)} M`;
  if (size >= 1e4) return `${(n / 1e3).toPrecision(3)} k`;
  return size && size < 0.001 ? n.toExponential(1) : String(Number(n.toPrecision(4)));
}

function thin(points) {
  const every = Math.ceil(points.length / MOST);
  if (every < 2) return points;
  const found = [];
  for (let i = 0; i < points.length; i += every) {
    const part = points.slice(i, i + every);
    const mean = (k) => part.reduce((sum, p) => sum + p[k], 0) / part.length;
    found.push([mean(0), mean(1)]);
  }
  return found;
}

/** A running mean that forgets with the length of the curve. */
function smooth(points) {
  const keep = 1 - 1 / Math.max(1, Math.min(points.length / 40, 15));
  let [sum, weight] = [0, 0];
  return points.map(([x, y]) => {
    [sum, weight] = [sum * keep + y, weight * keep + 1];
    return [x, sum / weight];
  });
}

/** `series`: `[{ points: [[x, y], …], second, smooth }]`. Returns an SVG. */
export function chart(label, series) {
  const drawn = series.map((one) => ({ ...one, points: thin(one.points.filter(([, y]) => Number.isFinite(y))) })).filter((one) => one.points.length);
  const svg = s("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": label });
  const xs = drawn.flatMap((one) => one.points.map((p) => p[0]));
  const ys = drawn.flatMap((one) => one.points.map((p) => p[1])).sort((a, b) => a - b);
  if (!xs.length) return svg;
  const [x0, x1] = [Math.min(...xs, 0), Math.max(...xs)];
  // A few wild steps don't flatten all others.
  let [y0, y1] = [ys[0], ys[ys.length < 50 ? ys.length - 1 : Math.floor((ys.length - 1) * 0.995)]];
  const pad = (y1 - y0) * 0.06 || Math.abs(y0) * 0.05 || 1;
  [y0, y1] = [y0 - pad, y1 + pad];
  const x = (v) => LEFT + ((v - x0) / (x1 - x0 || 1)) * (W - LEFT - RIGHT);
  const y = (v) => TOP + (1 - (Math.min(v, y1) - y0) / (y1 - y0)) * (H - TOP - BOTTOM);
  for (const tick of ticks(y0, y1, 5)) svg.append(s("line", { class: "grid", x1: LEFT, x2: W - RIGHT, y1: y(tick), y2: y(tick) }), s("text", { x: LEFT - 7, y: y(tick) + 4, "text-anchor": "end" }, short(tick)));
  for (const tick of ticks(x0, x1, 6)) svg.append(s("text", { x: x(tick), y: H - 6, "text-anchor": "middle" }, short(tick)));
  const path = (points) => points.map((p, i) => `${i ? "L" : "M"}${x(p[0]).toFixed(1)} ${y(p[1]).toFixed(1)}`).join("");
  for (const one of drawn) {
    const kind = one.second ? " second" : "";
    if (one.smooth) svg.append(s("path", { class: `faint${kind}`, d: path(one.points) }));
    svg.append(s("path", { class: `line${kind}`, d: path(one.smooth ? smooth(one.points) : one.points) }));
    if (one.second) for (const p of one.points) svg.append(s("circle", { class: "dot", cx: x(p[0]), cy: y(p[1]), r: 3 }));
  }
  return svg;
}
