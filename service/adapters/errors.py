"""Errors of adapters, their names and the store."""

from __future__ import annotations

from service.errors import ApiError


class AdapterDamagedError(Exception):
    """An adapter's files have changed since they were written. It may be made again without an error for the client."""


class UnknownAdapterError(ApiError):
    """No adapter has this id or name."""

    def __init__(self, given: str) -> None:
        super().__init__(
            404,
            f"there is no adapter {given!r}; GET /adapters lists those there are, POST /generate-adapter makes one",
            code="adapter_not_found",
        )


class UnusableAdapterError(ApiError):
    """An adapter's files are damaged, and it cannot be made again."""

    def __init__(self, identity: str) -> None:
        super().__init__(
            500,
            f"the files of {identity} are damaged; DELETE /adapters/{identity} and make or load it again",
            code="adapter_damaged",
        )


class NameTakenError(ApiError):
    """The name belongs to another adapter."""

    def __init__(self, message: str) -> None:
        super().__init__(409, message, code="name_taken", param="name")


class StoreFullError(ApiError):
    """The disk is full; nothing of the adapter, the file or the job was kept."""

    def __init__(self, message: str) -> None:
        super().__init__(507, message, code="insufficient_storage")


class StoreUnavailableError(ApiError, OSError):
    """The remote store does not answer, or refuses the request."""

    def __init__(self, message: str) -> None:
        super().__init__(503, f"{message}; try again later", code="store_unavailable", retry_after=5)
