/** The messages that a model is sent. */

/**
 * @import {AnswerView} from "./answer_view.js"
 * @import {Adapter, Message} from "../base/types.js"
 *
 * @typedef {{question: string, base: AnswerView, adapted: AnswerView}} Turn
 */

/**
 * @param {"base" | "adapted"} lane  whose earlier answers are its own
 * @param {Turn[]} earlier
 * @param {string} question
 * @param {Adapter | null} task  whose description and examples are told as text, in the form that the generator was
 *   trained against: the description above each input, the examples as turns
 * @returns {Message[]}
 */
export function conversation(lane, earlier, question, task) {
  const description = task?.prompts[0];
  const head = description ? `${description}\n\n` : "";
  /** @type {Message[]} */
  const messages = [];
  /** @param {string} input @param {string} output */
  const exchange = (input, output) => {
    messages.push({ role: "user", content: head + input }, { role: "assistant", content: output });
  };
  for (const { input, output } of task?.examples ?? []) exchange(input, output);
  for (const turn of earlier) {
    const view = turn[lane];
    if (view.complete && view.text) exchange(turn.question, view.text);
  }
  messages.push({ role: "user", content: head + question });
  return messages;
}
