/** The messages that a model is sent. */

/**
 * @import {AnswerView} from "./answer_view.js"
 * @import {Lane} from "./lanes.js"
 * @import {Adapter, Message} from "../base/types.js"
 *
 * @typedef {{question: string, views: Partial<Record<Lane, AnswerView>>}} Turn
 */

/**
 * @param {Lane} lane  whose earlier answers are its own
 * @param {Turn[]} earlier
 * @param {string} question
 * @returns {Message[]}
 */
export function conversation(lane, earlier, question) {
  /** @type {Message[]} */
  const messages = [];
  for (const turn of earlier) {
    const view = turn.views[lane];
    if (!view?.complete || !view.text) continue;
    messages.push({ role: "user", content: turn.question }, { role: "assistant", content: view.text });
  }
  messages.push({ role: "user", content: question });
  return messages;
}

/**
 * A conversation with the task as text, in the form that the generator was trained against and that the service uses:
 * the description above the first question, the examples as turns before it, each below the description too.
 *
 * @param {Message[]} messages
 * @param {Adapter} task
 * @param {"description" | "examples"} context  `examples` is both
 * @returns {Message[]}
 */
export function withTask([first, ...rest], task, context) {
  if (first === undefined) return [];
  const description = task.prompts[0];
  const head = description ? `${description}\n\n` : "";
  /** @type {Message[]} */
  const shown = (context === "examples" ? task.examples : []).flatMap(({ input, output }) => [
    { role: "user", content: head + input },
    { role: "assistant", content: output },
  ]);
  return [...shown, { ...first, content: head + first.content }, ...rest];
}
