from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest

CODE = """
import gc, json, weakref
from pathlib import Path
from service.models.memory import loaded_for_good


class Node:
    def __init__(self):
        self.itself = self


def resident():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) // 1024


before = gc.get_freeze_count()
with loaded_for_good():
    collecting = gc.isenabled()
    garbage = weakref.ref(Node())
    kept = [Node() for _ in range(10_000)]
    # each block that stays keeps its neighbours, 100 kB, from going back by themselves
    blocks = [bytes(1_000) for _ in range(200_000)]
    blocks = blocks[::100]
    freed = resident()
print(json.dumps({
    "collecting inside": collecting,
    "collecting after": gc.isenabled(),
    "garbage": garbage() is not None,
    "frozen": gc.get_freeze_count() - before,
    "looked at": sum(isinstance(o, Node) for o in gc.get_objects()),
    "given back": freed - resident(),
}))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc keeps freed memory, other C libraries may not")
def test_what_is_loaded_is_not_looked_at_again_and_what_is_freed_goes_back() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert (found["collecting inside"], found["collecting after"]) == (False, True)
    assert not found["garbage"]
    assert found["frozen"] > 10_000
    assert found["looked at"] == 0
    assert found["given back"] > 150
