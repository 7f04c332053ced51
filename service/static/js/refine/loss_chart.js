/** The training loss by step, drawn as it comes. */

import { short } from "../base/format.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 300;
const HEIGHT = 80;

export class LossChart {
  /** @type {Map<number, {loss: number, phase: string}>} */
  #steps = new Map();
  #total = 1;

  constructor() {
    this.element = svg("svg", { class: "loss", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", preserveAspectRatio: "none" });
    this.clear();
  }

  clear() {
    this.#steps.clear();
    this.#total = 1;
    this.#draw();
  }

  /**
   * A job that goes on from its last checkpoint does some steps again; the later loss holds.
   *
   * @param {number} step  from 1
   * @param {number} total
   * @param {number} loss  nats
   * @param {string} phase  of the job; each has a line of its own
   */
  add(step, total, loss, phase) {
    this.#steps.set(step, { loss, phase });
    this.#total = total;
    this.#draw();
  }

  #draw() {
    const points = [...this.#steps].sort(([a], [b]) => a - b);
    const highest = Math.max(...points.map(([, { loss }]) => loss), 1e-6);
    /** @type {Map<string, string[]>} */
    const lines = new Map();
    for (const [step, { loss, phase }] of points) {
      const x = this.#total > 1 ? ((step - 1) / (this.#total - 1)) * WIDTH : 0;
      const y = HEIGHT - 2 - (loss / highest) * (HEIGHT - 4);
      lines.set(phase, [...(lines.get(phase) ?? []), `${x.toFixed(1)},${y.toFixed(1)}`]);
    }
    this.element.replaceChildren(
      svg("line", { class: "axis", x1: 0, x2: WIDTH, y1: HEIGHT - 1, y2: HEIGHT - 1 }),
      ...[...lines].map(([phase, at]) => svg("polyline", { "data-phase": phase, points: at.join(" ") })),
    );
    const [first, last] = [points[0]?.[1].loss, points.at(-1)?.[1].loss];
    this.element.setAttribute(
      "aria-label",
      first === undefined || last === undefined ? "No loss yet" : `Training loss from ${short(first)} to ${short(last)}`,
    );
  }
}

/**
 * @template {keyof SVGElementTagNameMap} K
 * @param {K} tag
 * @param {Record<string, string | number>} attributes
 * @returns {SVGElementTagNameMap[K]}
 */
function svg(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  return element;
}
