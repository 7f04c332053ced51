"""The official `openai` client: an adapter made by naming a task, an answer, and a stream.

    python examples/openai_client.py "Give a word that means the opposite of the given word." --ask ancient

The task goes in as the model's name, after `prompt:`, and the service makes its adapter or takes the one it has. Needs
a running service (`make serve`) and `pip install openai`. LLGBM_URL says where the service is, LLGBM_API_KEY holds a
key if it asks for one. With `--model ID` it asks an adapter that exists, here or in another server that reads the same
store.
"""

from __future__ import annotations

import argparse
import os
import sys

from openai import APIConnectionError, OpenAI
from openai.types.chat import ChatCompletionMessageParam


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", nargs="?", help="what the model shall do")
    parser.add_argument("--model", help="an adapter's id or name, or the base's, in place of a task")
    parser.add_argument("--ask", default="ancient", help="what to ask")
    parser.add_argument("--url", default=os.environ.get("LLGBM_URL", "http://127.0.0.1:8000"), help="the server")
    args = parser.parse_args()
    if (args.task is None) == (args.model is None):
        parser.error("give a task or --model")
    model = args.model or f"prompt:{args.task}"

    client = OpenAI(base_url=f"{args.url}/v1", api_key=os.environ.get("LLGBM_API_KEY", "none is needed"))
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": args.ask}]
    try:
        answer = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=64)
    except APIConnectionError:
        print(f"no service at {args.url}; start one with: make serve", file=sys.stderr)
        return 2
    # adapter_id is an addition to OpenAI's answer; a server without it was asked for an adapter by name
    adapter = (answer.model_extra or {}).get("adapter_id") or answer.model
    print(f"adapter   {adapter}")
    print(f"answer    {answer.choices[0].message.content}")

    print("streamed  ", end="")
    stream = client.chat.completions.create(model=adapter, messages=messages, temperature=0, max_tokens=64, stream=True)
    for chunk in stream:
        for choice in chunk.choices:
            print(choice.delta.content or "", end="", flush=True)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
