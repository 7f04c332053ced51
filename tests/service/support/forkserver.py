"""Processes that start in milliseconds: forked from a server that has imported everything once."""

from __future__ import annotations

import multiprocessing

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "pytest",  # a child imports what the main program of its parent does
        "transformers.models.bert.modeling_bert",
        "transformers.models.qwen2.modeling_qwen2",
        "tests.service.support.doomed",
        "tests.service.support.forked",
    ]
)
