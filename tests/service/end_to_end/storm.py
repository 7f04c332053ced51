"""Streams over many adapters; a third of the clients disconnect at random."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable

import httpx


async def storm(url: str, *, streams: int, adapters: int, go_on: Callable[[int], bool], seed: int = 5) -> Counter[str]:
    """Run `streams` clients at once. Each sends one request after the other while `go_on(its requests so far)`.

    Returns:
        Number of streams that were `finished` and `left`, and of other events by their description.
    """
    randomness = random.Random(seed)
    outcomes: Counter[str] = Counter()

    async def client(http: httpx.AsyncClient) -> None:
        done = 0
        while go_on(done):
            done += 1
            try:
                outcomes[await _stream(http, f"{url}/v1/chat/completions", adapters, randomness)] += 1
            except httpx.HTTPError as error:
                outcomes[type(error).__name__] += 1

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=120, limits=limits) as http:
        await asyncio.gather(*(client(http) for _ in range(streams)))
    return outcomes


async def _stream(http: httpx.AsyncClient, url: str, adapters: int, randomness: random.Random) -> str:
    body = {
        "model": f"prompt:task number {randomness.randrange(adapters)}",
        "messages": [{"role": "user", "content": "x" * randomness.randrange(1, 40)}],
        "max_tokens": randomness.randrange(1, 24),
        "stream": True,
    }
    leaves_after = randomness.randrange(1, 8) if randomness.random() < 1 / 3 else None
    async with http.stream("POST", url, json=body) as answer:
        if answer.status_code != 200:
            return f"status {answer.status_code}"
        lines, last = 0, ""
        async for line in answer.aiter_lines():
            if '"error"' in line:
                return "an error in the stream"
            lines += 1
            last = line or last
            if lines == leaves_after:
                return "left"
        return "finished" if last == "data: [DONE]" else "cut off"
