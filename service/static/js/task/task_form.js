/** The form that a task is typed into, and the request that makes its adapter. */

import { generate, isAbort, MOST_EXAMPLES } from "../base/api.js";
import { announce, byId, el, reveal } from "../base/dom.js";
import { ExampleRows } from "./example_rows.js";
import { EXAMPLE_TASKS } from "./example_tasks.js";
import { duration } from "../base/format.js";
import { showProblem } from "../base/problem.js";
import { base, lastQuestion, noteStoreChange, show } from "../base/session.js";

/**
 * @import {AdapterWish} from "../base/types.js"
 * @import {Refining, RefineWish} from "../refine/refine.js"
 */

const NARROW = matchMedia("(max-width: 719px)");

/** @param {Refining} refining */
export function startTaskForm(refining) {
  const form = byId("task-form", HTMLFormElement);
  const prompt = byId("prompt", HTMLTextAreaElement);
  const name = byId("adapter-name", HTMLInputElement);
  const problem = byId("prompt-problem", HTMLElement);
  const panel = byId("adapter", HTMLElement);
  const button = byId("make", HTMLButtonElement);
  const rows = new ExampleRows();
  /** @type {AbortController | null} */
  let running = null;

  for (const task of EXAMPLE_TASKS) {
    const choose = () => {
      prompt.value = task.prompt;
      byId("question", HTMLTextAreaElement).value = lastQuestion.value = task.question;
      rows.reset(task.examples);
      byId("more", HTMLDetailsElement).open ||= task.examples !== undefined;
      prompt.focus();
    };
    byId("chips", HTMLElement).append(el("button", { type: "button", class: "chip", onclick: choose }, task.label));
  }

  /** @returns {AdapterWish} */
  function wish() {
    const text = prompt.value.trim();
    const examples = rows.read();
    if (!text && !examples.length) {
      prompt.focus();
      throw new RangeError("Describe the task, or give an example of it.");
    }
    if (examples.length > MOST_EXAMPLES) {
      throw new RangeError(
        `An adapter is made from at most ${MOST_EXAMPLES} examples, and these are ${examples.length}. Refining learns from all.`,
      );
    }
    return {
      ...(text && { prompt: text }),
      ...(examples.length && { examples }),
      ...(name.value.trim() && { name: name.value.trim() }),
    };
  }

  /** @returns {RefineWish} */
  function refineWish() {
    const text = prompt.value.trim();
    const examples = rows.read();
    const suffix = name.value.trim();
    if (!examples.length) {
      byId("more", HTMLDetailsElement).open = true;
      throw new RangeError("Refining learns from examples: add some, about a dozen does well.");
    }
    if (base.value === null) throw new RangeError("The service is not ready yet; see the top of the page.");
    return { examples, model: text ? `prompt:${text}` : base.value, ...(suffix && { suffix }) };
  }

  /**
   * What the form asks for; null if it lacks something, which is then said.
   *
   * @template T
   * @param {() => T} read
   */
  function asked(read) {
    showProblem(problem, null);
    try {
      return read();
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      showProblem(problem, error.message);
      return null;
    }
  }

  async function submit() {
    if (running) {
      running.abort();
      return;
    }
    const body = asked(wish);
    if (body === null) return;
    running = new AbortController();
    button.textContent = "Cancel";
    panel.setAttribute("aria-busy", "true");
    try {
      const { adapter, made } = await generate(body, running.signal);
      noteStoreChange();
      const time = made ? `in ${duration(adapter.timings_ms.total)}` : "it existed already";
      announce(`Adapter ready, ${time}. ${adapter.warning ?? ""}`);
      const showing = show(adapter, { timings: adapter.timings_ms, made, auto: adapter.auto });
      if (NARROW.matches) reveal(panel);
      await showing;
    } catch (error) {
      if (isAbort(error)) announce("Cancelled");
      else showProblem(problem, error);
    } finally {
      running = null;
      button.textContent = "Make adapter";
      panel.removeAttribute("aria-busy");
    }
  }

  byId("refine-examples", HTMLButtonElement).addEventListener("click", () => {
    const found = asked(refineWish);
    if (found !== null) void refining.start(found);
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    void submit();
  });
  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !running) {
      event.preventDefault();
      void submit();
    }
  });
}
