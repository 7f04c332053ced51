/** Puts the page together. */

import { startAccess } from "./base/access.js";
import { startAdapterPanel } from "./adapter/adapter_panel.js";
import { startChat } from "./chat/chat.js";
import { byId } from "./base/dom.js";
import { Library } from "./library/library.js";
import { showProblem } from "./base/problem.js";
import { startReadiness } from "./base/readiness.js";
import { addressedId, open, shown } from "./base/session.js";
import { Refining } from "./refine/refine.js";
import { startTaskForm } from "./task/task_form.js";

startAccess();
startAdapterPanel();
const refining = new Refining();
startTaskForm(refining);
startChat();
const library = new Library();

async function openAddressed() {
  const id = addressedId();
  if (id === null || id === shown.value?.adapter.id) return;
  try {
    await open(id);
  } catch (error) {
    showProblem(byId("library-problem", HTMLElement), error);
  }
}

startReadiness(() => {
  void library.reload().then(openAddressed);
  void refining.resume();
});
addEventListener("hashchange", () => void openAddressed());
