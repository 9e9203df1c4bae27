"""`protos/` is a true slice of Envoy's API: same names, numbers and types as in envoy-data-plane, which has it all."""

from __future__ import annotations

import datetime
import filecmp
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import betterproto2
import envoy_data_plane
import pytest
from envoy_data_plane.message_pool import default_message_pool
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

import xds.wire
from tests.unit.control.bench import everything_we_send

ROOT = Path(__file__).parents[3]

NOT_IN_ENVOY_DATA_PLANE = {
    "xds.type.matcher.v3.IPMatcher": "xds/type/matcher/v3/ip.proto is left out there; real Envoys take it in the tests",
    "xds.type.matcher.v3.IPMatcher.IPRangeMatcher": "the same file",
}

SCALARS = {
    FieldDescriptor.TYPE_DOUBLE: "double",
    FieldDescriptor.TYPE_FLOAT: "float",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_UINT64: "uint64",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_ENUM: "enum",
    FieldDescriptor.TYPE_MESSAGE: "message",
}


WELL_KNOWN = {"google.protobuf.Duration": datetime.timedelta}
"""Types that betterproto2 converts into Python's own."""


def _modules(package: Any) -> list[Any]:
    return [
        importlib.import_module(info.name)
        for info in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
        if info.name.endswith("_pb2")
    ]


def _load_envoy_data_plane() -> None:
    for info in pkgutil.walk_packages(envoy_data_plane.__path__, "envoy_data_plane."):
        importlib.import_module(info.name)


def _messages() -> list[Descriptor]:
    found: list[Descriptor] = []

    def collect(message: Descriptor) -> None:
        if not message.GetOptions().map_entry:
            found.append(message)
        for nested in message.nested_types:
            collect(nested)

    for module in _modules(xds.wire):
        for message in module.DESCRIPTOR.message_types_by_name.values():
            collect(message)
    return found


MESSAGES = {message.full_name: message for message in _messages()}


def theirs(full_name: str) -> Any:
    """Return the class of that name in envoy-data-plane, ``None`` if it has none."""
    _load_envoy_data_plane()
    try:
        return default_message_pool.url_to_type[f"type.googleapis.com/{full_name}"]
    except KeyError:
        return None


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_every_message_and_field_has_the_same_number_and_type_there(name: str) -> None:
    message, other = MESSAGES[name], theirs(name)
    if name in NOT_IN_ENVOY_DATA_PLANE:
        assert other is None, f"{name} is there by now: take it off the list"
        return
    assert other is not None, f"Envoy's API has no message {name}"
    fields = {f.number: (f_name, f) for f_name, f in _fields(other).items()}
    for field in message.fields:
        assert field.number in fields, f"{name} has no field {field.number} ({field.name})"
        their_name, about = fields[field.number]
        assert their_name.rstrip("_") == field.name
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            assert about.proto_type == "map"
            continue
        assert about.proto_type == SCALARS[field.type], field.full_name
        assert about.repeated == field.is_repeated, field.full_name
        if field.message_type is not None:
            expected = theirs(field.message_type.full_name)
            found = about.unwrap() if about.unwrap else other._cls_for(other.__dataclass_fields__[their_name])
            assert found in (expected, WELL_KNOWN.get(field.message_type.full_name)), field.full_name
        assert (about.group or None) == (field.containing_oneof.name if field.containing_oneof else None)


def _fields(message: Any) -> dict[str, Any]:
    return {name: field.metadata["betterproto"] for name, field in message.__dataclass_fields__.items()}


def _enums() -> list[EnumDescriptor]:
    nested = [enum for message in MESSAGES.values() for enum in message.enum_types]
    return nested + [e for m in _modules(xds.wire) for e in m.DESCRIPTOR.enum_types_by_name.values()]


@pytest.mark.parametrize("enum", _enums(), ids=lambda enum: enum.full_name)
def test_every_enum_value_has_the_same_number_there(enum: EnumDescriptor) -> None:
    users = [(m, f) for m in MESSAGES.values() for f in m.fields if f.enum_type is enum]
    assert users, f"nothing uses {enum.full_name}"
    message, field = users[0]
    other = theirs(message.full_name)
    assert other is not None
    their_field = next(n for n, f in _fields(other).items() if f.number == field.number)
    their_enum = other._cls_for(other.__dataclass_fields__[their_field])
    values = {value.value: value.name.rstrip("_") for value in their_enum}
    for value in enum.values:
        assert value.number in values, f"{enum.full_name}.{value.name}"
        assert value.name.endswith(values[value.number]), f"{value.name} is {values[value.number]} there"


def test_everything_that_is_sent_decodes_there_with_nothing_unknown() -> None:
    _load_envoy_data_plane()
    seen = set()
    for type_url, body in everything_we_send():
        kind = default_message_pool.url_to_type[type_url]
        _assert_known(kind.parse(body))
        seen.add(type_url.rpartition(".")[2])
    assert seen == {
        "Cluster", "ClusterLoadAssignment", "Listener", "RouteConfiguration",
        "ScopedRouteConfiguration", "Secret", "TypedExtensionConfig",
    }  # fmt: skip


def _assert_known(message: betterproto2.Message) -> None:
    assert not message._unknown_fields, f"{type(message).__name__}: {message._unknown_fields!r}"
    type_url = getattr(message, "type_url", None)
    if type_url and type_url.rpartition("/")[2] not in NOT_IN_ENVOY_DATA_PLANE:
        _assert_known(default_message_pool.url_to_type[type_url].parse(message.value))  # type: ignore[attr-defined]
    for name in _fields(type(message)):
        value = getattr(message, name)
        for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]:
            if isinstance(part, betterproto2.Message):
                _assert_known(part)


def test_the_generated_modules_are_what_protos_generates(tmp_path: Path) -> None:
    script = ROOT / "scripts" / "generate_wire.py"
    subprocess.run([sys.executable, str(script), "--into", str(tmp_path)], check=True)
    generated = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*_pb2.py*"))
    committed = sorted(
        p.relative_to(ROOT) for p in (ROOT / "xds" / "wire").rglob("*_pb2.py*") if p.suffix in (".py", ".pyi")
    )
    assert [str(p) for p in generated] == [str(p) for p in committed]
    _, differing, errors = filecmp.cmpfiles(tmp_path, ROOT, [str(p) for p in generated], shallow=False)
    assert not differing, "run 'make protos'"
    assert not errors
