// Curves over steps, drawn as SVG.
import { make } from './page.js';

// Those of the pictures in a run's folder: told apart by who does not see red or green, too.
const colours = ['#1f77b4', '#d55e00', '#009e73', '#cc79a7', '#c89600', '#56b4e9', '#888888', '#7a4fd0'];
export const colour = index => colours[index % colours.length];

const svg = (tag, attributes, text) => {
  const element = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
};

/** A number in few characters. */
export function short(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return '–';
  if (value === 0) return '0';
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-3) return value.toExponential(2).replace('e+', 'e');
  return Number(value.toPrecision(4)).toString();
}

// Round numbers between two bounds.
function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(n => n * power).find(n => n >= rough);
  const first = Math.ceil(low / step), last = Math.floor(high / step + 1e-9);
  return Array.from({ length: Math.min(Math.max(last - first + 1, 0), 20) }, (_, i) => (first + i) * step);
}

// An exponential average, with the weight that LLaMA-Factory's pictures have.
function smoothed(points) {
  const weight = 1.8 * (1 / (1 + Math.exp(-0.05 * points.length)) - 0.5);
  let last = points[0]?.[1];
  return points.map(([step, value]) => [step, last = last * weight + (1 - weight) * value]);
}

// At most so many points are drawn: the mean of those that would lie on one another.
function thinned(points, most) {
  if (points.length <= most) return points;
  const size = points.length / most;
  return Array.from({ length: most }, (_, i) => {
    const part = points.slice(Math.floor(i * size), Math.max(Math.floor((i + 1) * size), Math.floor(i * size) + 1));
    return [part[part.length - 1][0], part.reduce((sum, point) => sum + point[1], 0) / part.length];
  });
}

/** A picture of `series`, `[{ name, points: [[step, value]], colour }]`, drawn anew by `draw(series)`. */
export function plot(title, { smooth = false } = {}) {
  const width = 560, height = 230, left = 52, right = 10, top = 8, bottom = 24;
  const picture = svg('svg', { viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': title });
  const key = make('div', { className: 'key' });
  const card = make('figure', { className: 'card' }, make('h3', {}, title), picture, key);
  let shown = [];

  function names(step) {
    key.replaceChildren(...shown.map(one => {
      const mark = make('i');
      mark.style.background = one.colour;
      const points = one.points;
      const near = step === null ? points[points.length - 1]
        : points.reduce((best, point) => Math.abs(point[0] - step) < Math.abs(best[0] - step) ? point : best, points[0]);
      return make('span', {}, mark, `${one.name} ${near ? `${short(near[1])} @ ${near[0]}` : ''}`);
    }));
  }

  function draw(series) {
    shown = series.filter(one => one.points.length > 0);
    picture.replaceChildren();
    const all = shown.flatMap(one => one.points);
    card.hidden = all.length === 0;
    if (card.hidden) return;
    const steps = all.map(point => point[0]), values = all.map(point => point[1]);
    const least = (list) => list.reduce((a, b) => Math.min(a, b)), most = (list) => list.reduce((a, b) => Math.max(a, b));
    const [first, last] = [least(steps), Math.max(most(steps), least(steps) + 1)];
    let [low, high] = [least(values), most(values)];
    // Values that differ in their last digits alone are one value.
    const size = Math.max(Math.abs(low), Math.abs(high)), isFlat = high - low <= size * 1e-9;
    const room = isFlat ? size * 0.06 || 1 : (high - low) * 0.06;
    [low, high] = [low >= 0 && low < room ? 0 : low - room, high + room];
    const x = step => left + (step - first) / (last - first) * (width - left - right);
    const y = value => top + (high - value) / (high - low) * (height - top - bottom);
    for (const tick of ticks(low, high, 4)) {
      picture.append(svg('line', { class: 'grid', x1: left, x2: width - right, y1: y(tick), y2: y(tick) }),
        svg('text', { x: left - 6, y: y(tick) + 4, 'text-anchor': 'end' }, short(tick)));
    }
    for (const tick of ticks(first, last, 6).filter(Number.isInteger)) {
      picture.append(svg('text', { x: x(tick), y: height - 6, 'text-anchor': 'middle' }, String(tick)));
    }
    const path = points => thinned(points, 600).map(([step, value], i) => `${i ? 'L' : 'M'}${x(step).toFixed(1)} ${y(value).toFixed(1)}`).join('');
    for (const one of shown) {
      const draws = smooth && one.points.length > 3;
      const line = (points, kind) => picture.append(svg('path', { class: `curve ${kind}`, d: path(points), stroke: one.colour }));
      if (one.points.length === 1) picture.append(svg('circle', { cx: x(one.points[0][0]), cy: y(one.points[0][1]), r: 3, fill: one.colour }));
      if (draws) line(one.points, 'faint');
      line(draws ? smoothed(one.points) : one.points, '');
    }
    const cross = svg('line', { class: 'cross', y1: top, y2: height - bottom, visibility: 'hidden' });
    picture.append(cross);
    picture.onmousemove = event => {
      const box = picture.getBoundingClientRect();
      const at = (event.clientX - box.left) / box.width * width;
      const step = Math.min(Math.max(first + (at - left) / (width - left - right) * (last - first), first), last);
      cross.setAttribute('x1', x(step));
      cross.setAttribute('x2', x(step));
      cross.setAttribute('visibility', 'visible');
      names(step);
    };
    picture.onmouseleave = () => {
      cross.setAttribute('visibility', 'hidden');
      names(null);
    };
    names(null);
  }
  return { card, draw };
}
