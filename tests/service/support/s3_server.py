"""A real S3 server (moto), behind a gate that can be closed or interrupt an upload."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import run_simple

from tests.service.support.harness import free_port, wait_until

_CHUNK = 16_384


class Gate:
    """Forwards connections to a port while it is open.

    Attributes:
        open: whether connections are accepted; closing the gate also ends existing ones.
        cut_after: number of bytes from a client after which its connection is closed; None for no limit.
    """

    def __init__(self, to_port: int) -> None:
        self._to_port = to_port
        self.open = True
        self.cut_after: int | None = None
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self.open = False
        # wakes the thread that waits in accept; close alone does not
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._pass_on, args=(client,), daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        with client:
            if not self.open:
                return
            with socket.create_connection(("127.0.0.1", self._to_port)) as server:
                back = threading.Thread(target=self._copy, args=(server, client, False), daemon=True)
                back.start()
                self._copy(client, server, True)
                back.join()

    def _copy(self, source: socket.socket, target: socket.socket, is_upload: bool) -> None:
        sent = 0
        source.settimeout(0.1)
        with contextlib.suppress(OSError):
            while self.open:
                try:
                    data = source.recv(_CHUNK)
                except TimeoutError:
                    if target.fileno() < 0:
                        break
                    continue
                sent += len(data)
                if not data or (is_upload and self.cut_after is not None and sent > self.cut_after):
                    break
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class S3Server:
    """The server, and the environment variables that make `s3://` use it."""

    def __init__(self) -> None:
        port = free_port()
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(port)],
            cwd=Path(__file__).parents[3],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "MOTO_S3_DEFAULT_KEY_BUFFER_SIZE": str(2**20)},
        )
        self.gate = Gate(port)
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.gate.port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        wait_until(lambda: self._process.poll() is not None or _answers(port), seconds=120)
        assert self._process.poll() is None, "the server ended at its start"

    def stop(self) -> None:
        self.gate.close()
        self._process.kill()
        self._process.wait()


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _serve(port: int) -> None:
    """moto, one request at a time: its own server has threads, and one may close an object that another still reads."""
    run_simple("127.0.0.1", port, DomainDispatcherApplication(create_backend_app), request_handler=MotoRequestHandler)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
