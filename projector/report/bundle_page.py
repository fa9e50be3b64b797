"""Shows bundles and their certificates, for `projector inspect` and `projector catalogue`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from projector.bundle.certificate import Judged
from projector.bundle.describe import BundleInfo
from projector.bundle.load import Bundle
from projector.report.tables import print_tables, table
from protos.layout import KVLayout
from protos.points import OperatingPoint
from protos.quantize import UniformQuantizer

MAPS = {
    "closed_form": "least squares alone, before any training",
    "float": "latents that are not quantized",
    "native": "the cloud model's own cache",
    "mapped": "the map's cache",
    "mapped_fp8": "the map's cache, latents in FP8",
    "mapped_float16": "the map's cache, its weights in float16",
    "mapped_bfloat16": "the map's cache, its weights in bfloat16",
    "edge_only": "the edge model by itself",
}
"""The arms of a certificate's accuracies, beside the operating points."""
CONTROLS = {
    "cloud_image": "the cloud model sees the picture itself",
    "blind": "the question alone",
    "mean_state": "the mean picture's latents for every picture",
    "other_picture": "the latents of another picture",
    "untrained_map": "a random map of the same shape",
    "untrained_edge": "a map fitted to an untrained edge model",
}
"""The controls of a certificate."""

_INTERVAL = {"mean", "low", "high"}
"""Keys of an estimate with its confidence interval."""
_SHOWN_DIGITS = 16
_SHOWN_ENTRIES = 2


def show_bundle(bundle: Bundle) -> None:
    """Print a bundle's content and the figures measured of it.

    Raises:
        ConfigError: rich is missing.
    """
    info, certificate = bundle.info, bundle.certificate
    default = _default_point(info)
    names = {point.index: point.name for point in info.points}
    total = sum(size for size, _ in info.files.values())
    facts = [
        ("id", info.id),
        ("version", info.version),
        ("digest", info.digest),
        ("folder", bundle.path),
        ("rank", info.rank),
        ("selector", bundle.encoder.selector),
        ("default point", default),
        ("ladder", " > ".join(names[index] for index in info.ladder)),
        ("bytes", f"{total:,}"),
        ("signed by", signed(bundle)),
        ("its map", judged(bundle).verdict),
    ]
    files = [(name, f"{size:,}", sha[:_SHOWN_DIGITS]) for name, (size, sha) in info.files.items()]
    print_tables(
        [
            table("Bundle", ("", ""), facts),
            table(
                "Layouts",
                ("", "source (edge)", "target (cloud)"),
                [
                    (name, ours, theirs)
                    for (name, ours), (_, theirs) in zip(
                        _layout_rows(info.source), _layout_rows(info.target), strict=True
                    )
                ],
            ),
            _points_table(bundle),
            *_measured_tables(info),
            *_certificate_tables(info, certificate),
            table("Files", ("name", "#bytes", "sha256"), files),
        ]
    )


def _layout_rows(layout: KVLayout) -> list[tuple[str, object]]:
    rope = layout.rope
    pairs = "interleaved" if rope.interleaved else "half-split"
    thetas = ", ".join(f"{one.theta:g}" for one in (rope, *layout.more_ropes))
    rows: list[tuple[str, object]] = [
        ("model", layout.model_id),
        ("fingerprint", layout.fingerprint[:_SHOWN_DIGITS]),
        ("layers", layout.layers),
        ("KV heads", layout.kv_heads),
        ("head dimension", layout.head_dim),
        ("state dimension", layout.state_dim),
        ("image tokens", f"{layout.tokens} ({layout.grid[0]} x {layout.grid[1]})"),
        ("cache dtype", layout.cache_dtype),
        ("RoPE", f"theta {thetas}, {rope.rotary_dim} dimensions, {pairs}, {rope.scaling}"),
        ("tokenizer", layout.tokenizer_digest[:_SHOWN_DIGITS]),
        ("weights", layout.weights_digest[:_SHOWN_DIGITS]),
    ]
    sliding = sum(window > 0 for window in layout.windows)
    rows.append(
        ("sliding window", f"{layout.window} tokens in {sliding} layers" if sliding else "-")
    )
    return rows


def _points_table(bundle: Bundle) -> Any:
    info, accuracy = bundle.info, _section(bundle.certificate, "accuracy")
    rungs = {index: rung for rung, index in enumerate(info.ladder, start=1)}
    rows = [
        (
            f"{rungs.get(point.index, '-')}{' *' if point.index == info.default_point else ''}",
            point.index,
            point.name,
            point.kind,
            point.quantizer,
            point.tokens or "all",
            point.rank or "-",
            _payload_bytes(bundle, point),
            _share(point.measured.accuracy if point.measured else accuracy.get(point.name, "-")),
        )
        for point in info.points
    ]
    columns = ("rung", "#index", "name", "kind", "quantizer", "#tokens", "#rank")
    return table(
        "Operating points (rung 1 is the cheapest, * the default)",
        (*columns, "#payload bytes", "#accuracy"),
        rows,
    )


def _measured_tables(info: BundleInfo) -> list[Any]:
    """The ladder as calibration measured it, cheapest point first; no table if it never ran."""
    measured = [(p, p.measured) for p in info.points if p.measured is not None]
    if not measured:
        return []
    rows = [
        (
            point.name,
            f"{point.dead_zone:g}",
            f"{point.quiet:g}",
            _number(found.payload_bytes),
            _number(found.wire_bytes),
            _share(found.accuracy),
            _number(found.quantize),
            _share(found.dropped_attention),
        )
        for point, found in sorted(measured, key=lambda pair: pair[1].payload_bytes)
    ]
    columns = ("name", "#dead zone", "#quiet", "#payload bytes", "#wire bytes", "#accuracy")
    return [
        table(
            "The ladder as calibration measured it on held-out pictures",
            (*columns, "#quantization error", "#dropped attention"),
            rows,
        )
    ]


