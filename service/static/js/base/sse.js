/** Server-sent events out of a fetched response. */

import { ApiError } from "./api.js";

/**
 * The objects of a stream in OpenAI's protocol, as they come.
 *
 * @param {Response} response
 * @returns {AsyncGenerator<any>}
 * @throws {ApiError} for an error that the service sends in the stream
 * @throws {Error} the stream ends without `[DONE]`
 */
export async function* objects(response) {
  let done = false;
  try {
    for await (const data of events(response)) {
      if (data === "[DONE]") {
        done = true; // and read to the end, so that the connection closes in order
        continue;
      }
      const object = JSON.parse(data);
      const error = ApiError.fromEnvelope(object);
      if (error) throw error;
      yield object;
    }
  } catch (error) {
    if (!done) throw error;
  }
  if (!done) throw new Error("the stream is cut");
}

/**
 * The data of each event, as they come.
 *
 * @param {Response} response
 * @returns {AsyncGenerator<string>}
 */
async function* events(response) {
  if (response.body === null) return;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (pending + value).split(/\r?\n\r?\n/);
      pending = blocks.pop() ?? "";
      for (const block of blocks) {
        const lines = block.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(line[5] === " " ? 6 : 5)).join("\n");
      }
    }
  } finally {
    // also when the reader of the events has had enough of them
    await reader.cancel().catch(() => undefined);
  }
}
