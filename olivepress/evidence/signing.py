"""Keys that sign what is published: Ed25519. The private one lies in a file of the services that publish.

A key's id is the beginning of the SHA-256 of its 32 public bytes. Whoever replaces a key signs the new one with the
old one, so that those who know the old one may go over to the new one by themselves.
"""

import base64
import contextlib
import hashlib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from olivepress.errors import NotAllowed, PermanentError

KEY_ID_DIGITS = 16
PUBLIC_BYTES = 32
SIGNATURE_BYTES = 64
# A secret that a container is given is often readable by its group; by others or writable, it is nobody's secret.
TOO_OPEN = stat.S_IWGRP | stat.S_IRWXO


@dataclass(frozen=True)
class PublicKey:
    """What a signature is checked with.

    Raises PermanentError where the bytes are no Ed25519 key.
    """

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != PUBLIC_BYTES:
            raise PermanentError(f"a public key has {PUBLIC_BYTES} bytes, this one {len(self.raw)}; take another one")

    @property
    def id(self) -> str:
        """Its short name."""
        return hashlib.sha256(self.raw).hexdigest()[:KEY_ID_DIGITS]

    @property
    def text(self) -> str:
        """Its bytes as base64."""
        return base64.b64encode(self.raw).decode()

    @property
    def pem(self) -> str:
        """It as openssl reads it."""
        key = Ed25519PublicKey.from_public_bytes(self.raw)
        form = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        return key.public_bytes(*form).decode()

    @classmethod
    def from_text(cls, text: str) -> "PublicKey":
        """A key by its base64.

        Raises:
            PermanentError: it is none.
        """
        try:
            return cls(base64.b64decode(text, validate=True))
        except ValueError:
            raise PermanentError("this is no public key in base64; take another one") from None

    @classmethod
    def from_pem_file(cls, file: Path) -> "PublicKey":
        """A key as `olivepress keys show --pem` and openssl write it.

        Raises:
            PermanentError: the file holds no Ed25519 public key.
        """
        try:
            key = serialization.load_pem_public_key(file.read_bytes())
        except (ValueError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, Ed25519PublicKey):
            raise PermanentError(
                f"{file} holds no Ed25519 public key in PEM; `olivepress keys show --pem` prints the stack's"
            )
        return cls(key.public_bytes_raw())

    def has_signed(self, content: bytes, signature: bytes) -> bool:
        """Whether the signature is this key's, of this content."""
        with contextlib.suppress(InvalidSignature):
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, content)
            return True
        return False

    def is_endorsed(self, by: "PublicKey", endorsement: bytes) -> bool:
        """Whether the holder of the key `by` handed over to this one."""
        return by.has_signed(_succession(self), endorsement)


class SigningKey:
    """A private key. Neither its repr nor an error shows it."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = PublicKey(key.public_key().public_bytes_raw())

    def __repr__(self) -> str:
        return f"SigningKey({self.public.id})"

    @classmethod
    def load(cls, file: Path) -> "SigningKey":
        """The key in this file.

        Raises:
            NotAllowed: it cannot be read, or others can read it too.
            PermanentError: it holds no Ed25519 private key.
        """
        try:
            mode = file.stat().st_mode
            content = file.read_bytes()
        except OSError as error:
            raise NotAllowed(
                f"the signing key {file} cannot be read ({error.strerror}); check OLIVEPRESS_SIGNING_KEY_FILE and who "
                "owns the file"
            ) from None
        if os.name == "posix" and mode & TOO_OPEN:
            raise NotAllowed(f"others can read or change the signing key {file}; run: chmod 600 {file}")
        try:
            key = serialization.load_pem_private_key(content, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise PermanentError(
                f"{file} holds no Ed25519 private key in PEM without a password; make one with: openssl genpkey "
                f"-algorithm ed25519 -out {file}"
            )
        return cls(key)

    @classmethod
    def load_or_create(cls, file: Path) -> "SigningKey":
        """The key in this file, which is made where there is none; of two that make it at once, both get the first.

        Raises:
            NotAllowed, PermanentError: see `load`.
        """
        if not file.exists():
            fresh = cls.write_new(file)
            # A link, unlike a rename, does not replace what another process wrote in this moment.
            with contextlib.suppress(FileExistsError):
                os.link(fresh, file)
            fresh.unlink()
        return cls.load(file)

    @classmethod
    def write_new(cls, file: Path) -> Path:
        """A new key in a temporary file beside this one, which only its owner can read."""
        fresh = file.with_name(f".{file.name}.{os.urandom(6).hex()}.new")
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        descriptor = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(Ed25519PrivateKey.generate().private_bytes(*form))
            stream.flush()
            os.fsync(stream.fileno())
        return fresh

    def sign(self, content: bytes) -> bytes:
        """The signature: 64 bytes, the same every time."""
        return self._key.sign(content)

    def endorse(self, successor: PublicKey) -> bytes:
        """The signature by which this key hands over to another one."""
        return self.sign(_succession(successor))


def _succession(successor: PublicKey) -> bytes:
    value = {"kind": "olivepress-key-succession", "new_key": successor.text}
    return json.dumps(value, sort_keys=True).encode()
