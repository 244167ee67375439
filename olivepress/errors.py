"""Every error that olivepress raises on purpose. The type answers "try again?".

    OlivepressError
    ├── TransientError                the world may change: the step is retried
    │   ├── DiskFull                  no room in the workspace or the store
    │   ├── RuntimeCrashed            a child or the Foundry Local runtime ended without an answer
    │   └── ServiceUnavailable        the API, the database or Redis does not answer
    └── PermanentError                the request must change: never retried
        ├── BadCheckpoint             what was submitted is no usable checkpoint
        │   ├── PathNotAllowed        outside the allowed roots
        │   ├── UnsafeCheckpoint      a pickle or remote code
        │   └── UnsupportedArchitecture
        ├── CheckpointChanged         its files are no longer the ones that were ingested
        ├── BadManifest               the submission itself is wrong
        │   └── BadRecipe             a recipe or an Olive workflow in it cannot be, or cannot be understood
        ├── UnknownRecipe
        ├── ConversionFailed          the toolchain gave no model, or a wrong one
        ├── GateFailed                the model was built and is not good enough
        ├── BadArtifact               a model directory does not hold what it should
        ├── NoRoom                    no worker offers what the step needs
        ├── NotFound
        ├── NotAllowed                the key does not permit it
        ├── Guarded                   something published speaks against it; a reason overrides that
        │   └── UntrustedKey          a signature is by a key that this machine does not know
        ├── QuotaExceeded             the team has as much as it may have
        └── IllegalTransition         a state change that jobs.TRANSITIONS does not have

A message says what, which, and what now.
"""


class OlivepressError(Exception):
    """Root of all errors raised on purpose."""


class TransientError(OlivepressError):
    """Trying again may help."""


class DiskFull(TransientError):
    """No room is left where the step writes."""


class RuntimeCrashed(TransientError):
    """A process of its own ended without an answer."""


class ServiceUnavailable(TransientError):
    """A part of the stack does not answer."""


class PermanentError(OlivepressError):
    """Trying again cannot help; the request must change."""


class BadCheckpoint(PermanentError):
    """What was submitted is no usable checkpoint."""


class PathNotAllowed(BadCheckpoint):
    """The path lies outside the allowed roots."""


class UnsafeCheckpoint(BadCheckpoint):
    """Opening it would run code from it."""


class UnsupportedArchitecture(BadCheckpoint):
    """The toolchain cannot build this architecture."""


class CheckpointChanged(PermanentError):
    """The checkpoint's files are no longer the ones that were ingested: it must be submitted again."""


class BadManifest(PermanentError):
    """The submission itself is wrong."""


class BadRecipe(BadManifest):
    """A recipe, or a workflow that is to become one, says what cannot be."""


class UnknownRecipe(PermanentError):
    """No recipe has this name."""


class ConversionFailed(PermanentError):
    """The toolchain gave no model, or one that does not match its source."""


class GateFailed(PermanentError):
    """The model was built, measured, and is not good enough for its recipe's gates."""


class BadArtifact(PermanentError):
    """A model directory does not hold what it should."""


class NoRoom(PermanentError):
    """No worker offers what the step needs."""


class NotFound(PermanentError):
    """Nothing has this name or number."""


class NotAllowed(PermanentError):
    """The key given does not permit it."""


class UntrustedKey(NotAllowed):
    """A signature is by a key that this machine does not know for the stack."""


class QuotaExceeded(PermanentError):
    """The team has as much as it may have."""


class Guarded(PermanentError):
    """Something that is published speaks against it; what does is named, and a reason overrides it."""


class IllegalTransition(PermanentError):
    """A state change that the table of transitions does not have."""
