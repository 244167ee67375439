"""Chaos: a stack of real services over doubles of the toolchain, killed at random, and what must hold afterwards.

    python -m tests.chaos --minutes 2 --database sqlite|postgresql --seed 7

plan.py       what is submitted, decided by the seed, and how each job must end
stack.py      the services, Redis and the database, each of which can be killed and started again
faults.py     what goes wrong
run.py        submits, lets things go wrong, waits until everything is over
checks.py     what must hold then
report.py     the counts that are printed, and the evidence that is kept
"""
