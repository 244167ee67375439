"""The one settings object: read once from OLIVEPRESS_* variables, passed down."""

import os
import tempfile
from pathlib import Path

from platformdirs import user_data_path
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

POOL = "default"


def default_slots() -> int:
    """One step at a time for every two cores: conversions and measures use two threads each."""
    return max(1, (os.cpu_count() or 1) // 2)


class Settings(BaseSettings):
    """Everything that can be set. Sizes are in bytes, times in seconds; a secret has no default."""

    model_config = SettingsConfigDict(env_prefix="OLIVEPRESS_", frozen=True, extra="forbid")

    data_dir: Path = Field(default_factory=lambda: user_data_path("olivepress", appauthor=False))
    database_url: str | None = None
    redis_url: SecretStr | None = None
    store_dir: Path | None = None
    workspace_dir: Path | None = None
    checkpoint_roots: str = ""
    """Directories under which checkpoints may lie, separated like PATH."""

    api_host: str = "127.0.0.1"
    api_port: int = Field(default=8720, ge=0, le=65535)
    flower_host: str = "127.0.0.1"
    flower_port: int = Field(default=5555, ge=0, le=65535)
    flower_password: SecretStr | None = None
    admin_key: SecretStr | None = None
    """Known to the API only; `up` makes one and keeps it in the data directory."""

    slots: int = Field(default_factory=default_slots, ge=1, le=64)
    pool: str = POOL
    step_time_limit_s: float = Field(default=4 * 3600.0, gt=0)
    shutdown_grace_s: float = Field(default=5.0, ge=0, le=3600)
    dispatch_every_s: float = Field(default=1.0, gt=0, le=60)
    signal_again_after_s: float = Field(default=15.0, gt=0)
    log_format: str = Field(default="text", pattern="^(text|json)$")

    @property
    def database(self) -> str:
        """SQLAlchemy URL; SQLite in the data directory unless set."""
        return self.database_url or f"sqlite:///{self.data_dir / 'olivepress.sqlite'}"

    @property
    def store(self) -> Path:
        """Root of the directory store."""
        return self.store_dir or self.data_dir / "store"

    @property
    def workspaces(self) -> Path:
        """Where attempts work; emptied after each."""
        return self.workspace_dir or self.data_dir / "workspaces"

    @property
    def exclusive_lock(self) -> Path:
        """The file whose flock gives this host to one timed measure at a time, whichever stack it belongs to."""
        return Path(tempfile.gettempdir()) / f"olivepress-{os.getuid() if hasattr(os, 'getuid') else 'host'}.timed.lock"

    @property
    def roots(self) -> list[Path]:
        """Directories under which checkpoints may lie."""
        return [Path(part).expanduser() for part in self.checkpoint_roots.split(os.pathsep) if part]
