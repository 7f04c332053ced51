/** One streamed answer from /v1/chat/completions. */

import { ApiError, call } from "../base/api.js";
import { objects } from "../base/sse.js";

/**
 * @import {Context, Usage} from "../base/types.js"
 * @import {Question} from "./lanes.js"
 *
 * @typedef {{temperature: number, maxTokens: number, seed: number}} Sampling
 * @typedef {object} Finished
 * @property {string} text
 * @property {string | null} reason  "stop", or "length" when max_tokens were used up
 * @property {Usage | null} usage
 * @property {string | null} adapterId  who answered; null for the base
 * @property {Context} context  the text that the service put into the context
 * @property {number | null} scale  of the adapter's effect; null if no adapter was asked for
 * @property {number} firstMs  from the request to the first piece of text
 * @property {number} totalMs
 */

/**
 * @param {Question} question
 * @param {Sampling} sampling
 * @param {AbortSignal} signal
 * @param {(piece: string) => void} onText
 * @returns {Promise<Finished>}
 * @throws {ApiError} also when the error comes in the middle of the answer, or the connection is cut
 */
export async function complete(question, sampling, signal, onText) {
  const start = performance.now();
  const body = {
    ...question,
    stream: true,
    stream_options: { include_usage: true },
    temperature: sampling.temperature,
    max_tokens: sampling.maxTokens,
    seed: sampling.seed,
  };
  const response = await call("/v1/chat/completions", { method: "POST", body, signal });
  /** @type {Finished} */
  const result = {
    text: "",
    reason: null,
    usage: null,
    adapterId: null,
    context: "none",
    scale: null,
    firstMs: 0,
    totalMs: 0,
  };
  try {
    for await (const chunk of objects(response)) {
      result.usage = chunk.usage ?? result.usage;
      result.adapterId = chunk.adapter_id ?? result.adapterId;
      result.context = chunk.context_used ?? result.context;
      result.scale = chunk.scale ?? result.scale;
      const choice = chunk.choices?.[0];
      result.reason = choice?.finish_reason ?? result.reason;
      const piece = choice?.delta?.content;
      if (piece) {
        result.firstMs ||= performance.now() - start;
        result.text += piece;
        onText(piece);
      }
    }
  } catch (error) {
    if (error instanceof ApiError || signal.aborted) throw error;
    throw new ApiError("The connection ended before the answer was complete; send it again.");
  }
  result.totalMs = performance.now() - start;
  return result;
}
