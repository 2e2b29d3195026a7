// Plots as inline SVG: drawn at the size they are shown at, so that their text stays readable on a phone. Each has a name
// for screen readers, follows the pointer and the arrow keys, and has its figures in a table below.

const SVG = "http://www.w3.org/2000/svg";
const number = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

/** A number as people read it; nothing where there is none. */
export const figure = (value, digits = 2) =>
  value === null || value === undefined ? "–" : Number(value) >= 1000 ? number.format(Math.round(value)) : number.format(Number(Number(value).toFixed(digits)));

/** Gives an element its attributes, event handlers (`onclick`) and children. Text is text: nothing is ever parsed. */
function build(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  fill(element, ...children);
  return element;
}

/** An element of the page. */
export const h = (tag, attributes = {}, ...children) => build(document.createElement(tag), attributes, children);

/** An element of a drawing. */
const s = (tag, attributes, ...children) => build(document.createElementNS(SVG, tag), attributes, children);

/** Puts children in the place of those that are there; what is `false` or `null` is left out. */
export const fill = (element, ...children) => element.replaceChildren(...children.flat().filter((child) => child !== false && child !== null && child !== undefined));

/** A table that scrolls by itself where it is too wide. Columns: `{ head, number, cell(row) }`. */
export function table(label, columns, rows) {
  const head = columns.map(({ head, number }) => h("th", { scope: "col", class: number && "number" }, head));
  const line = (row) => h("tr", {}, columns.map(({ cell, number, name }) =>
    h("td", { class: number ? "number" : name && "name" }, cell(row) ?? "–")));
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label },
    h("table", {}, h("thead", {}, h("tr", {}, head)), h("tbody", {}, rows.map(line))));
}

/** The smallest round number at or above one. */
function ceiling(value) {
  if (!(value > 0)) return 1;
  const unit = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10].find((step) => step * unit >= value * 1.0001) * unit;
}

const HEIGHT = 190;
const EDGE = { top: 10, right: 6, bottom: 22, left: 44 };

/**
 * A plot over columns that have a label each.
 * `series`: `{ name, kind: "line" | "area" | "bars" | "dashed", values: [number | null] }`, drawn in their order.
 * `summary`: what it shows, in a sentence. `now`: the column that is the present, if others lie ahead. `counts`: of whole
 * things. `bare`: the shape alone, without a scale.
 */
