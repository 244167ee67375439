"""What the client asks of the keys that sign."""

from olivepress.client.transport import Json, Transport


class KeyCalls(Transport):
    """The public keys of what the stack signs."""

    def signing_keys(self) -> list[Json]:
        """All keys, the newest first: id, public_key (base64), created_at, endorsed_by, endorsement."""
        return self.list_of("/v1/keys")
