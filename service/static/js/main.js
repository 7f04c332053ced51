/** Puts the page together. */

import { startAccess } from "./access.js";
import { startAdapterPanel } from "./adapter_panel.js";
import { startChat } from "./chat.js";
import { byId } from "./dom.js";
import { Library } from "./library.js";
import { showProblem } from "./problem.js";
import { startReadiness } from "./readiness.js";
import { addressedId, open, shown } from "./session.js";
import { startTaskForm } from "./task_form.js";

startAccess();
startAdapterPanel();
startTaskForm();
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

startReadiness(() => void library.reload().then(openAddressed));
addEventListener("hashchange", () => void openAddressed());
