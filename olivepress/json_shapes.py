"""Answers that must be JSON of a wanted shape: JSON Schema, draft 2020-12 unless the schema names another. Pure."""

import json
from collections.abc import Mapping
from typing import Any

from jsonschema import validators
from jsonschema.exceptions import SchemaError, ValidationError
from referencing import Registry
from referencing.exceptions import Unresolvable

from olivepress.errors import BadManifest

FENCE = "```"


def check_schema(schema: Mapping[str, Any]) -> None:
    """Whether answers can be held against this schema.

    Raises:
        BadManifest: it is no JSON schema.
    """
    try:
        validators.validator_for(schema, default=validators.Draft202012Validator).check_schema(dict(schema))
    except SchemaError as error:
        raise BadManifest(f"expect.json_schema is no usable JSON schema: {str(error).splitlines()[0]}") from error


def has_shape(answer: str, schema: Mapping[str, Any]) -> bool:
    """Whether the answer, a Markdown fence around it aside, is one JSON value that the schema accepts.

    Raises:
        BadManifest: the schema is none, or refers to one elsewhere; nothing is fetched.
    """
    check_schema(schema)
    kind = validators.validator_for(schema, default=validators.Draft202012Validator)
    try:
        # An empty registry: references to schemas elsewhere are an error instead of a download.
        kind(schema, registry=Registry()).validate(json.loads(_unfenced(answer)))
    except Unresolvable as error:
        raise BadManifest(f"expect.json_schema is no usable JSON schema: {str(error).splitlines()[0]}") from error
    except (ValueError, RecursionError, ValidationError):
        return False
    return True


def _unfenced(answer: str) -> str:
    text = answer.strip()
    if not (text.startswith(FENCE) and text.endswith(FENCE) and len(text) > 2 * len(FENCE)):
        return text
    return text.removesuffix(FENCE).partition("\n")[2]
