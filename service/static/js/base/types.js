/**
 * What the API sends, as far as this page reads it. The schemas are in service/schemas and in openapi.json.
 *
 * @typedef {{input: string, output: string}} Example
 * @typedef {{task_id: string, similarity: number}} NearestTask
 * @typedef {{encode: number, generate: number, store: number, total: number}} Timings  milliseconds
 * @typedef {{adapter: string, weights: string, config: string, archive: string}} Links
 * @typedef {Record<string, (number | null)[]>} Norms  module -> norm of the update in each layer
 *
 * @typedef {object} Adapter
 * @property {string} id
 * @property {string[]} names
 * @property {string} base
 * @property {number} rank
 * @property {number} alpha
 * @property {number} num_parameters
 * @property {number} bytes
 * @property {number} created  seconds since 1970
 * @property {"generated" | "loaded" | "composed" | "refined"} source
 * @property {string[]} prompts
 * @property {Example[]} examples
 * @property {number} scale
 * @property {NearestTask[]} nearest_tasks
 * @property {number | null} confidence
 * @property {number | null} scale_in_context
 * @property {string | null} warning
 * @property {Links} links
 *
 * @typedef {"none" | "description" | "examples"} Context  `examples` is description and examples
 * @typedef {Context | "auto"} ContextWanted
 * @typedef {{context_used: Context, scale: number}} ContextUsed
 * @typedef {Adapter & {timings_ms: Timings, auto: ContextUsed | null}} GeneratedAdapter
 * @typedef {Adapter & {norms: Norms}} AdapterDetail
 * @typedef {{data: Adapter[], has_more: boolean, next: string | null}} AdapterPage
 * @typedef {{prompt?: string, prompts?: string[], examples?: Example[], name?: string, scale?: number}} AdapterWish
 * @typedef {{status: string, reason: string | null, base: string | null, generator: string | null}} Readiness
 * @typedef {{role: "user" | "assistant", content: string}} Message
 * @typedef {{prompt_tokens: number, completion_tokens: number}} Usage
 *
 * The adapter that the page shows.
 *
 * @typedef {object} Shown
 * @property {Adapter} adapter
 * @property {Timings | null} timings  what making it took; null if it was only opened
 * @property {boolean} made  it did not exist before
 * @property {Norms | null} norms  null until they have come
 * @property {ContextUsed | null} auto  what context `auto` does with its texts; null if that is not known
 * @property {{id: string, factor: number} | null} scaled  it is `factor` times the effect of `id`
 */

export {};
