"""Processes that start in milliseconds, because they are forked from a server that has imported all modules."""

from __future__ import annotations

import multiprocessing

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "pytest",  # a child imports the modules of its parent's main program
        "transformers.models.bert.modeling_bert",
        "transformers.models.qwen2.modeling_qwen2",
        "tests.service.support.doomed",
        "tests.service.support.forked",
    ]
)
