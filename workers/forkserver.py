"""The first thing that the forkserver imports: it must not outlive the worker, nor its children it.

`olivepress.lifetime` says how. Of no use in any other process.
"""

import os

from olivepress.lifetime import WORKER_PID_VARIABLE, die_with_parent

FORKSERVER_PID = os.getpid()

if _worker_pid := os.environ.get(WORKER_PID_VARIABLE):
    die_with_parent(int(_worker_pid))
