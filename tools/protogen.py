"""Generates gpupool/v1 from proto/; with --check, says whether the committed stubs are what it would generate."""

from __future__ import annotations

import filecmp
import os
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = sorted((ROOT / "proto").rglob("*.proto"))


def generate(out: Path) -> None:
    """Write the stubs of every .proto under `out`."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # protoc-gen-mypy
    arguments = ["protoc", f"-I{ROOT / 'proto'}"]
    arguments += [f"--{kind}={out}" for kind in ("python_out", "grpc_python_out", "mypy_out", "mypy_grpc_out")]
    if protoc.main([*arguments, *map(str, PROTOS)]) != 0:
        sys.exit("protoc failed")


def main() -> None:
    """Generate, or compare (--check)."""
    if "--check" not in sys.argv:
        generate(ROOT)
        return
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        names = [str(p.relative_to(scratch)) for p in Path(scratch).rglob("*.py*")]
        _, changed, missing = filecmp.cmpfiles(scratch, ROOT, names, shallow=False)
        extra = [p.name for p in (ROOT / "gpupool/v1").glob("*_pb2*") if f"gpupool/v1/{p.name}" not in names]
    if changed or missing or extra:
        sys.exit(f"stubs are not those of proto/: {[*changed, *missing, *extra]}; run `make proto` and commit")


main()
