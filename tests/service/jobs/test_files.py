"""Files of examples with OpenAI's client."""

from __future__ import annotations

import sqlite3

import httpx
import openai
import pytest

from service.jobs.database import FOLDER
from service.jobs.examples import write_examples
from service.settings import Settings
from tests.service.support.harness import LiveServer

SECRET = "the secret of a user"
CONTENT = write_examples([(SECRET, "kept"), ("other", "kept too")])


def test_a_file_is_kept_listed_read_and_deleted_with_its_content(
    api: openai.OpenAI, job_settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    assert list(api.files.list()) == []
    assert not (job_settings.store_dir / FOLDER).exists()  # a read does not create the database
    made = api.files.create(file=("tickets.jsonl", CONTENT), purpose="fine-tune")
    assert (made.filename, made.bytes, made.purpose, made.status) == (
        "tickets.jsonl",
        len(CONTENT),
        "fine-tune",
        "processed",
    )
    second = api.files.create(file=CONTENT, purpose="fine-tune")
    assert [file.id for file in api.files.list()] == [second.id, made.id]
    assert [file.id for file in api.files.list(order="asc")] == [made.id, second.id]
    page = api.files.list(limit=1)
    assert [file.id for file in page.data] == [second.id]
    assert [file.id for file in page] == [second.id, made.id]  # the client requests the next page itself
    assert list(api.files.list(purpose="fine-tune-results")) == []
    assert api.files.retrieve(made.id) == made
    assert api.files.content(made.id).read() == CONTENT

    assert api.files.delete(made.id).deleted
    api.files.delete(second.id)
    for call in (api.files.retrieve, api.files.content, api.files.delete):
        with pytest.raises(openai.NotFoundError) as error:
            call(made.id)
        assert error.value.code == "file_not_found"
    for path in job_settings.store_dir.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes()
    told = capfd.readouterr()
    assert SECRET not in told.out + told.err


def refused(call: httpx.Response, status: int = 400) -> tuple[str | None, str]:
    assert call.status_code == status, call.text
    return call.json()["error"]["param"], call.json()["error"]["message"]


def test_what_is_no_file_of_examples_is_refused_by_field(server: LiveServer, api: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        api.files.create(file=("a.jsonl", CONTENT + b"not JSON\n"), purpose="fine-tune")
    assert error.value.param == "file"
    assert "line 3" in error.value.message
    for line, problem in (
        (b'{"messages": [{"role": "user", "content": "x"}]}', "line 3: the last message must be the assistant's"),
        (b'{"input": "x", "output": " "}', "line 3: the answer of an example is empty"),
    ):
        with pytest.raises(openai.BadRequestError, match=problem) as error:
            api.files.create(file=("a.jsonl", CONTENT + line), purpose="fine-tune")
        assert error.value.param == "file"
    with pytest.raises(openai.BadRequestError) as error:
        api.files.create(file=CONTENT, purpose="batch")
    assert error.value.param == "purpose"

    with httpx.Client(base_url=server.url, timeout=60) as client:

        def post(files: object, **more: object) -> httpx.Response:
            return client.post("/v1/files", files=files, **more)  # type: ignore[arg-type]

        purpose = {"purpose": "fine-tune"}
        assert refused(post({"file": CONTENT}))[0] == "purpose"
        assert refused(post([("file", ("a", CONTENT)), ("file", ("b", CONTENT))], data=purpose))[0] == "file"
        assert refused(post({"file": CONTENT}, data={**purpose, "expires_after[seconds]": "60"}))[0] == (
            "expires_after[seconds]"
        )
        assert refused(client.post("/v1/files", json={"file": "x", **purpose}))[0] == "file"
        torn = client.post("/v1/files", content=b"--x\r\nno", headers={"content-type": "multipart/form-data"})
        assert "the form cannot be read" in refused(torn)[1]
        assert "larger" in refused(post({"file": b"x" * (1 << 20)}, data=purpose), 413)[1]
        assert client.get("/v1/files", params={"after": "file-x"}).status_code == 400
        assert client.get("/v1/files").json()["data"] == []


def test_only_pages_that_may_upload_files(server: LiveServer) -> None:
    def post(**headers: str) -> int:
        form = {"file": ("a", CONTENT)}
        return httpx.post(
            f"{server.url}/v1/files", files=form, data={"purpose": "fine-tune"}, headers=headers
        ).status_code

    assert post(Origin="https://elsewhere.example") == 403
    assert post(Origin="null") == 403
    assert post(Origin=server.url) == 200
    assert post(Origin="https://elsewhere.example", Authorization="Bearer x") == 200  # a browser requests this first


def test_a_database_of_another_version_is_left_alone(job_settings: Settings) -> None:
    from service.jobs.database import Database
    from service.jobs.files import Files

    database = Database(job_settings.store_dir)
    Files(database).add("a", CONTENT)
    database.close()
    path = job_settings.store_dir / FOLDER / "jobs.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(sqlite3.DatabaseError, match="version 99"):
        Files(Database(job_settings.store_dir)).page(1, None)
