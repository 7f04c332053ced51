/** One answer in the chat's log, while it comes and when it is there. */

import { el, hiddenText } from "../base/dom.js";
import { duration, rate } from "../base/format.js";
import { problem } from "../base/problem.js";

/**
 * @import {Finished} from "./completion.js"
 * @import {Lane} from "./lanes.js"
 */

export class AnswerView {
  #text = document.createTextNode("");
  #body = el("p", { class: "answer-text", dir: "auto" });
  #meta = el("p", { class: "meta" });

  /**
   * @param {string} who  which model answers
   * @param {string} detail  more about it
   * @param {Lane} lane
   */
  constructor(who, detail, lane) {
    this.#body.append(this.#text);
    this.element = el(
      "div",
      { class: "answer", "data-lane": lane, "data-state": "waiting" },
      el("p", { class: "who quiet" }, el("strong", {}, who), " ", detail),
      this.#body,
      this.#meta,
    );
  }

  get text() {
    return this.#text.data;
  }

  /** Whether the answer came to its end. */
  get complete() {
    return this.element.dataset["state"] === "complete";
  }

  /** @param {string} piece */
  append(piece) {
    this.element.dataset["state"] = "streaming";
    this.#text.appendData(piece);
  }

  /**
   * @param {Finished} result
   * @param {string | null} used  the text of the task and the scale, in words
   */
  finish(result, used) {
    this.element.dataset["state"] = "complete";
    if (!result.text) this.#body.append(el("span", { class: "quiet" }, "(an empty answer)"));
    const tokens = result.usage?.completion_tokens ?? 0;
    const seconds = (result.totalMs - result.firstMs) / 1000;
    const facts = [
      used,
      tokens > 0 && `${tokens} token${tokens === 1 ? "" : "s"}`,
      result.firstMs > 0 && `first in ${duration(result.firstMs)}`,
      tokens > 1 && seconds > 0.001 && `${rate((tokens - 1) / seconds)} tokens/s`,
      result.reason === "length" && "cut at max tokens",
    ];
    const shown = facts.filter((fact) => typeof fact === "string");
    this.#meta.replaceChildren(...shown.map((fact) => el("span", {}, fact)));
  }

  stopped() {
    this.element.dataset["state"] = "stopped";
    this.#meta.textContent = "stopped";
  }

  /** @param {unknown} error */
  fail(error) {
    this.element.dataset["state"] = "failed";
    this.element.append(el("div", { class: "problem" }, hiddenText("Error: "), ...problem(error)));
  }
}
