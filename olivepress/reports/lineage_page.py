"""The self-contained HTML page of a lineage: its drawing, and every digest and key in full."""

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from olivepress.lineage_drawing import drawing
from olivepress.registry import Standing
from olivepress.reports.pages import page


def lineage_page(lineage: Mapping[str, Any]) -> str:
    """The page of one lineage (see olivepress.lineage)."""
    version = lineage["version"]
    deprecated = version["deprecated"] or {}
    known = Standing(version["version"], version["flags"], deprecated.get("reason"), deprecated.get("successor"))
    lines = known.objections()
    if deleted := version["deleted"]:
        lines.append(f"it was deleted by {deleted['deleted_by']}")
    return page(
        "lineage.html.j2",
        version=version,
        things=lineage["things"],
        steps=lineage["steps"],
        known=lines,
        drawing=Markup(drawing(lineage)),
    )
