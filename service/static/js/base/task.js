/** Questions to the adapter of a task, for which the service chooses the context and the scale. */

import { MOST_EXAMPLES } from "./api.js";

/**
 * @import {Adapter, Example, Message} from "./types.js"
 */

/**
 * Whether the service makes just this adapter for the texts of its task, and so may choose context and scale.
 *
 * @param {Adapter} adapter
 */
export function isTask({ source, prompts, examples, scale }) {
  return source === "generated" && scale === 1 && prompts.length <= 1 && examples.length <= MOST_EXAMPLES;
}

/**
 * The fields of a chat completion that name the task and ask; without `context` the service takes the best one.
 *
 * @param {Adapter} adapter  for which `isTask` holds
 * @param {Message[]} messages
 * @returns {{model: string, messages: Message[], examples?: Example[]}}
 */
export function taskQuestion({ prompts, examples }, messages) {
  const model = prompts[0] === undefined ? "auto" : `prompt:${prompts[0]}`;
  return { model, messages, ...(examples.length && { examples }) };
}
