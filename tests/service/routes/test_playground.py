"""The playground's files over HTTP. The folder `playground` tests them in a browser."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import httpx
import pytest

from service.routes.playground import MEDIA_TYPES, POLICY, STATIC, page_files


async def test_serves_the_page_and_each_of_its_files(client: httpx.AsyncClient) -> None:
    paths = {"/": "index.html"} | {f"/static/{name}": name for name in page_files()}
    assert len(paths) > 20
    for url, name in paths.items():
        answer = await client.get(url)
        content = (STATIC / name).read_bytes()
        assert (answer.status_code, answer.content) == (200, content), url
        assert answer.headers["content-type"] == MEDIA_TYPES[Path(name).suffix]
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["etag"] == f'"{hashlib.sha256(content).hexdigest()}"'
        head = await client.head(url)
        assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(content)))
        again = await client.get(url, headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "path", ["/static/", "/static/none.js", "/static/../app.py", "/static/%2e%2e/app.py", "/static//etc/passwd"]
)
async def test_serves_nothing_else(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"


def test_the_page_refers_only_to_files_that_are_served_here() -> None:
    known = page_files()
    seen = 0
    for name, file in known.items():
        text = file.content.decode()
        references = re.findall(r"""(?:src|href)="([^"#]+)"|from "([^"]+)"|\burl\(([^)]+)\)""", text)
        for reference in filter(None, (part for parts in references for part in parts)):
            folder = STATIC if name == "index.html" else (STATIC / name).parent
            target = reference.removeprefix("static/") if name == "index.html" else reference
            assert (folder / target).resolve().relative_to(STATIC).as_posix() in known, (name, reference)
            seen += 1
    assert seen > 40


def test_no_module_parses_text_as_html_or_is_too_long() -> None:
    forbidden = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|setHTML")
    modules = {name: file.content.decode() for name, file in page_files().items() if name.endswith(".js")}
    assert not {name: found.group() for name, text in modules.items() if (found := forbidden.search(text))}
    assert max(text.count("\n") for text in modules.values()) < 250
