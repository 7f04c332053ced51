"""Errors of files of examples and of jobs."""

from __future__ import annotations

from service.errors import ApiError


class UnknownFileError(ApiError):
    """No file has this id."""

    def __init__(self, given: str, *, param: str | None = None) -> None:
        super().__init__(
            404 if param is None else 400,
            f"there is no file {given!r}; GET /v1/files lists those there are, POST /v1/files uploads one",
            code="file_not_found",
            param=param,
        )


class UnknownJobError(ApiError):
    """No job has this id."""

    def __init__(self, given: str) -> None:
        super().__init__(
            404,
            f"there is no job {given!r}; GET /v1/fine_tuning/jobs lists those there are",
            code="job_not_found",
        )


class InvalidFileError(ApiError):
    """A file is not a valid file of examples. The message has the number of the line, but not its text."""

    def __init__(self, message: str, *, param: str = "file") -> None:
        super().__init__(400, message, code="invalid_file", param=param)


class UnknownEventError(ApiError):
    """No event has this id."""

    def __init__(self, given: str) -> None:
        super().__init__(400, f"there is no event {given!r} to go on after; start again without it", param="after")
