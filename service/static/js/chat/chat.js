/** The chat: a question goes to the plain base, to the base that is told the task and to the adapter, by choice. */

import { isAbort } from "../base/api.js";
import { AnswerView } from "./answer_view.js";
import { complete } from "./completion.js";
import { chosenContext, chosenLanes, laneBox, laneDetail, laneName, offerChoices, questionFor } from "./lanes.js";
import { announce, byId, el, hiddenText } from "../base/dom.js";
import { contextWords } from "../base/format.js";
import { explain, showProblem } from "../base/problem.js";
import { base, lastQuestion, noteStoreChange, shown } from "../base/session.js";

/**
 * @import {Finished} from "./completion.js"
 * @import {Adapter, Context} from "../base/types.js"
 * @import {Turn} from "./conversation.js"
 */

const SPOKEN = 300;
const EMPTY =
  "A question goes to all that are ticked below. The plain base is told nothing of the task. For the adapter, auto " +
  "decides if text of the task stands in the context too. Enter sends, Escape stops.";

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

  /** @param {string} text  what to ask */
  async function ask(text) {
    const now = shown.value;
    const known = base.value;
    const lanes = chosenLanes();
    showProblem(problem, null);
    if (running) return;
    if (now === null || known === null) {
      showProblem(problem, "There is no adapter to ask yet: make one, or choose one from the list.");
      byId("prompt", HTMLElement).focus();
      return;
    }
    if (!lanes.length) {
      showProblem(problem, "Tick who shall answer.");
      laneBox("adapted").focus();
      return;
    }
    if (!text) {
      showProblem(problem, "Write a question first.");
      question.focus();
      return;
    }
    lastQuestion.value = text;
    const { signal } = (running = new AbortController());
    send.textContent = "Stop";
    const options = readOptions();
    const context = chosenContext();
    const earlier = options.remember ? [...turns] : [];
    const seed = Math.floor(Math.random() * 2 ** 31);
    /** @type {Turn["views"]} */
    const views = {};
    const answers = lanes.map((lane) => {
      const view = (views[lane] = new AnswerView(laneName(lane, now), laneDetail(lane, now), lane));
      return { lane, view, asked: questionFor(lane, now, known, context, earlier, text) };
    });
    turns.push({ question: text, views });
    addTurn(text, answers);
    const spoken = await Promise.all(
      answers.map(async ({ lane, view, asked }) => {
        const answer = complete(asked, { ...options, seed }, signal, (piece) => {
          view.append(piece);
          follow();
        });
        // the service knows nothing of text that this page put into the messages
        const told = asked.context === undefined && context !== "auto" ? context : null;
        return `${laneName(lane, now)}: ${await finish(view, answer, asked.context === "auto", told, now.adapter)}`;
      }),
    );
    follow();
    running = null;
    send.textContent = "Send";
    announce(signal.aborted ? "Stopped" : spoken.join(". "));
  }

  function askTyped() {
    const text = question.value.trim();
    void ask(text);
    if (running) question.value = "";
  }

  /** @param {string} text @param {{view: AnswerView}[]} answers */
  function addTurn(text, answers) {
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
        el("div", { class: "answers" }, ...answers.map(({ view }) => view.element)),
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
  shown.watch(offerChoices);
  reset();
}

/**
 * Bring an answer to its end in the log, whatever that is.
 *
 * @param {AnswerView} view
 * @param {Promise<Finished>} answer
 * @param {boolean} auto  whether the service chooses context and scale
 * @param {Context | null} told  the text of the task that is in the messages; null where the service decides
 * @param {Adapter} adapter  that is shown
 * @returns {Promise<string>} what to read out
 */
async function finish(view, answer, auto, told, adapter) {
  try {
    const result = await answer;
    const used = result.scale === null ? null : contextWords(told ?? result.context, result.scale, adapter);
    view.finish(result, used && auto ? `auto: ${used}` : used);
    // auto may have made the adapter at another scale
    if (result.adapterId !== null && result.adapterId !== adapter.id && auto) noteStoreChange();
    return result.text.slice(0, SPOKEN);
  } catch (error) {
    if (isAbort(error)) view.stopped();
    else view.fail(error);
    return isAbort(error) ? "stopped" : explain(error);
  }
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
    remember: byId("remember", HTMLInputElement).checked,
  };
}
