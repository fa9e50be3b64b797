from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.serve.identities import Identities
from projector.commands import cli as projector
from reference.demo.halves import EDGE_MODEL
from tests.checkout import ROOT
from tests.edge_faults.faults import FULL, EdgeFaults
from tests.edge_faults.station import Device, Service
from tests.edge_faults.way import POSSIBLE, WHY_NOT, way

SLOW = "a real service and real agents on bad networks: make test-edge"


@pytest.fixture(scope="session")
def edge_faults() -> EdgeFaults:
    return EdgeFaults(ROOT / "build" / "edge_faults.json" if FULL else None)


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The edge model as a device without torch has it."""
    if not FULL:
        pytest.skip(SLOW)
    if not POSSIBLE:
        pytest.skip(f"no bad networks: {WHY_NOT}")
    made = tmp_path_factory.mktemp("model") / "export"
    assert projector.main(["export-edge", str(EDGE_MODEL), str(made)]) == 0
    return made


@pytest.fixture(scope="session")
def service(export: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with identities that nobody ends."""
    folder = tmp_path_factory.mktemp("service")
    made = Service(folder, Identities.make(folder / "directory", 100))
    made.start()
    yield made
    made.stop()


@pytest.fixture
def device(export: Path, service: Service, tmp_path: Path) -> Iterator[Callable[..., Device]]:
    """Makes devices of that service, each with a way of its own."""
    with ExitStack() as stack:

        def make(name: str, *flags: str, enrolled: bool = True, **more: object) -> Device:
            its = stack.enter_context(way())
            made = Device(tmp_path / name, name, its, export, flags, **more)  # type: ignore[arg-type]
            stack.callback(made.kill)
            if enrolled:
                made.enrol(service)
            return made

        yield make
