"""The container files use settings, files and times that exist."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
KNOBS = {f"LLGBM_{name.upper()}" for name in Settings.model_fields}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
    return read


def test_what_is_set_are_settings(compose: dict[str, Any]) -> None:
    in_image = set(re.findall(r"\b(LLGBM_\w+)=", DOCKERFILE))
    assert {"LLGBM_HOST", "LLGBM_PORT", "LLGBM_STORE_DIR", "LLGBM_CACHE_DIR"} <= in_image <= KNOBS
    assert set(compose["services"]["app"]["environment"]) <= KNOBS


def test_the_build_gets_each_file_that_it_copies() -> None:
    sources = [
        source
        for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, flags=re.MULTILINE)
        for source in line.split()
    ]
    assert len(sources) > 5
    allowed = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    for source in sources:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in allowed, source


def test_each_container_is_hardened_and_the_app_waits_for_redis(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert set(services) == {"app", "redis", "prometheus"}
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        for port in service.get("ports", []):
            assert "127.0.0.1:" in port
    assert services["app"]["depends_on"]["redis"]["condition"] == "service_healthy"
    assert "healthcheck" in services["redis"]
    assert services["prometheus"]["profiles"] == ["observability"]
    grace = int(services["app"]["stop_grace_period"].removesuffix("s"))
    assert grace > Settings.model_fields["drain_seconds"].default
    assert re.search(r"^USER 10001:0$", DOCKERFILE, flags=re.MULTILINE)
    assert "HEALTHCHECK" in DOCKERFILE


def test_prometheus_scrapes_the_port_that_the_image_serves_on(compose: dict[str, Any]) -> None:
    config = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text("utf-8"))
    (job,) = config["scrape_configs"]
    (port,) = re.findall(r"LLGBM_PORT=(\d+)", DOCKERFILE)
    assert job["static_configs"] == [{"targets": [f"app:{port}"]}]
    assert compose["services"]["app"]["ports"][0].endswith(f":{port}")


def test_any_uid_of_group_0_may_write_where_the_image_writes(tmp_path: Path) -> None:
    """As on OpenShift. The image is not built: its lines are checked, and its entry point is run."""
    home = re.findall(r"\bHOME=(\S+)", DOCKERFILE)[0]
    assert re.search(rf"useradd .*--gid 0 --home-dir {home} --create-home", DOCKERFILE)
    assert f"chmod -R g=u {home}\n" in DOCKERFILE
    written = re.findall(r"\b(?:HF_HOME|LLGBM_CACHE_DIR|LLGBM_STORE_DIR)=(\S+)", DOCKERFILE)
    assert len(written) == 3
    assert all(path.startswith(f"{home}/") for path in written)
    assert re.findall(r"^VOLUME (\S+)$", DOCKERFILE, flags=re.MULTILINE) == [home]
    # and may read it, whatever rights the files of the clone have
    brought = set(re.findall(r"^COPY --from=build (\S+) /app\S*$", DOCKERFILE, flags=re.MULTILINE))
    assert brought == set(re.findall(r"\bchmod -R a\+rX (\S+)", DOCKERFILE)) == {"/app", "/checkpoints"}
    # there the user has no entry in /etc/passwd, which libraries look up
    assert re.search(r"\bUSER=\w+", DOCKERFILE)

    entry = json.loads(re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE, flags=re.MULTILINE)[0])
    stand_in = tmp_path / "python"
    stand_in.write_text('#!/bin/sh\ntouch written && echo $$ "$@"\n')
    stand_in.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    process = subprocess.Popen([*entry, "--help"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    said, _ = process.communicate()
    assert said == f"{process.pid} -m service --help\n"  # replaces the shell, so that signals reach it
    assert (tmp_path / "written").stat().st_mode & 0o777 == 0o664
