"""The programs of `examples/`, against the real application with the tiny models."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml

from llgbm.checkpoint import load_generator
from service.models.loading import LoadModels, load_models
from service.settings import DEFAULT_CHECKPOINT
from tests.conftest import find_vllm
from tests.service.support.harness import LiveServer, free_port, live, make_settings, wait_until

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
KEY = "a key of the tests"
TASK = """It's "odd": $HOME `id` \\n é 漢"""
"""A task with characters that need quoting in every context."""
QUESTION = 'Peru\'s "capital"'


@pytest.fixture
def server(tmp_path: Path, load_tiny: LoadModels) -> Iterator[LiveServer]:
    """A service that needs an API key."""
    keys = (hashlib.sha256(KEY.encode()).hexdigest(),)
    with live(make_settings(tmp_path, api_key_hashes=keys, max_tokens=24), load_tiny) as served:
        yield served


def run(command: list[str], server: LiveServer, folder: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    own = {"LLGBM_URL": server.url, "LLGBM_API_KEY": KEY, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(
        command, cwd=folder, env=os.environ | own | environment, capture_output=True, check=False, timeout=240
    )


def api(server: LiveServer) -> httpx.Client:
    return httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60)


def completion(client: httpx.Client, model: str, **options: int) -> str:
    messages = [{"role": "user", "content": QUESTION}]
    body = {"model": model, "messages": messages, "temperature": 0, **options}
    text: str = (
        client.post("/v1/chat/completions", json=body).raise_for_status().json()["choices"][0]["message"]["content"]
    )
    return text


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_makes_asks_streams_and_saves(server: LiveServer, tmp_path: Path) -> None:
    script = ["bash", str(EXAMPLES / "curl.sh"), TASK, QUESTION]
    done = run(script, server, tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    with api(server) as client:
        (made,) = client.get("/adapters").json()["data"]
        assert made["prompts"] == [TASK]
        answer = completion(client, made["id"])
        assert done.stdout.decode() == (
            f"adapter  {made['id']}\nanswer   {answer}\nstream   {answer}\nsaved    {made['id']}.zip\n"
        )
        assert (tmp_path / f"{made['id']}.zip").read_bytes() == client.get(made["links"]["archive"]).content

    refused = run(script, server, tmp_path, LLGBM_API_KEY="")
    assert refused.returncode != 0
    assert refused.stdout == b""
    assert "needs an API key" in refused.stderr.decode()


def test_the_openai_client_answers_and_streams(server: LiveServer, tmp_path: Path) -> None:
    script = [sys.executable, str(EXAMPLES / "openai_client.py")]
    done = run([*script, TASK, "--ask", QUESTION], server, tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    with api(server) as client:
        (made,) = client.get("/adapters").json()["data"]
        assert made["prompts"] == [TASK]
        answer = client.post("/chat", json={"prompt": TASK, "query": QUESTION, "max_tokens": 64}).json()["answer"]
        pinned = completion(client, made["id"], max_tokens=64)
    told = f"adapter   {made['id']}\ncontext   description\nanswer    {answer}\nstreamed  {answer}\n"
    assert done.stdout.decode() == told
    assert run([*script, "--system", TASK, "--ask", QUESTION], server, tmp_path).stdout.decode() == told
    by_id = run([*script, "--model", made["id"], "--ask", QUESTION], server, tmp_path).stdout.decode()
    assert by_id == f"adapter   {made['id']}\ncontext   none\nanswer    {pinned}\nstreamed  {pinned}\n"
    assert run([*script, TASK, "--system", TASK], server, tmp_path).returncode == 2

    nobody = run([*script, TASK], server, tmp_path, LLGBM_URL=f"http://127.0.0.1:{free_port()}")
    assert (nobody.returncode, nobody.stdout) == (2, b"")
    assert "make serve" in nobody.stderr.decode()


def test_finetuning_tells_its_events_and_answers(
    tmp_path: Path, tiny_base_path: Path, tiny_encoder_path: Path, tiny_checkpoint_path: Path
) -> None:
    settings = make_settings(
        tmp_path,
        base=str(tiny_base_path),
        text_encoder=str(tiny_encoder_path),
        checkpoint=tiny_checkpoint_path,
        api_key_hashes=(hashlib.sha256(KEY.encode()).hexdigest(),),
        refine_threads=1,
    )
    with live(settings, load_models) as server:
        done = run([sys.executable, str(EXAMPLES / "finetune.py"), "--ask", QUESTION], server, tmp_path)
        assert done.returncode == 0, done.stderr.decode() + done.stdout.decode()
        with api(server) as client:
            assert client.get("/v1/files?purpose=fine-tune").json()["data"] == []  # the tickets are deleted
            (job,) = client.get("/v1/fine_tuning/jobs").json()["data"]
            told = done.stdout.decode().splitlines()
            assert told[0] == f"job       {job['id']}"
            assert any(line.startswith("event     Step 1/") for line in told)
            assert f"event     {job['outcome']['note']}" in told
            answer = completion(client, job["fine_tuned_model"], max_tokens=16)
            # a random model also writes characters that end a line
            last = f"adapter   {job['fine_tuned_model']}\nanswer    {answer}".splitlines()
            assert "\n".join(told).rstrip("\n").endswith("\n".join(last).rstrip("\n"))
        bad = tmp_path / "bad.jsonl"
        bad.write_text("no JSON")
        refused = run([sys.executable, str(EXAMPLES / "finetune.py"), "--examples", str(bad)], server, tmp_path)
        assert refused.returncode != 0
        assert "line 1" in refused.stderr.decode()


@pytest.mark.real
@pytest.mark.vllm
@pytest.mark.timeout(1800)
def test_vllm_serves_the_store_through_its_resolver(
    real_base_path: Path, real_encoder_path: Path, tmp_path: Path
) -> None:
    """On the real base, because vLLM's CPU attention does not support the head size of the tiny one."""
    settings = make_settings(
        tmp_path, base=str(real_base_path), text_encoder=str(real_encoder_path), base_storage="float32"
    )
    with live(settings, load_models) as server:
        with api(server) as client:
            made = client.post("/generate-adapter", json={"prompt": TASK}).raise_for_status().json()
            expected = completion(client, made["id"], max_tokens=8)
            base = client.get("/readyz").json()["base"]
        with _vllm(server, base, real_base_path, tmp_path) as client:
            assert completion(client, made["id"], max_tokens=8) == expected


@contextmanager
def _vllm(server: LiveServer, base: str, base_path: Path, tmp_path: Path) -> Iterator[httpx.Client]:
    """The example's server, started in a folder where the base's name is a path to its weights."""
    folder = tmp_path / "vllm"
    (folder / base).parent.mkdir(parents=True)
    (folder / base).symlink_to(base_path)
    port = free_port()
    environment = {"LLGBM_URL": server.url, "LLGBM_STORE_DIR": str(tmp_path / "store"), "HF_HUB_OFFLINE": "1"}
    environment |= {
        "VLLM_PYTHON": find_vllm() or "",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    command = ["bash", str(EXAMPLES / "vllm_serve.sh"), "--port", str(port), "--dtype", "float32", "--enforce-eager"]
    # of main memory on a CPU, despite the name
    command += ["--gpu-memory-utilization", "0.3", "--max-model-len", "1024"]
    with (tmp_path / "vllm.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=os.environ | environment, stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600) as client:
            wait_until(lambda: process.poll() is not None or _healthy(client), 1200)
            assert process.poll() is None, (tmp_path / "vllm.log").read_text()[-3000:]
            yield client
    finally:
        process.terminate()
        process.wait(120)


def _healthy(client: httpx.Client) -> bool:
    try:
        return client.get("/health", timeout=5).is_success
    except httpx.HTTPError:
        return False


def test_the_lorax_example_is_for_the_shipped_base() -> None:
    text = (EXAMPLES / "lorax.compose.yml").read_text("utf-8")
    lorax = yaml.safe_load(text)["services"]["lorax"]
    assert lorax["command"] == ["--model-id", load_generator(DEFAULT_CHECKPOINT).manifest.base_id]
    (store,) = (volume for volume in lorax["volumes"] if volume.startswith("${LLGBM_STORE_DIR"))
    # the request at the top of the file names a folder of that volume
    request = json.loads(
        " ".join(line.removeprefix("#") for line in text[text.index("-d '{") + 4 :].splitlines()[:3])[:-1]
    )
    assert request["adapter_source"] == "local"
    assert store.endswith(f":{Path(request['model']).parent}:ro")
