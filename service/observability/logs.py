"""Logs with one JSON object per line. Messages of exceptions that may quote a prompt are left out."""

from __future__ import annotations

import logging
import sys
import traceback

import structlog

from llgbm.errors import LLGBMError
from service.settings import Settings


def configure_logging(settings: Settings) -> None:
    """Write structlog's and the standard library's records to standard output, in the format of the settings."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    render: list[structlog.typing.Processor] = [_without_messages]
    render.append(
        structlog.processors.JSONRenderer() if settings.log_format == "json" else structlog.dev.ConsoleRenderer()
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, settings.log_level.upper())),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    for old in [h for h in root.handlers if getattr(h, "llgbm", False)]:
        root.removeHandler(old)
    handler.llgbm = True  # type: ignore[attr-defined]
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    for name in ("service", "uvicorn.error"):
        logging.getLogger(name).setLevel(settings.log_level.upper())


def _without_messages(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Replace `exc_info` by the types and tracebacks of the exceptions.

    An exception's message may quote a prompt. Messages are kept only for errors of this project and of the operating
    system, which never do.
    """
    info = event.pop("exc_info", None)
    if info is True:
        info = sys.exc_info()
    error = info[1] if isinstance(info, tuple) else info
    if isinstance(error, BaseException):
        lines = []
        while error is not None:
            told = f": {error}" if isinstance(error, (LLGBMError, OSError)) else ""
            lines.append(f"{type(error).__name__}{told}")
            frames = traceback.extract_tb(error.__traceback__)
            lines += [f"  {frame.filename}:{frame.lineno} in {frame.name}" for frame in frames]
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        event["exception"] = "\n".join(lines)
    return event
