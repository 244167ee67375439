"""A team's connections check the server's certificate and name: PostgreSQL's, and Redis's in each of three clients."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from flower.utils.broker import Broker
from kombu.exceptions import OperationalError
from redis.exceptions import ConnectionError as RedisConnectionError

from olivepress.database.sessions import Database
from olivepress.errors import ServiceUnavailable
from olivepress.queues import celery_app, redis_client
from olivepress.redis_tls import split_tls
from olivepress.settings import Settings
from tests.postgres import PostgresServer
from tests.redis_server import RedisServer, redis_tls_server
from tests.tls import Identity, Relay, make_identity, relay

NAME = "localhost"
WRONG_NAME = "127.0.0.1"


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    """What both servers prove themselves with: a certificate for one name."""
    return make_identity(tmp_path_factory.mktemp("tls"), NAME)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority that did not sign it."""
    return make_identity(tmp_path_factory.mktemp("stranger"), NAME).authority_file


@pytest.fixture(scope="module")
def redis(identity: Identity, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer | Relay]:
    with redis_tls_server(tmp_path_factory.mktemp("redis"), identity) as server:
        yield server


@pytest.fixture(scope="module")
def postgres_front(identity: Identity, postgres: PostgresServer) -> Iterator[Relay]:
    """TLS before PostgreSQL: the wheel's is built without."""
    with relay(postgres.port, identity, asks_first=True) as front:
        yield front


def ask_redis_py(settings: Settings) -> None:
    with closing(redis_client(settings)) as client:
        client.ping()


def ask_celery(settings: Settings) -> None:
    with celery_app(settings).connection_for_write() as connection:
        connection.ensure_connection(max_retries=1, interval_start=0)
        connection.default_channel.client.ping()


def ask_as_flower(settings: Settings) -> None:
    app = celery_app(settings)
    url = app.connection_for_read().as_uri(include_password=True)
    conf = app.conf

    async def count() -> None:
        broker = Broker(url, broker_options=conf.broker_transport_options, broker_use_ssl=conf.broker_use_ssl)
        try:
            await broker.queues(["olivepress.nobody"])
        finally:
            await broker.redis.aclose()

    asyncio.run(count())


REDIS_CLIENTS = [ask_redis_py, ask_celery, ask_as_flower]
REFUSALS = (RedisConnectionError, OperationalError)


def with_redis(redis: RedisServer | Relay, authority: Path | None, name: str = NAME) -> Settings:
    query = f"?ssl_ca_certs={authority}" if authority else ""
    return Settings(redis_url=f"rediss://:{redis.password}@{name}:{redis.port}/0{query}")


@pytest.mark.parametrize("ask", REDIS_CLIENTS)
def test_redis_with_the_right_authority_and_name_is_reached(
    ask: Callable[[Settings], None], redis: RedisServer | Relay, identity: Identity
) -> None:
    ask(with_redis(redis, identity.authority_file))


@pytest.mark.parametrize("ask", REDIS_CLIENTS)
def test_redis_whose_certificate_another_authority_signed_is_refused(
    ask: Callable[[Settings], None], redis: RedisServer | Relay, stranger: Path
) -> None:
    with pytest.raises(REFUSALS, match="certificate verify failed"):
        ask(with_redis(redis, stranger))


@pytest.mark.parametrize("ask", REDIS_CLIENTS)
def test_without_an_authority_of_its_own_only_the_systems_are_trusted(
    ask: Callable[[Settings], None], redis: RedisServer | Relay
) -> None:
    """Celery by itself would connect here without any check."""
    with pytest.raises(REFUSALS, match="certificate verify failed"):
        ask(with_redis(redis, None))


@pytest.mark.parametrize("ask", REDIS_CLIENTS)
def test_redis_under_a_name_that_its_certificate_has_not_is_refused(
    ask: Callable[[Settings], None], redis: RedisServer | Relay, identity: Identity
) -> None:
    with pytest.raises(REFUSALS, match="certificate verify failed"):
        ask(with_redis(redis, identity.authority_file, WRONG_NAME))


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("ssl_cert_reqs=none", "always checked"),
        ("ssl_check_hostname=false", "always checked"),
        ("ssl_ca_certs=/nowhere/ca.crt", "no file: /nowhere/ca.crt"),
        ("timeout=3", "timeout=3"),
    ],
)
def test_a_url_that_turns_a_check_off_or_names_no_file_is_refused(query: str, says: str) -> None:
    with pytest.raises(ServiceUnavailable, match=says):
        split_tls(f"rediss://:secret@redis:6379/0?{query}")


def test_other_urls_pass_as_they_are() -> None:
    for url in ("redis://:secret@redis:6379/0", "redis+socket://:secret@/run/redis.sock?virtual_host=0"):
        assert split_tls(url) == (url, {})


def with_postgres(postgres: PostgresServer, port: int, query: str, name: str = NAME) -> Database:
    url = postgres.url("postgres").replace(f"{postgres.host}:{postgres.port}", f"{name}:{port}")
    return Database(f"{url}?{query}")


def ask_postgres(database: Database) -> None:
    try:
        with database.read() as session:
            session.connection().exec_driver_sql("SELECT 1")
    finally:
        database.dispose()


def test_postgres_with_the_right_authority_and_name_is_reached(
    postgres: PostgresServer, postgres_front: Relay, identity: Identity
) -> None:
    before = postgres_front.accepted
    query = f"sslmode=verify-full&sslrootcert={identity.authority_file}"
    ask_postgres(with_postgres(postgres, postgres_front.port, query))
    assert postgres_front.accepted > before, "it went over TLS"


def test_postgres_whose_certificate_another_authority_signed_is_refused(
    postgres: PostgresServer, postgres_front: Relay, stranger: Path
) -> None:
    query = f"sslmode=verify-full&sslrootcert={stranger}"
    with pytest.raises(ServiceUnavailable, match="certificate verify failed"):
        ask_postgres(with_postgres(postgres, postgres_front.port, query))


def test_postgres_under_a_name_that_its_certificate_has_not_is_refused(
    postgres: PostgresServer, postgres_front: Relay, identity: Identity
) -> None:
    query = f"sslmode=verify-full&sslrootcert={identity.authority_file}"
    with pytest.raises(ServiceUnavailable, match="does not match host name"):
        ask_postgres(with_postgres(postgres, postgres_front.port, query, WRONG_NAME))


def test_postgres_without_tls_is_refused_where_the_url_asks_for_it(
    postgres: PostgresServer, identity: Identity
) -> None:
    query = f"sslmode=verify-full&sslrootcert={identity.authority_file}"
    with pytest.raises(ServiceUnavailable, match="does not support SSL"):
        ask_postgres(with_postgres(postgres, postgres.port, query))
