"""Shows memory packages as tables, lines and JSON, for `projector package inspect` and `verify`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from projector.package import Link, PackageInfo
from protos.process.console import printable


def chain_plain(chain: Sequence[Link]) -> dict[str, Any]:
    """A verified chain, from the package to its root, as JSON."""
    return {
        "digest": chain[0].info.digest,
        "signed": chain[0].info.provenance.signature is not None,
        "to_root": chain[-1].info.provenance.parent is None,
        "chain": [
            {
                "path": str(link.path),
                "digest": link.info.digest,
                "id": link.info.metadata.id,
                "creator": link.info.provenance.creator,
                "derivation": list(link.info.provenance.derivation),
                "royalty_percent": link.info.provenance.royalty_percent,
                "signer": link.signer,
            }
            for link in chain
        ],
    }


def print_chain(chain: Sequence[Link]) -> None:
    """Print a line per package of a verified chain."""
    for link in chain:
        said = link.info.provenance
        if link.signer is not None:
            by = f"signed by '{link.signer}', who is trusted"
        else:
            by = (
                f"signed by {said.signature.key} (not compared with trusted keys)"
                if said.signature
                else "not signed"
            )
        how = f", {' and '.join(said.derivation)} of {said.parent[:12]}" if said.parent else ""
        print(printable(f"{link.path}: intact, {link.info.digest[:12]}, {by}{how}"))
    if len(chain) == 1 and chain[0].info.provenance.parent is not None:
        print("its parents were not looked for: name their files or folders with --among")


def print_info(info: PackageInfo) -> None:
    """Print what a package says of itself, a row each."""
    meta, said, certified = info.metadata, info.provenance, info.metadata.certification
    quality = meta.transformation_quality
    rows: list[tuple[str, object]] = [
        ("id", meta.id),
        ("version", meta.version),
        ("digest", info.digest),
        ("created", meta.created),
        ("description", meta.description or "-"),
        ("source", f"{meta.source.model_id}  (layout {meta.source.fingerprint[:16]})"),
        ("target", f"{meta.target.model_id}  (layout {meta.target.fingerprint[:16]})"),
        ("cache", f"{meta.layers} layers, {meta.kv_heads} heads of {meta.head_dim}, {meta.codec}"),
        ("tokens", f"{meta.tokens} of {meta.grid_tokens} ({meta.grid[0]} x {meta.grid[1]})"),
        ("compression", f"{100 * meta.compression_ratio:.1f} % of the tokens"),
        ("quality", "-" if quality is None else f"{100 * quality:.1f} % right answers"),
        (
            "bundle",
            f"{info.w_matrix.bundle_id} version {info.w_matrix.bundle_version}, rank "
            f"{info.w_matrix.rank}, {info.w_matrix.bundle_digest[:16]}, "
            + ("embedded" if info.w_matrix.embedded else "not embedded"),
        ),
        (
            "certification",
            "-"
            if certified is None
            else f"{certified.tier}, epsilon {certified.epsilon:g}, retention "
            f"{100 * certified.retention:.1f} %, {certified.verified_at}, {certified.report}",
        ),
        ("creator", said.creator),
        ("royalty", f"{said.royalty_percent:g} %"),
        ("parent", said.parent or "-"),
        ("derivation", ", ".join(said.derivation) or "-"),
        ("signed by", said.signature.key if said.signature else "-"),
        *((name, f"{size:,} bytes  {sha[:16]}") for name, (size, sha) in said.members.items()),
    ]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {printable(value)}")
