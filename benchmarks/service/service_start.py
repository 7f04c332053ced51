"""The start of the service on this machine: times, processor time and memory.

`python -m benchmarks.service.service_start` prints a line of JSON for each start: seconds until the process listens and
until /readyz answers 200, and processor time and resident memory at that moment. The settings are those of the
environment, with a store of its own. The first start of a base fetches it and writes its int8 file; later ones are
starts with warm caches. This is not a part of `make bench`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from benchmarks.measuring.measure import memory_of
from benchmarks.service.servers import free_port

_POLL_SECONDS = 0.1


def start_once(store: Path) -> dict[str, float]:
    """Start the service, wait until it is ready, and stop it.

    Raises:
        RuntimeError: the process has ended before it was ready.
    """
    port = free_port()
    variables = {"LLGBM_PORT": str(port), "LLGBM_STORE_DIR": str(store), "LLGBM_LOG_LEVEL": "warning"}
    begin = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "service"], env=os.environ | variables)
    listening: float | None = None
    try:
        # one client for all polls, because creating one takes more processor time than a poll
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            status = 0
            while status != 200:
                if process.poll() is not None:
                    raise RuntimeError(f"the service ended with status {process.returncode}; its log says why")
                time.sleep(_POLL_SECONDS)
                try:
                    status = client.get("/readyz", timeout=60).status_code
                except httpx.TransportError:  # nothing listens yet, or Python is busy with an import
                    continue
                listening = listening or time.monotonic() - begin
        return {
            "listening_s": round(listening or 0, 1),
            "ready_s": round(time.monotonic() - begin, 1),
            **_used(process),
        }
    finally:
        process.terminate()
        process.wait()


def _used(process: subprocess.Popen[bytes]) -> dict[str, float]:
    """Processor seconds and GB of a process, from /proc."""
    # of the fields after the name in brackets, the 12th and 13th are user and system time
    fields = Path(f"/proc/{process.pid}/stat").read_text("ascii").rpartition(")")[2].split()
    seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    memory = {name: round(gigabytes, 2) for name, gigabytes in memory_of(process.pid)._asdict().items()}
    return {"processor_s": round(seconds, 1)} | memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    with tempfile.TemporaryDirectory() as store:
        for _ in range(parser.parse_args().runs):
            print(json.dumps(start_once(Path(store))), flush=True)


if __name__ == "__main__":
    main()
