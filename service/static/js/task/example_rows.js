/** The rows `input -> output` of the task form: typed, pasted as a table, or out of a file. */

import { announce, byId, el } from "../base/dom.js";
import { showProblem } from "../base/problem.js";
import { holdsExamples, parseExamples } from "./parse_examples.js";

/**
 * @import {Example} from "../base/types.js"
 */

/** As many as fields can be shown; the service has a limit of its own. */
const MOST = 500;
const LARGEST_BYTES = 1_000_000;

export class ExampleRows {
  #list = byId("example-rows", HTMLOListElement);
  #add = byId("add-example", HTMLButtonElement);
  #file = byId("example-file", HTMLInputElement);
  #problem = byId("example-problem", HTMLElement);

  constructor() {
    const area = byId("examples", HTMLFieldSetElement);
    this.#add.addEventListener("click", () => this.#addRow().focus());
    byId("open-examples", HTMLButtonElement).addEventListener("click", () => this.#file.click());
    this.#file.addEventListener("change", () => void this.#takeFile(this.#file.files?.[0]));
    area.addEventListener("paste", (event) => {
      const text = event.clipboardData?.getData("text/plain") ?? "";
      // the text of one field is left to it; an output may be JSON
      if (!holdsExamples(text, event.target instanceof Element && event.target.matches("[data-side=output]"))) return;
      event.preventDefault();
      this.#take(text);
    });
    area.addEventListener("dragover", (event) => {
      event.preventDefault();
      area.dataset["drop"] = "over";
    });
    area.addEventListener("dragleave", () => delete area.dataset["drop"]);
    area.addEventListener("drop", (event) => {
      event.preventDefault();
      delete area.dataset["drop"];
      const [file] = event.dataTransfer?.files ?? [];
      if (file) void this.#takeFile(file);
      else this.#take(event.dataTransfer?.getData("text/plain") ?? "");
    });
    this.reset();
  }

  /**
   * The rows that are filled in.
   *
   * @returns {Example[]}
   * @throws {RangeError} a row has one side only; its empty side is focused
   */
  read() {
    const examples = [];
    for (const row of this.#list.children) {
      const [input, output] = sides(row);
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

  /** @param {Example[]} [examples]  to show in place of those there are */
  reset(examples = []) {
    this.#list.replaceChildren();
    showProblem(this.#problem, null);
    this.#addRows(examples.length ? examples : [{ input: "", output: "" }]);
  }

  /** @param {File | undefined} file */
  async #takeFile(file) {
    this.#file.value = ""; // so that the same file can be chosen again
    if (!file) return;
    if (file.size > LARGEST_BYTES) {
      showProblem(this.#problem, `${file.name} is too large for examples.`);
      return;
    }
    let text;
    try {
      text = await file.text();
    } catch {
      showProblem(this.#problem, `${file.name} cannot be read; it may be a folder, or gone.`);
      return;
    }
    this.#take(text);
  }

  /** @param {string} text  of a table, whose rows follow those that are filled in */
  #take(text) {
    showProblem(this.#problem, null);
    try {
      const examples = parseExamples(text);
      const filled = [...this.#list.children].filter((row) => sides(row).some((side) => side.value));
      if (filled.length + examples.length > MOST) {
        throw new RangeError(`There would be ${filled.length + examples.length} examples, and the form takes at most ${MOST}.`);
      }
      this.#list.replaceChildren(...filled);
      this.#addRows(examples);
      announce(`${examples.length} example${examples.length === 1 ? "" : "s"} added`);
      this.#list.lastElementChild?.querySelector("textarea")?.focus();
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      showProblem(this.#problem, error.message);
    }
  }

  #addRow() {
    this.#addRows([{ input: "", output: "" }]);
    return /** @type {HTMLTextAreaElement} */ (this.#list.lastElementChild?.querySelector("textarea"));
  }

  /** @param {Example[]} examples */
  #addRows(examples) {
    this.#list.append(...examples.map((example) => this.#row(example)));
    this.#number();
  }

  /** @param {Example} example */
  #row(example) {
    // text areas, since a text may have several lines
    const input = el("textarea", { rows: 1, autocomplete: "off", placeholder: "input" });
    const output = el("textarea", { rows: 1, autocomplete: "off", placeholder: "output", "data-side": "output" });
    input.value = example.input;
    output.value = example.output;
    const remove = el("button", { type: "button", class: "plain icon" }, "×");
    const arrow = el("span", { "aria-hidden": "true" }, "→");
    const row = el("li", {}, input, arrow, output, remove);
    remove.addEventListener("click", () => this.#removeRow(row));
    return row;
  }

  /** @param {HTMLLIElement} row */
  #removeRow(row) {
    const next = row.nextElementSibling ?? row.previousElementSibling;
    row.remove();
    if (next === null) this.#addRow().focus();
    else next.querySelector("textarea")?.focus();
    this.#number();
  }

  #number() {
    [...this.#list.children].forEach((row, index) => {
      const [input, output] = sides(row);
      input.setAttribute("aria-label", `Input of example ${index + 1}`);
      output.setAttribute("aria-label", `Output of example ${index + 1}`);
      row.querySelector("button")?.setAttribute("aria-label", `Remove example ${index + 1}`);
    });
    this.#add.disabled = this.#list.children.length >= MOST;
  }
}

/**
 * The fields of a row, input and output.
 *
 * @param {Element} row
 */
function sides(row) {
  return /** @type {[HTMLTextAreaElement, HTMLTextAreaElement]} */ ([...row.querySelectorAll("textarea")]);
}
