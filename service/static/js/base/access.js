/** The API key: a dialog that opens when the service asks for one. The key stays in sessionStorage. */

import { apiKey, onKeyWanted, setApiKey } from "./api.js";
import { announce, byId } from "./dom.js";
import { sentence } from "./format.js";

/** What a header can carry; the service's keys are text of one line. */
const KEY = /^[\x20-\x7e]*$/;

/** Requests that are refused together open one dialog. @type {Promise<boolean> | null} */
let asking = null;

export function startAccess() {
  const dialog = byId("key-dialog", HTMLDialogElement);
  const field = byId("key", HTMLInputElement);
  const button = byId("key-button", HTMLButtonElement);

  /**
   * @param {string} reason
   * @returns {Promise<boolean>} whether there is a new key to try
   */
  function ask(reason) {
    button.hidden = false;
    byId("key-reason", HTMLElement).textContent = sentence(reason);
    field.value = apiKey();
    dialog.returnValue = "";
    dialog.showModal();
    field.focus();
    field.select();
    return new Promise((resolve) => {
      dialog.addEventListener("close", () => resolve(dialog.returnValue === "use" && takeKey()), { once: true });
    });
  }

  /** @returns {boolean | Promise<boolean>} */
  function takeKey() {
    const given = field.value.trim();
    field.value = "";
    if (!KEY.test(given)) return ask("a key has no characters beyond ASCII, and what was given has; copy it again");
    setApiKey(given);
    return given !== "";
  }

  onKeyWanted((reason) => {
    asking ??= ask(reason).finally(() => (asking = null));
    return asking;
  });

  button.hidden = !apiKey();
  button.addEventListener("click", () => void ask("Requests from this page are sent with this key"));
  byId("key-cancel", HTMLButtonElement).addEventListener("click", () => dialog.close("cancel"));
  byId("key-forget", HTMLButtonElement).addEventListener("click", () => {
    setApiKey("");
    announce("The key is forgotten");
    dialog.close("cancel");
  });
}
