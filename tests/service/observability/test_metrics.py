from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from service.observability.metrics import Metrics


def samples(metrics: Metrics, family: str) -> list[dict[str, str]]:
    families = {f.name: f for f in text_string_to_metric_families(metrics.render().decode())}
    return [sample.labels for sample in families[family].samples]


def test_the_gateway_metric_is_one_sample_of_now() -> None:
    metrics = Metrics()
    loads: list[tuple[list[str | None], list[str | None]]] = [
        (["lora-a", "lora-a", None], ["lora-b"]),
        ([], []),
        (["lora-c"], [None]),
    ]
    for running, waiting in loads:
        metrics.on_load(waiting, running, 16)
        assert samples(metrics, "llgbm_lora_requests_info") == [
            {
                "max_lora": "16",
                "running_lora_adapters": ",".join(sorted({name for name in running if name})),
                "waiting_lora_adapters": ",".join(sorted({name for name in waiting if name})),
            }
        ]
    assert metrics.registry.get_sample_value("llgbm_batch_rows") == 1
    assert metrics.registry.get_sample_value("llgbm_batch_adapters") == 1
    assert metrics.registry.get_sample_value("llgbm_queue_depth") == 1


def test_clients_cannot_make_up_series() -> None:
    metrics = Metrics()
    for number in range(100):
        metrics.on_http(f"METHOD{number}", "unmatched", 404, 0.1)
    counted = [s for s in samples(metrics, "llgbm_http_requests") if "method" in s]
    assert {labels["method"] for labels in counted} == {"OTHER"}


def test_two_applications_count_apart() -> None:
    one, two = Metrics(), Metrics()
    one.completion_tokens.inc(3)
    assert two.registry.get_sample_value("llgbm_completion_tokens_total") == 0
