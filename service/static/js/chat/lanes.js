/** Who answers a question: the plain base, the base that is told the task, the adapter; by choice, side by side. */

import { byId } from "../base/dom.js";
import { factor, scaleOf, title } from "../base/format.js";
import { isTask, taskQuestion } from "../base/task.js";
import { conversation, withTask } from "./conversation.js";

/**
 * @import {Adapter, ContextWanted, Example, Message, Shown} from "../base/types.js"
 * @import {Turn} from "./conversation.js"
 *
 * @typedef {"base" | "told" | "before" | "adapted"} Lane
 * @typedef {{model: string, messages: Message[], examples?: Example[], context?: ContextWanted}} Question
 */

const LANES = /** @type {const} */ (["base", "told", "before", "adapted"]);

/** @param {Lane} lane */
export const laneBox = (lane) => byId(`lane-${lane}`, HTMLInputElement);

/** The lanes that are ticked and there. */
export function chosenLanes() {
  return LANES.filter((lane) => laneBox(lane).checked && !laneBox(lane).parentElement?.hidden);
}

/**
 * @param {Lane} lane
 * @param {Shown} now
 */
export function laneName(lane, { job }) {
  const adapted = job === null ? "Adapter" : "After refining";
  return { base: "Base", told: "Base + description", before: "Before refining", adapted }[lane];
}

/** @returns {ContextWanted} */
export function chosenContext() {
  return /** @type {ContextWanted} */ (byId("context", HTMLSelectElement).value);
}

/**
 * Offer only what the adapter has the text for, and the one before refining if there is one.
 *
 * @param {Shown | null} now
 */
export function offerChoices(now) {
  const adapter = now?.adapter;
  byId("before", HTMLElement).hidden = !now?.job;
  const select = byId("context", HTMLSelectElement);
  const there = { auto: true, none: true, description: !!adapter?.prompts.length, examples: !!adapter?.examples.length };
  for (const option of select.options) option.disabled = !there[/** @type {ContextWanted} */ (option.value)];
  if (select.selectedOptions[0]?.disabled) select.value = "auto";
}

/**
 * What a lane is asked.
 *
 * @param {Lane} lane
 * @param {Shown} now
 * @param {string} base
 * @param {ContextWanted} context  of the lanes with an adapter
 * @param {Turn[]} earlier
 * @param {string} question
 * @returns {Question}
 */
export function questionFor(lane, { adapter, job }, base, context, earlier, question) {
  const messages = conversation(lane, earlier, question);
  if (lane === "base") return { model: base, messages };
  if (lane === "told") return { model: base, messages: withTask(messages, adapter, "examples") };
  const model = lane === "before" ? (job?.start ?? base) : adapter.id;
  if (context === "none") return { model, messages };
  if (lane === "adapted" && isTask(adapter)) return { ...taskQuestion(adapter, messages), context };
  // it answers as it is: the service has no rule for it
  return { model, messages: context === "auto" ? messages : withTask(messages, adapter, context) };
}

/**
 * What a lane's heading says after its name.
 *
 * @param {Lane} lane
 * @param {Shown} now
 */
export function laneDetail(lane, now) {
  const { adapter, job } = now;
  if (lane === "base") return "";
  if (lane === "before") return job?.start ? `…${job.start.slice(-6)}` : "the base";
  if (lane === "told") {
    const count = adapter.examples.length;
    return count ? `and ${count} example${count === 1 ? "" : "s"}` : "";
  }
  const scale = scaleOf(now);
  return scale === 1 ? title(adapter) : `${factor(scale)} ${title(adapter)}`;
}
