from __future__ import annotations

import io
import zipfile
from pathlib import Path

import httpx
import pytest

from llgbm.config import lora_spec
from service.adapters.files import AdapterFiles
from service.adapters.records import CONFIG_FILE, WEIGHTS_FILE, AdapterRecord
from service.http import file_response
from service.http.file_response import PartsResponse
from service.routes.adapter_archive import archive_bytes, archive_parts
from tests.fixtures import random_lora
from tests.service.support.records import record


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Path, AdapterRecord]:
    """An adapter's folder and its record."""
    files = AdapterFiles(tmp_path)
    weights = random_lora(lora_spec("tiny"), 1)
    known, _ = files.write(weights, record(weights))
    return files.path(known.id), known


async def test_the_archive_is_the_one_that_zipfile_writes(
    stored: tuple[Path, AdapterRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, known = stored
    expected = io.BytesIO()
    with zipfile.ZipFile(expected, "w", zipfile.ZIP_STORED) as bundle:
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            entry = zipfile.ZipInfo(f"{known.id}/{name}")
            entry.external_attr = 0o644 << 16
            bundle.writestr(entry, (folder / name).read_bytes())
    monkeypatch.setattr(file_response, "CHUNK_BYTES", 1000)
    answer = PartsResponse(await archive_parts(folder, known), 200, {}, "application/zip")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=answer), base_url="http://test") as client:
        assert (await client.get("/")).content == expected.getvalue()
    assert archive_bytes(known) == len(expected.getvalue())


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
async def test_an_archive_of_files_that_are_gone_is_refused_before_it_begins(
    stored: tuple[Path, AdapterRecord], name: str
) -> None:
    folder, known = stored
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError):
        await archive_parts(folder, known)
