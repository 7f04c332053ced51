"""The official `openai` client: twelve tickets, a fine-tuning job, its events, and an answer.

    python examples/finetune.py --ask "I was charged twice for my order"

The task's description makes the adapter that training starts from; the tickets do the rest, in a minute or two on
two cores. Needs a running service (`make serve`) and `pip install openai`. LLGBM_URL says where the service is,
LLGBM_API_KEY holds a key if it asks for one. `--examples FILE` takes your own examples as chat JSONL.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from openai import APIConnectionError, OpenAI
from openai.types.chat import ChatCompletionMessageParam

TASK = "Name the team that should answer the ticket: billing, delivery, technical or returns."
TICKETS = [
    ("My invoice shows the wrong amount", "billing"),
    ("The parcel should have come on Monday", "delivery"),
    ("The app closes whenever I open the settings", "technical"),
    ("These shoes are too small, I want to send them back", "returns"),
    ("Why did you take the money twice?", "billing"),
    ("The courier left my box at the wrong house", "delivery"),
    ("I cannot log in since the update", "technical"),
    ("How do I get a label for sending this back?", "returns"),
    ("Please change the card that you charge", "billing"),
    ("Can I have it brought to my office instead?", "delivery"),
    ("The screen stays white after I press pay", "technical"),
    ("It arrived broken and I do not want another one", "returns"),
]


def chat_jsonl(pairs: list[tuple[str, str]]) -> bytes:
    lines = (
        {"messages": [{"role": "user", "content": ticket}, {"role": "assistant", "content": team}]}
        for ticket, team in pairs
    )
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default=TASK, help="what the model shall do")
    parser.add_argument("--examples", type=Path, help="chat JSONL in place of the twelve tickets")
    parser.add_argument("--ask", default="I was charged twice for my order", help="what to ask in the end")
    parser.add_argument("--url", default=os.environ.get("LLGBM_URL", "http://127.0.0.1:8000"), help="the service")
    args = parser.parse_args()

    client = OpenAI(base_url=f"{args.url}/v1", api_key=os.environ.get("LLGBM_API_KEY", "none is needed"))
    content = args.examples.read_bytes() if args.examples else chat_jsonl(TICKETS)
    try:
        file = client.files.create(file=("tickets.jsonl", content), purpose="fine-tune")
    except APIConnectionError:
        print(f"no service at {args.url}; start one with: make serve", file=sys.stderr)
        return 2
    try:
        job = client.fine_tuning.jobs.create(model=f"prompt:{args.task}", training_file=file.id, suffix="tickets")
        print(f"job       {job.id}")
        told: set[str] = set()
        while True:
            job = client.fine_tuning.jobs.retrieve(job.id)
            for event in reversed(client.fine_tuning.jobs.list_events(job.id, limit=100).data):
                if event.id not in told:
                    told.add(event.id)
                    print(f"event     {event.message}")
            if job.status in ("succeeded", "failed", "cancelled"):
                break
            time.sleep(0.5)
    finally:
        client.files.delete(file.id)  # with the examples in it
    if job.fine_tuned_model is None:
        return 1

    print(f"adapter   {job.fine_tuned_model}")
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": args.ask}]
    answer = client.chat.completions.create(model=job.fine_tuned_model, messages=messages, temperature=0, max_tokens=16)
    print(f"answer    {answer.choices[0].message.content}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
