/** Adapters that are ticked in the list, with a weight for each, added up to a new one. */

import { compose } from "../base/api.js";
import { announce, byId, el } from "../base/dom.js";
import { showProblem } from "../base/problem.js";
import { noteStoreChange, show } from "../base/session.js";

/**
 * @import {Adapter} from "../base/types.js"
 *
 * @typedef {{box: HTMLInputElement, weight: HTMLInputElement}} Controls
 */

const MOST = 8;

export class Combiner {
  #form = byId("combine", HTMLFormElement);
  #name = el("input", {
    "aria-label": "Name of the combination (optional)",
    placeholder: "Name",
    autocomplete: "off",
    spellcheck: "false",
    maxlength: 64,
  });
  #problem = el("div", { class: "problem", role: "alert", hidden: true });
  #button = el("button", { type: "submit", class: "primary" }, "Combine");
  /** Of each listed adapter, by id. @type {Map<string, Controls>} */
  #controls = new Map();

  constructor() {
    this.#form.append(
      this.#problem,
      el(
        "div",
        { class: "actions" },
        this.#name,
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
   * The box that takes an adapter in, and its weight, which is hidden until then. The same elements for the same id, so
   * that they keep their state when the list is drawn again.
   *
   * @param {Adapter} adapter
   * @param {string} name
   * @returns {Controls}
   */
  controls({ id }, name) {
    const known = this.#controls.get(id);
    const controls = known ?? { box: el("input", { type: "checkbox" }), weight: weightField() };
    controls.box.setAttribute("aria-label", `Combine ${name}`);
    controls.weight.setAttribute("aria-label", `Weight of ${name}`);
    if (!known) {
      this.#controls.set(id, controls);
      controls.box.addEventListener("change", () => this.#tick(controls.box));
      controls.weight.addEventListener("keydown", (event) => {
        if (event.key === "Enter") this.#form.requestSubmit();
      });
    }
    return controls;
  }

  /** @param {HTMLInputElement} box */
  #tick(box) {
    if (this.#chosen().length > MOST) {
      box.checked = false;
      announce(`At most ${MOST} can be combined`);
    }
    this.#draw();
  }

  #chosen() {
    return [...this.#controls].filter(([, { box }]) => box.checked);
  }

  /** @param {string} id */
  drop(id) {
    if (this.#controls.delete(id)) this.#draw();
  }

  /** @param {Adapter[]} adapters  those that are listed */
  keepOnly(adapters) {
    const ids = new Set(adapters.map((adapter) => adapter.id));
    for (const id of [...this.#controls.keys()]) if (!ids.has(id)) this.drop(id);
  }

  #draw() {
    for (const { box, weight } of this.#controls.values()) weight.hidden = !box.checked;
    this.#form.hidden = this.#chosen().length === 0;
    showProblem(this.#problem, null);
  }

  #cancel() {
    for (const { box, weight } of this.#controls.values()) {
      box.checked = false;
      weight.value = weight.defaultValue;
    }
    this.#draw();
    byId("library-heading", HTMLElement).focus();
  }

  async #combine() {
    const chosen = this.#chosen();
    const wrong = chosen.find(([, { weight }]) => !weight.value || !weight.checkValidity());
    if (wrong) {
      showProblem(this.#problem, "A weight is a number between −4 and 4.");
      wrong[1].weight.focus();
      return;
    }
    this.#button.disabled = true;
    showProblem(this.#problem, null);
    try {
      const name = this.#name.value.trim();
      const { adapter, made } = await compose({
        ids: chosen.map(([id]) => id),
        weights: chosen.map(([, { weight }]) => weight.valueAsNumber),
        ...(name && { name }),
      });
      this.#name.value = "";
      this.#cancel();
      noteStoreChange();
      announce("Combination ready");
      await show(adapter, { timings: adapter.timings_ms, made, auto: adapter.auto });
    } catch (error) {
      showProblem(this.#problem, error);
      this.#form.hidden = false;
    } finally {
      this.#button.disabled = false;
    }
  }
}

function weightField() {
  return el("input", { type: "number", class: "weight", min: -4, max: 4, step: 0.1, value: 1, hidden: true });
}
