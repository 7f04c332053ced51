"""Spans of requests for OpenTelemetry."""

from __future__ import annotations

from fastapi.telemetry import TelemetryConfig


def tracing(wanted: bool) -> TelemetryConfig:
    """FastAPI's OpenTelemetry hook: sends spans of requests as configured by the OTEL_* variables, or does nothing.

    Its logs stay off because they would hold messages of exceptions; its metrics stay off because /metrics has them.

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
