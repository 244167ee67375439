"""Signal the next steps to the workers that have room for them."""

import structlog
from celery import Celery
from kombu.exceptions import OperationalError

from olivepress.database.dispatching import forget_signals, next_signals
from olivepress.database.sessions import Database
from olivepress.placement import Fairness
from olivepress.queues import send

log = structlog.get_logger(__name__)


def dispatch(database: Database, app: Celery, fairness: Fairness, signal_again_after_s: float) -> int:
    """Choose in one transaction, send after its commit; what Redis does not take is forgotten again.

    Returns:
        How many steps were signalled.
    """
    with database.write() as session:
        signals = next_signals(session, fairness, signal_again_after_s)
    for sent, signal in enumerate(signals):
        try:
            send(app, signal.kind, signal.step_id, signal.worker_id, signal.description)
        except (OperationalError, OSError) as error:
            log.warning("redis_unreachable", error=str(error), unsent=len(signals) - sent)
            with database.write() as session:
                forget_signals(session, [unsent.step_id for unsent in signals[sent:]])
            return sent
    if signals:
        log.debug("signalled", steps=[signal.step_id for signal in signals])
    return len(signals)
