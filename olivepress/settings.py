"""The one settings object: read once from OLIVEPRESS_* variables, passed down."""

import os
import re
import tempfile
from pathlib import Path

from platformdirs import user_data_path
from pydantic import ByteSize, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

DEFAULT_POOL = "default"
SIGNING_KEY_FILE = "signing-key.pem"
"""In the data directory of `olivepress up`, which makes it."""
_LABEL = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


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
    store_url: str | None = Field(default=None, pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[!-~]*)?$")
    """An S3-compatible bucket instead of a directory, such as s3://models/olivepress."""
    store_endpoint: str | None = Field(default=None, pattern="^https?://[!-~]+$")
    """Where the bucket's service is, if not AWS. For this and the next three, the usual AWS_* variables count, too."""
    store_region: str | None = None
    store_access_key: SecretStr | None = None
    store_secret_key: SecretStr | None = None
    store_timeout_s: float = Field(default=60.0, gt=0)
    """For one request to the bucket, its answer of up to 16 MiB included; then it is tried again, a few times."""
    workspace_dir: Path | None = None
    checkpoint_roots: str = ""
    """Directories under which checkpoints may lie, separated like PATH."""
    allow_pickle: bool = False
    """Open weights that are a pickle (pytorch_model.bin), in the step's own process and as plain tensors only."""

    api_host: str = "127.0.0.1"
    api_port: int = Field(default=8720, ge=0, le=65535)
    flower_host: str = "127.0.0.1"
    flower_port: int = Field(default=5555, ge=0, le=65535)
    flower_url: str | None = Field(default=None, pattern="^https?://")
    """Where the API finds Flower for its health check; this host and `flower_port` unless set."""
    flower_password: SecretStr | None = None
    admin_key: SecretStr | None = None
    """Known to the API only; `up` makes one and keeps it in the data directory."""

    signing_key_file: Path | None = None
    """An Ed25519 private key in PEM; only for a worker, which publishes. Without it versions are not signed."""
    publish_only: bool = False
    """Whether a worker runs nothing but the steps that publish: no other step then has the user that owns the key."""

    slots: int = Field(default_factory=default_slots, ge=1, le=64)
    memory: ByteSize | None = Field(default=None, gt=0)
    """What a worker offers to its steps, in equal parts for each slot, such as 16GB; the machine's less a reserve."""
    pools: str = DEFAULT_POOL
    """Labels that a worker offers, separated by commas; a job that names a pool runs only there."""
    team_weights: str = ""
    """Shares of teams in the slots, such as research=3,default=1; a team that is not named has 1."""
    unplaceable_after_s: float = Field(default=3600.0, gt=0)
    """A step that no living worker could take for so long fails."""
    step_time_limit_s: float = Field(default=4 * 3600.0, gt=0)
    shutdown_grace_s: float = Field(default=5.0, ge=0, le=3600)
    dispatch_every_s: float = Field(default=1.0, gt=0, le=60)
    signal_again_after_s: float = Field(default=15.0, gt=0)
    recertify: str = Field(default="on", pattern="^(on|off)$")
    """Whether versions that an alias points to are measured again once the runtime of all workers is another one."""
    log_format: str = Field(default="text", pattern="^(text|json)$")

    retention_every_s: float = Field(default=3600.0, ge=0)
    """How often the scheduler removes what is too old; 0: never. In the others below, 0 means that this kind stays."""
    retention_unreferenced_days: float = Field(default=1.0, ge=0)
    """Store content that nothing refers to, after it was last put or relied on; longer than the longest transaction."""
    retention_remembered_days: float = Field(default=30.0, ge=0)
    """Remembered results, after they were made or last used."""
    retention_attempts_days: float = Field(default=90.0, ge=0)
    """Attempts of a finished step but its last, after the step finished."""
    retention_logs_days: float = Field(default=30.0, ge=0)
    """Logs of attempts that succeeded."""
    retention_workers_days: float = Field(default=30.0, ge=0)
    """Workers that were not seen any more and that no attempt names."""
    store_check_days: float = Field(default=30.0, ge=0)
    """How old the last full check of the store may become before the scheduler makes another; 0: it makes none."""
    deleted_versions_days: float = Field(default=7.0, ge=0)
    """How long a deleted version can be undeleted and keeps its files; 0: not at all."""
    retention_settle_s: float = Field(default=120.0, ge=0)
    """How long unreferenced store content stays readable in the trash: longer than network file systems cache names."""

    @field_validator("pools")
    @classmethod
    def _check_pools(cls, value: str) -> str:
        labels = [part.strip() for part in value.split(",")]
        for label in labels:
            if not _LABEL.fullmatch(label):
                raise ValueError(f"'{label}' is no pool; write small letters, digits, - and _, separated by commas")
        return ",".join(labels)

    @field_validator("team_weights")
    @classmethod
    def _check_weights(cls, value: str) -> str:
        for part in filter(None, value.split(",")):
            team, _, weight = part.partition("=")
            if not _LABEL.fullmatch(team.strip()) or not weight.strip().isdecimal() or int(weight) < 1:
                raise ValueError(f"'{part}' is no weight; write research=3,default=1 with whole numbers from 1")
        return value

    @property
    def pool_labels(self) -> list[str]:
        """The pools that a worker offers."""
        return self.pools.split(",")

    @property
    def weights(self) -> dict[str, int]:
        """Share of each named team in the slots."""
        parts = [part.partition("=") for part in self.team_weights.split(",") if part]
        return {team.strip(): int(weight) for team, _, weight in parts}

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
