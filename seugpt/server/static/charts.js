// A line chart, drawn by hand in SVG.

import { number } from "./i18n.js";

const HEIGHT = 340;
const MARGIN = { left: 48, right: 12, top: 10, bottom: 40 };

function svg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// About five round values between two numbers.
export function ticks(low, high) {
  const raw = (high - low) / 5 || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= raw);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  const digits = Math.max(0, -Math.floor(Math.log10(step)));
  return Array.from({ length: last - first + 1 }, (_, n) => ({
    value: (first + n) * step,
    digits,
  }));
}

// An <svg> of `width` pixels. series: [{name, x, y, hasDots}], drawn in order; marker: an x.
export function lineChart({ width, label, xLabel, yLabel, series, marker }) {
  const xs = series.flatMap((line) => line.x);
  const ys = series.flatMap((line) => line.y);
  const xRange = [Math.min(0, ...xs), Math.max(1, ...xs)];
  const yRange = [Math.min(...ys), Math.max(...ys)];
  const margin = (yRange[1] - yRange[0]) * 0.05 || 1;
  const toX = scale(xRange, MARGIN.left, width - MARGIN.right);
  const toY = scale([yRange[0] - margin, yRange[1] + margin], HEIGHT - MARGIN.bottom, MARGIN.top);
  const chart = svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": label });
  for (const { value, digits } of ticks(...yRange)) {
    const y = toY(value);
    chart.append(
      svg("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y, y2: y }),
    );
    chart.append(
      svg("text", { x: MARGIN.left - 8, y: y + 4, "text-anchor": "end" }, number(value, digits)),
    );
  }
  for (const { value, digits } of ticks(...xRange))
    chart.append(
      svg(
        "text",
        { x: toX(value), y: HEIGHT - MARGIN.bottom + 18, "text-anchor": "middle" },
        number(value, digits),
      ),
    );
  chart.append(
    svg(
      "text",
      { class: "axis", x: width - MARGIN.right, y: HEIGHT - 4, "text-anchor": "end" },
      xLabel,
    ),
  );
  chart.append(
    svg(
      "text",
      {
        class: "axis",
        x: 12,
        y: MARGIN.top,
        "text-anchor": "end",
        transform: `rotate(-90 12 ${MARGIN.top})`,
      },
      yLabel,
    ),
  );
  if (marker !== undefined)
    chart.append(
      svg("line", {
        class: "marker",
        x1: toX(marker),
        x2: toX(marker),
        y1: MARGIN.top,
        y2: HEIGHT - MARGIN.bottom,
      }),
    );
  for (const { name, x, y, hasDots } of series) {
    const points = x.map((value, n) => [toX(value).toFixed(1), toY(y[n]).toFixed(1)]);
    chart.append(svg("polyline", { class: name, points: points.join(" ") }));
    if (hasDots)
      chart.append(...points.map(([cx, cy]) => svg("circle", { class: name, cx, cy, r: 3 })));
  }
  return chart;
}

function scale([low, high], from, to) {
  return (value) => from + ((value - low) / (high - low || 1)) * (to - from);
}
