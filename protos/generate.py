"""Regenerates the Python stubs of bridge.proto and its table of errors, or checks them.

It needs grpcio-tools.

    python -m protos.generate            # write
    python -m protos.generate --check    # exit 1 if a stub differs from what would be written
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import textwrap
from pathlib import Path

from protos.errors import ERRORS, ConfigError

ROOT = Path(__file__).resolve().parent.parent
PROTO = "protos/neuralbridge/v1/bridge.proto"


def _grpc_types() -> str:
    """Types of bridge_pb2_grpc, which the compiler leaves untyped (handlers are `Any`)."""
    from protos.neuralbridge.v1 import bridge_pb2

    names = [m.name for m in bridge_pb2.DESCRIPTOR.services_by_name["Bridge"].methods]
    lines = ["from typing import Any", ""]
    lines += ["class BridgeStub:", "    def __init__(self, channel: Any) -> None: ..."]
    lines += [f"    {name}: Any" for name in names]
    lines += ["", "class BridgeServicer:"]
    lines += [f"    def {name}(self, request: Any, context: Any) -> Any: ..." for name in names]
    lines += ["", "def add_BridgeServicer_to_server(servicer: Any, server: Any) -> None: ...", ""]
    return "\n".join(lines)


_CODES = re.compile(r"(?<=^// CODES)(.*\n)(?://   .*\n)*", re.MULTILINE)


def with_codes(proto: str) -> str:
    """The text of the proto with every error of `protos.errors` under CODES."""
    table = []
    for code, cls in sorted(ERRORS.items()):
        again = ", again" if cls.retryable else ""
        line = f"{code} {cls.name}, {cls.grpc_status}{again}: {cls.summary}"
        table += textwrap.wrap(
            line, 100, initial_indent="//   ", subsequent_indent="//       ", break_on_hyphens=False
        )
    return _CODES.sub(lambda found: found[1] + "".join(f"{row}\n" for row in table), proto)


def stubs() -> dict[str, bytes]:
    """Compile the proto.

    Returns:
        Path relative to the repository root -> contents, for each generated file.

    Raises:
        ConfigError: grpcio-tools is not installed, or the proto does not compile.
    """
    try:
        from grpc_tools import protoc
    except ImportError as error:
        raise ConfigError(
            "generating stubs needs grpcio-tools: pip install grpcio-tools"
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        arguments = [f"-I{ROOT}", f"--python_out={out}", f"--pyi_out={out}"]
        if protoc.main(["protoc", *arguments, f"--grpc_python_out={out}", str(ROOT / PROTO)]):
            raise ConfigError(f"{PROTO} does not compile; protoc's messages are above")
        return {
            path.relative_to(out).as_posix(): path.read_bytes()
            for path in sorted(out.rglob("*"))
            if path.is_file()
        }


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m protos.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if out of date")
    options = parser.parse_args(arguments)
    proto = (ROOT / PROTO).read_text(encoding="utf-8")
    wanted = {PROTO: with_codes(proto).encode(), **stubs()}
    if not options.check:
        for name, content in wanted.items():
            (ROOT / name).write_bytes(content)
    types = str(Path(PROTO).with_name("bridge_pb2_grpc.pyi"))
    wanted[types] = _grpc_types().encode()
    if not options.check:
        (ROOT / types).write_bytes(wanted[types])
        return 0
    stale = [
        name
        for name, content in wanted.items()
        if not (ROOT / name).is_file() or (ROOT / name).read_bytes() != content
    ]
    for name in stale:
        print(f"{name} is out of date: run python -m protos.generate", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
