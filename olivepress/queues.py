"""The doorbell: the Celery application, its queues and task names, and the ring that wakes the scheduler.

A message carries a step id and nothing else. The database is the truth: a lost message is sent again, a second one
finds nothing to claim.
"""

import logging
from collections.abc import Collection

from celery import Celery
from redis import Redis
from redis.exceptions import RedisError

from olivepress.errors import ServiceUnavailable
from olivepress.jobs import StepId, StepKind
from olivepress.redis_tls import split_tls
from olivepress.settings import Settings

RING_CHANNEL = "olivepress:ring"
# What kombu keeps beside each queue.
BINDING_PREFIXES = ("_kombu.binding.", "_kombu.binding_permanent.")
log = logging.getLogger(__name__)


def task_name(kind: StepKind) -> str:
    """The Celery task that runs steps of this kind; what people read in Flower."""
    return f"olivepress.{kind.value}"


def queue_name(worker_id: str) -> str:
    """The Redis queue of one worker: the scheduler decides who runs a step, not who happens to be quickest."""
    return f"olivepress.{worker_id}"


def celery_app(settings: Settings) -> Celery:
    """The Celery application that the worker serves, the scheduler sends through and Flower watches.

    Raises:
        ServiceUnavailable: no Redis is configured.
    """
    url, tls = split_tls(_redis_url(settings))
    app = Celery("olivepress", broker=url, set_as_current=False)
    app.conf.update(
        broker_use_ssl=tls or False,
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        # Early ack: the lease, not the broker, gives work back (late ack runs a long task three times in parallel).
        task_acks_late=False,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        task_publish_retry=False,
        worker_send_task_events=True,
        task_send_sent_event=True,
        worker_hijack_root_logger=False,
        worker_enable_remote_control=True,
        task_default_queue=queue_name("nobody"),
        task_create_missing_queues=True,
        broker_transport_options={"socket_timeout": 30, "socket_connect_timeout": 5},
    )
    return app


def send(app: Celery, kind: StepKind, step_id: StepId, worker_id: str, description: str) -> None:
    """Tell a worker that a step waits for it. Raises what kombu raises when Redis does not answer."""
    app.send_task(task_name(kind), args=[step_id], queue=queue_name(worker_id), argsrepr=description, retry=False)


def forget_queues(redis: Redis, keep: Collection[str]) -> int:
    """Remove what Redis keeps of the queues of workers that are gone; gives how many keys. Raises RedisError.

    Args:
        keep: ids of the workers whose queues stay.
    """
    prefixes = ("", *BINDING_PREFIXES)
    kept = {prefix + queue_name(worker_id) for worker_id in keep for prefix in prefixes}
    gone = [
        key
        for prefix in prefixes
        for key in redis.scan_iter(prefix + queue_name("*"), count=1000)
        if key.decode() not in kept
    ]
    return int(redis.delete(*gone)) if gone else 0


def redis_client(settings: Settings) -> Redis:
    """A connection pool to the same Redis for the ring.

    Raises:
        ServiceUnavailable: no Redis is configured.
    """
    url, tls = split_tls(_redis_url(settings))
    if url.startswith("redis+socket://"):
        url = "unix://" + url.removeprefix("redis+socket://").replace("virtual_host=", "db=")
    return Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5, **tls)


class Ring:
    """Wakes the scheduler after a commit. Losing a ring costs one polling interval, so errors are only logged."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def __call__(self) -> None:
        try:
            self._redis.publish(RING_CHANNEL, b"1")
        except RedisError as error:
            log.warning("the ring was lost, the scheduler will find the work by polling: %s", error)


def _redis_url(settings: Settings) -> str:
    if settings.redis_url is None:
        raise ServiceUnavailable(
            "no Redis is configured; start everything with `olivepress up` or set OLIVEPRESS_REDIS_URL"
        )
    return settings.redis_url.get_secret_value()
