"""What the worker knows and its steps must not: they get an environment without it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from olivepress.settings import Settings

PREFIX = "OLIVEPRESS_"
# A URL may hold a password; the signing key's place is nobody's business; the store's client reads the others.
OTHERS = (
    "OLIVEPRESS_DATABASE_URL",
    "OLIVEPRESS_SIGNING_KEY_FILE",
    "OLIVEPRESS_API_KEY",
    "PGPASSWORD",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
)


def variables() -> frozenset[str]:
    """Names of the variables that hold a secret, or lead to one."""
    secret = {
        f"{PREFIX}{name.upper()}"
        for name, field in Settings.model_fields.items()
        if "SecretStr" in str(field.annotation)
    }
    return frozenset({*secret, *OTHERS})


@contextmanager
def hidden() -> Iterator[None]:
    """Without them in the environment: what is started meanwhile does not inherit them."""
    taken = forget()
    try:
        yield
    finally:
        os.environ.update(taken)


def forget() -> dict[str, str]:
    """Take them out of the environment for good: a forkserver that ended is started again with what is there then.

    Returns:
        What was taken out.
    """
    return {name: os.environ.pop(name) for name in variables() if name in os.environ}
