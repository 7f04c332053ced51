/** The service's state in the page's head: asked for often until it is ready, then now and then. */

import { ApiError, readiness } from "./api.js";
import { byId } from "./dom.js";
import { base } from "./session.js";

const WAITING_MS = 1000;
const WATCHING_MS = 20_000;

/** @type {Record<string, string>} */
const WORDS = {
  ready: "Ready",
  degraded: "Ready, but degraded",
  unavailable: "No server to answer",
  loading: "Loading",
  draining: "Shutting down",
  failed: "Failed",
  locked: "Needs an API key",
  unreachable: "No answer",
};

/**
 * @param {() => void} whenReady  called once
 */
export function startReadiness(whenReady) {
  const badge = byId("readiness", HTMLElement);
  const text = byId("readiness-text", HTMLElement);
  let wasReady = false;
  let wasLocked = false;

  async function look() {
    let state;
    try {
      state = await readiness(!wasLocked); // who has just given no key is not asked again every second
    } catch (error) {
      const status = error instanceof ApiError && error.status === 401 ? "locked" : "unreachable";
      state = { status, reason: null, base: null, generator: null };
    }
    wasLocked = state.status === "locked";
    const serves = state.status === "ready" || state.status === "degraded";
    const words = WORDS[state.status] ?? state.status;
    const shownText = state.status !== "ready" && state.reason ? `${words}: ${state.reason}` : words;
    badge.dataset["status"] = state.status;
    // set only when it differs, since the region is live
    if (text.textContent !== shownText) text.textContent = shownText;
    badge.title = state.reason ?? "";
    if (serves && !wasReady) {
      wasReady = true;
      base.value = state.base;
      byId("base-name", HTMLElement).textContent = state.base ?? "";
      whenReady();
    }
    setTimeout(() => void (document.hidden ? waitUntilVisible() : look()), serves ? WATCHING_MS : WAITING_MS);
  }

  function waitUntilVisible() {
    document.addEventListener("visibilitychange", () => void look(), { once: true });
  }

  void look();
}
