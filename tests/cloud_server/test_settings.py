"""Settings: flags, environment, file; bad ones are named with their origin."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloud_server.settings import from_json, load
from protos.errors import ConfigError
from protos.limits import Limits


def test_flags_beat_the_environment_which_beats_the_file(tmp_path: Path) -> None:
    file = tmp_path / "cloud.toml"
    file.write_text('port = 1\nbatch_size = 1\nqueue_requests = 1\nbundles = ["a", "b"]\n')
    environ = {"NEURAL_BRIDGE_CLOUD_PORT": "2", "NEURAL_BRIDGE_CLOUD_BATCH_SIZE": "2"}
    settings = load({"port": "3"}, file, environ)
    assert (settings.port, settings.batch_size, settings.queue_requests) == (3, 2, 1)
    assert settings.bundles == (Path("a"), Path("b"))
    environ = {"NEURAL_BRIDGE_CLOUD_BUNDLES": "x:y", "NEURAL_BRIDGE_CLOUD_CONFIG": str(file)}
    settings = load({}, None, environ)
    assert (settings.bundles, settings.port) == ((Path("x"), Path("y")), 1)


@pytest.mark.parametrize(
    ("flags", "environ", "toml", "named"),
    [
        ({"port": "x"}, {}, "", "--port"),
        ({}, {"NEURAL_BRIDGE_CLOUD_PORT": "70000"}, "", "NEURAL_BRIDGE_CLOUD_PORT"),
        ({}, {"NEURAL_BRIDGE_CLOUD_PROT": "1"}, "", "NEURAL_BRIDGE_CLOUD_PORT"),
        ({}, {"NEURAL_BRIDGE_CLOUD_BUNDLES": "[broken"}, "", "NEURAL_BRIDGE_CLOUD_BUNDLES"),
        ({}, {}, "batchsize = 3", "batch_size"),
        ({}, {}, "batch_size = 0", "batch_size"),
        ({}, {}, "not toml", "not TOML"),
    ],
)
def test_a_bad_setting_is_named_with_its_origin(
    tmp_path: Path, flags: dict[str, str], environ: dict[str, str], toml: str, named: str
) -> None:
    file = tmp_path / "cloud.toml"
    file.write_text(toml)
    with pytest.raises(ConfigError, match=named):
        load(flags, file, environ)


def test_the_default_limits_are_the_contracts_and_settings_survive_the_way_to_the_engine(
    tmp_path: Path,
) -> None:
    settings = load({"model": tmp_path, "bundles": [tmp_path], "max_tokens": 99}, environ={})
    assert load({}, environ={}).limits == Limits()
    assert settings.limits == Limits(max_tokens=99)
    assert from_json(settings.model_dump_json()) == settings


def test_a_limit_of_crops_needs_their_measured_gain(tmp_path: Path) -> None:
    given = {"crop_limit": 0.3, "model": tmp_path, "bundles": [tmp_path]}
    with pytest.raises(ConfigError, match="--crop-limit needs --crop-gain"):
        load(given, environ={}).check_paths()
