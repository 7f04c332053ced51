"""Spans of requests for OpenTelemetry."""

from __future__ import annotations

from fastapi.telemetry import TelemetryConfig


def tracing(wanted: bool) -> TelemetryConfig:
    """FastAPI's own OpenTelemetry hook: spans of requests to where the OTEL_* variables say, or nothing at all.

    Its logs and its metrics stay off: the former would hold messages of exceptions, and /metrics has the latter.

    Raises:
        RuntimeError: LLGBM_OTEL is set but the extra is not installed.
    """
    if wanted:
        try:
            import opentelemetry.exporter.otlp.proto.http  # noqa: F401
        except ImportError as error:
            raise RuntimeError(
                "LLGBM_OTEL is set, but OpenTelemetry's exporter is not installed: pip install -e '.[otel]'"
            ) from error
    return {"tracing": wanted, "metrics": False, "logs": False, "operation_spans": False, "auto_configure": wanted}
