"""Make an adapter from a prompt, download it, load it with PEFT, and compare PEFT's answer with the service's.

    python examples/generate_and_load_with_peft.py "Translate the English word to French." --query cheese

Needs a running service (`make serve`). LLGBM_URL says where it is, LLGBM_API_KEY holds a key if it asks for one. Exits
with 1 if the two answers differ.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import httpx
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from llgbm.pretrained.find import resolve_pretrained


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt", help="what the adapter shall do")
    parser.add_argument("--query", default="cheese", help="what to ask both")
    parser.add_argument("--url", default=os.environ.get("LLGBM_URL", "http://127.0.0.1:8000"), help="the service")
    parser.add_argument("--max-tokens", type=int, default=16)
    args = parser.parse_args()

    headers = {"Authorization": f"Bearer {key}"} if (key := os.environ.get("LLGBM_API_KEY")) else {}
    with httpx.Client(base_url=args.url, headers=headers, timeout=120) as client:
        try:
            made = client.post("/generate-adapter", json={"prompt": args.prompt})
        except httpx.ConnectError:
            print(f"no service at {args.url}; start one with: make serve", file=sys.stderr)
            return 2
        made.raise_for_status()
        adapter = made.json()
        print(f"adapter   {adapter['id']}: rank {adapter['rank']}, {adapter['num_parameters']:,} parameters")
        archive = client.get(adapter["links"]["archive"])
        archive.raise_for_status()
        chat = client.post(
            "/chat", json={"adapter_id": adapter["id"], "query": args.query, "max_tokens": args.max_tokens}
        )
        chat.raise_for_status()
        served = chat.json()["answer"]

    with tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(io.BytesIO(archive.content)).extractall(folder)
        config = next(Path(folder).rglob("adapter_config.json"))
        base = resolve_pretrained(adapter["base"])
        tokenizer = AutoTokenizer.from_pretrained(base)
        model = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(config.parent)
        ).eval()
        prompt: Any = tokenizer.apply_chat_template(
            [{"role": "user", "content": args.query}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        with torch.inference_mode():
            ids = model.generate(**prompt, max_new_tokens=args.max_tokens, do_sample=False)
        loaded = tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)

    print(f"/chat     {served!r}")
    print(f"PEFT      {loaded!r}")
    print("the same answer" if served == loaded else "the answers differ")
    return 0 if served == loaded else 1


if __name__ == "__main__":
    sys.exit(main())
