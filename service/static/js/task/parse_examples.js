/** Reads examples out of pasted text or a file: CSV, JSONL, or two columns of a spreadsheet. */

/**
 * @import {Example} from "../base/types.js"
 *
 * @typedef {{line: number, cells: string[]}} Row
 */

const DELIMITERS = ["\t", ",", ";"];
const INPUTS = new Set(["input", "question", "prompt", "query", "text", "user", "source"]);
const OUTPUTS = new Set(["output", "answer", "completion", "response", "label", "assistant", "target"]);
const FIELDS = new Set(["messages", ...INPUTS, ...OUTPUTS]);

/**
 * Whether pasted text is meant as examples and not as the text of the field it goes into: it has several lines or
 * columns, or it is one object with the fields of an example.
 *
 * @param {string} text
 * @param {boolean} isOutput  the field is an output, which is often JSON itself
 */
export function holdsExamples(text, isOutput) {
  const content = text.trim();
  if (/[\t\n]/.test(content)) return true;
  if (isOutput || !content.startsWith("{")) return false;
  try {
    return Object.keys(JSON.parse(content)).some((name) => FIELDS.has(name.toLowerCase()));
  } catch {
    return false;
  }
}

/**
 * @param {string} text
 * @returns {Example[]} at least one
 * @throws {RangeError} what is wrong, with the number of the line
 */
export function parseExamples(text) {
  const content = text.replace(/^\uFEFF/, "");
  const examples = /^\s*\{/.test(content) ? fromJsonLines(content) : fromTable(content);
  if (!examples.length) throw new RangeError("There is no example in it.");
  return examples;
}

/** @param {string} text */
function fromJsonLines(text) {
  const examples = [];
  for (const [index, content] of text.split(/\r?\n/).entries()) {
    if (!content.trim()) continue;
    const line = index + 1;
    let value;
    try {
      value = JSON.parse(content);
    } catch {
      throw new RangeError(`Line ${line} is not JSON; each line is one object.`);
    }
    examples.push(checked(line, ...(Array.isArray(value?.messages) ? ofMessages(line, value.messages) : ofFields(line, value))));
  }
  return examples;
}

/**
 * @param {number} line
 * @param {any[]} messages
 * @returns {[string, string]}
 */
function ofMessages(line, messages) {
  const [given, wanted] = messages;
  const pair = messages.length === 2 && given?.role === "user" && wanted?.role === "assistant";
  if (!pair || typeof given.content !== "string" || typeof wanted.content !== "string") {
    throw new RangeError(`Line ${line}: its messages are not one of the user and one of the assistant, with text.`);
  }
  return [given.content, wanted.content];
}

/**
 * @param {number} line
 * @param {any} value
 * @returns {[string, string]}
 */
function ofFields(line, value) {
  const names = Object.keys(value ?? {});
  const given = value?.[names.find((name) => INPUTS.has(name.toLowerCase())) ?? ""];
  const wanted = value?.[names.find((name) => OUTPUTS.has(name.toLowerCase())) ?? ""];
  if (given === undefined || wanted === undefined) {
    throw new RangeError(`Line ${line} has no "input" and "output", and no "messages".`);
  }
  // an output that is JSON itself is meant as its text
  return [asText(given), asText(wanted)];
}

/** @param {unknown} value */
function asText(value) {
  return typeof value === "string" ? value : JSON.stringify(value);
}

/** @param {string} text */
function fromTable(text) {
  const tables = DELIMITERS.filter((delimiter) => text.includes(delimiter)).map((delimiter) => readTable(text, delimiter));
  const table = tables.find((rows) => rows.every(({ cells }) => cells.length === 2)) ?? tables.find(headerOf) ?? tables[0];
  if (table === undefined) {
    throw new RangeError("An example needs two columns, with a tab, a comma or a semicolon between them.");
  }
  const header = headerOf(table);
  const [left, right] = header ?? [0, 1];
  return table.slice(header ? 1 : 0).map(({ line, cells }) => {
    if (header === undefined && cells.length !== 2) {
      throw new RangeError(
        `Line ${line} has ${cells.length} column${cells.length === 1 ? "" : "s"}, and an example has two. ` +
          'A text with a comma in it stands in "quotes".',
      );
    }
    return checked(line, cells[left] ?? "", cells[right] ?? "");
  });
}

/**
 * The places of both columns by their names in the first row; undefined without such names.
 *
 * @param {Row[]} rows
 * @returns {[number, number] | undefined}
 */
function headerOf(rows) {
  const names = rows[0]?.cells.map((cell) => cell.trim().toLowerCase()) ?? [];
  const given = names.findIndex((name) => INPUTS.has(name));
  const wanted = names.findIndex((name) => OUTPUTS.has(name));
  return given >= 0 && wanted >= 0 ? [given, wanted] : undefined;
}

/**
 * The rows of RFC 4180, without the empty ones.
 *
 * @param {string} text
 * @param {string} delimiter
 * @returns {Row[]}
 */
function readTable(text, delimiter) {
  /** @type {Row[]} */
  const rows = [];
  let line = 1;
  let row = { line, cells: [""] };
  let quoted = false;
  const end = () => {
    if (row.cells.some((cell) => cell.trim())) rows.push(row);
    row = { line, cells: [""] };
  };
  /** @param {string} piece */
  const put = (piece) => (row.cells[row.cells.length - 1] += piece);
  for (let place = 0; place < text.length; place += 1) {
    const character = text.charAt(place);
    if (character === "\n") line += 1;
    if (quoted) {
      if (character !== '"') put(character);
      else if (text[place + 1] === '"') put(text.charAt((place += 1)));
      else quoted = false;
    } else if (character === '"' && row.cells.at(-1) === "") quoted = true;
    else if (character === delimiter) row.cells.push("");
    else if (character === "\n") end();
    else if (character !== "\r") put(character);
  }
  if (quoted) throw new RangeError(`Line ${row.line} has a quotation mark that is never closed.`);
  end();
  return rows;
}

/**
 * @param {number} line
 * @param {string} given
 * @param {string} wanted
 * @returns {Example}
 */
function checked(line, given, wanted) {
  const [input, output] = [given.trim(), wanted.trim()];
  if (!input || !output) throw new RangeError(`Line ${line}: its ${input ? "output" : "input"} is empty.`);
  return { input, output };
}
