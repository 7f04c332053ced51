/**
 * Refining: the adapter of the description learns from the examples in a job of the service. The job is shown while it
 * runs, also after a reload of the page, and its file of examples is deleted when it has ended.
 */

import { ApiError } from "../base/api.js";
import { announce, byId } from "../base/dom.js";
import { sentence, short } from "../base/format.js";
import { showProblem } from "../base/problem.js";
import { noteStoreChange, open } from "../base/session.js";
import { store, stored } from "../base/stored.js";
import * as jobs from "./jobs.js";
import { LossChart } from "./loss_chart.js";

/**
 * @import {Example, Job, JobEvent} from "../base/types.js"
 *
 * @typedef {{examples: Example[], model: string, suffix?: string}} RefineWish
 */

/** The job of this tab, so that a reload finds it. */
const JOB_ITEM = "llgbm.job";
/** @type {Record<string, string>} */
const PHASES = { choose: "Choosing the number of steps", train: "Training" };

export class Refining {
  #panel = byId("refine", HTMLElement);
  #button = byId("refine-examples", HTMLButtonElement);
  #cancel = byId("refine-cancel", HTMLButtonElement);
  #state = byId("refine-state", HTMLElement);
  #progress = byId("refine-progress", HTMLProgressElement);
  #problem = byId("refine-problem", HTMLElement);
  #chart = new LossChart();
  /** @type {string | null} */
  #job = null;

  constructor() {
    byId("refine-loss", HTMLElement).append(this.#chart.element);
    this.#cancel.addEventListener("click", () => void this.#stop());
  }

  /**
   * Refine, and show the result.
   *
   * @param {RefineWish} wish
   */
  async start({ examples, model, suffix }) {
    this.#show("Sending the examples");
    /** @type {string | null} */
    let file = null;
    try {
      file = await jobs.upload(examples);
      const job = await jobs.start({ model, training_file: file, ...(suffix && { suffix }) });
      store(JOB_ITEM, job.id);
      await this.#watch(job);
    } catch (error) {
      this.#fail(error);
      if (file !== null && this.#job === null) await jobs.removeFile(file).catch(() => undefined); // no job reads it
    } finally {
      this.#end();
    }
  }

  /** Go on with the job that this tab has begun, if there is one. */
  async resume() {
    const id = stored(JOB_ITEM);
    if (id === null || this.#job !== null) return;
    this.#show("Looking for the job");
    try {
      await this.#watch(await jobs.read(id));
    } catch (error) {
      if (error instanceof ApiError && error.status === 404) store(JOB_ITEM, null);
      this.#fail(error);
    } finally {
      this.#end();
    }
  }

  /** @param {Job} job */
  async #watch(job) {
    this.#job = job.id;
    this.#cancel.disabled = false;
    announce("Refining has begun");
    for await (const event of jobs.follow(job.id)) this.#take(event);
    const ended = await jobs.read(job.id);
    store(JOB_ITEM, null);
    try {
      await this.#tell(ended);
    } finally {
      // what came of the job is told all the same
      await jobs.removeFile(ended.training_file).catch((error) => showProblem(this.#problem, error));
    }
  }

  /** @param {JobEvent} event */
  #take({ message, data, level }) {
    if (data === null) {
      this.#state.textContent = sentence(message);
      if (level !== "info") announce(message);
      return;
    }
    const { step, total_steps: total, train_loss: loss, phase } = data;
    this.#chart.add(step, total, loss, phase);
    this.#progress.value = step / total;
    this.#state.textContent = `${PHASES[phase] ?? phase}: step ${step} of at most ${total}, loss ${short(loss)}`;
  }

  /** @param {Job} job */
  async #tell(job) {
    if (job.status === "succeeded" && job.fine_tuned_model !== null) {
      this.#progress.value = 1;
      this.#state.textContent = sentence(job.outcome?.note ?? "The adapter is ready");
      noteStoreChange();
      await open(job.fine_tuned_model, job);
      announce(`Refining has ended. ${this.#state.textContent}`);
    } else if (job.status === "cancelled") {
      this.#state.textContent = "Cancelled; nothing of it is kept.";
      announce("Refining is cancelled");
    } else {
      throw new ApiError(job.error?.message ?? `The job is ${job.status}`, { code: job.error?.code ?? null });
    }
  }

  async #stop() {
    if (this.#job === null) return;
    this.#cancel.disabled = true;
    try {
      await jobs.cancel(this.#job); // its events then end
    } catch (error) {
      showProblem(this.#problem, error);
    }
  }

  /** @param {string} text */
  #show(text) {
    this.#panel.hidden = false;
    this.#panel.setAttribute("aria-busy", "true");
    this.#button.disabled = true;
    this.#cancel.hidden = false;
    this.#cancel.disabled = true; // until there is a job
    this.#state.textContent = text;
    this.#progress.value = 0;
    this.#chart.clear();
    showProblem(this.#problem, null);
    this.#panel.scrollIntoView({ block: "nearest" });
  }

  /** @param {unknown} error */
  #fail(error) {
    this.#state.textContent = "It did not work.";
    showProblem(this.#problem, error);
  }

  #end() {
    this.#job = null;
    this.#panel.removeAttribute("aria-busy");
    this.#cancel.hidden = true;
    this.#button.disabled = false;
  }
}
