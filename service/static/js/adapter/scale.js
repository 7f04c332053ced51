/**
 * The scale of the adapter's effect. Each scale is an adapter of its own: a generated one is made again with another
 * `scale`; any other is a combination of one adapter, times a factor.
 */

import { compose, generate, isAbort } from "../base/api.js";
import { announce, el } from "../base/dom.js";
import { factor, scaleOf } from "../base/format.js";
import { showProblem } from "../base/problem.js";
import { noteStoreChange, open, show } from "../base/session.js";

/**
 * @import {Adapter, Shown} from "../base/types.js"
 */

const LIMIT = 4;

export class ScaleControl {
  #slider = el("input", { type: "range", id: "scale", min: 0, max: 2, step: 0.1, list: "scale-marks" });
  #field = el("input", { type: "number", min: -LIMIT, max: LIMIT, step: 0.1, "aria-label": "Scale, exactly" });
  #problem = el("div", { class: "problem", role: "alert", hidden: true });
  #note = el("p", { class: "hint" });
  /** @type {Shown | null} */
  #now = null;
  /** @type {AbortController | null} */
  #running = null;

  constructor() {
    this.#slider.setAttribute("aria-describedby", "scale-note");
    this.#note.id = "scale-note";
    this.element = el(
      "section",
      { class: "part scale" },
      el("h3", {}, el("label", { for: "scale" }, "Scale of the effect")),
      el("div", { class: "scale-row" }, this.#slider, this.#field),
      el("datalist", { id: "scale-marks" }, ...[0, 1, 2].map((value) => el("option", { value }))),
      this.#note,
      this.#problem,
    );
    this.#slider.addEventListener("input", () => this.#set(this.#slider.valueAsNumber));
    this.#slider.addEventListener("change", () => void this.#apply(this.#slider.valueAsNumber));
    this.#field.addEventListener("change", () => void this.#apply(this.#field.valueAsNumber));
  }

  /** @param {Shown} now */
  show(now) {
    this.#now = now;
    showProblem(this.#problem, null);
    this.#set(scaleOf(now));
    this.#note.textContent =
      now.adapter.source === "generated"
        ? `0 is the plain base, 1 as generated.${inContext(now.adapter)} Each scale is an adapter of its own.`
        : "A factor on this adapter. Each one gives an adapter of its own.";
  }

  /** @param {number} value */
  #set(value) {
    this.#slider.value = String(value);
    this.#field.value = String(Number(value.toFixed(2)));
    this.#slider.setAttribute("aria-valuetext", factor(value));
  }

  /** @param {number} value */
  async #apply(value) {
    const now = this.#now;
    if (now === null) return;
    if (!Number.isFinite(value) || Math.abs(value) > LIMIT) {
      this.#set(scaleOf(now));
      announce(`The scale is between −${LIMIT} and ${LIMIT}`);
      return;
    }
    this.#set(value);
    this.#running?.abort();
    const running = (this.#running = new AbortController());
    this.element.setAttribute("aria-busy", "true");
    showProblem(this.#problem, null);
    try {
      if (now.scaled && value === 1) {
        await open(now.scaled.id); // that is the adapter itself
        return;
      }
      const { adapter, made, scaled } = await remake(now, value, running.signal);
      noteStoreChange();
      announce(`Adapter at scale ${value} ready`);
      await show(adapter, { timings: adapter.timings_ms, made, auto: adapter.auto, scaled });
    } catch (error) {
      if (isAbort(error)) return;
      this.#set(scaleOf(now));
      showProblem(this.#problem, error);
    } finally {
      if (this.#running === running) {
        this.#running = null;
        this.element.removeAttribute("aria-busy");
      }
    }
  }
}

/** @param {Adapter} adapter */
function inContext({ scale_in_context: scale }) {
  if (scale === null) return "";
  return ` ${factor(scale)} does best with the description in the context too; the chat's auto knows that.`;
}

/**
 * @param {Shown} now
 * @param {number} scale
 * @param {AbortSignal} signal
 */
async function remake({ adapter, scaled }, scale, signal) {
  if (adapter.source === "generated") {
    const { prompts, examples } = adapter;
    const wish = { ...(prompts.length && { prompts }), ...(examples.length && { examples }), scale };
    return { ...(await generate(wish, signal)), scaled: null };
  }
  const id = scaled?.id ?? adapter.id;
  const result = await compose({ ids: [id], weights: [scale] }, signal);
  return { ...result, scaled: { id, factor: scale } };
}
