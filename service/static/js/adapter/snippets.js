/** The code that uses an adapter elsewhere, ready to be copied. */

import { address, apiKey } from "../base/api.js";
import { isTask, taskQuestion } from "../base/task.js";

/**
 * @import {Adapter, Message} from "../base/types.js"
 *
 * @typedef {{adapter: Adapter, question: string}} Subject
 * @typedef {{id: string, label: string, text: (subject: Subject) => string}} Snippet
 */

const VLLM_RANKS = [8, 16, 32, 64, 128, 256, 320, 512];
const TOKENS = 64;

/** @type {Snippet[]} */
export const SNIPPETS = [
  { id: "curl", label: "curl", text: curl },
  { id: "openai", label: "openai", text: openai },
  { id: "peft", label: "PEFT", text: peft },
  { id: "vllm", label: "vLLM", text: vllm },
  { id: "lorax", label: "LoRAX", text: lorax },
];

/**
 * A word of a POSIX shell.
 *
 * @param {string} text
 */
function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** A JSON string is a string literal of Python too. @param {unknown} value */
const literal = (value) => JSON.stringify(value);

/** @param {unknown} value */
const body = (value) => quoted(JSON.stringify(value, null, 2));

/** The header with the key, by the name of a variable: the key itself stays out of what is copied. */
const keyHeader = () => (apiKey() ? ' \\\n  -H "Authorization: Bearer $LLGBM_API_KEY"' : "");

/** @param {string} question @returns {Message[]} */
const userTurn = (question) => [{ role: "user", content: question }];

/**
 * The question to another server, which knows nothing but the adapter.
 *
 * @param {Subject} subject
 * @param {string} [model]
 */
function completion({ adapter, question }, model = adapter.id) {
  return { model, messages: userTurn(question), max_tokens: TOKENS, temperature: 0 };
}

/**
 * The question to this service, which chooses the best context if it has made the adapter for a task.
 *
 * @param {Subject} subject
 */
function here({ adapter, question }) {
  return isTask(adapter) ? taskQuestion(adapter, userTurn(question)) : { model: adapter.id, messages: userTurn(question) };
}

/** @param {Adapter} adapter */
function fetched(adapter) {
  const zip = `${adapter.id}.zip`;
  return `curl -s -o ${zip} ${quoted(address(`/adapters/${adapter.id}/archive`))}${keyHeader()}\nunzip -q ${zip}`;
}

/** @param {Subject} subject */
function curl(subject) {
  const { adapter } = subject;
  const json = "  -H 'Content-Type: application/json'";
  const request = { ...here(subject), max_tokens: TOKENS, temperature: 0 };
  const use = `curl -s ${quoted(address("/v1/chat/completions"))} \\\n${json}${keyHeader()} \\\n  -d ${body(request)}\n`;
  if (adapter.source !== "generated") return use;
  const { prompts, examples, scale } = adapter;
  const wish = {
    ...(prompts.length === 1 ? { prompt: prompts[0] } : prompts.length ? { prompts } : {}),
    ...(examples.length && { examples }),
    ...(scale !== 1 && { scale }),
  };
  const made = `curl -s ${quoted(address("/generate-adapter"))} \\\n${json}${keyHeader()} \\\n  -d ${body(wish)}\n`;
  return `# make it: the same request always gives the same id\n${made}\n# use it\n${use}`;
}

/** @param {Subject} subject */
function openai(subject) {
  const { model, messages, ...more } = here(subject);
  const key = apiKey() ? 'os.environ["LLGBM_API_KEY"]' : '"not needed"';
  return `${apiKey() ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url=${literal(address("/v1"))}, api_key=${key})
answer = client.chat.completions.create(
    model=${literal(model)},
    messages=${literal(messages)},
    max_tokens=${TOKENS},
    temperature=0,${"examples" in more ? `\n    extra_body=${literal(more)},` : ""}
)
print(answer.choices[0].message.content)
`;
}

/** @param {Subject} subject */
function peft({ adapter, question }) {
  return `# ${fetched(adapter).replaceAll("\n", "\n# ")}

from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = ${literal(adapter.base)}
tokenizer = AutoTokenizer.from_pretrained(base)
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), ${literal(adapter.id)})

messages = [{"role": "user", "content": ${literal(question)}}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
)
output = model.generate(**inputs, max_new_tokens=${TOKENS}, do_sample=False)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
`;
}

/** @param {Subject} subject */
function vllm(subject) {
  const { adapter } = subject;
  const rank = VLLM_RANKS.find((allowed) => allowed >= adapter.rank) ?? adapter.rank;
  return `${fetched(adapter)}

vllm serve ${quoted(adapter.base)} --enable-lora --max-lora-rank ${rank} \\
  --lora-modules ${adapter.id}=./${adapter.id}

# in another shell
curl -s http://localhost:8000/v1/chat/completions \\
  -H 'Content-Type: application/json' \\
  -d ${body(completion(subject))}
`;
}

/** @param {Subject} subject */
function lorax(subject) {
  const { adapter } = subject;
  const asked = { ...completion(subject, `/data/${adapter.id}`), adapter_source: "local" };
  return `mkdir -p adapters && cd adapters
${fetched(adapter)}

docker run --gpus all --shm-size 1g -p 8080:80 -v "$PWD:/data" \\
  ghcr.io/predibase/lorax:main --model-id ${quoted(adapter.base)}

# in another shell
curl -s http://localhost:8080/v1/chat/completions \\
  -H 'Content-Type: application/json' \\
  -d ${body(asked)}
`;
}
