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
 * @typedef {{accuracy: number}} Score
 * @typedef {{start: Score | null, refined: Score | null, helped: boolean | null, note: string}} JobOutcome
 *
 * A fine-tuning job.
 *
 * @typedef {object} Job
 * @property {string} id
 * @property {"queued" | "running" | "succeeded" | "failed" | "cancelled"} status
 * @property {{code: string, message: string} | null} error
 * @property {string} training_file
 * @property {string | null} fine_tuned_model
 * @property {string | null} start  the adapter before; null for the base
 * @property {JobOutcome | null} outcome
 *
 * @typedef {{step: number, total_steps: number, train_loss: number, phase: string}} JobStep
 * @typedef {{id: string, level: "info" | "warn" | "error", message: string, data: JobStep | null}} JobEvent
 *
 * The adapter that the page shows.
 *
 * @typedef {object} Shown
 * @property {Adapter} adapter
 * @property {Timings | null} timings  what making it took; null if it was only opened
 * @property {boolean} made  it did not exist before
 * @property {Norms | null} norms  null until they have come
 * @property {ContextUsed | null} auto  what context `auto` does with its texts; null if that is not known
 * @property {Job | null} job  in which a refined one was made; null if that is not known
 * @property {{id: string, factor: number} | null} scaled  it is `factor` times the effect of `id`
 */

export {};
