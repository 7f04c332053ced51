"""A real Redis, or its fork Valkey, on a free port. It can be stopped and started again."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import redis

from tests.conftest import find_redis
from tests.service.support.harness import free_port, wait_until


class RedisServer:
    """A server without persistence; `options` are additional arguments."""

    def __init__(self, folder: Path, *options: str) -> None:
        self._options = options
        self.port = free_port()
        self.url = f"redis://:secret@127.0.0.1:{self.port}/0"
        self.socket_url = f"unix://:secret@{folder}/redis.sock?db=0"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = f"--port {self.port} --bind 127.0.0.1 --requirepass secret --appendonly no --dir {self._folder}"
        options += f" --unixsocket {self._folder}/redis.sock"
        program = find_redis()
        assert program is not None
        self._process = subprocess.Popen(
            [program, *options.split(), "--save", "", *self._options], stdout=subprocess.DEVNULL
        )
        wait_until(lambda: self._answers() or self._ended())
        assert not self._ended(), "the server ended at its start"

    def _ended(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.exceptions.ConnectionError:
            return False

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url)

    def stop(self) -> None:
        """Kill the server, without closing the connections of clients."""
        if self._process is not None:
            self._process.kill()  # also ends a frozen process
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Accept connections, but do not answer."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
