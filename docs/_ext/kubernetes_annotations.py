"""Writes ``_generated/kubernetes-annotations.md``: the annotations of pods, from the code that reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xds.kubernetes.annotations import ANNOTATIONS, META_PREFIX, PREFIX


def table() -> str:
    """Return the table of annotations."""
    lines = ["| Annotation | Value | What it decides |", "|---|---|---|"]
    for each in ANNOTATIONS:
        label = " A label of the namespace counts where the pod has none." if each.label else ""
        lines.append(f"| `{each.key}` | {each.form.expected} | {each.meaning}.{label} |")
    lines.append(f"| `{PREFIX}{META_PREFIX}KEY` | text | meta KEY of the service in Consul |")
    return "\n".join(lines).replace("'\\,'", "`\\,`") + "\n"


def setup(app: Any) -> dict[str, Any]:
    """Write the file before Sphinx reads the pages."""
    file = Path(app.srcdir) / "_generated" / "kubernetes-annotations.md"
    file.parent.mkdir(exist_ok=True)
    file.write_text(table())
    return {"parallel_read_safe": True}
