"""Text files as editors write them, and places where nothing can be written."""

from __future__ import annotations

from pathlib import Path

import pytest

from protos.errors import ConfigError, SourceError
from protos.process import files
from protos.process.environment import service_links


def test_a_byte_order_mark_is_no_part_of_a_text() -> None:
    assert files.text_of("é".encode("utf-8-sig"), "f") == "é"
    assert files.text_of("é".encode(), "f") == "é"
    assert files.text_of(b"", "f") == ""
    assert files.text_of(b"a", "f") == "a"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
@pytest.mark.parametrize("text", ["is there a fire ?", "hi", "fire – or smoke ? “no”"])
def test_another_encoding_is_refused_by_its_name(encoding: str, text: str) -> None:
    raw = text.encode(encoding)
    with pytest.raises(
        SourceError, match=rf"note\.txt cannot be read.*UTF-{encoding[4:6]}.*save it as UTF-8"
    ):
        files.text_of(raw, "note.txt", SourceError)


def test_what_is_no_utf_8_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"note\.txt cannot be read as a text"):
        files.text_of("é".encode("latin-1"), "note.txt")


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(ConfigError, match="ready file .*taken"):
        files.write_whole(tmp_path / "taken", "x", "ready file")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_variables_that_kubernetes_makes_of_a_service_are_told_from_settings() -> None:
    injected = {
        "NEURAL_BRIDGE_CLOUD_PORT": "tcp://10.0.0.7:50051",
        "NEURAL_BRIDGE_CLOUD_SERVICE_HOST": "10.0.0.7",
        "NEURAL_BRIDGE_CLOUD_SERVICE_PORT": "50051",
        "NEURAL_BRIDGE_CLOUD_SERVICE_PORT_GRPC": "50051",
        "NEURAL_BRIDGE_CLOUD_PORT_50051_TCP": "tcp://10.0.0.7:50051",
        "NEURAL_BRIDGE_CLOUD_PORT_50051_TCP_PROTO": "tcp",
        "NEURAL_BRIDGE_CLOUD_PORT_50051_TCP_PORT": "50051",
        "NEURAL_BRIDGE_CLOUD_PORT_50051_TCP_ADDR": "10.0.0.7",
        "NEURAL_BRIDGE_CLOUD_METRICS_PORT": "tcp://[fd00::7]:9464",
        "NEURAL_BRIDGE_CLOUD_METRICS_SERVICE_HOST": "10.0.0.8",
    }
    ours = {"NEURAL_BRIDGE_CLOUD_PORT": "50051", "NEURAL_BRIDGE_CLOUD_HOST": "::"}
    assert service_links(injected, "NEURAL_BRIDGE_CLOUD_") == sorted(injected)
    assert service_links(ours, "NEURAL_BRIDGE_CLOUD_") == []
