"""Options that many commands share."""

from typing import Annotated

import typer

AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on standard output, and nothing else there.")
]
Team = Annotated[str, typer.Option("--team", metavar="TEAM", help="Whose batches, jobs and models.")]
