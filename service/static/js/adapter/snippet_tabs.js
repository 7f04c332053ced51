/** The snippets as tabs: one is shown, the arrow keys go to the others. */

import { copyButton, el } from "../base/dom.js";
import { lastQuestion } from "../base/session.js";
import { SNIPPETS } from "./snippets.js";

/**
 * @import {Adapter} from "../base/types.js"
 */

export class SnippetTabs {
  #chosen = 0;
  /** @type {Adapter | null} */
  #adapter = null;
  #code = el("code");
  #panel = el("div", { class: "snippet", role: "tabpanel", id: "snippet" });
  /** @type {HTMLButtonElement[]} */
  #tabs = SNIPPETS.map(({ id, label }, index) =>
    el(
      "button",
      { type: "button", role: "tab", id: `tab-${id}`, "aria-controls": "snippet", onclick: () => this.#choose(index) },
      label,
    ),
  );

  constructor() {
    const list = el("div", { class: "tabs", role: "tablist", "aria-label": "Snippets" }, ...this.#tabs);
    const copy = copyButton("Copy the snippet", () => this.#code.textContent ?? "");
    this.#panel.append(el("pre", { tabindex: 0, role: "region", "aria-label": "Snippet" }, this.#code));
    this.element = el("div", {}, el("div", { class: "tab-row" }, list, copy), this.#panel);
    list.addEventListener("keydown", (event) => this.#onKey(event));
    lastQuestion.watch(() => this.#write());
    this.#choose(0);
  }

  /** @param {Adapter} adapter */
  show(adapter) {
    this.#adapter = adapter;
    this.#write();
  }

  /** @param {number} index */
  #choose(index) {
    this.#chosen = index;
    this.#tabs.forEach((tab, i) => {
      tab.setAttribute("aria-selected", String(i === index));
      tab.tabIndex = i === index ? 0 : -1;
    });
    this.#panel.setAttribute("aria-labelledby", this.#tabs[index]?.id ?? "");
    this.#write();
  }

  #write() {
    if (this.#adapter === null) return;
    const subject = { adapter: this.#adapter, question: lastQuestion.value };
    this.#code.textContent = SNIPPETS[this.#chosen]?.text(subject) ?? "";
  }

  /** @param {KeyboardEvent} event */
  #onKey(event) {
    const last = this.#tabs.length - 1;
    /** @type {Record<string, number>} */
    const targets = {
      ArrowLeft: this.#chosen === 0 ? last : this.#chosen - 1,
      ArrowRight: this.#chosen === last ? 0 : this.#chosen + 1,
      Home: 0,
      End: last,
    };
    const target = targets[event.key];
    if (target === undefined) return;
    event.preventDefault();
    this.#choose(target);
    this.#tabs[target]?.focus();
  }
}
