from __future__ import annotations

import pytest

from tests.checkout import ROOT
from tests.edge_faults.faults import FULL, EdgeFaults


@pytest.fixture(scope="session")
def edge_faults() -> EdgeFaults:
    return EdgeFaults(ROOT / "build" / "edge_faults.json" if FULL else None)
