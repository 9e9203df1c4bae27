"""Writes the table of a mesh file's fields from the models that read it."""

from __future__ import annotations

import types
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from sphinx.application import Sphinx

from xds.sources.file import models

INTO = Path(__file__).parents[1] / "_generated" / "mesh-file-fields.md"


def fields() -> str:
    """Yield the fields of a mesh file, one table for each model, in the order in which they occur."""
    waiting: list[type[BaseModel]] = [models.MeshFile]
    seen: list[type[BaseModel]] = []
    parts: list[str] = []
    while waiting:
        model = waiting.pop(0)
        if model in seen:
            continue
        seen.append(model)
        found = [inner for field in model.model_fields.values() for inner in _models(field.annotation)]
        waiting = [*found, *waiting]
        parts.append(_table(model))
    return "\n".join(parts)


def _table(model: type[BaseModel]) -> str:
    about = (model.__doc__ or "").strip()
    lines = [f"## {model.__name__}", "", about, "", "| Field | Holds | Default | Meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        default = "required" if field.is_required() else f"`{_plain(field.get_default(call_default_factory=True))}`"
        meaning = " ".join((field.description or "").replace("``", "`").split())
        lines.append(f"| `{name}` | {_type(field.annotation)} | {default} | {meaning} |")
    more = model.model_config.get("extra") == "allow"
    return "\n".join([*lines, "", *(["Further fields of Consul's are accepted and not followed.", ""] if more else [])])


def _plain(default: Any) -> str:
    return "{}" if isinstance(default, BaseModel) else repr(default)


def _type(annotation: Any) -> str:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(inner[0])
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" if value else "nothing" for value in inner)
    if origin is list:
        return f"list of {_type(inner[0])}"
    if origin is dict:
        return f"map of {_type(inner[1])}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(part) for part in inner if part is not type(None))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    return {str: "text", int: "number", bool: "true or false"}.get(annotation, "anything")


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in _models(part)]


def write(_app: Sphinx) -> None:
    """Write the page, if it differs."""
    text = fields()
    INTO.parent.mkdir(exist_ok=True)
    if not INTO.exists() or INTO.read_text() != text:
        INTO.write_text(text)


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx's entry point."""
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True}
