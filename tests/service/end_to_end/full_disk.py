"""Run by test_full_disk.py in a mount namespace: the service, with its store and cache on a disk that becomes full."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.service.adapters.test_store_crashes import whole
from tests.service.support.forked import tiny_loader
from tests.service.support.harness import make_settings, running


async def fill(disk: Path, models: list[Path]) -> None:
    """Make adapters until the disk is full, try some more, then free space."""
    async with running(make_settings(disk), tiny_loader(*models)) as (_, client):
        made: list[str] = []
        while True:
            answer = await client.post("/generate-adapter", json={"prompt": f"task {len(made)}"})
            if answer.status_code != 201:
                break
            made.append(answer.json()["id"])
        for number in range(20):
            answer = await client.post("/generate-adapter", json={"prompt": f"task {len(made)} or {number}"})
            assert answer.status_code == 507, answer.text
            assert answer.json()["error"]["code"] == "insufficient_storage"
        assert str(disk) not in answer.text
        assert len(made) > 4
        for identity in made:
            chat = await client.post("/chat", json={"adapter_id": identity, "query": "x", "max_tokens": 2})
            assert chat.status_code == 200, chat.text
            assert (await client.get(f"/adapters/{identity}/archive")).status_code == 200
        assert whole(disk / "store") == set(made)
        for identity in made[:2]:
            assert (await client.delete(f"/adapters/{identity}")).status_code == 200
        again = await client.post("/generate-adapter", json={"prompt": "task 0"})
        assert (again.status_code, again.json()["id"]) == (201, made[0])
        assert whole(disk / "store") == {made[0], *made[2:]}
    sys.stdout.write(f"full after {len(made)} adapters\n")


if __name__ == "__main__":
    asyncio.run(fill(Path(sys.argv[1]), [Path(path) for path in sys.argv[2:]]))
