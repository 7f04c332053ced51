"""Invalid adapters, names and paths are refused with the error envelope, and nothing is written."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from llgbm.adapters.peft_io import load_peft, save_peft
from llgbm.base import Base
from llgbm.config import lora_spec
from llgbm.errors import AdapterFormatError
from llgbm.prompting import AdapterMaker
from service.adapter_id import ADAPTER_ID
from service.adapters.records import ADAPTER_NAME
from service.models.loading import Models, Progress, embedding_cache
from service.observability.metrics import Metrics
from service.settings import Settings
from tests.fixtures import random_lora
from tests.hostile_folders import spoilers
from tests.service.support.dummy_decoder import DummyDecoder
from tests.service.support.harness import LiveServer, live, make_settings
from tests.service.support.records import BASE

MANY = hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
SOME = hypothesis_settings(MANY, max_examples=40)
WEIGHTS = random_lora(lora_spec("tiny"), 1)
WORDS = st.sampled_from(
    ["..", ".", "/", "\\", "~", "\0", "\n", " ", "%2e%2e", "%2f", "lora-" + "0" * 24, "a", "x" * 64]
)
TEXTS = st.lists(WORDS | st.characters(), max_size=5).map("".join)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the service may use, and with others."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "outside").mkdir()
    (folder / "outside" / "secret").write_text("secret")
    (folder / "root").mkdir()
    return folder


@pytest.fixture(scope="module")
def server(world: Path, tiny_base: Base, tiny_maker: AdapterMaker) -> Iterator[LiveServer]:
    def load(settings: Settings, metrics: Metrics, progress: Progress) -> Models:
        return Models(
            tiny_base, tiny_maker, lambda: DummyDecoder(lambda row: [65]), 4096, embedding_cache(settings, metrics)
        )

    with live(make_settings(world, adapter_roots=(world / "root",)), load) as served:
        httpx.post(f"{served.url}/generate-adapter", json={"prompt": "a task"}).raise_for_status()
        yield served


@pytest.fixture(scope="module")
def client(server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def post(client: httpx.Client, path: str, body: object) -> httpx.Response:
    """Send JSON in ASCII, so that every text can be sent."""
    return client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})


def content(folder: Path) -> dict[Path, bytes | str]:
    """The content of a folder: bytes of files, targets of links."""
    found: dict[Path, bytes | str] = {}
    for path in folder.rglob("*"):
        if "cache" not in path.parts:  # embeddings
            link = path.is_symlink()
            found[path] = str(path.readlink()) if link else path.read_bytes() if path.is_file() else ""
    return found


@MANY
@given(spoil=spoilers())
def test_the_reader_refuses_whatever_is_no_adapter(spoil: Callable[[Path], str]) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "adapter"
        save_peft(WEIGHTS, folder, base_id=BASE)
        load_peft(folder)  # it was valid
        spoil(folder)
        before = content(Path(place))
        with pytest.raises(AdapterFormatError):
            load_peft(folder)
        assert content(Path(place)) == before  # no pickle was run


@SOME
@given(spoil=spoilers())
def test_the_service_refuses_it_and_writes_nothing(
    client: httpx.Client, world: Path, spoil: Callable[[Path], str]
) -> None:
    with tempfile.TemporaryDirectory(dir=world / "root") as place:
        folder = Path(place) / "adapter"
        save_peft(WEIGHTS, folder, base_id=BASE)
        spoil(folder)
        before = content(world)
        answer = post(client, "/v1/load_lora_adapter", {"lora_name": "mine", "lora_path": str(folder)})
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "adapter_invalid")
        assert str(world) not in answer.text
        assert content(world) == before


@SOME
@given(name=TEXTS)
def test_any_name_is_refused_or_stays_in_the_store(client: httpx.Client, world: Path, name: str) -> None:
    outside = content(world / "outside") | content(world / "root")
    answer = post(client, "/generate-adapter", {"prompt": "a task", "name": name})
    assert answer.status_code == (200 if ADAPTER_NAME.fullmatch(name) else 422)
    assert content(world / "outside") | content(world / "root") == outside
    for entry in (world / "store").iterdir():
        if entry.is_symlink():
            assert ADAPTER_NAME.fullmatch(entry.name)
            assert ADAPTER_ID.fullmatch(str(entry.readlink()))
        else:
            assert ADAPTER_ID.fullmatch(entry.name)


@SOME
@given(path=TEXTS, below=st.booleans())
def test_any_path_to_load_from_is_refused_and_nothing_is_written(
    client: httpx.Client, world: Path, path: str, below: bool
) -> None:
    before = content(world)
    given_path = f"{world}/root/{path}" if below else path
    answer = post(client, "/v1/load_lora_adapter", {"lora_name": "mine", "lora_path": given_path})
    assert answer.status_code in (400, 403, 404, 422)
    assert "secret" not in answer.text
    assert content(world) == before


@SOME
@given(which=TEXTS)
def test_any_other_id_in_a_path_is_not_found(client: httpx.Client, world: Path, which: str) -> None:
    """Slashes alone are not an id: such a path leads to the list."""
    before = content(world)
    assume(which.strip("/") and not (ADAPTER_NAME.fullmatch(which) and (world / "store" / which).exists()))
    quoted = "".join(f"%{byte:02x}" for byte in which.encode(errors="surrogatepass"))
    for method, rest in (("GET", ""), ("GET", "/adapter_config.json"), ("GET", "/archive"), ("DELETE", "")):
        answer = client.request(method, f"/adapters/{quoted}{rest}", follow_redirects=True)
        assert answer.status_code in (404, 405)
        assert "secret" not in answer.text
    assert content(world) == before
