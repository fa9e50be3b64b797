"""The table of RPCs."""

from __future__ import annotations

import grpc
import pytest

from protos.neuralbridge.v1 import bridge_pb2 as pb
from tests.cloud_server import stage


def test_shadow_says_why_it_is_not_served(client: stage.Client) -> None:
    with pytest.raises(grpc.RpcError) as failure:
        client.stub.Shadow(iter([pb.ShadowRequest()]), timeout=20)
    assert failure.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert "picture" in str(failure.value.details())
