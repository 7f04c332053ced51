/** The rows `input -> output` of the task form. */

import { byId, el } from "../base/dom.js";

/**
 * @import {Example} from "../base/types.js"
 */

const MOST = 64;

export class ExampleRows {
  #list = byId("example-rows", HTMLOListElement);
  #add = byId("add-example", HTMLButtonElement);

  constructor() {
    this.#add.addEventListener("click", () => this.#addRow().focus());
    this.#addRow();
  }

  /**
   * The rows that are filled in.
   *
   * @returns {Example[]}
   * @throws {Error} a row has one side only; its empty side is focused
   */
  read() {
    const examples = [];
    for (const row of this.#list.children) {
      const [input, output] = /** @type {[HTMLInputElement, HTMLInputElement]} */ ([...row.querySelectorAll("input")]);
      const given = input.value.trim();
      const wanted = output.value.trim();
      if (!given !== !wanted) {
        (given ? output : input).focus();
        throw new RangeError(`An example needs both sides: its ${given ? "output" : "input"} is empty.`);
      }
      if (given) examples.push({ input: given, output: wanted });
    }
    return examples;
  }

  clear() {
    this.#list.replaceChildren();
    this.#addRow();
  }

  #addRow() {
    const input = el("input", { autocomplete: "off", placeholder: "input" });
    const output = el("input", { autocomplete: "off", placeholder: "output" });
    const remove = el("button", { type: "button", class: "plain icon" }, "×");
    const arrow = el("span", { "aria-hidden": "true" }, "→");
    const row = el("li", {}, input, arrow, output, remove);
    remove.addEventListener("click", () => this.#removeRow(row));
    this.#list.append(row);
    this.#number();
    return input;
  }

  /** @param {HTMLLIElement} row */
  #removeRow(row) {
    const next = row.nextElementSibling ?? row.previousElementSibling;
    row.remove();
    if (next === null) this.#addRow().focus();
    else next.querySelector("input")?.focus();
    this.#number();
  }

  #number() {
    [...this.#list.children].forEach((row, index) => {
      const [input, output] = row.querySelectorAll("input");
      input?.setAttribute("aria-label", `Input of example ${index + 1}`);
      output?.setAttribute("aria-label", `Output of example ${index + 1}`);
      row.querySelector("button")?.setAttribute("aria-label", `Remove example ${index + 1}`);
    });
    this.#add.disabled = this.#list.children.length >= MOST;
  }
}
