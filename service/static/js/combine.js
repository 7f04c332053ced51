/** Adapters that are ticked in the list, with a weight for each, added up to a new one. */

import { compose } from "./api.js";
import { announce, byId, el } from "./dom.js";
import { title } from "./format.js";
import { showProblem } from "./problem.js";
import { noteStoreChange, show } from "./session.js";

/**
 * @import {Adapter} from "./types.js"
 */

const MOST = 8;

export class Combiner {
  #form = byId("combine", HTMLFormElement);
  #rows = el("ul");
  #name = el("input", { id: "combine-name", autocomplete: "off", spellcheck: "false", maxlength: 64 });
  #problem = el("div", { class: "problem", role: "alert", hidden: true });
  #button = el("button", { type: "submit", class: "primary" }, "Combine");
  /** @type {Map<string, {adapter: Adapter, weight: HTMLInputElement}>} */
  #parts = new Map();

  constructor() {
    this.#form.append(
      el("h3", {}, "Combine"),
      this.#rows,
      el("label", { for: "combine-name" }, "Name ", el("span", { class: "quiet" }, "(optional)")),
      this.#name,
      this.#problem,
      el(
        "div",
        { class: "actions" },
        this.#button,
        el("button", { type: "button", onclick: () => this.#cancel() }, "Cancel"),
      ),
    );
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      void this.#combine();
    });
  }

  /**
   * The box that takes an adapter in.
   *
   * @param {Adapter} adapter
   * @param {string} name
   */
  checkbox(adapter, name) {
    const box = el("input", { type: "checkbox", "aria-label": `Combine ${name}` });
    box.checked = this.#parts.has(adapter.id);
    box.addEventListener("change", () => {
      if (box.checked && this.#parts.size >= MOST) {
        box.checked = false;
        announce(`At most ${MOST} can be combined`);
      } else if (box.checked) this.#take(adapter, name);
      else this.drop(adapter.id);
    });
    return box;
  }

  /** @param {Adapter} adapter @param {string} name */
  #take(adapter, name) {
    const weight = el("input", { type: "number", min: -4, max: 4, step: 0.1, value: 1, "aria-label": `Weight of ${name}` });
    this.#parts.set(adapter.id, { adapter, weight });
    this.#draw();
  }

  /** @param {string} id */
  drop(id) {
    if (this.#parts.delete(id)) this.#draw();
  }

  /** @param {Adapter[]} adapters  those that are listed */
  keepOnly(adapters) {
    const ids = new Set(adapters.map((adapter) => adapter.id));
    for (const id of [...this.#parts.keys()]) if (!ids.has(id)) this.drop(id);
  }

  #draw() {
    this.#form.hidden = this.#parts.size === 0;
    showProblem(this.#problem, null);
    this.#rows.replaceChildren(
      ...[...this.#parts.values()].map(({ adapter, weight }) =>
        el("li", {}, weight, el("span", { class: "name" }, title(adapter))),
      ),
    );
  }

  #cancel() {
    this.#parts.clear();
    this.#draw();
    for (const box of document.querySelectorAll("#adapter-list input")) {
      if (box instanceof HTMLInputElement) box.checked = false;
    }
    byId("library-heading", HTMLElement).focus();
  }

  async #combine() {
    const parts = [...this.#parts.values()];
    const wrong = parts.find(({ weight }) => !weight.value || !weight.checkValidity());
    if (wrong) {
      showProblem(this.#problem, "A weight is a number between −4 and 4.");
      wrong.weight.focus();
      return;
    }
    this.#button.disabled = true;
    showProblem(this.#problem, null);
    try {
      const name = this.#name.value.trim();
      const { adapter, made } = await compose({
        ids: parts.map((part) => part.adapter.id),
        weights: parts.map((part) => part.weight.valueAsNumber),
        ...(name && { name }),
      });
      this.#name.value = "";
      this.#cancel();
      noteStoreChange();
      announce("Combination ready");
      await show(adapter, { timings: adapter.timings_ms, made });
    } catch (error) {
      showProblem(this.#problem, error);
      this.#form.hidden = false;
    } finally {
      this.#button.disabled = false;
    }
  }
}
