/** Small helpers around the DOM. Text always goes in as text nodes: nothing here or elsewhere parses HTML. */

/**
 * The element of the page with this id.
 *
 * @template {Element} T
 * @param {string} id
 * @param {{new (): T}} type
 * @returns {T}
 */
export function byId(id, type) {
  const found = document.getElementById(id);
  if (!(found instanceof type)) throw new Error(`the page has no ${type.name} with the id ${id}`);
  return found;
}

/**
 * A new element. Properties are attributes; `true` gives an empty one, `false` and `null` none. Names that start with
 * `on` are listeners, with `--` CSS variables.
 *
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Record<string, string | number | boolean | null | ((event: any) => void)>} [properties]
 * @param {...(Node | string | null)} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) element.style.setProperty(name, String(value));
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null) element.setAttribute(name, String(value));
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/**
 * Text that only screen readers get.
 *
 * @param {string} text
 */
export function hiddenText(text) {
  return el("span", { class: "visually-hidden" }, text);
}

/**
 * Tell screen readers something that happened, without moving the focus.
 *
 * @param {string} text
 */
export function announce(text) {
  const region = byId("announcer", HTMLElement);
  // the same text twice is two pieces of news, so the node is replaced in any case
  region.replaceChildren(document.createTextNode(text));
}

/**
 * Bring a part of the page into view, without an animation for those who want none.
 *
 * @param {Element} element
 */
export function reveal(element) {
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  element.scrollIntoView({ behavior: still ? "auto" : "smooth", block: "start" });
}

/**
 * Put text on the clipboard.
 *
 * @param {string} text
 * @returns {Promise<boolean>} whether it is there
 */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // over plain HTTP from another machine there is no clipboard API
    return copyBySelection(text);
  }
}

/** @param {string} text */
function copyBySelection(text) {
  const focused = document.activeElement;
  const area = el("textarea", { class: "visually-hidden", readonly: true });
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (focused instanceof HTMLElement) focused.focus();
  return done;
}

/**
 * A button that copies what `text` gives, and says so.
 *
 * @param {string} label
 * @param {() => string} text
 */
export function copyButton(label, text) {
  const button = el("button", { type: "button", class: "plain copy", "aria-label": label }, "Copy");
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
  button.addEventListener("click", async () => {
    const done = await copy(text());
    button.textContent = done ? "Copied" : "Not copied";
    announce(done ? "Copied" : "The browser does not allow copying; select the text instead");
    clearTimeout(timer);
    timer = setTimeout(() => (button.textContent = "Copy"), 1600);
  });
  return button;
}
