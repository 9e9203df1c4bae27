"""Generates ``xds/wire`` from ``protos/``. ``--into DIR`` writes elsewhere, for comparing."""

from __future__ import annotations

import sys
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).parents[1]


def generate(into: Path) -> None:
    """Write the modules and their type stubs below ``into``."""
    protos = ROOT / "protos"
    files = sorted(f"xds/wire/{path.relative_to(protos).as_posix()}" for path in protos.rglob("*.proto"))
    include = Path(protoc.__file__).parent / "_proto"
    options = [f"-Ixds/wire={protos}", f"-I{include}", f"--python_out={into}", f"--pyi_out={into}"]
    if protoc.main(["protoc", *options, *files]) != 0:
        sys.exit("protoc refused protos/: see its words above")
    for folder in (into / "xds" / "wire").rglob("*/"):
        if folder.name != "__pycache__":
            (folder / "__init__.py").touch()


if __name__ == "__main__":
    generate(Path(sys.argv[2]) if sys.argv[1:2] == ["--into"] else ROOT)
