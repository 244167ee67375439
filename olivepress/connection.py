"""Where the API is and the key that it asks for: of the stack that runs here, or of one that the environment names."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_data_path

from olivepress.errors import NotAllowed, ServiceUnavailable

SERVER_FILE = "server.json"


@dataclass(frozen=True)
class Connection:
    """Where the API is, and the key that it asks for."""

    url: str
    key: str | None = None
    flower_url: str | None = None

    @classmethod
    def discover(cls, data_dir: Path | None = None, environment: Mapping[str, str] = os.environ) -> "Connection":
        """The stack that `olivepress up` runs on this machine, or the one that OLIVEPRESS_URL names.

        The client reads the three variables itself: `Settings` needs packages that a client has no use for.

        Raises:
            ServiceUnavailable: no stack runs here and none is named.
            NotAllowed: the key's file cannot be read.
        """
        url, key = environment.get("OLIVEPRESS_URL"), environment.get("OLIVEPRESS_API_KEY")
        if url:
            # Not the local stack's key: it is nobody else's business.
            return cls(url.rstrip("/"), key)
        server_file = (data_dir or default_data_dir(environment)) / SERVER_FILE
        try:
            server = json.loads(server_file.read_text(encoding="utf-8"))
            found = cls(server["url"].rstrip("/"), key, server.get("flower_url"))
        except FileNotFoundError:
            raise ServiceUnavailable(
                f"no olivepress runs here ({server_file} is missing); is `olivepress up` running? For one elsewhere "
                "set OLIVEPRESS_URL and OLIVEPRESS_API_KEY"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ServiceUnavailable(f"{server_file} cannot be read; start `olivepress up` again") from error
        if found.key:
            return found
        return cls(found.url, _read_key(Path(server["admin_key_file"])), found.flower_url)


def default_data_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """The data directory that `olivepress up` uses unless told otherwise."""
    stated = environment.get("OLIVEPRESS_DATA_DIR")
    return Path(stated) if stated else user_data_path("olivepress", appauthor=False)


def _read_key(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise NotAllowed(
            f"cannot read the admin key in {path} ({error.strerror}); set OLIVEPRESS_API_KEY, or be the user who "
            "runs `olivepress up`"
        ) from None
