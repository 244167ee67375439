"""The public keys that this machine relies on, each for one stack: what ssh calls known hosts.

A stack is known by its API's address, or by its data directory where it runs on this machine. Its keys are believed at
first sight; from then on another key is believed only if the holder of a known one handed over to it. A key that
somebody else may have is distrusted: it stays listed as such, so that nothing brings it back but a person.
"""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from platformdirs import user_config_path

from olivepress.connection import SERVER_FILE, default_data_dir
from olivepress.errors import NotAllowed, PermanentError
from olivepress.evidence.signing import PublicKey
from olivepress.file_lock import exclusive

SCHEMA_VERSION = 1
LOCK_WAIT_S = 5.0


@dataclass(frozen=True)
class KnownKey:
    """A key of a stack."""

    stack: str
    id: str
    public_key: str
    since: float
    """When this machine came to know it, in seconds since 1970."""
    is_distrusted: bool = False

    @property
    def key(self) -> PublicKey:
        """It, to check signatures with."""
        return PublicKey.from_text(self.public_key)


class KnownKeys:
    """The file that holds them. Several processes may use it at once."""

    def __init__(self, file: Path) -> None:
        self.file = file

    @classmethod
    def default(cls, environment: Mapping[str, str] = os.environ) -> "KnownKeys":
        """The file of this user, or the one that OLIVEPRESS_KNOWN_KEYS names."""
        stated = environment.get("OLIVEPRESS_KNOWN_KEYS")
        return cls(Path(stated) if stated else user_config_path("olivepress", appauthor=False) / "known_keys.json")

    def all(self) -> list[KnownKey]:
        """All keys, also distrusted ones, in the order in which they came.

        Raises:
            PermanentError: the file cannot be understood.
            NotAllowed: it cannot be read.
        """
        try:
            content = json.loads(self.file.read_text(encoding="utf-8"))
            if content["schema_version"] != SCHEMA_VERSION:
                raise ValueError
            keys = [KnownKey(**entry) for entry in content["keys"]]
            if any(known.key.id != known.id for known in keys):
                raise ValueError
        except FileNotFoundError:
            return []
        except OSError as error:
            raise NotAllowed(f"{self.file} cannot be read ({error.strerror}); check who owns it") from None
        except (ValueError, KeyError, TypeError, AttributeError, PermanentError):
            raise PermanentError(
                f"{self.file} is not in the form that olivepress writes; move it away, and check the keys of your "
                "stacks again with `olivepress keys trust`"
            ) from None
        return keys

    def of(self, stack: str) -> dict[str, PublicKey]:
        """The keys of a stack that are relied on, by id."""
        return {known.id: known.key for known in self.all() if known.stack == stack and not known.is_distrusted}

    def find(self, key_id: str) -> KnownKey | None:
        """A key that is relied on, whichever stack it is of."""
        return next((known for known in self.all() if known.id == key_id and not known.is_distrusted), None)

    def distrusted(self) -> set[str]:
        """The ids of keys that are not to be relied on, whoever offers them."""
        return {known.id for known in self.all() if known.is_distrusted}

    def add(self, stack: str, key: PublicKey) -> None:
        """Rely on a key of a stack from now on, also where it was distrusted.

        Raises:
            NotAllowed: the file cannot be written.
        """
        self._enter(KnownKey(stack, key.id, key.text, time.time()))

    def distrust(self, stack: str, key: PublicKey) -> None:
        """Never rely on a key again, of whatever stack, until a person says otherwise.

        Raises:
            NotAllowed: the file cannot be written.
        """
        self._enter(KnownKey(stack, key.id, key.text, time.time(), is_distrusted=True))

    def _enter(self, entry: KnownKey) -> None:
        """What is listed of this key and says otherwise than the new entry goes; the entry comes unless it is there."""
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            lock = self.file.with_name(self.file.name + ".lock")
            with exclusive(lock, wait_s=LOCK_WAIT_S, what=f"the list of known keys {self.file}"):
                listed = self.all()
                left = [one for one in listed if one.id != entry.id or one.is_distrusted == entry.is_distrusted]
                if not any((one.stack, one.id) == (entry.stack, entry.id) for one in left):
                    left.append(entry)
                if left != listed:
                    self._write(left)
        except OSError as error:
            raise NotAllowed(
                f"{self.file} cannot be written ({error.strerror}); check who owns it, or set OLIVEPRESS_KNOWN_KEYS"
            ) from None

    def _write(self, keys: list[KnownKey]) -> None:
        value: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "keys": [asdict(known) for known in keys]}
        fresh = self.file.with_name(f".{self.file.name}.{os.getpid()}.new")
        fresh.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        fresh.replace(self.file)


def local_stack(url: str, environment: Mapping[str, str] = os.environ) -> Path | None:
    """The data directory of the stack at this address, if it is the one that this user runs here.

    Whoever can write there is believed anyway. A tunnel to another machine has a loopback address, too, and is not it.
    """
    data_dir = default_data_dir(environment)
    try:
        server = json.loads((data_dir / SERVER_FILE).read_text(encoding="utf-8"))
        is_it = str(server["url"]).rstrip("/") == url.rstrip("/")
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return data_dir.resolve() if is_it else None
