"""The training set of a generator: task files, procedural tasks and family files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple

from training.tasks.families import load_families
from training.tasks.format import Task, load_tasks, with_more_wordings, without_held_back
from training.tasks.procedural_tasks import FAMILIES, synthetic_tasks


class TrainingSet(NamedTuple):
    """Tasks to train on, by origin."""

    own: list[Task]
    """Tasks of the folder of task files."""
    synthetic: list[Task]
    """Procedural tasks."""
    relatives: list[Task]
    """Tasks of family files, ordered by family."""

    @property
    def all(self) -> list[Task]:
        """All tasks, in this order."""
        return [*self.own, *self.synthetic, *self.relatives]


@dataclass(frozen=True)
class TrainingTasks:
    """The choice of the tasks to train on, a part of the settings of a command."""

    tasks: Path | None = Path("tasks/train")
    """Folder of task files; none trains only on families and procedural tasks."""
    wordings: Path | None = None
    """File of additional wordings to train on, see `training.tasks.format.with_more_wordings`."""
    task_ids: tuple[str, ...] = ()
    """Only these tasks; empty uses all in the folder."""
    families: Path | None = None
    """Folder of family files, see `training.tasks.families`."""
    synthetic_tasks: int = 0
    """Maximum number of procedural tasks; 0 for none."""
    hidden_families: tuple[str, ...] = ()
    """Families excluded from training, of files or of procedural tasks; a fit's check reports them as unseen kinds."""

    def training_set(self) -> TrainingSet:
        """Load the tasks to train on. No task is trained on a wording that another one holds back.

        Raises:
            ConfigError: the number of procedural tasks is below 0.
            TaskFormatError: a folder, a task, a family or the file of wordings is invalid.
        """
        own = load_tasks(self.tasks, self.task_ids or None) if self.tasks else []
        if self.wordings:
            own = with_more_wordings(own, self.wordings)
        shown = [family for family in FAMILIES if family not in self.hidden_families]
        synthetic = synthetic_tasks(families=shown, limit=self.synthetic_tasks) if self.synthetic_tasks else []
        relatives = load_families(self.families, without=self.hidden_families) if self.families else []
        pools = [own, synthetic, relatives]
        everything = without_held_back([task for pool in pools for task in pool])
        ends = accumulate((len(pool) for pool in pools), initial=0)
        return TrainingSet(*(everything[start:end] for start, end in pairwise(ends)))


def hidden_tasks(hidden_families: Sequence[str], families: Path | None, limit: int | None = None) -> list[Task]:
    """The tasks of the families that are excluded from training: procedural families and family files.

    Args:
        hidden_families: names of both kinds.
        families: folder of family files; None for no family files.
        limit: maximum number of procedural tasks.

    Raises:
        ConfigError: a name is not of a procedural family, and there is no folder of family files.
        TaskFormatError: a family file does not exist or is invalid.
    """
    procedural = [name for name in hidden_families if name in FAMILIES]
    others = [name for name in hidden_families if name not in FAMILIES]
    if others and families is None:
        synthetic_tasks(families=others)  # raises an error that suggests similar names
    made_up = synthetic_tasks(families=procedural, limit=limit) if procedural else []
    return [*made_up, *(load_families(families, others) if families and others else [])]