export function plot({ title, summary, labels, series, unit = "", now = null, height = HEIGHT, format = (value) => figure(value), figures = true, counts = false, bare = false }) {
  const readout = h("p", { class: "readout", "aria-live": "polite" });
  const holder = h("div");
  const legend = series.length > 1 && h("ul", { class: "legend", "aria-hidden": "true" },
    series.map(({ name, kind }, index) => h("li", { class: `s${index} ${kind === "dashed" ? "dashed" : ""}` }, name)));
  const rows = labels.map((label, column) => ({ label, column }));
  const behind = figures && h("details", {}, h("summary", {}, "Figures"),
    table(`Figures: ${title}`, [{ head: "", cell: ({ label }) => label },
      ...series.map(({ name, values }) => ({ head: name, number: true, cell: ({ column }) => format(values[column]) }))], rows));
  const element = h("figure", {}, h("div", { class: "above" }, legend, readout), holder, behind);

  const edge = bare ? EDGE.right : EDGE.left;
  let width = 0;
  let at = null;
  const x = (column) => edge + (labels.length < 2 ? 0.5 : column / (labels.length - 1)) * (width - edge - EDGE.right - inset() * 2) + inset();
  const inset = () => (series.some(({ kind }) => kind === "bars") ? Math.min(12, (width - edge - EDGE.right) / labels.length / 2) : 0);
  const highest = Math.max(0, ...series.flatMap(({ values }) => values.filter((value) => value !== null && value !== undefined)));
  const top = counts ? Math.max(2, 2 * Math.ceil(ceiling(highest) / 2)) : ceiling(highest);
  const y = (value) => EDGE.top + (1 - Math.max(0, value) / top) * (height - EDGE.top - EDGE.bottom);

  function draw() {
    const svg = s("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": `${title}. ${summary}`, tabindex: "0" });
    for (const part of bare ? [0] : [0, 0.5, 1]) {
      svg.append(s("line", { class: "rule", x1: edge, x2: width - EDGE.right, y1: y(top * part), y2: y(top * part) }),
        bare ? "" : s("text", { x: edge - 8, y: y(top * part) + 4, "text-anchor": "end" }, short.format(top * part)));
    }
    const room = Math.max(2, Math.floor((width - edge) / 90));
    const step = Math.max(1, Math.ceil((labels.length - 1) / room));
    for (let column = labels.length - 1; column >= 0; column -= step) {
      const anchor = column === labels.length - 1 ? "end" : x(column) < edge + 20 ? "start" : "middle";
      svg.append(s("text", { x: anchor === "end" ? width - EDGE.right : x(column), y: height - 6, "text-anchor": anchor }, labels[column]));
    }
    if (now !== null) svg.append(s("line", { class: "now", x1: x(now), x2: x(now), y1: EDGE.top, y2: height - EDGE.bottom }));
    series.forEach((one, index) => svg.append(...shapes(one, index)));
    holder.replaceChildren(svg);
    mark(svg, at);
    const column = (event) => {
      const share = (event.clientX - svg.getBoundingClientRect().left - edge - inset()) / (width - edge - EDGE.right - 2 * inset());
      return Math.min(labels.length - 1, Math.max(0, Math.round(share * (labels.length - 1))));
    };
    svg.addEventListener("pointermove", (event) => mark(svg, column(event)));
    svg.addEventListener("pointerdown", (event) => mark(svg, column(event)));
    svg.addEventListener("pointerleave", () => mark(svg, null));
    svg.addEventListener("blur", () => mark(svg, null));
    svg.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1, Home: -labels.length, End: labels.length }[event.key];
      if (by === undefined) return;
      event.preventDefault();
      mark(svg, Math.min(labels.length - 1, Math.max(0, (at ?? now ?? labels.length - 1) + by)));
    });
  }

  function shapes({ kind, values }, index) {
    if (kind === "bars") {
      const slot = (width - edge - EDGE.right) / labels.length;
      const wide = Math.max(2, Math.min(22, slot * 0.7));
      return values.flatMap((value, column) => value > 0
        ? [s("rect", { class: `bar s${index}`, x: x(column) - wide / 2, y: y(value), width: wide, height: Math.max(1, y(0) - y(value)), rx: 1.5 })] : []);
    }
    const runs = [[]];
    values.forEach((value, column) => (value === null || value === undefined ? runs.push([]) : runs.at(-1).push([x(column), y(value)])));
    return runs.filter((run) => run.length > 0).flatMap((run) => {
      const path = run.map(([px, py], point) => `${point ? "L" : "M"}${px.toFixed(1)} ${py.toFixed(1)}`).join("");
      const line = run.length > 1
        ? s("path", { class: `line s${index} ${kind === "dashed" ? "dashed" : ""}`, d: path })
        : s("circle", { class: `line s${index}`, cx: run[0][0], cy: run[0][1], r: 2 });
      const area = kind === "area" && run.length > 1 && s("path", { class: "area", d: `${path}L${run.at(-1)[0]} ${y(0)}L${run[0][0]} ${y(0)}Z` });
      return area ? [area, line] : [line];
    });
  }

  function mark(svg, column) {
    at = column;
    svg.querySelectorAll(".cross, .dot").forEach((old) => old.remove());
    if (column === null) return readout.replaceChildren();
    svg.append(s("line", { class: "cross", x1: x(column), x2: x(column), y1: EDGE.top, y2: height - EDGE.bottom }));
    const told = series.filter(({ values }) => values[column] !== null && values[column] !== undefined);
    told.filter(({ kind }) => kind !== "bars").forEach(({ values }) => svg.append(s("circle", { class: "dot", cx: x(column), cy: y(values[column]), r: 3.5 })));
    readout.replaceChildren([labels[column], ...told.map(({ name, values }) => (series.length > 1 ? `${name} ${format(values[column])}` : `${format(values[column])}${unit && ` ${unit}`}`))].join(" · "));
  }

  new ResizeObserver(([entry]) => {
    const wide = Math.floor(entry.contentRect.width);
    if (wide > 0 && wide !== width) {
      width = wide;
      draw();
    }
  }).observe(holder);
  return element;
}

/** How much of something is left, as a bar; what it says is in the text beside it. */
export function meter(share) {
  const part = Math.max(0, Math.min(1, share || 0));
  return h("span", { class: "meter", "aria-hidden": "true" },
    s("svg", { width: "100%", height: 6 }, s("rect", { class: "bar", width: `${part * 100}%`, height: 6 })));
}
