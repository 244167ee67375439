"""The command line: `main` is what the console script calls; each command has a file of its own."""

import sys
from typing import Annotated

import typer
import typer.main

import olivepress
from olivepress.cli.lazy import LazyCommand, LazyGroup
from olivepress.errors import (
    BadManifest,
    NotAllowed,
    NotFound,
    OlivepressError,
    ServiceUnavailable,
    UnknownRecipe,
)

FAILED = 1
WRONG_USAGE = 2
# The nearest class above an error decides; the rest is FAILED.
EXIT_CODES: dict[type[OlivepressError], int] = {
    BadManifest: WRONG_USAGE,
    UnknownRecipe: WRONG_USAGE,
    ServiceUnavailable: 3,
    NotFound: 4,
    NotAllowed: 5,
}
EPILOG = """
[bold]Examples[/]
  olivepress demo                            see all of it in a few minutes
  olivepress up                              then, in another terminal:
  olivepress submit ./runs/support-en --prompts support.jsonl
  olivepress install support-en-int4 --foundry-cache DIR

[bold]Exit codes[/]
  0 ok                   1 a job or a check failed
  2 wrong usage          3 the service does not answer
  4 not found            5 not allowed
  130 interrupted
"""
JOBS, MODELS, STACK = "Batches and jobs", "Models", "The stack"


class Commands(LazyGroup):
    """All commands of `olivepress`."""

    lazy_commands = {  # noqa: RUF012  # read only; ClassVar would clash with the attribute's declaration
        "submit": LazyCommand("olivepress.cli.submit", "submit", "Submit checkpoints as one batch.", JOBS),
        "watch": LazyCommand("olivepress.cli.watch", "watch", "Follow a batch until it is over.", JOBS),
        "jobs": LazyCommand("olivepress.cli.jobs", "jobs", "List jobs, newest first.", JOBS),
        "job": LazyCommand("olivepress.cli.jobs", "job", "Show a job: its steps, attempts, error and log.", JOBS),
        "log": LazyCommand("olivepress.cli.log", "log", "Print or follow what a job's steps print.", JOBS),
        "cancel": LazyCommand("olivepress.cli.jobs", "cancel", "Cancel a job, or a whole batch.", JOBS),
        "inspect": LazyCommand(
            "olivepress.cli.inspect", "inspect", "Say what a checkpoint is and what its steps will take.", JOBS
        ),
        "recipes": LazyCommand("olivepress.cli.recipes", "app", "List what a checkpoint can become.", JOBS),
        "supported": LazyCommand(
            "olivepress.cli.supported",
            "supported",
            "List the architectures that convert, and why others do not.",
            JOBS,
        ),
        "models": LazyCommand("olivepress.cli.models", "models", "List models, or the versions of one.", MODELS),
        "promote": LazyCommand("olivepress.cli.promote", "promote", "Point an alias to a version.", MODELS),
        "aliases": LazyCommand(
            "olivepress.cli.promote", "aliases", "Show where aliases point, and their history.", MODELS
        ),
        "lineage": LazyCommand("olivepress.cli.lineage", "lineage", "Show where a version comes from.", MODELS),
        "report": LazyCommand("olivepress.cli.report", "report", "Show what was measured of a version.", MODELS),
        "compare": LazyCommand("olivepress.cli.report", "compare_versions", "Compare versions.", MODELS),
        "pull": LazyCommand("olivepress.cli.pull", "pull", "Download a version into a directory.", MODELS),
        "install": LazyCommand("olivepress.cli.install", "install", "Install a version into Foundry Local.", MODELS),
        "export": LazyCommand("olivepress.cli.export", "export", "Write a version to one file.", MODELS),
        "import": LazyCommand("olivepress.cli.import_", "import_", "Import a model that was made elsewhere.", MODELS),
        "validate": LazyCommand("olivepress.cli.validate", "validate", "Measure a published version again.", MODELS),
        "recertify": LazyCommand(
            "olivepress.cli.recertify", "recertify", "Certify versions again for another runtime.", MODELS
        ),
        "verify": LazyCommand(
            "olivepress.cli.verify", "verify", "Verify a version's files and its signature, offline.", MODELS
        ),
        "keys": LazyCommand("olivepress.cli.keys", "app", "Show, trust and replace the keys that sign.", MODELS),
        "uninstall": LazyCommand(
            "olivepress.cli.uninstall", "uninstall", "Remove a version from Foundry Local.", MODELS
        ),
        "deprecate": LazyCommand(
            "olivepress.cli.withdraw", "deprecate", "Say that a version should not be used.", MODELS
        ),
        "delete": LazyCommand("olivepress.cli.withdraw", "delete", "Delete a version.", MODELS),
        "undelete": LazyCommand("olivepress.cli.withdraw", "undelete", "Bring a deleted version back.", MODELS),
        "up": LazyCommand("olivepress.cli.up", "up", "Run the whole stack on this machine.", STACK, "worker"),
        "demo": LazyCommand("olivepress.cli.demo", "demo", "Show the whole way on tiny models.", STACK, "worker"),
        "backup": LazyCommand(
            "olivepress.cli.backup", "backup", "Write the database and the keys to a file.", STACK, "server"
        ),
        "restore": LazyCommand(
            "olivepress.cli.backup", "restore", "Load a backup into an empty database.", STACK, "server"
        ),
        "service": LazyCommand("olivepress.cli.service", "app", "Run one service in the foreground.", STACK, "server"),
        "workers": LazyCommand("olivepress.cli.workers", "workers", "List the workers.", STACK),
        "store": LazyCommand("olivepress.cli.store", "app", "Look after the store.", STACK),
        "quotas": LazyCommand("olivepress.cli.quotas", "app", "Show and set what teams may have.", STACK),
        "retention": LazyCommand("olivepress.cli.retention", "retention", "Remove what is too old to keep.", STACK),
        "doctor": LazyCommand("olivepress.cli.doctor", "doctor", "Check this machine and the stack.", STACK),
    }


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"olivepress {olivepress.__version__}")
        raise typer.Exit


@app.callback(epilog=EPILOG)
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Fine-tuned checkpoints in, certified models for Foundry Local out."""


def main() -> None:
    """Run the command line of this process and exit with its code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command and give its exit code; what a user can mend is one line on standard error."""
    try:
        typer.main.get_command(app).main(args=arguments, prog_name="olivepress")
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else FAILED if ending.code else 0
    except OlivepressError as error:
        typer.echo(f"error: {error}", err=True)
        return exit_code_of(error)
    except OSError as error:
        # This process's edge: a file that cannot be read or written is the user's to mend, not a bug to trace.
        if error.filename is None:
            raise
        typer.echo(f"error: {error.strerror}: {error.filename}; check the path and who may use it", err=True)
        return FAILED
    return 0


def exit_code_of(error: OlivepressError) -> int:
    """The exit code that tells a script what went wrong."""
    return next((EXIT_CODES[kind] for kind in type(error).__mro__ if kind in EXIT_CODES), FAILED)
