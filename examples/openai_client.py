"""The official `openai` client: an adapter made from a system message or by naming a task, an answer, and a stream.

    python examples/openai_client.py --system "You are the help desk of Nordwind Airlines. Answer with the name of the \
desk: baggage, booking or refunds." --ask "My suitcase did not arrive."
    python examples/openai_client.py "Give a word that means the opposite of the given word." --ask ancient

With `--system` the model is `auto`, and the service makes the adapter for the system message or takes the one it has. A
task in place of it goes in as the model's name, after `prompt:`. Needs a running service (`make serve`) and
`pip install openai`. LLGBM_URL says where the service is, LLGBM_API_KEY holds a key if it asks for one. With
`--model ID` it asks an adapter that exists, here or in another server that reads the same store.
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
    parser.add_argument("--system", help="a system message in place of a task")
    parser.add_argument("--model", help="an adapter's id or name, or the base's, in place of a task")
    parser.add_argument("--ask", default="ancient", help="what to ask")
    parser.add_argument("--url", default=os.environ.get("LLGBM_URL", "http://127.0.0.1:8000"), help="the server")
    args = parser.parse_args()
    if sum(given is not None for given in (args.task, args.system, args.model)) != 1:
        parser.error("give a task, --system or --model")
    model = args.model or (f"prompt:{args.task}" if args.task else "auto")

    client = OpenAI(base_url=f"{args.url}/v1", api_key=os.environ.get("LLGBM_API_KEY", "none is needed"))
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": args.ask}]
    if args.system is not None:
        messages.insert(0, {"role": "system", "content": args.system})
    try:
        answer = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=64)
    except APIConnectionError:
        print(f"no service at {args.url}; start one with: make serve", file=sys.stderr)
        return 2
    # additions to OpenAI's answer; a server without them was asked for an adapter by name
    more = answer.model_extra or {}
    print(f"adapter   {more.get('adapter_id') or answer.model}")
    if "context_used" in more:
        print(f"context   {more['context_used']}")
    print(f"answer    {answer.choices[0].message.content}")

    print("streamed  ", end="")
    stream = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=64, stream=True)
    for chunk in stream:
        for choice in chunk.choices:
            print(choice.delta.content or "", end="", flush=True)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