def _payload_bytes(bundle: Bundle, point: OperatingPoint) -> str:
    """Bytes of a picture: measured, or exact for a point whose frames have one size."""
    if point.measured is not None:
        return _number(point.measured.payload_bytes)
    certified = _section(bundle.certificate, "payload_bytes").get(point.name)
    if certified is not None:
        return _number(certified)
    tokens = point.tokens or bundle.encoder.tokens
    if point.kind == "raw_kv":
        return _number(tokens * bundle.info.source.state_dim)
    if point.kind == "picture" or point.quantizer == UniformQuantizer.name:
        return "-"
    steps = bundle.encoder.steps_of(point)
    latents = np.zeros((tokens, len(steps)), dtype=np.float32)
    return _number(len(bundle.encoder.quantizer(point).encode(latents, steps)))


def _certificate_tables(info: BundleInfo, certificate: Mapping[str, Any]) -> list[Any]:
    points = {point.name for point in info.points}
    accuracy, controls = _section(certificate, "accuracy"), _section(certificate, "controls")
    tables = []
    measured = [
        ("map", name, _share(value), MAPS.get(name, ""))
        for name, value in accuracy.items()
        if name in MAPS or name not in CONTROLS.keys() | points
    ]
    default = _default_point(info)
    if default in accuracy and default not in MAPS:
        measured.insert(0, ("map", default, _share(accuracy[default]), "the default point"))
    floors = {n: v for n, v in accuracy.items() if n in CONTROLS and n not in points}
    measured += [
        ("control", name, _share(value), CONTROLS.get(name, ""))
        for name, value in (floors | dict(controls)).items()
    ]
    if measured:
        tables.append(
            table(
                "Certificate: accuracy and its controls",
                ("", "name", "#accuracy", "what was answered from"),
                measured,
            )
        )
    shown = {"payload_bytes"} | {name for name in ("accuracy", "controls") if measured}
    rest = {name: value for name, value in certificate.items() if name not in shown}
    if rest:
        rows = [(name, _number(value)) for name, value in _flat(rest)]
        tables.append(table("Certificate: further figures", ("", ""), rows))
    return tables


_HELD_OUT = {0: "", None: "*"}


def judged(bundle: Bundle) -> Judged:
    """The certificate's verdict on the map, at the default point if it has figures per point."""
    return Judged.of(bundle.certificate, _default_point(bundle.info))


def signed(bundle: Bundle) -> str:
    """Who signed it, and whether that key was compared with trusted ones."""
    if bundle.signer is not None:
        return f"{bundle.signer}, trusted"
    return "nobody" if bundle.key is None else f"{bundle.key[:12]}…, trust not asked for"


def _default_point(info: BundleInfo) -> str:
    return next(point.name for point in info.points if point.index == info.default_point)


def show_catalogue(found: Sequence[Bundle], folder: Path) -> None:
    """Print one row per bundle, by pair of models, with its path as seen from `folder`.

    Raises:
        ConfigError: rich is missing.
    """
    rows = []
    for one in sorted(found, key=lambda b: (b.info.source.model_id, b.info.target.model_id)):
        info, said = one.info, judged(one).to_json()
        rows.append(
            (
                one.path.relative_to(folder),
                info.source.model_id,
                info.target.model_id,
                f"{info.id} {info.version}",
                info.rank,
                _percent(said["accuracy"]) + _HELD_OUT.get(said["seen_in_training"], "!"),
                *(_percent(said[name]) for name in ("native", "retention")),
                said["tier_by_answers"] or said["verdict"],
                said["grade_by_answers"] or "-",
                said["grade_by_reconstruction"] or "-",
            )
        )
    columns = ("folder", "source", "target", "id, version", "#rank", "#right", "#native", "#kept")
    print_tables(
        [
            table(
                f"Bundles in {folder}",
                (*columns, "tier", "grade", "fit"),
                rows,
            )
        ]
    )
    print(
        "kept: share of the native cache's gain over blind, which sets tier and grade; fit: grade "
        "by reconstruction; *: not known to be held out; !: NOT HELD OUT, the map saw some of it"
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _section(certificate: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = certificate.get(name)
    return section if isinstance(section, dict) else {}


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and not _is_interval(value):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _share(value: Any) -> str:
    if _is_interval(value) and all(0 <= end <= 1 for end in value.values()):
        low, high = (100 * value[end] for end in ("low", "high"))
        return f"{100 * value['mean']:.1f} % ({low:.1f} to {high:.1f})"
    return f"{100 * value:.1f} %" if _is_number(value) and 0 <= value <= 1 else _number(value)


def _number(value: Any) -> str:
    if _is_number(value):
        return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
    if _is_interval(value):
        return f"{value['mean']:.4g} ({value['low']:.4g} to {value['high']:.4g})"
    if isinstance(value, list) and len(value) > _SHOWN_ENTRIES:
        if all(map(_is_number, value)):
            return f"{len(value)} numbers, {min(value):.4g} to {max(value):.4g}"
        return f"{len(value)} entries (--json shows them)"
    return value if isinstance(value, str) else json.dumps(value)


def _is_interval(value: Any) -> bool:
    return (
        isinstance(value, dict) and set(value) == _INTERVAL and all(map(_is_number, value.values()))
    )


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, float) or abs(value) < 1 << 63
