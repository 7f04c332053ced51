"""A local model hub with one model, for the hub's own client."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

COMMIT = "fedcba9876543210fedcba9876543210fedcba98"


class FakeHub:
    """The hub's address, and the requested files of the model."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.sent: list[str] = []


@contextmanager
def serve_hub(name: str, files: Mapping[str, bytes]) -> Iterator[FakeHub]:
    """Serve `files` as the model `name` at commit `COMMIT`, and 404 for everything else."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            file = path.removeprefix(f"/{name}/resolve/{COMMIT}/")
            if path in (f"/api/models/{name}", f"/api/models/{name}/revision/main"):
                self.answer(json.dumps({"_id": "1", "id": name, "modelId": name, "sha": COMMIT}).encode())
            elif path == f"/api/models/{name}/tree/{COMMIT}":
                tree = [
                    {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for path, data in files.items()
                ]
                self.answer(json.dumps(tree).encode())
            elif file in files:
                if self.command == "GET":
                    hub.sent.append(file)
                self.answer(files[file], etag=hashlib.sha1(files[file]).hexdigest())
            else:
                self.send_error(404)

        do_HEAD = do_GET  # noqa: N815 - a name of the base class

        def answer(self, body: bytes, etag: str = "none") -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", "application/json")
            self.send_header("ETag", f'"{etag}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = FakeHub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
