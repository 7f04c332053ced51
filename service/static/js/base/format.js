/** Numbers and times as short text. */

/** @param {number} bytes */
export function size(bytes) {
  if (bytes < 1000) return `${bytes} B`;
  const units = ["kB", "MB", "GB"];
  let value = bytes / 1000;
  let unit = 0;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${value < 9.95 ? value.toFixed(1) : value.toFixed(0)} ${units[unit]}`;
}

/** @param {number} count */
export function amount(count) {
  if (count < 1000) return `${count}`;
  if (count < 999_500) return `${(count / 1000).toFixed(count < 99_950 ? 1 : 0)} k`;
  return `${(count / 1e6).toFixed(count < 99.95e6 ? 1 : 0)} M`;
}

/** @param {number} milliseconds */
export function duration(milliseconds) {
  if (milliseconds < 9.95) return `${milliseconds.toFixed(1)} ms`;
  if (milliseconds < 9950) return `${milliseconds.toFixed(0)} ms`;
  return `${(milliseconds / 1000).toFixed(1)} s`;
}

/** @param {number} perSecond */
export function rate(perSecond) {
  return perSecond.toFixed(perSecond < 99.5 ? 1 : 0);
}

/**
 * Three significant digits.
 *
 * @param {number} value
 */
export function short(value) {
  if (value === 0) return "0";
  const magnitude = Math.abs(value);
  return magnitude >= 1e-3 && magnitude < 1e5 ? String(Number(value.toPrecision(3))) : value.toExponential(1);
}

/** @param {number} scale */
export function factor(scale) {
  return `×${String(Number(scale.toFixed(2))).replace("-", "−")}`;
}

/**
 * What stood in the context, and the adapter's scale there.
 *
 * @param {import("./types.js").Context} context
 * @param {number} scale
 * @param {import("./types.js").Adapter} adapter  whose task it is
 */
export function contextWords(context, scale, adapter) {
  const described = adapter.prompts.length ? "description and examples" : "examples";
  const text = { none: "no text of the task", description: "description as text", examples: `${described} as text` }[context];
  return `${text}, ${scale === 0 ? "without the adapter" : `adapter ${factor(scale)}`}`;
}

/**
 * A message of the service as a sentence: it begins with a capital and ends with a stop.
 *
 * @param {string} text
 */
export function sentence(text) {
  const start = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(start) ? start : `${start}.`;
}

/**
 * How long ago a time is.
 *
 * @param {number} seconds  since 1970
 */
export function ago(seconds) {
  const passed = Math.max(0, Date.now() / 1000 - seconds);
  if (passed < 60) return "just now";
  if (passed < 3600) return `${Math.floor(passed / 60)} min ago`;
  if (passed < 86400) return `${Math.floor(passed / 3600)} h ago`;
  return new Date(seconds * 1000).toLocaleDateString("en", { day: "numeric", month: "short", year: "numeric" });
}

/**
 * What to call an adapter: its name, else the task, else where it comes from.
 *
 * @param {import("./types.js").Adapter} adapter
 */
export function title(adapter) {
  const example = adapter.examples[0];
  return (
    adapter.names[0] ??
    adapter.prompts[0] ??
    (example
      ? `${example.input} → ${example.output}`
      : { composed: "Combination", refined: "Refined adapter" }[adapter.source] ?? "Loaded adapter")
  );
}

/**
 * The scale of the adapter's effect.
 *
 * @param {import("./types.js").Shown} now
 */
export function scaleOf({ adapter, scaled }) {
  return adapter.source === "generated" ? adapter.scale : (scaled?.factor ?? 1);
}
