"""Parses the text of a mesh file into a checked `MeshFile`, or lists all its problems with their lines.

There are three checks, each only if the previous one found nothing: it is YAML (which includes JSON), the fields are
Consul's and of the right type (`models`), and it does not contradict itself (`contradictions`). No I/O.
"""

from __future__ import annotations

import difflib
import gc
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from xds.sources.file.contradictions import contradictions
from xds.sources.file.lines import JSONLines, Lines, Path, YAMLLines
from xds.sources.file.models import MeshFile
from xds.sources.file.registered import Registered, registered

MOST_ALIASES = 1000
DEEPEST = 50
"""Consul's own entries nest some ten levels."""

_SURROGATE = re.compile(r"\\u[dD]")
"""Escape in JSON of half a character beyond the first 65536, which takes two of these."""
_Loader: Any = getattr(
    yaml, "CSafeLoader", yaml.SafeLoader
)  # the C parser is ten times as fast, but not always available


@dataclass(frozen=True, slots=True)
class Problem:
    """Problem of a file."""

    line: int
    """Counted from 1; 0 is the file as a whole."""
    reason: str


class RefusedError(Exception):
    """Mesh file that can't be used; ``problems`` says why, the message as ``FILE:LINE: REASON``, one a line."""

    def __init__(self, file: str, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda problem: problem.line))
        super().__init__(
            "\n".join(
                f"{file}:{problem.line}: {problem.reason}" if problem.line else f"{file}: {problem.reason}"
                for problem in self.problems
            )
        )


@dataclass(frozen=True, slots=True)
class Document:
    """Checked mesh file, and the places in its text."""

    file: str
    mesh: MeshFile
    services: list[Registered]
    """Everything that ``mesh.services`` registers, in the order of the file."""
    lines: Lines


def parse(file: str, text: str) -> Document:
    """Check the text of a mesh file.

    Args:
        file: its name, for messages.
        text: what it holds.

    Raises:
        RefusedError: it is not YAML, has something that Consul does not know, or contradicts itself.
    """
    other = other_format(text)
    if other is not None:
        raise RefusedError(file, [Problem(0, other)])
    with no_garbage():
        lines, data = _load_json(text) or _load(file, text)
        try:
            mesh = MeshFile.model_validate(data)
        except ValidationError as error:
            raise RefusedError(file, [_explained(lines, data, found) for found in error.errors()]) from None
        services = registered(mesh)
        found = [Problem(lines.of(path), reason) for path, reason in contradictions(mesh, services)]
        if found:
            raise RefusedError(file, found)
        return Document(file, mesh, services, lines)


