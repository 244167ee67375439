"""How the stack is: the open health check, the administrator's check of every part, and the workers."""

from collections.abc import Callable

import httpx
from fastapi import APIRouter, Response
from redis.exceptions import RedisError

import olivepress
from api.routes import Parts, Stack
from api.schemas import Check, CheckStatus, Health, HealthStatus, Worker
from olivepress.database import signing_keys, views
from olivepress.database.tables import Json
from olivepress.errors import OlivepressError, ServiceUnavailable
from olivepress.queues import redis_client

open_router = APIRouter(tags=["health"])
router = APIRouter(tags=["health"])
FLOWER_TIMEOUT_S = 2.0
BUILDER = "onnxruntime-genai"
LOW_DISK_BYTES = 5 * 10**9


@open_router.get("/healthz", summary="Is the stack alive?", responses={503: {"model": Health}})
def healthz(stack: Stack, response: Response) -> Health:
    """Needs no key. 503 when the database does not answer; `degraded` without a scheduler or a worker."""
    try:
        with stack.database.read() as session:
            is_led = views.scheduler_lease(session)["alive"]
            alive = sum(worker["alive"] and worker["memory_bytes"] > 0 for worker in views.workers(session))
    except ServiceUnavailable:
        response.status_code = 503
        return Health(status=HealthStatus.DOWN, version=olivepress.__version__, database=False)
    status = HealthStatus.OK if is_led and alive else HealthStatus.DEGRADED
    return Health(
        status=status, version=olivepress.__version__, database=True, scheduler_alive=is_led, workers_alive=alive
    )


@router.get("/health", response_model=list[Check], summary="Check every part of the stack")
def health(stack: Stack) -> list[Check]:
    """Each part with what is wrong with it and what to do now; `olivepress doctor` shows this."""
    checks: list[Callable[[Parts], Check]] = [_scheduler, _workers, _signing, _redis, _flower, _store]
    return [_database(stack), *(_guarded(check, stack) for check in checks)]


@router.get("/workers", response_model=list[Worker], summary="List the workers")
def list_workers(stack: Stack) -> list[Json]:
    """Workers that live, and those that were seen within the last day."""
    with stack.database.read() as session:
        return views.workers(session)


def _guarded(check: Callable[[Parts], Check], parts: Parts) -> Check:
    """A part that cannot be asked is a failed check, never a failed request."""
    try:
        return check(parts)
    except OlivepressError as error:
        return _fail(check.__name__.strip("_"), str(error), "mend the part that is named")


def _database(parts: Parts) -> Check:
    kind = parts.database.engine.dialect.name
    try:
        with parts.database.read() as session:
            views.scheduler_lease(session)
    except ServiceUnavailable as error:
        return _fail("database", str(error), "start it, and see that OLIVEPRESS_DATABASE_URL is right")
    return _ok("database", f"{kind} answers")


def _scheduler(parts: Parts) -> Check:
    with parts.database.read() as session:
        lease = views.scheduler_lease(session)
    if lease["alive"]:
        return _ok("scheduler", f"{lease['holder']} leads")
    seen = f"{lease['holder']} led until its lease ran out" if lease["holder"] else "none has led yet"
    return _fail("scheduler", seen, "start one: `olivepress service scheduler`; until then nothing is dispatched")


def _workers(parts: Parts) -> Check:
    with parts.database.read() as session:
        # Those that only publish have neither room for a step nor a toolchain; _signing looks at them.
        alive = [worker for worker in views.workers(session) if worker["alive"] and worker["memory_bytes"] > 0]
    if not alive:
        return _fail("workers", "none is alive", "start one: `olivepress service worker`; a new one needs a moment")
    slots = sum(worker["slots"] for worker in alive)
    without = [worker["host"] for worker in alive if BUILDER not in worker["toolchain"]]
    if without:
        detail = f"the toolchain is missing on: {', '.join(sorted(set(without)))}"
        return _fail("workers", detail, "install it there: pip install 'olivepress[worker]'")
    toolchains = sorted({_toolchain(worker["toolchain"]) for worker in alive})
    return _ok("workers", f"{len(alive)} alive, slots: {slots}; {' | '.join(toolchains)}")


def _signing(parts: Parts) -> Check:
    with parts.database.read() as session:
        keys = [key["id"] for key in signing_keys.keys(session)]
        alive = [worker for worker in views.workers(session) if worker["alive"]]
    holders = {worker["host"]: worker["signing_key"] for worker in alive if worker["signing_key"]}
    if not keys:
        return _warn("signing", "nothing is signed", "start one with a key: `olivepress service publisher`")
    if not holders:
        detail = f"no running worker has the key {keys[0]}, so nothing can be published"
        return _fail("signing", detail, "start what has it: `olivepress service publisher`; what waits goes on")
    former = {f"{host} ({key})" for host, key in holders.items() if key != keys[0]}
    if former:
        detail = f"the newest key is {keys[0]}, and another signs on: {', '.join(sorted(former))}"
        return _warn("signing", detail, "put the file of the newest key there, or take the key away from it")
    return _ok("signing", f"{keys[0]} on: {', '.join(sorted(holders))}")


def _toolchain(versions: Json) -> str:
    return ", ".join(f"{name} {versions[name]}" for name in ("olive-ai", BUILDER) if name in versions)


def _redis(parts: Parts) -> Check:
    try:
        with redis_client(parts.settings) as redis:
            redis.ping()
    except (RedisError, ServiceUnavailable) as error:
        return _fail("redis", f"it does not answer: {error}", "start it, and see that OLIVEPRESS_REDIS_URL is right")
    return _ok("redis", "it answers")


def _flower(parts: Parts) -> Check:
    address = parts.settings.flower_url or f"http://127.0.0.1:{parts.settings.flower_port}"
    try:
        httpx.get(f"{address}/healthcheck", timeout=FLOWER_TIMEOUT_S).raise_for_status()
    except httpx.HTTPError:
        detail = f"it does not answer at {address}"
        return _warn("flower", detail, "start it to watch the tasks: `olivepress service flower`; no job needs it")
    return _ok("flower", f"it answers at {address}")


def _store(parts: Parts) -> Check:
    try:
        free_bytes = parts.store.free_bytes()
    except OSError as error:
        return _fail("store", f"{parts.store.name}: {error.strerror}", "mount it, or set OLIVEPRESS_STORE_DIR")
    except ServiceUnavailable as error:
        return _fail("store", str(error), "mend what it says")
    if free_bytes is None:
        return _ok("store", f"{parts.store.name} answers")
    detail = f"{parts.store.name} has {free_bytes / 1e9:.1f} GB free"
    if free_bytes < LOW_DISK_BYTES:
        return _warn("store", detail, "free some space there")
    return _ok("store", detail)


def _ok(name: str, detail: str) -> Check:
    return Check(name=name, status=CheckStatus.OK, detail=detail, what_now=None)


def _warn(name: str, detail: str, what_now: str) -> Check:
    return Check(name=name, status=CheckStatus.WARN, detail=detail, what_now=what_now)


def _fail(name: str, detail: str, what_now: str) -> Check:
    return Check(name=name, status=CheckStatus.FAIL, detail=detail, what_now=what_now)
