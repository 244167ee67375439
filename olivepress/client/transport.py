"""How the client speaks with the API: addresses, timeouts, and answers that become values or olivepress errors."""

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self, TypeVar, get_origin
from urllib.parse import urlsplit

import httpx

from olivepress import errors
from olivepress.errors import OlivepressError, PermanentError, ServiceUnavailable

Json = dict[str, Any]
T = TypeVar("T")

DEFAULT_TEAM = "default"
CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 60.0
# Ten thousand jobs at once, on a busy machine.
LARGE_ANSWER_TIMEOUT_S = 300.0
# A link that drops: each small request is sent again after these, about twenty seconds in all.
WAITS_S = (0.1, 0.3, 1.0, 2.0, 4.0, 6.0, 8.0)
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


class Transport:
    """A connection to the API; use as a context manager."""

    def __init__(self, url: str, key: str | None = None, transport: httpx.BaseTransport | None = None) -> None:
        self.url = url
        self._is_local = urlsplit(url).hostname in LOOPBACK
        self.http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            transport=transport,
            # A proxy that the environment names cannot reach this machine's loopback.
            trust_env=not self._is_local,
        )
        self._waits_s: Sequence[float] = ()
        self._has_answered = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self.http.close()

    @contextlib.contextmanager
    def patient(self, waits_s: Sequence[float] = WAITS_S) -> Iterator[Self]:
        """Meanwhile small questions are asked again where the connection breaks.

        Where nobody has ever answered, that is told at once.

        Args:
            waits_s: seconds between one try and the next, and so how many there are.
        """
        before, self._waits_s = self._waits_s, waits_s
        try:
            yield self
        finally:
            self._waits_s = before

    def again(self, ask: Callable[[], T]) -> T:
        """What a question gives that may be asked as often as one likes.

        Raises:
            ServiceUnavailable: the connection broke, as often as this client has patience.
        """
        for wait_s in self._waits_s:
            try:
                return ask()
            except ServiceUnavailable as error:
                if not self._may_come_back(error.__cause__):
                    raise
            # Not all clients at the same moment.
            time.sleep(wait_s * random.uniform(0.5, 1.0))
        return ask()

    def _may_come_back(self, cause: BaseException | None) -> bool:
        is_nobody_there = isinstance(cause, httpx.ConnectError | httpx.ConnectTimeout)
        has_broken = isinstance(cause, httpx.NetworkError | httpx.RemoteProtocolError)
        return self._has_answered if is_nobody_there else has_broken

    def document(self, method: str, path: str, **options: Any) -> Json:
        """The JSON object that a request is answered with; `options` are httpx's."""
        return decoded(self.answer(method, path, **options), Json)

    def list_of(self, path: str, **params: Any) -> list[Json]:
        """The JSON list that a GET with these parameters is answered with; those that are None are not sent."""
        return decoded(self.answer("GET", path, params=without_none(**params)), list[Json])

    def answer(self, method: str, path: str, **options: Any) -> httpx.Response:
        """The answer to a request, unless it is an error: that is raised."""
        if method == "GET":
            response = self.again(lambda: self._answer(method, path, **options))
        else:
            response = self._answer(method, path, **options)
        if response.status_code >= 400:
            raise error_of(response)
        return response

    def _answer(self, method: str, path: str, **options: Any) -> httpx.Response:
        with self.lost_is_named():
            response = self.http.request(method, path, **options)
        self._has_answered = True
        return response

    @contextlib.contextmanager
    def stream(self, path: str, **options: Any) -> Iterator[httpx.Response]:
        """The answer to a GET, to be read as it arrives."""
        with self.lost_is_named(), self.http.stream("GET", path, **options) as response:
            self._has_answered = True
            if response.status_code >= 400:
                response.read()
                raise error_of(response)
            yield response

    @contextlib.contextmanager
    def lost_is_named(self) -> Iterator[None]:
        """Turns what a lost connection raises into ServiceUnavailable that says what to do."""
        try:
            yield
        except httpx.ConnectError as error:
            advice = "is `olivepress up` running?" if self._is_local else "check OLIVEPRESS_URL and the network"
            raise ServiceUnavailable(f"nothing answers at {self.url}; {advice}") from error
        except httpx.TimeoutException as error:
            raise ServiceUnavailable(
                f"the service at {self.url} takes too long to answer; look at its log, and try again"
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            message = str(error) or type(error).__name__
            raise ServiceUnavailable(f"the connection to {self.url} broke ({message}); try again") from error


def error_of(response: httpx.Response) -> OlivepressError:
    """The error that the API answered, as the class that it names."""
    try:
        problem = response.json()
        kind, detail = getattr(errors, problem["error_class"], None), str(problem["detail"])
    except (ValueError, KeyError, TypeError):
        kind = None
        detail = f"{response.url} answered {response.status_code}, and not as olivepress does; check OLIVEPRESS_URL"
    if isinstance(kind, type) and issubclass(kind, OlivepressError):
        return kind(detail)
    return ServiceUnavailable(detail) if response.status_code >= 500 else PermanentError(detail)


def decoded(response: httpx.Response, kind: type[T]) -> T:
    """The answer's JSON value, if it is of this kind.

    Raises:
        ServiceUnavailable: it is not; something else answers there.
    """
    with contextlib.suppress(ValueError):
        value: T = response.json()
        if isinstance(value, get_origin(kind) or kind):
            return value
    raise ServiceUnavailable(f"{response.url} answered, but not as olivepress does; check OLIVEPRESS_URL")


def without_none(**params: Any) -> dict[str, Any]:
    """The parameters that are set."""
    return {name: value for name, value in params.items() if value is not None}
