"""Memory packages: one file that carries what a model saw to another model.

Needs no tensor library; the caller gives `answer` a model.

The calls, in order: `create` or `derive`, `sign`, `write`; then `verify` or `read`, `answer`.

| Member, in this order | Holds |
|---|---|
| `metadata.json` | format, id, version, created, description, models, shape, codec, certification |
| `kv_cache/keys.safetensors` | un-rotated keys of the kept tokens: `codes` times `scale` |
| `kv_cache/values.safetensors` | values, in the same form |
| `kv_cache/attention_mask.safetensors` | `kept`, `attention`, `positions` of all tokens, `grid` |
| `w_matrix/config.json` | id, version, digest and rank of the bundle that projects it |
| `w_matrix/…` | that bundle's files, if it is embedded |
| `provenance.json` | creator, parent, derivation, royalty, digests of the others, signature |

The file is a ZIP archive without compression, in one canonical form. The reader rebuilds headers,
JSON and tensor headers from what it parsed and compares them with the file. It checks members
against their SHA-256, and `provenance.json` against its own `digest`. That digest names the
package. It covers everything except the signature, which signs it.
"""

from __future__ import annotations

from projector.package.apply import answer, check_fit, fitting_bundle, project
from projector.package.chain import MAX_CHAIN, Link, require_trusted, sign, verify, verify_chain
from projector.package.contents import DERIVATIONS, Package, PackageInfo, Provenance, WMatrix
from projector.package.files import peek, read, write
from projector.package.form import (
    CODECS,
    CONFIG,
    FORMAT,
    KEYS,
    MASK,
    MAX_BYTES,
    MAX_NUMBERS,
    METADATA,
    PROVENANCE,
    SUFFIX,
    VALUES,
)
from projector.package.make import create, derive
from projector.package.metadata import TIERS, Certification, Metadata, Model

__all__ = [
    "CODECS",
    "CONFIG",
    "DERIVATIONS",
    "FORMAT",
    "KEYS",
    "MASK",
    "MAX_BYTES",
    "MAX_CHAIN",
    "MAX_NUMBERS",
    "METADATA",
    "PROVENANCE",
    "SUFFIX",
    "TIERS",
    "VALUES",
    "Certification",
    "Link",
    "Metadata",
    "Model",
    "Package",
    "PackageInfo",
    "Provenance",
    "WMatrix",
    "answer",
    "check_fit",
    "create",
    "derive",
    "fitting_bundle",
    "peek",
    "project",
    "read",
    "require_trusted",
    "sign",
    "verify",
    "verify_chain",
    "write",
]
