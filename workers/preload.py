"""Imported once by the forkserver: everything heavy, so that children of it start warm.

The forkserver must not outlive the worker, and its children must not outlive it; `olivepress.lifetime` says how.
"""

import gc
import os

from olivepress.lifetime import WORKER_PID_VARIABLE, die_with_parent

FORKSERVER_PID = os.getpid()

if _worker_pid := os.environ.get(WORKER_PID_VARIABLE):
    die_with_parent(int(_worker_pid))

from workers.steps import convert, ingest, package, validate  # noqa: E402, F401

# What was imported never becomes garbage: without this each child's first collection would look at all of it.
gc.collect()
gc.freeze()
