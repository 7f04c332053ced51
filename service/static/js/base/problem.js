/** Shows an error in words: what happened, when to try again, and the id to find it in the service's log. */

import { ApiError } from "./api.js";
import { el } from "./dom.js";
import { sentence } from "./format.js";

/**
 * @param {unknown} error
 * @returns {string}
 */
export function explain(error) {
  if (!(error instanceof ApiError)) {
    console.error(error);
    return "Something went wrong in this page; the browser's console says what.";
  }
  const wait = error.retryAfter && /^\d+$/.test(error.retryAfter) ? ` Try again in ${error.retryAfter} s.` : "";
  return sentence(error.message) + wait;
}

/**
 * The content of an error message.
 *
 * @param {unknown} error
 * @returns {HTMLElement[]}
 */
export function problem(error) {
  const lines = [el("p", {}, explain(error))];
  if (error instanceof ApiError && error.status) {
    const facts = [`HTTP ${error.status}`, error.code, error.requestId && `request ${error.requestId}`];
    lines.push(el("p", { class: "facts" }, facts.filter(Boolean).join(" · ")));
  }
  return lines;
}

/**
 * Show an error in a region with the role alert, or hide the region.
 *
 * @param {HTMLElement} region
 * @param {unknown} error  null to hide it; a string is shown as it is
 */
export function showProblem(region, error) {
  region.hidden = error === null;
  const lines = error === null ? [] : typeof error === "string" ? [el("p", {}, error)] : problem(error);
  region.replaceChildren(...lines);
}
