"""What the API answers of versions that are certified again; schemas.py has the validations of one version."""

from pydantic import Field

from api.schemas import Answer
from olivepress.jobs import JobState
from olivepress.recertification import Due


class Recertification(Answer):
    """A version that an alias points to, and whether it is to be certified again."""

    version: str = Field(examples=["support-en-int4:3"])
    team: str
    aliases: list[str]
    certified_with: str | None = Field(description="The runtime of the certificate that it was published with.")
    due: Due
    last_job_id: int | None = Field(description="The job that certified it again last, or does so now.")
    last_state: JobState | None


class Recertifications(Answer):
    """What the runtime of the living workers means for published versions."""

    runtime: str | None = Field(description="Null: no worker lives, or they have different ones.", examples=["2.2.1"])
    is_automatic: bool = Field(description="Whether the scheduler starts what is due.")
    versions: list[Recertification]


class StartedRecertifications(Answer):
    """Jobs that were started, and why others could not be."""

    jobs: list[int]
    problems: list[str]
