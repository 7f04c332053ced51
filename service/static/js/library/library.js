/** The adapters of the store: pages of them, to open, to combine and to delete. */

import * as api from "../base/api.js";
import { Combiner } from "./combine.js";
import { announce, byId, el } from "../base/dom.js";
import { ago, factor, size, title } from "../base/format.js";
import { showProblem } from "../base/problem.js";
import { close, open, shown, storeChanges } from "../base/session.js";

/**
 * @import {Adapter} from "../base/types.js"
 */

const PAGE = 20;

export class Library {
  #list = byId("adapter-list", HTMLUListElement);
  #problem = byId("library-problem", HTMLElement);
  #more = byId("more-adapters", HTMLButtonElement);
  #combiner = new Combiner();
  /** @type {Adapter[]} */
  #adapters = [];
  /** @type {string | null} */
  #next = null;
  /** Only the newest request for a list may write it. */
  #turn = 0;

  constructor() {
    byId("reload-library", HTMLButtonElement).addEventListener("click", () => void this.reload());
    this.#more.addEventListener("click", () => void this.#showMore());
    shown.watch(() => this.#markCurrent());
    storeChanges.watch((count) => void (count && this.reload()));
  }

  /** Read the list again, as far as it was shown. */
  async reload() {
    await this.#read(null, Math.min(100, Math.max(PAGE, this.#adapters.length)));
  }

  async #showMore() {
    const before = this.#adapters.length;
    await this.#read(this.#next, PAGE);
    const first = this.#list.children[before]?.querySelector("button");
    first?.focus();
  }

  /** @param {string | null} after @param {number} limit */
  async #read(after, limit) {
    const turn = (this.#turn += 1);
    showProblem(this.#problem, null);
    try {
      const page = await api.page(limit, after);
      if (turn !== this.#turn) return;
      this.#adapters = after === null ? page.data : [...this.#adapters, ...page.data];
      this.#next = page.next;
      this.#draw();
    } catch (error) {
      if (turn === this.#turn) showProblem(this.#problem, error);
    }
  }

  #draw() {
    const focused = document.activeElement;
    const kept = focused && this.#list.contains(focused) ? focused.closest("li")?.dataset["id"] : undefined;
    this.#list.replaceChildren(...this.#adapters.map((adapter) => this.#row(adapter)));
    this.#more.hidden = this.#next === null;
    byId("library-empty", HTMLElement).hidden = this.#adapters.length > 0;
    byId("library-hint", HTMLElement).hidden = this.#adapters.length === 0;
    this.#combiner.keepOnly(this.#adapters);
    this.#markCurrent();
    if (kept) this.#focusRow(this.#adapters.findIndex((adapter) => adapter.id === kept));
  }

  /** @param {Adapter} adapter */
  #row(adapter) {
    const name = title(adapter);
    const { box, weight } = this.#combiner.controls(adapter, name);
    const facts = [
      adapter.source === "generated" ? (adapter.scale === 1 ? null : factor(adapter.scale)) : adapter.source,
      `…${adapter.id.slice(-6)}`,
      size(adapter.bytes),
      ago(adapter.created),
    ];
    return el(
      "li",
      { "data-id": adapter.id },
      box,
      el(
        "button",
        { type: "button", class: "open", onclick: () => void this.#open(adapter.id) },
        el("span", { class: "name" }, name),
        el("span", { class: "row-facts" }, facts.filter(Boolean).join(" · ")),
      ),
      weight,
      el(
        "button",
        { type: "button", class: "plain icon", "aria-label": `Delete ${name}`, onclick: () => void this.#delete(adapter) },
        "×",
      ),
    );
  }

  #markCurrent() {
    for (const row of this.#list.children) {
      const current = row instanceof HTMLElement && row.dataset["id"] === shown.value?.adapter.id;
      if (current) row.querySelector(".open")?.setAttribute("aria-current", "true");
      else row.querySelector(".open")?.removeAttribute("aria-current");
    }
  }

  /** @param {number} index */
  #focusRow(index) {
    const row = this.#list.children[Math.min(index, this.#list.children.length - 1)];
    const target = row?.querySelector(".open") ?? byId("library-heading", HTMLElement);
    if (target instanceof HTMLElement) target.focus();
  }

  /** @param {string} id */
  async #open(id) {
    showProblem(this.#problem, null);
    try {
      await open(id);
      announce("Adapter opened");
    } catch (error) {
      showProblem(this.#problem, error);
    }
  }

  /** @param {Adapter} adapter */
  async #delete(adapter) {
    if (!(await confirmed(adapter))) return;
    const index = this.#adapters.indexOf(adapter);
    showProblem(this.#problem, null);
    try {
      await api.remove(adapter.id);
    } catch (error) {
      if (!(error instanceof api.ApiError && error.status === 404)) {
        showProblem(this.#problem, error);
        return;
      }
    }
    this.#combiner.drop(adapter.id);
    if (shown.value?.adapter.id === adapter.id) close();
    announce(`${title(adapter)} is deleted`);
    await this.reload();
    this.#focusRow(index);
  }
}

/**
 * @param {Adapter} adapter
 * @returns {Promise<boolean>}
 */
function confirmed(adapter) {
  const dialog = byId("delete-dialog", HTMLDialogElement);
  byId("delete-what", HTMLElement).textContent = `${title(adapter)} (${adapter.id})`;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "delete"), { once: true });
  });
}
