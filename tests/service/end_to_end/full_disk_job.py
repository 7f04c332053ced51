"""Run by test_full_disk.py in a mount namespace: a fine-tuning job, with its store on a disk that becomes full."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from pathlib import Path
from typing import Any

from service.adapters.files import AdapterFiles
from service.jobs.database import FOLDER
from service.jobs.examples import write_examples
from tests.service.support.forked import tiny_loader
from tests.service.support.harness import make_settings, running


def use_up(ballast: Path) -> None:
    """Write to a file until the disk is full."""
    with ballast.open("ab", buffering=0) as out, contextlib.suppress(OSError):
        while True:
            out.write(b"x" * 4096)


async def fill(disk: Path, models: list[Path]) -> None:
    """Start a job, fill the disk, and check that the job fails; then free space and check that jobs run again."""
    settings = make_settings(disk, base=str(models[0]), refine_threads=1, refine_storage="float32")
    async with running(settings, tiny_loader(*models), seconds=200) as (_, client):  # the machine may be busy
        content = write_examples([(f"ticket {number}", "sales") for number in range(100)])
        form: Any = {"files": {"file": ("a.jsonl", content)}, "data": {"purpose": "fine-tune"}}
        file = (await client.post("/v1/files", **form)).json()["id"]

        async def job(**hyperparameters: int) -> str:
            body = {"model": "llgbm/tiny-random-qwen2", "training_file": file, "hyperparameters": hyperparameters}
            answer = await client.post("/v1/fine_tuning/jobs", json=body)
            assert answer.status_code == 200, answer.text
            return str(answer.json()["id"])

        async def when(identity: str, *statuses: str, step: int = 0) -> dict[str, Any]:
            deadline = time.monotonic() + 200
            while True:
                shown: dict[str, Any] = (await client.get(f"/v1/fine_tuning/jobs/{identity}")).json()
                if shown["status"] in statuses and shown["step"] >= step:
                    return shown
                assert time.monotonic() < deadline, shown
                await asyncio.sleep(0.1)

        first = await job(n_epochs=50, batch_size=1)
        await when(first, "running", step=5)
        ballast = disk / "ballast"
        use_up(ballast)
        failed = await when(first, "failed")
        assert failed["error"]["code"] == "insufficient_storage", failed
        use_up(ballast)  # the space of the failed job is free again
        assert (await client.post("/v1/files", **form)).status_code == 507
        ballast.unlink()
        assert AdapterFiles(disk / "store").records() == []
        assert {path.name for path in (disk / "store" / FOLDER).iterdir()} <= {"jobs.sqlite", "worker.lock"}
        done = await when(await job(n_epochs=1, batch_size=50), "succeeded")
        assert [record.id for record in AdapterFiles(disk / "store").records()] == [done["fine_tuned_model"]]
    sys.stdout.write("failed as it should\n")


if __name__ == "__main__":
    asyncio.run(fill(Path(sys.argv[1]), [Path(path) for path in sys.argv[2:]]))
