"""Serve with two replicas on Ray Serve, put load on them, kill one in the middle, and count the requests that failed.

    python -m examples.serve_lose_a_replica

Serve's HAProxy stands in front and sends a request again whose replica was lost before it answered. The client does
what the openai client does by itself: it sends a request again that got no answer in time; how often is printed too.
The LLGBM_* variables choose the models, the store and the Redis, as for every replica. Prints one line of JSON, and
exits with 1 if a request failed. Needs `pip install -e '.[ray]'`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import ray
import yaml

SERVE = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    # The default is conn-failure alone. An answer that has not begun may be made again: making an adapter twice gives
    # one adapter, and a chat changes nothing. HAProxy can send again only what it has whole, which is what the second
    # line is for; Serve has no variable for it, and writes this one into HAProxy's configuration as it is.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response response-timeout\n    option http-buffer-request",
    "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": "30",  # the default is none; more than the longest silence of an answer
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",  # for a quick end
    "RAY_USAGE_STATS_ENABLED": "0",
    "LLGBM_RAY_MIN_REPLICAS": "2",
    "LLGBM_RAY_MAX_REPLICAS": "2",
}
WORKERS = 8
CLIENT_SECONDS = 100  # more than HAProxy takes to try both replicas
TRIES = 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=60, help="adapters to make, each with a chat after it")
    parser.add_argument("--seconds", type=float, default=300, help="how long the replicas may take to load")
    args = parser.parse_args()
    with served(args.seconds) as (url, metrics_url):
        ray.init("auto", namespace="serve", log_to_driver=False, logging_level=logging.ERROR)
        try:
            found = asyncio.run(under_load(url, args.adapters))
        finally:
            ray.shutdown()
        found["retried_by_the_proxy"] = retries(metrics_url)
    print(json.dumps(found))
    return 0 if found["failed"] == 0 else 1


@contextmanager
def served(seconds: float) -> Iterator[tuple[str, str]]:
    """`serve run` until the block ends; the addresses of the service and of the proxy's metrics."""
    ports = free_ports(2)
    environment = {**os.environ, **SERVE, "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports[1])}
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "serve.yaml"
        # what `serve run service.ray_app:app` does, on a port that is free
        application = {"name": "llgbm", "route_prefix": "/", "import_path": "service.ray_app:app"}
        http = {"host": "127.0.0.1", "port": ports[0]}
        config.write_text(yaml.safe_dump({"http_options": http, "applications": [application]}))
        log = Path(folder) / "serve.log"
        with log.open("wb") as output:
            command = [str(Path(sys.executable).with_name("serve")), "run", str(config)]
            process = subprocess.Popen(
                command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            url = f"http://127.0.0.1:{ports[0]}"
            metrics_url = f"http://127.0.0.1:{ports[1]}/metrics"
            wait_until_up(metrics_url, process, log, seconds)
            yield url, metrics_url
        finally:
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(60)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and what Ray has started
            process.wait()


def wait_until_up(metrics_url: str, process: subprocess.Popen[bytes], log: Path, seconds: float) -> None:
    """Wait until HAProxy itself has both replicas; before that, requests take a way without retries."""
    up = re.compile(r'^haproxy_server_status\{[^}]*server="SERVE_REPLICA[^}]*state="UP"\} 1$', re.M)
    deadline = time.monotonic() + seconds
    while True:
        try:
            if len(up.findall(httpx.get(metrics_url, timeout=5).text)) == 2:
                return
        except httpx.HTTPError:
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"serve run did not come up:\n{log.read_text()[-6000:]}")
        time.sleep(0.2)


async def under_load(url: str, adapters: int) -> dict[str, Any]:
    """Make adapters and chat with each; kill a replica when a third is done."""
    statuses: Counter[str] = Counter()
    todo = list(range(adapters))
    before, killed, resent = replicas(), list[str](), list[str]()

    async def send(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> Any:
        for left in reversed(range(TRIES)):
            try:
                answer = await client.post(path, json=body)
            except httpx.HTTPError as error:
                if left:
                    resent.append(type(error).__name__)
                else:
                    statuses[type(error).__name__] += 1
            else:
                statuses[str(answer.status_code)] += 1
                return answer.json() if answer.is_success else None
        return None

    async def work(client: httpx.AsyncClient) -> None:
        while todo:
            number = todo.pop(0)
            if not killed and len(todo) <= 2 * adapters // 3:
                killed.append(before[0])
                ray.kill(ray.get_actor(before[0]))
            made = await send(client, "/generate-adapter", {"prompt": f"Answer with the number {number}."})
            if made is not None:
                await send(client, "/chat", {"adapter_id": made["id"], "query": "cheese", "max_tokens": 4})

    began = time.monotonic()
    # a connection for each request: HAProxy closes idle ones when replicas come and go
    limits = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, timeout=CLIENT_SECONDS, limits=limits) as client:
        await asyncio.gather(*(work(client) for _ in range(WORKERS)))
    return {
        "requests": statuses.total(),
        "failed": statuses.total() - statuses["200"] - statuses["201"],
        "statuses": dict(statuses),
        "replicas": len(before),
        "killed": len(killed),
        "resent_by_the_client": resent,
        "seconds": round(time.monotonic() - began, 1),
    }


def replicas() -> list[str]:
    """Names of the replicas' actors."""
    return sorted(name for name in ray.util.list_named_actors() if name.startswith("SERVE_REPLICA::"))


def retries(metrics_url: str) -> int:
    """Requests that HAProxy has sent again."""
    text = httpx.get(metrics_url, timeout=10).text
    return sum(int(float(n)) for n in re.findall(r"^haproxy_backend_retry_warnings_total\{.*\} (\S+)$", text, re.M))


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


if __name__ == "__main__":
    sys.exit(main())
