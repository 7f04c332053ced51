/** What is known of the adapter that is shown. */

import { byId, copyButton, el } from "../base/dom.js";
import { downloads } from "./downloads.js";
import { amount, contextWords, factor, size, title } from "../base/format.js";
import { heatMap } from "./heatmap.js";
import { distance, refined, timing } from "./measures.js";
import { ScaleControl } from "./scale.js";
import { shown } from "../base/session.js";
import { SnippetTabs } from "./snippet_tabs.js";

/**
 * @import {Adapter, ContextUsed, Shown} from "../base/types.js"
 */

export function startAdapterPanel() {
  const body = byId("adapter-body", HTMLElement);
  const scale = new ScaleControl();
  const tabs = new SnippetTabs();
  const norms = el("section", { class: "part", "aria-label": "Size of the update" });
  /** @type {Adapter | null} */
  let current = null;

  shown.watch((now) => {
    byId("adapter-tag", HTMLElement).textContent = now === null ? "" : origin(now);
    if (now === null) {
      current = null;
      body.replaceChildren(emptyState());
      return;
    }
    if (now.adapter !== current) {
      current = now.adapter;
      // the slider keeps its element, and with it the focus, from one scale to the next
      const parts = [summary(now), ...optional(now)];
      const rest = [norms, scale.element, use(now.adapter, tabs)];
      if (scale.element.parentElement === body) {
        [...body.children].forEach((child) => child !== scale.element && child.remove());
        scale.element.before(...parts, norms);
        scale.element.after(use(now.adapter, tabs));
      } else {
        body.replaceChildren(...parts, ...rest);
      }
      scale.show(now);
      tabs.show(now.adapter);
    }
    norms.replaceChildren(...heatMap(now.norms));
  });
}

function emptyState() {
  return el(
    "div",
    { class: "empty" },
    el("p", {}, "Describe a task and make its adapter, or choose one of those there are."),
    el(
      "p",
      { class: "hint" },
      "A small generator writes the LoRA weights in one forward pass; the model itself is not trained. Here you see " +
        "what it took, how near the task is to what the generator knows, and where the adapter changes the model.",
    ),
  );
}

/** @param {Shown} now */
function origin({ adapter, made, timings }) {
  if (timings !== null) return made ? "made just now" : "existed already";
  return {
    generated: "generated",
    loaded: "loaded from a folder",
    composed: "combined",
    refined: "refined from examples",
  }[adapter.source];
}

/** @param {Shown} now */
function summary({ adapter }) {
  const [first, ...others] = adapter.prompts;
  const name = adapter.names.length ? el("p", { class: "quiet" }, first ?? "") : null;
  return el(
    "div",
    { class: "summary" },
    el("h3", { id: "adapter-title" }, title(adapter)),
    name?.textContent ? name : null,
    ...others.map((text) => el("p", { class: "quiet" }, text)),
    el(
      "p",
      { class: "identity" },
      el("code", { id: "adapter-id" }, adapter.id),
      copyButton("Copy the id", () => adapter.id),
    ),
    facts(adapter),
  );
}

/** @param {Adapter} adapter */
function facts(adapter) {
  const entries = [
    ["Size", size(adapter.bytes)],
    ["Parameters", amount(adapter.num_parameters)],
    ["Rank, α", `${adapter.rank}, ${adapter.alpha}`],
    ["Scale", adapter.source === "generated" ? factor(adapter.scale) : "–"],
  ];
  return el(
    "dl",
    { class: "facts-grid" },
    ...entries.map(([term = "", value = ""]) => el("div", {}, el("dt", {}, term), el("dd", {}, value))),
  );
}

/** @param {Shown} now */
function optional({ adapter, timings, made, auto, job }) {
  const parts = [];
  if (job?.outcome) parts.push(refined(job.outcome));
  if (auto !== null && adapter.scale === 1) parts.push(choice(auto, adapter));
  if (timings !== null && made) parts.push(timing(timings));
  if (adapter.source === "generated") parts.push(distance(adapter));
  return parts;
}

/** @param {ContextUsed} auto @param {Adapter} adapter */
function choice({ context_used: context, scale }, adapter) {
  const words = contextWords(context, scale, adapter);
  return el("div", { class: "part" }, el("p", { id: "auto-choice" }, "Auto in the chat: ", el("strong", {}, words)));
}

/** @param {Adapter} adapter @param {SnippetTabs} tabs */
function use(adapter, tabs) {
  return el(
    "section",
    { class: "part", "aria-labelledby": "use-heading" },
    el("h3", { id: "use-heading" }, "Use it elsewhere"),
    downloads(adapter),
    tabs.element,
  );
}
