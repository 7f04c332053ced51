/** The form that a task is typed into, and the request that makes its adapter. */

import { generate, isAbort } from "../base/api.js";
import { announce, byId, el, reveal } from "../base/dom.js";
import { ExampleRows } from "./example_rows.js";
import { EXAMPLE_TASKS } from "./example_tasks.js";
import { duration } from "../base/format.js";
import { showProblem } from "../base/problem.js";
import { lastQuestion, noteStoreChange, show } from "../base/session.js";

/**
 * @import {AdapterWish} from "../base/types.js"
 */

const NARROW = matchMedia("(max-width: 719px)");

export function startTaskForm() {
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
    return {
      ...(text && { prompt: text }),
      ...(examples.length && { examples }),
      ...(name.value.trim() && { name: name.value.trim() }),
    };
  }

  async function submit() {
    if (running) {
      running.abort();
      return;
    }
    showProblem(problem, null);
    let body;
    try {
      body = wish();
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      showProblem(problem, error.message);
      return;
    }
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
