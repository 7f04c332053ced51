"""Records of adapters as response models. `prefix` comes before the links, see `service.http.forwarded`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llgbm.conditioning.context_choice import ContextSetting
from service.adapters.records import CONFIG_FILE, WEIGHTS_FILE, AdapterRecord
from service.schemas.adapters import (
    Adapter,
    AdapterDetail,
    ContextUsed,
    Example,
    GeneratedAdapter,
    Links,
    NearestTask,
    TimingsMs,
)


def adapter(record: AdapterRecord, names: Sequence[str], prefix: str) -> Adapter:
    """An adapter without its norms."""
    return Adapter(**_fields(record, names, prefix))


def detail(record: AdapterRecord, names: Sequence[str], prefix: str) -> AdapterDetail:
    """An adapter with its norms."""
    return AdapterDetail(**_fields(record, names, prefix), norms={k: list(v) for k, v in record.norms.items()})


def generated(
    record: AdapterRecord,
    names: Sequence[str],
    prefix: str,
    seconds: dict[str, float],
    total: float,
    auto: ContextSetting | None = None,
) -> GeneratedAdapter:
    """An adapter with the time that it took, and the context and scale that `auto` takes for its texts.

    Args:
        seconds: of each stage.
        total: seconds of the whole request.
    """
    stages = {stage: round(1000 * seconds.get(stage, 0.0), 3) for stage in ("encode", "generate", "store")}
    return GeneratedAdapter(
        **_fields(record, names, prefix),
        auto=None if auto is None else ContextUsed(context_used=auto.context, scale=auto.scale),
        timings_ms=TimingsMs(**stages, total=round(1000 * total, 3)),
    )


def _fields(record: AdapterRecord, names: Sequence[str], prefix: str) -> dict[str, Any]:
    path = f"{prefix}/adapters/{record.id}"
    return {
        "id": record.id,
        "names": list(names),
        "digest": record.digest,
        "base": record.base,
        "rank": record.rank,
        "alpha": record.alpha,
        "target_modules": list(record.target_modules),
        "num_parameters": record.num_parameters,
        "bytes": record.files[WEIGHTS_FILE].bytes,
        "created": record.created,
        "source": record.source,
        "prompts": list(record.descriptions),
        "examples": [Example(input=given, output=wanted) for given, wanted in record.examples],
        "scale": record.scale,
        "nearest_tasks": [NearestTask(task_id=task, similarity=round(cos, 4)) for task, cos in record.nearest],
        "confidence": record.confidence,
        "scale_in_context": record.scale_in_context,
        "warning": record.warning,
        "links": Links(
            adapter=path,
            weights=f"{path}/{WEIGHTS_FILE}",
            config=f"{path}/{CONFIG_FILE}",
            archive=f"{path}/archive",
        ),
    }
