/** Links to the adapter's files. With a key they are fetched first, since a link cannot carry a header. */

import { address, apiKey, call } from "../base/api.js";
import { announce, el } from "../base/dom.js";
import { size } from "../base/format.js";
import { showProblem } from "../base/problem.js";

/**
 * @import {Adapter} from "../base/types.js"
 */

/** @param {Adapter} adapter */
export function downloads(adapter) {
  const problem = el("div", { class: "problem", role: "alert", hidden: true });
  const files = [
    { path: `/adapters/${adapter.id}/adapter_model.safetensors`, name: "adapter_model.safetensors", label: "safetensors" },
    { path: `/adapters/${adapter.id}/archive`, name: `${adapter.id}.zip`, label: "PEFT folder, zip" },
  ];
  return el(
    "div",
    {},
    el(
      "p",
      { class: "downloads" },
      ...files.map(({ path, name, label }) =>
        el(
          "a",
          {
            class: "button",
            href: address(path),
            download: name,
            onclick: (/** @type {MouseEvent} */ event) => {
              if (!apiKey()) return;
              event.preventDefault();
              void save(path, name).catch((error) => showProblem(problem, error));
            },
          },
          "↓ ",
          label,
        ),
      ),
      el("span", { class: "hint" }, size(adapter.bytes)),
    ),
    problem,
  );
}

/**
 * @param {string} path
 * @param {string} name
 */
async function save(path, name) {
  announce(`Downloading ${name}`);
  const response = await call(path);
  const local = URL.createObjectURL(await response.blob());
  const link = el("a", { href: local, download: name });
  link.click();
  // the browser has taken hold of the content once the click has been handled
  setTimeout(() => URL.revokeObjectURL(local), 10_000);
}
