"""A full disk: a small tmpfs, mounted so that only the process under test sees it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]


@pytest.mark.parametrize(
    ("program", "size", "told"), [("full_disk", "800k", "full after"), ("full_disk_job", "3m", "failed as it should")]
)
def test_a_disk_that_fills_up_is_told_and_nothing_is_torn_or_lost(
    tmp_path: Path,
    tiny_base_path: Path,
    tiny_encoder_path: Path,
    tiny_checkpoint_path: Path,
    program: str,
    size: str,
    told: str,
) -> None:
    mount = f"mount -t tmpfs -o size={size} tmpfs {tmp_path}"
    if shutil.which("unshare") is None or subprocess.run([*NAMESPACE, "sh", "-c", mount], check=False).returncode:
        pytest.skip("this machine does not let its users mount a tmpfs in a namespace of their own")
    models = map(str, (tiny_base_path, tiny_encoder_path, tiny_checkpoint_path))
    command = f'{mount} && exec "$@"'
    run = [sys.executable, "-m", f"tests.service.end_to_end.{program}", str(tmp_path), *models]
    done = subprocess.run([*NAMESPACE, "sh", "-c", command, "sh", *run], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert told in done.stdout
