"""Doubles of the toolchain, for tests and benchmarks whose subject is the execution.

Nothing here converts a model. A double of a step does what the `double.json` in its checkpoint's directory orders: it
takes time, memory and log lines, crashes, hangs, starts processes; at last it writes bytes that depend on nothing but
the checkpoint's content and the recipe. Claims, leases, children, store, publication and the database around it are
the real ones.

    python -m tests.doubles worker --lease 4       the worker service over the doubles, by OLIVEPRESS_* settings
    python -m tests.doubles scheduler --lease 4    the scheduler service with the same lease

orders.py       what a double is told to do
steps/          the doubles, one module a step kind, as workers/steps has them
preload.py      what the forkserver imports
constants.py    shorter leases, set before a service is imported
faults.py       a clock that jumps, a disk that is full: inside the worker's own process
services.py     services as processes that can be killed and started again
"""
