"""The use cases of fine-tuning. Knows HTTP's errors but not its requests."""

from __future__ import annotations

from service.jobs.database import Database
from service.jobs.files import Files


class JobService:
    """Files of examples.

    Attributes:
        files: what was uploaded.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.files = Files(database)

    def close(self) -> None:
        """Close the database. Blocks."""
        self._database.close()
