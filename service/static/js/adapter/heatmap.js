/** How large the adapter's update is, by module and layer: a table whose cells are coloured and can be walked through. */

import { el, hiddenText } from "../base/dom.js";
import { short } from "../base/format.js";

/**
 * @import {Norms} from "../base/types.js"
 */

/**
 * @param {Norms | null} norms  null while they are on their way
 * @returns {Node[]}
 */
export function heatMap(norms) {
  const heading = el("h3", {}, "Size of the update ", el("span", { class: "quiet" }, "‖BA‖ by module and layer"));
  if (norms === null) return [heading, el("p", { class: "hint heat-wait" }, "Loading")];
  const modules = Object.entries(norms);
  const layers = Math.max(0, ...modules.map(([, row]) => row.length));
  const values = modules.flatMap(([, row]) => row).filter((value) => value !== null);
  if (!values.length) return [heading, el("p", { class: "hint" }, "The service gives no norms for this adapter.")];
  const low = Math.min(...values);
  const high = Math.max(...values);
  const readout = el("output", { class: "readout" });
  const rest = `${short(low)} to ${short(high)}`;
  readout.textContent = rest;

  /** @type {HTMLTableCellElement[][]} */
  const cells = modules.map(([module, row]) =>
    Array.from({ length: layers }, (_, layer) => {
      const value = row[layer] ?? null;
      const place = `${module}, layer ${layer}`;
      const cell = el("td", { tabindex: -1 }, hiddenText(value === null ? "none" : short(value)));
      if (value === null) cell.className = "none";
      else cell.style.setProperty("--heat", String(high > low ? (value - low) / (high - low) : 0.5));
      const tell = () => (readout.textContent = `${place}: ${value === null ? "none" : short(value)}`);
      cell.addEventListener("pointerenter", tell);
      cell.addEventListener("focus", tell);
      return cell;
    }),
  );
  const table = el(
    "table",
    { class: "heat", role: "grid", "aria-label": "Norm of the update by module and layer", "--layers": layers },
    el("thead", {}, el("tr", {}, el("td", {}), ...layerHeads(layers))),
    el(
      "tbody",
      {},
      ...modules.map(([module], row) =>
        el("tr", {}, el("th", { scope: "row", "aria-label": module }, module.replace(/_proj$/, "")), ...(cells[row] ?? [])),
      ),
    ),
  );
  table.addEventListener("pointerleave", () => (readout.textContent = rest));
  table.addEventListener("focusout", () => (readout.textContent = rest));
  walkable(table, cells);
  const scale = el("span", { class: "heat-scale", "aria-hidden": "true" });
  return [
    heading,
    el("div", { class: "heat-frame" }, table),
    el("div", { class: "heat-legend" }, scale, readout),
  ];
}

/** @param {number} layers */
function layerHeads(layers) {
  const step = layers > 12 ? 4 : layers > 6 ? 2 : 1;
  return Array.from({ length: layers }, (_, layer) =>
    el(
      "th",
      { scope: "col" },
      hiddenText(`layer ${layer}`),
      el("span", { "aria-hidden": "true" }, layer % step === 0 ? String(layer) : ""),
    ),
  );
}

/**
 * One stop for the tab key; from there the arrow keys move.
 *
 * @param {HTMLTableElement} table
 * @param {HTMLTableCellElement[][]} cells
 */
function walkable(table, cells) {
  let row = 0;
  let column = 0;
  const at = () => cells[row]?.[column];
  at()?.setAttribute("tabindex", "0");

  /** @param {number} toRow @param {number} toColumn */
  function move(toRow, toColumn) {
    at()?.setAttribute("tabindex", "-1");
    row = Math.min(cells.length - 1, Math.max(0, toRow));
    column = Math.min((cells[row]?.length ?? 1) - 1, Math.max(0, toColumn));
    at()?.setAttribute("tabindex", "0");
    at()?.focus();
  }

  table.addEventListener("keydown", (event) => {
    /** @type {Record<string, [number, number]>} */
    const targets = {
      ArrowUp: [row - 1, column],
      ArrowDown: [row + 1, column],
      ArrowLeft: [row, column - 1],
      ArrowRight: [row, column + 1],
      Home: [row, 0],
      End: [row, Infinity],
    };
    const target = targets[event.key];
    if (!target) return;
    event.preventDefault();
    move(...target);
  });
}
