/** What the page works with: the base, the adapter that is shown, and news about the store. */

import * as api from "./api.js";
import { Signal } from "./signal.js";

/**
 * @import {Adapter, Job, Shown, Timings} from "./types.js"
 */

const ID = /^lora-[0-9a-f]{24}$/;

/** The base's id; null until the service is ready. */
export const base = new Signal(/** @type {string | null} */ (null));
/** The adapter that is shown and chatted with. */
export const shown = new Signal(/** @type {Shown | null} */ (null));
/** What was last asked or is about to be; the snippets ask it too. */
export const lastQuestion = new Signal("Hello");
/** Counts the changes that this page made to the store. */
export const storeChanges = new Signal(0);

/** The id that was last asked for: an answer about another one came too late. */
let wanted = "";

/**
 * Show an adapter, and fetch what its summary lacks.
 *
 * @param {Adapter} adapter
 * @param {{timings?: Timings | null, made?: boolean, auto?: Shown["auto"], scaled?: Shown["scaled"]}} [making]
 */
export async function show(adapter, { timings = null, made = false, auto = null, scaled = null } = {}) {
  wanted = adapter.id;
  shown.value = { adapter, timings, made, norms: null, auto, job: null, scaled };
  history.replaceState(null, "", `#${adapter.id}`);
  const { norms } = await api.detail(adapter.id);
  if (shown.value?.adapter.id === adapter.id) shown.value = { ...shown.value, norms };
}

/**
 * Show the adapter with this id.
 *
 * @param {string} id
 * @param {Job | null} [known]  the job that has made it, if the caller has it
 */
export async function open(id, known = null) {
  wanted = id;
  const { norms, ...adapter } = await api.detail(id);
  const job = adapter.source === "refined" ? (known ?? (await api.jobOf(adapter.id))) : null;
  if (wanted !== id) return;
  shown.value = { adapter, timings: null, made: false, norms, auto: null, job, scaled: null };
  history.replaceState(null, "", `#${adapter.id}`);
}

/** Show none. */
export function close() {
  wanted = "";
  shown.value = null;
  history.replaceState(null, "", location.pathname + location.search);
}

/** The id in the page's address, so that an adapter can be bookmarked; null if there is none. */
export function addressedId() {
  const id = location.hash.slice(1);
  return ID.test(id) ? id : null;
}

/** Tell the list that the store has changed. */
export function noteStoreChange() {
  storeChanges.value += 1;
}
