"""Nothing that was damaged, cut or mixed is loaded: every bit of a tiny bundle, one at a time."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import damage
from benchmarks.damage import Files
from projector.bundle.files import DESCRIPTION, FILES, SIGNATURE
from projector.bundle.keys import SigningKey, TrustedKeys
from projector.bundle.load import Bundle
from projector.bundle.sign import sign_bundle
from projector.bundle.write import write_bundle
from projector.codec.encoder import Encoder
from projector.serving.backends import CloudFiles
from protos.errors import BridgeError
from protos.layout import KVLayout, RopeSpec
from protos.points import OperatingPoint

ROPE = RopeSpec(10000.0, 4, False, "default", 1.0, (1.0, 0.01))
SOURCE = KVLayout("edge", 1, 1, 4, ROPE, "float32", (2, 2), "t" * 8, "a" * 8)
TARGET = dataclasses.replace(SOURCE, model_id="cloud", layers=2, weights_digest="b" * 8)
RANK = 2
NAMES = (DESCRIPTION, *FILES, SIGNATURE)


def tiny_encoder(seed: int) -> Encoder:
    rng = np.random.default_rng(seed)
    d, t = SOURCE.state_dim, SOURCE.tokens

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32)

    return Encoder(
        source_fingerprint=SOURCE.fingerprint,
        points=(
            OperatingPoint(0, "fine", quantizer="fp8_e4m3", rank=RANK, steps="fine"),
            OperatingPoint(1, "exact", quantizer="none", rank=RANK),
        ),
        x_mean=normal(d),
        x_scale=np.ones(d, np.float32),
        projection=normal(d, RANK),
        reconstruction=normal(RANK, d),
        centre=normal(t, RANK),
        latent_mean=normal(RANK),
        latent_inv_cov=np.eye(RANK, dtype=np.float32),
        raw_scale=np.ones(d, np.float32),
        steps={"fine": np.full(RANK, 0.02, np.float32)},
        entropy={},
    )


def tiny_bundle(folder: Path, seed: int, key: SigningKey | None) -> Files:
    """A few kilobytes. Loading does not look into the cloud half: its digests are all there is."""
    rng = np.random.default_rng(seed)
    write_bundle(
        folder,
        id=f"tiny-{seed}",
        version=seed,
        source=SOURCE,
        target=TARGET,
        encoder=tiny_encoder(seed),
        cloud=CloudFiles(weights=rng.bytes(700), graph=rng.bytes(600)),
        certificate={"accuracy": {"fine": 0.5 + seed / 100}, "seed": seed},
        default_point=seed % 2,
        ladder=(0, 1) if seed % 2 else (1,),
    )
    if key is not None:
        sign_bundle(folder, key)
    return damage.read_files(folder)


@dataclasses.dataclass
class Pair:
    one: Files
    other: Files
    load: damage.Load


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return SigningKey.create(tmp_path_factory.mktemp("key") / "key.pem")


@pytest.fixture(scope="module")
def signed(key: SigningKey, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("signed")
    return Pair(
        tiny_bundle(folder / "1", 1, key),
        tiny_bundle(folder / "2", 2, key),
        damage.loader(SOURCE, TARGET, TrustedKeys({key.public: "build"})),
    )


@pytest.fixture(scope="module")
def unsigned(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("unsigned")
    return Pair(
        tiny_bundle(folder / "1", 1, None),
        tiny_bundle(folder / "2", 2, None),
        damage.loader(SOURCE, TARGET),
    )


def refused_always(pair: Pair, cases: Any, at_least: int) -> None:
    assert pair.load(pair.one).digest != pair.load(pair.other).digest
    result = damage.tally(pair.load, cases)
    print(f"{result.tried} tried, {len(result.accepted)} accepted")
    assert result.accepted == []
    assert result.tried >= at_least


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_no_flipped_bit_of_a_signed_bundle_is_accepted(signed: Pair, name: str) -> None:
    rest = {key: blob for key, blob in signed.one.items() if key != name}
    cases = ((done, {**rest, **files}) for done, files in damage.flips({name: signed.one[name]}))
    refused_always(signed, cases, at_least=8 * len(signed.one[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", [DESCRIPTION, "certificate.json"])
def test_no_flipped_bit_of_an_unsigned_bundles_json_is_accepted(unsigned: Pair, name: str) -> None:
    rest = {key: blob for key, blob in unsigned.one.items() if key != name}
    cases = ((done, {**rest, **files}) for done, files in damage.flips({name: unsigned.one[name]}))
    refused_always(unsigned, cases, at_least=8 * len(unsigned.one[name]))


def test_no_flipped_bit_of_a_signature_is_accepted_where_none_is_required(
    signed: Pair, unsigned: Pair
) -> None:
    cases = (
        (done, {**signed.one, **files})
        for done, files in damage.flips({SIGNATURE: signed.one[SIGNATURE]})
    )
    refused_always(dataclasses.replace(signed, load=unsigned.load), cases, at_least=1000)


@pytest.mark.slow
def test_no_file_cut_to_any_length_is_accepted(signed: Pair, unsigned: Pair) -> None:
    for pair in (signed, unsigned):
        size = sum(map(len, pair.one.values()))
        refused_always(pair, damage.truncations(pair.one), at_least=size + 3 * len(pair.one))


def test_no_mixture_of_two_bundles_for_the_same_models_is_accepted(
    signed: Pair, unsigned: Pair
) -> None:
    for pair in (signed, unsigned):
        for one, other in ((pair.one, pair.other), (pair.other, pair.one)):
            swapped = dataclasses.replace(pair, one=one, other=other)
            refused_always(swapped, damage.mixed_files(one, other), at_least=2 ** len(one) - 2)


def test_no_field_of_another_description_is_accepted(signed: Pair, unsigned: Pair) -> None:
    refused_always(unsigned, damage.mixed_fields(unsigned.one, unsigned.other, False), 10)
    refused_always(signed, damage.mixed_fields(signed.one, signed.other, True), 20)


def test_no_missing_file_is_accepted(signed: Pair, unsigned: Pair) -> None:
    for pair in (signed, unsigned):
        refused_always(pair, damage.missing(pair.one), at_least=len(pair.one))


def test_the_loader_in_memory_is_the_one_from_disk(signed: Pair, tmp_path: Path) -> None:
    for name, blob in signed.one.items():
        (tmp_path / name).write_bytes(blob)
    for name, blob in signed.one.items():
        for done, files in damage.flips({name: blob}, most=5):
            (tmp_path / name).write_bytes(files[name])
            with pytest.raises(BridgeError) as from_disk:
                Bundle.load(tmp_path, SOURCE, TARGET)
            with pytest.raises(BridgeError) as in_memory:
                damage.loader(SOURCE, TARGET)({**signed.one, **files})
            assert from_disk.value.code == in_memory.value.code, done
        (tmp_path / name).write_bytes(blob)
    assert Bundle.load(tmp_path, SOURCE, TARGET).digest == signed.load(signed.one).digest


@pytest.mark.parametrize("whole", [True, False], ids=["signed", "unsigned"])
def test_a_sample_of_every_kind_of_damage_is_refused_and_counted(
    signed: Pair, unsigned: Pair, whole: bool
) -> None:
    pair = signed if whole else unsigned
    result = damage.survey(pair.load, pair.one, pair.other, signed=whole, most=20)
    assert set(result) == {
        "bit flips",
        "truncations",
        "missing files",
        "mixed files",
        "mixed fields",
    }
    assert all(tally.tried and not tally.accepted for tally in result.values())


def test_a_hole_would_be_counted(signed: Pair) -> None:
    """The counter itself: a loader that checks nothing accepts everything."""
    known = signed.load(signed.one)
    result = damage.survey(lambda files: known, signed.one, signed.other, signed=True, most=3)
    assert all(len(tally.accepted) == tally.tried > 0 for tally in result.values())
