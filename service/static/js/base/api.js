/** The service's HTTP interface: requests with the API key, errors as `ApiError`. */

import { store, stored } from "./stored.js";

/**
 * @import {AdapterDetail, AdapterPage, AdapterWish, GeneratedAdapter, Job, Readiness} from "./types.js"
 */

/** The most examples that the service makes an adapter of. */
export const MOST_EXAMPLES = 16;
const KEY_ITEM = "llgbm.key";
const ROOT = new URL("./", document.baseURI);

/** An error that the service answered, or the lack of an answer (status 0). */
export class ApiError extends Error {
  /**
   * @param {string} message
   * @param {{status?: number, code?: string | null, requestId?: string | null, retryAfter?: string | null}} [facts]
   */
  constructor(message, { status = 0, code = null, requestId = null, retryAfter = null } = {}) {
    super(message);
    this.name = "ApiError";
    this.status = status;
    this.code = code;
    this.requestId = requestId;
    this.retryAfter = retryAfter;
  }

  /**
   * From the service's error envelope; undefined if `body` is none.
   *
   * @param {any} body
   * @param {{status?: number, retryAfter?: string | null}} [facts]
   */
  static fromEnvelope(body, facts = {}) {
    const error = body?.error;
    if (typeof error?.message !== "string") return undefined;
    return new ApiError(error.message, { ...facts, code: error.code ?? null, requestId: body.request_id ?? null });
  }
}

/** @param {unknown} error */
export function isAbort(error) {
  return error instanceof DOMException && error.name === "AbortError";
}

// the key

let key = stored(KEY_ITEM) ?? ""; // without storage it lives as long as the page
/** @type {(reason: string) => Promise<boolean>} */
let askForKey = async () => false;

export function apiKey() {
  return key;
}

/** @param {string} value  empty to forget it */
export function setApiKey(value) {
  key = value;
  store(KEY_ITEM, value || null);
}

/**
 * Who is asked for a key when the service wants one; the answer is whether to try again.
 *
 * @param {(reason: string) => Promise<boolean>} ask
 */
export function onKeyWanted(ask) {
  askForKey = ask;
}

// requests

/**
 * The address of one of the API's paths, also where the service is mounted below a prefix.
 *
 * @param {string} path
 */
export function address(path) {
  return new URL(path.replace(/^\//, ""), ROOT).href;
}

/**
 * Send a request; asks for a key and repeats it where the service wants one.
 *
 * @param {string} path
 * @param {{method?: string, body?: unknown, signal?: AbortSignal, accepted?: number, asks?: boolean}} [options]
 *   `accepted` is a status that is no error; without `asks` nobody is asked for a key
 * @returns {Promise<Response>} a successful one
 * @throws {ApiError}
 */
export async function call(path, { method = "GET", body, signal, accepted, asks = true } = {}) {
  for (;;) {
    /** @type {Record<string, string>} */
    const headers = {};
    if (key) headers["Authorization"] = `Bearer ${key}`;
    const form = body instanceof FormData; // the browser writes its header
    if (body !== undefined && !form) headers["Content-Type"] = "application/json";
    const content = body === undefined ? null : form ? body : JSON.stringify(body);
    const used = key;
    let response;
    try {
      response = await fetch(address(path), { method, headers, body: content, signal: signal ?? null });
    } catch (error) {
      if (isAbort(error)) throw error;
      throw new ApiError("The service does not answer. Check that it is running and that this machine reaches it.");
    }
    if (response.ok || response.status === accepted) return response;
    const error = await errorOf(response);
    // another request may have been given the key in the meantime
    if (error.status !== 401 || !(used !== key || (asks && (await askForKey(error.message))))) throw error;
  }
}

/** @param {Response} response */
async function errorOf(response) {
  const facts = { status: response.status, retryAfter: response.headers.get("Retry-After") };
  let body;
  try {
    body = await response.json();
  } catch {
    body = null; // a proxy's page, for one
  }
  return (
    ApiError.fromEnvelope(body, facts) ??
    new ApiError(`The answer was HTTP ${response.status} without a reason; something between may have sent it.`, facts)
  );
}

/**
 * @param {string} path
 * @param {{method?: string, body?: unknown, signal?: AbortSignal}} [options]
 */
export async function json(path, options) {
  const response = await call(path, options);
  return response.json();
}

/**
 * @param {string} path
 * @param {unknown} body
 * @param {AbortSignal} [signal]
 * @returns {Promise<{adapter: GeneratedAdapter, made: boolean}>}
 */
async function make(path, body, signal) {
  const response = await call(path, { method: "POST", body, ...(signal && { signal }) });
  return { adapter: await response.json(), made: response.status === 201 };
}

/** @param {AdapterWish} wish @param {AbortSignal} [signal] */
export const generate = (wish, signal) => make("/generate-adapter", wish, signal);

/** @param {{ids: string[], weights: number[], name?: string}} parts @param {AbortSignal} [signal] */
export const compose = (parts, signal) => make("/adapters/compose", parts, signal);

/** @param {string} id @returns {Promise<AdapterDetail>} */
export const detail = (id) => json(`/adapters/${encodeURIComponent(id)}`);

/**
 * The newest job that made an adapter; null if none is known any more.
 *
 * @param {string} id  of the adapter
 * @returns {Promise<Job | null>}
 */
export async function jobOf(id) {
  const { data } = await json("/v1/fine_tuning/jobs?limit=100");
  return data.find((/** @type {Job} */ job) => job.fine_tuned_model === id) ?? null;
}

/** @param {number} limit @param {string | null} after @returns {Promise<AdapterPage>} */
export const page = (limit, after) =>
  json(`/adapters?limit=${limit}${after === null ? "" : `&after=${encodeURIComponent(after)}`}`);

/** @param {string} id */
export const remove = (id) => json(`/adapters/${encodeURIComponent(id)}`, { method: "DELETE" });

/**
 * Whether the service is ready. It has this form with status 503 too.
 *
 * @param {boolean} asks  whether to ask for a key where the service wants one for this
 * @returns {Promise<Readiness>}
 */
export async function readiness(asks) {
  const response = await call("/readyz", { accepted: 503, asks });
  return response.json();
}
