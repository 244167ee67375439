"""One leader among all schedulers, by a lease in the database."""

import os
import secrets
import socket

from olivepress.database.sessions import Database
from olivepress.database.workers import SCHEDULER_LEASE, give_lease_back, take_lease

LEASE_S = 10.0


class Leadership:
    """This process's claim on being the only scheduler that acts."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._holder = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"

    def hold(self) -> bool:
        """Get or keep the leadership; called with every tick, far more often than the lease runs out."""
        with self._database.write() as session:
            return take_lease(session, SCHEDULER_LEASE, self._holder, LEASE_S)

    def give_back(self) -> None:
        """Let the next one lead at once."""
        with self._database.write() as session:
            give_lease_back(session, SCHEDULER_LEASE, self._holder)
