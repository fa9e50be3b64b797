"""`projector verify`: load both models and a bundle as the service does, and project once."""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np

from projector.bundle.load import Bundle
from projector.commands.arguments import add_bundle, add_command, add_json, add_trusted
from projector.commands.bundles import bundle_folder, intact, trusted_keys
from projector.commands.models import live_layout
from projector.commands.settings import Settings, check, required, settings_of
from projector.report import tables
from projector.serving import backends
from protos.errors import BundleFormatError, ConfigError
from protos.process.console import printable

_TWINS = {"onnxruntime": "torch", "torch": "onnxruntime"}
_MOST_APART = 1e-3
"""Largest difference of graph and weights on the same latents, relative to the largest number.

Ten times what every family's graph is tested for.
"""


def register(commands: Any) -> None:
    """Add the command to the program's parser."""
    verify = add_command(
        commands,
        "verify",
        "load both models and the bundle as the service does, and project one picture",
        _run,
        (
            "source",
            "target",
            "source_dtype",
            "target_dtype",
            "device",
            "bundles",
            "backend",
            "backend_device",
            "threads",
        ),
        (
            "projector verify bundles/edge-a-cloud --source models/edge-a --target models/cloud",
            "projector verify edge-a-cloud --config projector.toml --backend torch",
        ),
    )
    add_bundle(verify)
    add_json(verify)
    add_trusted(verify)


def _run(args: argparse.Namespace) -> int:
    chosen = settings_of(args)
    path = bundle_folder(args.bundle, chosen)
    if args.check_config:
        return check(chosen, bundles=[path])
    models = [required(chosen, "source"), required(chosen, "target")]
    trusted = trusted_keys(args)
    # Check the bundle by itself before any model is loaded.
    info = intact(path, trusted).info
    backends.get(chosen.backend)
    dtypes = [chosen.source_dtype, chosen.target_dtype]
    longest = info.source.tokens if info.source.of_text else 0
    source, target = (
        live_layout(model, chosen.device, dtype, chosen.threads, longest)
        for model, dtype in zip(models, dtypes, strict=True)
    )
    bundle = Bundle.load(path, source, target, trusted=trusted)
    with tables.doing(f"running {bundle.info.id} with {chosen.backend}"):
        _run_once(bundle, chosen)
    done = {
        "bundle": bundle.info.id,
        "version": bundle.info.version,
        "digest": bundle.digest,
        "source": {"model_id": source.model_id, "fingerprint": source.fingerprint},
        "target": {"model_id": target.model_id, "fingerprint": target.fingerprint},
        "backend": chosen.backend,
    }
    if args.json:
        print(json.dumps(done, indent=2))
    else:
        print(
            f"{printable(bundle.info.id)} version {bundle.info.version} fits: "
            f"{printable(source.model_id)} -> {printable(target.model_id)}, "
            f"runs with {chosen.backend}"
        )
    return 0


def _run_once(bundle: Bundle, chosen: Settings) -> None:
    """Project the mean picture; project another by graph and by weights and compare the two.

    Raises:
        ConfigError: the backend or its device is missing.
        BundleFormatError: it cannot run the cloud half, its output is not a cache, or graph and
            weights differ.
    """
    info = bundle.info
    backend = bundle.backend(chosen.backend, chosen.threads, chosen.backend_device)
    tokens = info.target.tokens
    sent = tokens if info.source.of_text else bundle.encoder.tokens  # edges have their own grid
    latents = np.broadcast_to(bundle.encoder.latent_mean, (1, sent, info.rank))
    seen = latents, np.ones((1, sent), dtype=np.bool_), np.arange(tokens, dtype=np.int64)
    keys, values = backend.project(*seen)
    shape = (info.target.layers, 1, info.target.kv_heads, tokens, info.target.head_dim)
    for name, array in (("keys", keys), ("values", values)):
        if array.shape != shape or not np.isfinite(array).all():
            raise BundleFormatError(
                f"bundle '{info.id}' projects the mean picture to {name} of shape {array.shape}, "
                f"expected finite numbers of shape {shape}"
            )
    other = _TWINS.get(chosen.backend)
    if other is None:
        return
    try:
        twin = bundle.backend(other, chosen.threads)
    except ConfigError:
        return  # not installed: a service here would not run it either
    spread = 1 / np.sqrt(np.diag(bundle.encoder.latent_inv_cov))
    drawn = latents + spread * np.random.default_rng(0).standard_normal(latents.shape)
    seen = (drawn.astype(np.float32), *seen[1:])
    both = zip(("keys", "values"), backend.project(*seen), twin.project(*seen), strict=True)
    for name, ours, theirs in both:
        apart = float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-12))
        if not apart <= _MOST_APART:
            raise BundleFormatError(
                f"bundle '{info.id}': cloud.onnx and cloud.safetensors are not the same map, their "
                f"{name} of one picture are {apart:.2g} of the largest apart"
            )
