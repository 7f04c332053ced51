/** The chat: every question goes to the plain base and to the adapter, and both answers stream side by side. */

import { isAbort } from "../base/api.js";
import { AnswerView } from "./answer_view.js";
import { complete } from "./completion.js";
import { conversation } from "./conversation.js";
import { announce, byId, el, hiddenText } from "../base/dom.js";
import { factor, title } from "../base/format.js";
import { explain, showProblem } from "../base/problem.js";
import { base, lastQuestion, shown } from "../base/session.js";

/**
 * @import {Finished} from "./completion.js"
 * @import {Shown} from "../base/types.js"
 * @import {Turn} from "./conversation.js"
 */

const SPOKEN = 300;
const EMPTY =
  "A question goes to the plain base and to the base with the adapter. Neither is told the task: what it is about is " +
  "in the adapter's weights. Enter sends, Escape stops.";

export function startChat() {
  const log = byId("log", HTMLElement);
  const question = byId("question", HTMLTextAreaElement);
  const send = byId("send", HTMLButtonElement);
  const problem = byId("chat-problem", HTMLElement);
  const clear = byId("clear-chat", HTMLButtonElement);
  /** @type {Turn[]} */
  const turns = [];
  /** @type {AbortController | null} */
  let running = null;

  function reset() {
    turns.length = 0;
    clear.disabled = true;
    log.replaceChildren(el("p", { class: "hint" }, EMPTY));
  }

  /** @param {string} text  what to ask both models */
  async function ask(text) {
    const now = shown.value;
    showProblem(problem, null);
    if (running) return;
    if (now === null || base.value === null) {
      showProblem(problem, "There is no adapter to ask yet: make one, or choose one from the list.");
      byId("prompt", HTMLElement).focus();
      return;
    }
    if (!text) {
      showProblem(problem, "Write a question first.");
      question.focus();
      return;
    }
    lastQuestion.value = text;
    const controller = (running = new AbortController());
    send.textContent = "Stop";
    const options = readOptions();
    const told = { base: options.tellBase ? now.adapter : null, adapted: options.tellAdapter ? now.adapter : null };
    const views = {
      base: new AnswerView("Base", told.base === null ? "" : "with the task as text", "base"),
      adapted: new AnswerView("Adapter", label(now, told.adapted !== null), "adapted"),
    };
    const earlier = options.remember ? [...turns] : [];
    turns.push({ question: text, ...views });
    addTurn(text, views);
    const seed = Math.floor(Math.random() * 2 ** 31);
    const sampling = { temperature: options.temperature, maxTokens: options.maxTokens, seed };

    const models = { base: base.value, adapted: now.adapter.id };
    const lanes = /** @type {const} */ (["base", "adapted"]).map((lane) => {
      const messages = conversation(lane, earlier, text, told[lane]);
      return stream(views[lane], complete(models[lane], messages, sampling, controller.signal, (piece) => {
        views[lane].append(piece);
        follow();
      }));
    });
    const spoken = await Promise.all(lanes);
    follow();
    running = null;
    send.textContent = "Send";
    announce(controller.signal.aborted ? "Stopped" : `Base: ${spoken[0]}. Adapter: ${spoken[1]}`);
  }

  function askTyped() {
    const text = question.value.trim();
    void ask(text);
    if (running) question.value = "";
  }

  /** @param {string} text @param {{base: AnswerView, adapted: AnswerView}} views */
  function addTurn(text, views) {
    if (turns.length === 1) log.replaceChildren();
    clear.disabled = false;
    log.append(
      el(
        "article",
        { class: "turn" },
        el(
          "div",
          { class: "asked-row" },
          el("p", { class: "asked", dir: "auto" }, hiddenText("You: "), text),
          el("button", { type: "button", class: "plain", onclick: () => void ask(text) }, "Ask again"),
        ),
        el("div", { class: "answers" }, views.base.element, views.adapted.element),
      ),
    );
    log.scrollTop = log.scrollHeight;
  }

  /** Keep the end of the log in view, unless the reader has scrolled away from it. */
  function follow() {
    if (log.scrollHeight - log.scrollTop - log.clientHeight < 80) log.scrollTop = log.scrollHeight;
  }

  byId("chat-form", HTMLFormElement).addEventListener("submit", (event) => {
    event.preventDefault();
    if (running) running.abort();
    else askTyped();
  });
  question.addEventListener("keydown", (event) => {
    if (event.key === "Escape") running?.abort();
    // isComposing: Enter then chooses a word of an input method
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    if (!running) askTyped();
  });
  question.addEventListener("change", () => (lastQuestion.value = question.value.trim() || lastQuestion.value));
  clear.addEventListener("click", () => {
    running?.abort();
    reset();
    question.focus();
  });
  reset();
}

/**
 * Bring an answer to its end in the log, whatever that is.
 *
 * @param {AnswerView} view
 * @param {Promise<Finished>} answer
 * @returns {Promise<string>} what to read out
 */
async function stream(view, answer) {
  try {
    const result = await answer;
    view.finish(result);
    return result.text.slice(0, SPOKEN);
  } catch (error) {
    if (isAbort(error)) view.stopped();
    else view.fail(error);
    return isAbort(error) ? "stopped" : explain(error);
  }
}

/** @param {Shown} now @param {boolean} told */
function label({ adapter, scaled }, told) {
  const scale = adapter.source === "generated" ? adapter.scale : (scaled?.factor ?? 1);
  const name = scale === 1 ? title(adapter) : `${factor(scale)} ${title(adapter)}`;
  return told ? `${name}, with the task as text` : name;
}

/**
 * A number of the options; what is out of range or missing becomes the nearest or the usual one.
 *
 * @param {string} id
 */
function number(id) {
  const field = byId(id, HTMLInputElement);
  const value = Number.isFinite(field.valueAsNumber) ? field.valueAsNumber : Number(field.defaultValue);
  const within = Math.min(Number(field.max), Math.max(Number(field.min), value));
  field.value = String(within);
  return within;
}

function readOptions() {
  return {
    temperature: number("temperature"),
    maxTokens: Math.round(number("max-tokens")),
    tellBase: byId("tell-base", HTMLInputElement).checked,
    tellAdapter: byId("tell-adapter", HTMLInputElement).checked,
    remember: byId("remember", HTMLInputElement).checked,
  };
}
