/** Fine-tuning jobs in OpenAI's protocol: a file of examples, the job that learns from it, and its events. */

import { ApiError, call, json } from "../base/api.js";
import { objects } from "../base/sse.js";

/**
 * @import {Example, Job, JobEvent} from "../base/types.js"
 */

/** Patience for a service that starts again: about half a minute. */
const TRIES = 12;
const PAUSE_MS = 500;
const LOADING = 503;

/**
 * @param {Example[]} examples
 * @returns {Promise<string>} the file's id
 */
export async function upload(examples) {
  const lines = examples.map(({ input, output }) =>
    JSON.stringify({
      messages: [
        { role: "user", content: input },
        { role: "assistant", content: output },
      ],
    }),
  );
  const body = new FormData();
  body.append("purpose", "fine-tune");
  body.append("file", new Blob(lines.map((line) => `${line}\n`), { type: "application/jsonl" }), "examples.jsonl");
  return (await json("/v1/files", { method: "POST", body })).id;
}

/**
 * Remove a file and the examples in it; one that is gone already is no error.
 *
 * @param {string} file
 */
export async function removeFile(file) {
  await call(`/v1/files/${encodeURIComponent(file)}`, { method: "DELETE", accepted: 404 });
}

/**
 * @param {{model: string, training_file: string, suffix?: string}} wish
 * @returns {Promise<Job>}
 */
export const start = (wish) => json("/v1/fine_tuning/jobs", { method: "POST", body: wish });

/** @param {string} id @returns {Promise<Job>} */
export const read = (id) => json(`/v1/fine_tuning/jobs/${encodeURIComponent(id)}`);

/** @param {string} id @returns {Promise<Job>} */
export const cancel = (id) => json(`/v1/fine_tuning/jobs/${encodeURIComponent(id)}/cancel`, { method: "POST" });

/**
 * The events of a job as they come, the oldest first, until it ends. A connection that is cut is made again.
 *
 * @param {string} id
 * @returns {AsyncGenerator<JobEvent>}
 * @throws {ApiError}
 */
export async function* follow(id) {
  let after = "";
  for (let failures = 1; failures < TRIES; failures += 1) {
    try {
      const since = after && `&after=${encodeURIComponent(after)}`;
      const response = await call(`/v1/fine_tuning/jobs/${encodeURIComponent(id)}/events?stream=true${since}`);
      for await (const event of objects(response)) {
        after = event.id;
        failures = 0;
        yield event;
      }
      return;
    } catch (error) {
      if (error instanceof ApiError && error.status && error.status !== LOADING) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, PAUSE_MS * failures));
  }
  throw new ApiError("The connection to the job is lost; the job goes on. Reload the page to follow it again.");
}
