"""What a generator is trained on: tasks of a folder with all their wordings, and procedural tasks beside them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from training.tasks.format import Task, load_tasks, with_more_wordings, without_held_back
from training.tasks.procedural_tasks import FAMILIES, synthetic_tasks


def load_training_set(
    folder: Path,
    task_ids: Sequence[str],
    *,
    wordings: Path | None,
    num_synthetic: int,
    hidden_families: Collection[str],
) -> tuple[list[Task], list[Task]]:
    """The tasks of a folder, and procedural ones. None is trained on a wording that one of the folder holds back.

    Args:
        task_ids: only these of the folder; empty for all.
        wordings: file of more wordings of them, see `training.tasks.format.with_more_wordings`.
        num_synthetic: at most so many procedural tasks; 0 for none.
        hidden_families: families of procedural tasks that are kept from training.

    Raises:
        ConfigError: a number of procedural tasks below 0.
        TaskFormatError: a folder, a task or a file of wordings that is refused.
    """
    tasks = load_tasks(folder, task_ids or None)
    if wordings:
        tasks = with_more_wordings(tasks, wordings)
    shown = [family for family in FAMILIES if family not in hidden_families]
    made_up = synthetic_tasks(families=shown, limit=num_synthetic) if num_synthetic else []
    everything = without_held_back([*tasks, *made_up])
    return everything[: len(tasks)], everything[len(tasks) :]
