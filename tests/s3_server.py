"""An S3 server for tests: moto in this process, with faults that a test can ask for.

What moto has of S3: objects, listings, conditional writes, uploads in parts, bulk deletion, and it shows at once what
was written. What it does not have: checks of signatures, limits of rates, lifecycle rules.
"""

import logging
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import httpx
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

from olivepress.store.bucket_objects import Bucket

TIMEOUT_S = 5.0
Application = Callable[[dict[str, Any], Callable[..., Any]], Any]


@dataclass
class Request:
    """What a client asks; `key` without the bucket."""

    method: str
    key: str


@dataclass
class S3Server:
    """A server that runs, and what it does to requests."""

    url: str
    requests: list[Request] = field(default_factory=list)
    status_of: Callable[[Request], int | None] = lambda request: None
    """An error to answer instead, or None."""
    body_of: Callable[[Request, bytes], Iterator[bytes]] | None = None
    """How a body is sent."""

    def bucket(self, prefix: str = "a/prefix", timeout_s: float = TIMEOUT_S) -> Bucket:
        """A new bucket."""
        name = f"bucket-{uuid.uuid4().hex}"
        httpx.put(f"{self.url}/{name}").raise_for_status()
        return self.opened(name, prefix, timeout_s)

    def opened(self, name: str, prefix: str, timeout_s: float = TIMEOUT_S) -> Bucket:
        """A client for this bucket."""
        return Bucket(
            name, prefix, endpoint=self.url, region="us-east-1", credentials=("key", "secret"), timeout_s=timeout_s
        )

    def calm(self) -> None:
        """No faults from now on; the requests seen so far are forgotten."""
        self.status_of, self.body_of = lambda request: None, None
        self.requests.clear()


def age(bucket: Bucket, seconds: float) -> None:
    """Make all objects of the bucket so much older."""
    name, _, prefix = bucket.name.removeprefix("s3://").partition("/")
    for key, stored in s3_backends[DEFAULT_ACCOUNT_ID]["aws"].buckets[name].keys.items():
        if key.startswith(prefix):
            stored.last_modified -= timedelta(seconds=seconds)


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """A server on a free port of this machine's loopback."""
    holder: list[S3Server] = []
    application: Application = DomainDispatcherApplication(create_backend_app)

    def faulty(environment: dict[str, Any], start: Callable[..., Any]) -> Any:
        server = holder[0]
        request = Request(environment["REQUEST_METHOD"], environment["PATH_INFO"].strip("/").partition("/")[2])
        server.requests.append(request)
        if (status := server.status_of(request)) is not None:
            environment["wsgi.input"].read(int(environment.get("CONTENT_LENGTH") or 0))
            start(f"{status} told to", [("Content-Length", "0")])
            return [b""]
        answer = application(environment, start)
        return answer if server.body_of is None else server.body_of(request, b"".join(answer))

    class Quiet(WSGIRequestHandler):
        def log(self, *_: Any) -> None: ...

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    httpd = make_server("127.0.0.1", 0, faulty, threaded=True, request_handler=Quiet)
    httpd.daemon_threads = True
    holder.append(S3Server(f"http://127.0.0.1:{httpd.server_port}"))
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield holder[0]
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()
