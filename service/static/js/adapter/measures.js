/** Bars: where the time went, and how far the request is from what the generator knows. */

import { el, hiddenText } from "../base/dom.js";
import { duration, sentence } from "../base/format.js";

/**
 * @import {Adapter, JobOutcome, Timings} from "../base/types.js"
 */

const STAGES = /** @type {const} */ ([
  ["encode", "Encode"],
  ["generate", "Generate"],
  ["store", "Store"],
]);

/**
 * The time by stage. What no stage accounts for is waiting for a free turn.
 *
 * @param {Timings} timings
 */
export function timing(timings) {
  const known = timings.encode + timings.generate + timings.store;
  /** @type {[string, string, number][]} */
  const stages = STAGES.map(([key, label]) => [key, label, timings[key]]);
  stages.push(["other", "Other", Math.max(0, timings.total - known)]);
  const whole = stages.reduce((sum, [, , value]) => sum + value, 0) || 1;
  return el(
    "section",
    { class: "part", "aria-labelledby": "timing-heading" },
    el(
      "h3",
      { id: "timing-heading" },
      "Made in ",
      el("strong", { id: "total-time" }, duration(timings.total)),
    ),
    el(
      "div",
      { class: "stages", "aria-hidden": "true" },
      ...stages.map(([key, , value]) => el("span", { "data-stage": key, "--share": value / whole })),
    ),
    el(
      "ul",
      { class: "legend" },
      ...stages.map(([key, label, value]) =>
        el("li", { "data-stage": key }, el("span", {}, label), " ", el("b", {}, duration(value))),
      ),
    ),
  );
}

/**
 * Confidence, warning and nearest training tasks.
 *
 * @param {Adapter} adapter
 */
export function distance(adapter) {
  const { confidence, warning, nearest_tasks: nearest } = adapter;
  return el(
    "section",
    { class: "part", "aria-labelledby": "confidence-heading" },
    el(
      "h3",
      { id: "confidence-heading" },
      "Confidence ",
      confidence === null
        ? el("span", { class: "quiet", id: "confidence" }, "not calibrated for this generator")
        : el("strong", { id: "confidence" }, confidence.toFixed(2)),
    ),
    warning === null ? null : el("p", { class: "warning", id: "adapter-warning" }, hiddenText("Warning: "), sentence(warning)),
    nearest.length ? el("h4", { id: "nearest-heading" }, "Nearest training tasks, by similarity") : null,
    el(
      "ul",
      { class: "bars", "aria-labelledby": "nearest-heading" },
      ...nearest.map(({ task_id: name, similarity }) => bar(name, similarity)),
    ),
  );
}

/**
 * What refining brought, on examples that were held out.
 *
 * @param {JobOutcome} outcome
 */
export function refined({ start, refined: after, helped, note }) {
  const shares =
    start === null || after === null
      ? []
      : [
          el("h4", { id: "held-out-heading" }, "Share of held-out examples that are answered exactly"),
          el(
            "ul",
            { class: "bars", "aria-labelledby": "held-out-heading" },
            bar("Before", start.accuracy),
            bar("After", after.accuracy),
          ),
        ];
  return el(
    "section",
    { class: "part", "aria-labelledby": "refined-heading" },
    el("h3", { id: "refined-heading" }, "Refined on examples"),
    el("p", { id: "adapter-refined", class: helped === false ? "warning" : "" }, sentence(note)),
    ...shares,
  );
}

/** @param {string} name @param {number} value */
function bar(name, value) {
  const share = Math.min(1, Math.max(0, value));
  return el(
    "li",
    {},
    el("span", { class: "bar-label", title: name }, name),
    el("span", { class: "bar-track", "aria-hidden": "true" }, el("span", { "--share": share })),
    el("span", { class: "bar-value" }, value.toFixed(2)),
  );
}
