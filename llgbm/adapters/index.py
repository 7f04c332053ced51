"""The workdir of teacher adapters: their folders, their tasks and the prompts for them.

    {workdir}/manifest.json                                  the index of all adapters
    {workdir}/{task}/{task}_{idx}/adapter_model.safetensors  as PEFT writes it
                                  adapter_config.json
                                  prompts.json               descriptions and examples of the task

The index lists folders relative to the workdir. Without an index the folders themselves are read. An index can list
adapters of any origin: each needs a folder in PEFT's format and prompts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llgbm.adapters.peft_io import CONFIG_FILE
from llgbm.errors import TaskFormatError
from llgbm.files.synced import replace_file

INDEX_FILE = "manifest.json"
PROMPTS_FILE = "prompts.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class AdapterPrompts:
    """The prompts for an adapter.

    Attributes:
        descriptions: the task in words, in several wordings.
        examples: (input, output) pairs of the task.

    Raises:
        TaskFormatError: neither a description nor an example, or an empty text.
    """

    descriptions: tuple[str, ...]
    examples: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if not self.descriptions and not self.examples:
            raise TaskFormatError("prompts need at least one description or one example")
        if not all(d.strip() for d in self.descriptions) or not all(i and o for i, o in self.examples):
            raise TaskFormatError("no description and no side of an example may be empty")


@dataclass(frozen=True)
class AdapterEntry:
    """One adapter of an index.

    Attributes:
        adapter_id: unique in the index; names the adapter's delta in a `DeltaCache`.
        task: name of its task.
        folder: folder of its PEFT files.
        prompts: None reads prompts.json in the folder.
    """

    adapter_id: str
    task: str
    folder: Path
    prompts: AdapterPrompts | None = None

    def read_prompts(self) -> AdapterPrompts:
        """The given prompts, or those in the adapter's folder.

        Raises:
            TaskFormatError: there are none, or the file has another form.
        """
        return self.prompts or load_prompts(self.folder)


def save_prompts(folder: Path, prompts: AdapterPrompts) -> None:
    """Write prompts.json into an adapter's folder."""
    data = {
        "descriptions": list(prompts.descriptions),
        "examples": [{"input": given, "output": wanted} for given, wanted in prompts.examples],
    }
    _write_json(folder / PROMPTS_FILE, data)


def load_prompts(folder: Path) -> AdapterPrompts:
    """Read prompts.json in the form of `save_prompts`, or as a plain list of descriptions. Other keys are ignored.

    Raises:
        TaskFormatError: the file is missing, damaged or has another form.
    """
    path = folder / PROMPTS_FILE
    data = _read_json(path, "save_prompts writes one")
    if isinstance(data, list):
        data = {"descriptions": data}
    try:
        descriptions = tuple(data.get("descriptions", ()))
        examples = tuple((e["input"], e["output"]) for e in data.get("examples", ()))
        texts = [*descriptions, *(side for example in examples for side in example)]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("a prompt is not a string")
        return AdapterPrompts(descriptions, examples)
    except (AttributeError, KeyError, TypeError, TaskFormatError) as error:
        raise TaskFormatError(
            f'{path} is not {{"descriptions": [...], "examples": [{{"input", "output"}}]}}: {error}'
        ) from error


def save_index(workdir: Path, entries: Sequence[AdapterEntry]) -> None:
    """Write the index of a workdir atomically.

    Args:
        entries: adapters in folders below `workdir`.

    Raises:
        TaskFormatError: an id occurs twice, or a folder is not below `workdir`.
    """
    _require_unique(entries)
    listed = []
    for entry in entries:
        if not entry.folder.is_relative_to(workdir):
            raise TaskFormatError(f"{entry.folder} is not below {workdir}, so the index of {workdir} cannot list it")
        folder = entry.folder.relative_to(workdir).as_posix()
        listed.append({"id": entry.adapter_id, "task": entry.task, "folder": folder})
    _write_json(workdir / INDEX_FILE, {"version": FORMAT_VERSION, "adapters": listed})


def load_index(workdir: Path) -> list[AdapterEntry]:
    """The adapters of a workdir: those of its manifest, or without one those in folders {task}/{task}_{idx}.

    Raises:
        TaskFormatError: the manifest is damaged or has another form, an id occurs twice, or there is no adapter.
    """
    path = workdir / INDEX_FILE
    if path.is_file():
        data = _read_json(path, "")
        try:
            if data["version"] != FORMAT_VERSION:
                raise TaskFormatError(f"version {data['version']}, this library reads {FORMAT_VERSION}")
            entries = [AdapterEntry(str(e["id"]), str(e["task"]), workdir / e["folder"]) for e in data["adapters"]]
        except (KeyError, TypeError, TaskFormatError) as error:
            raise TaskFormatError(
                f"{path} is not an index of adapters: {error!r}; delete it to read the folders"
            ) from error
    else:
        configs = sorted(workdir.glob(f"*/*/{CONFIG_FILE}"))
        found = [(c.parent.parent.name, c.parent) for c in configs]
        entries = [AdapterEntry(f.name, task, f) for task, f in found if f.name.startswith(f"{task}_")]
    if not entries:
        raise TaskFormatError(
            f"no adapters in {workdir}: it has no {INDEX_FILE} that lists any, and no folders "
            f"{{task}}/{{task}}_{{idx}} with "
            f"{CONFIG_FILE}; train teachers first, or name another folder"
        )
    _require_unique(entries)
    return entries


def _require_unique(entries: Sequence[AdapterEntry]) -> None:
    seen: set[str] = set()
    for entry in entries:
        if entry.adapter_id in seen:
            raise TaskFormatError(f"the adapter id {entry.adapter_id!r} occurs twice; ids must be unique")
        seen.add(entry.adapter_id)


def _read_json(path: Path, hint: str) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise TaskFormatError(f"{path} is missing; {hint}") from None
    except ValueError as error:
        raise TaskFormatError(f"{path} is damaged or not JSON: {error}") from error


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode())