@contextmanager
def no_garbage() -> Iterator[None]:
    """Disable garbage collection during the block. A large file becomes millions of objects, none of them garbage, and
    repeated collections took most of the time to load it (benchmark ``start``). The block may run in a thread;
    collection then pauses for the whole process.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


_HCL = re.compile(r"""(?mx)
    ^\s*[A-Za-z_][A-Za-z0-9_]*\s*(?:"[^"\n]*"\s*)*\{\s*$      # a block: services {
    | ^\s*[A-Za-z_][A-Za-z0-9_]*\s*=\s*(?:["\[{0-9]|true|false)  # an assignment: Kind = "service-defaults"
""")
_CUSTOM_RESOURCE = re.compile(r"""(?m)^\s*"?apiVersion"?\s*:\s*"?'?consul\.hashicorp\.com/""")


def other_format(text: str) -> str | None:
    """Return what a text is, and how to convert it, where it is in another format that Consul's users have.

    ``None`` where it may be YAML or JSON of a mesh file.
    """
    if _CUSTOM_RESOURCE.search(text):
        return (
            "this is a Kubernetes custom resource (consul.hashicorp.com); a mesh file has Consul's own config entries."
            " Apply it to a cluster and read it back with 'consul config read -kind KIND -name NAME', or write what is"
            " in its spec, with Kind and Name and each field beginning with a capital, under config_entries.bootstrap"
        )
    beginning = next(
        (line for line in text.splitlines() if line.strip() and not line.lstrip().startswith(("#", "//"))), ""
    )
    if _HCL.match(beginning):
        return (
            "this is HCL; a mesh file is YAML or JSON. Give the file to Consul, as 'consul services register FILE' or"
            " 'consul config write FILE', and export the mesh with 'gossamer mesh export'; or write it as YAML: name"
            " = value becomes name: value, and a block becomes an item of a list"
        )
    return None


def _load_json(text: str) -> tuple[Lines, Any] | None:
    """Parse a text that is valid JSON; ``None`` if it is not, so that the YAML parser reports the problem."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        data = json.loads(text, object_pairs_hook=_each_once, parse_constant=_refuse)
        if _SURROGATE.search(text):
            json.dumps(data, ensure_ascii=False).encode()  # half of a pair is no character, and breaks its users
    except (ValueError, RecursionError):
        return None
    level = [data]
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return JSONLines(text), data
    return None


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _load(file: str, text: str) -> tuple[Lines, Any]:
    loader = None
    try:
        _check_depth(file, text)
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            raise RefusedError(
                file, [Problem(0, "the file is empty; a mesh without services says 'services: []' and its policy")]
            )
        repeated = list(_repeated_keys(root, set()))
        if repeated:
            raise RefusedError(file, repeated)
        return YAMLLines(root), loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = ", ".join(part for part in (error.context, error.problem) if part)
        raise RefusedError(file, [Problem(mark.line + 1 if mark else 0, f"not YAML: {what}")]) from None
    except RefusedError:
        raise
    except Exception as error:  # PyYAML raises any error of its constructors, for example a KeyError on "!!bool maybe"
        raise RefusedError(file, [Problem(0, f"not YAML: {error!r}")]) from None
    finally:
        if loader is not None:
            loader.dispose()


def _check_depth(file: str, text: str) -> None:
    """Check that nothing is nested so deep that building it would exhaust the stack, which ends the process.

    The number of aliases is limited as well, because they could exhaust the memory.
    """
    depth = aliases = 0
    for event in yaml.parse(text, Loader=_Loader):
        aliases += isinstance(event, yaml.AliasEvent)
        if aliases > MOST_ALIASES:
            raise RefusedError(file, [Problem(0, f"more than {MOST_ALIASES} aliases (*name)")])
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            line = event.start_mark.line + 1 if event.start_mark else 0
            raise RefusedError(file, [Problem(line, f"nested more than {DEEPEST} deep")])


def _repeated_keys(node: yaml.Node, seen: set[yaml.Node]) -> Iterator[Problem]:
    """Yield keys that are given twice, of which YAML would silently keep the last one."""
    if node in seen:
        return
    seen.add(node)
    if isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode):
                if key.value in first:
                    yield Problem(line, f"{key.value!r} is given twice, in line {first[key.value]} already")
                first.setdefault(key.value, line)
            yield from _repeated_keys(value, seen)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated_keys(item, seen)


def _explained(lines: Lines, data: Any, error: ErrorDetails) -> Problem:
    """Return a validation error in the vocabulary of mesh files."""
    path = error["loc"]
    where = _written(data, path)
    match error["type"]:
        case "extra_forbidden":
            field = str(path[-1])
            known = sorted(set(_fields_at(path)) - {field})
            near = difflib.get_close_matches(field.lower(), known, n=1, cutoff=0.6)
            if field == "Name" and "Kind" in known:
                reason = f"unknown field {where!r}: there is one entry of this Kind, which has no Name"
            else:
                reason = f"unknown field {where!r}" + (f"; did you mean {near[0]!r}?" if near else "")
        case "missing":
            reason = f"{where!r} is missing"
            if path == ("default_intention_policy",):
                reason += ": say what holds where no intention matches, deny or allow"
        case "union_tag_invalid":
            tag = str(error["ctx"]["tag"])
            near = difflib.get_close_matches(tag.lower(), re.findall(r"'([^']*)'", error["ctx"]["expected_tags"]), n=1)
            reason = f"{where}: {tag!r} is no Kind of config entry that Consul has"
            reason += f"; did you mean {near[0]!r}?" if near else ""
        case "too_short":
            reason = f"{where}: there is nothing in it; take it out altogether"
        case "union_tag_not_found":
            reason = f"{where}: a config entry needs its Kind"
        case "value_error":
            reason = f"{where}: {error['ctx']['error']}{_given(error)}"
        case "model_type" | "model_attributes_type" | "dict_type":
            reason = f"{where or 'the file'}: expected fields (name: value)"
        case "list_type":
            reason = f"{where}: expected a list"
        case "literal_error":
            expected = re.sub(r"^'', ", "", str(error["ctx"]["expected"]))
            reason = f"{where}: expected {expected}{_given(error)}"
        case _:
            reason = f"{where or 'the file'}: {error['msg'][0].lower()}{error['msg'][1:]}{_given(error)}"
    return Problem(lines.of(path), reason)


LONGEST_SHOWN = 200
"""Characters of a value in a message."""


def _given(error: ErrorDetails) -> str:
    """Return the value that the file has there, where it can be shown."""
    secret = not {"token", "config", "Config"}.isdisjoint(error["loc"])
    plain = not secret and isinstance(error["input"], str | int | float | bool)
    if not plain:
        return ""
    text = repr(error["input"])
    return f", not {text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + '…'}"


def _written(data: Any, path: Path) -> str:
    """Return a path as a reader would write it, without the steps that the text does not have."""
    written = ""
    for number, step in enumerate(path):
        if isinstance(step, int):
            written += f"[{step}]"
            data = data[step] if isinstance(data, list) and step < len(data) else None
            continue
        found = data.get(step) if isinstance(data, dict) else None
        if isinstance(data, dict) and data.get("Kind") == step:
            continue  # the Kind by which an entry's model was chosen
        if found is None and number != len(path) - 1:
            continue
        written += f".{step}" if written else step
        data = found
    return written


def _fields_at(path: Path) -> list[str]:
    """Return the names of the fields at ``path``, in their own spelling."""
    model: Any = MeshFile
    models = [model]
    for step in path[:-1]:
        models = [inner for model in models for inner in _inner(model, step)] or models
    return [name for model in models for name in model.model_fields]


def _inner(model: type[BaseModel], step: str | int) -> list[type[BaseModel]]:
    if not isinstance(step, str) or step not in model.model_fields:
        return []
    return list(_models_in(model.model_fields[step].annotation))


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from _models_in(part)
