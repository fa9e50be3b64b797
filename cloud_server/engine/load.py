"""Load: the large model, the bundles checked against it, and the offer of each."""

from __future__ import annotations

from cloud_server.engine.jobs import Offer
from cloud_server.engine.precision import rounds
from cloud_server.settings import Settings
from projector.bundle.certificate import shares_that_differ, verdict_of
from projector.bundle.keys import TrustedKeys
from projector.bundle.load import Bundle
from projector.models.lm import LM, TEXT_TOKENS, reads_only_texts
from projector.models.rounded import round_linears
from projector.models.vlm import VLM
from protos.errors import ConfigError
from protos.layout import KVLayout
from protos.points import points_to_json


def load_model(settings: Settings) -> VLM | LM:
    """Load the settings' model; a text model takes texts as long as the longest of any bundle.

    Raises:
        ModelError, UnsupportedModelError: it cannot be used.
        ContextError: the longest text of a bundle does not fit into its windows.
    """
    where = settings.model_path, settings.device, settings.dtype
    model: VLM | LM
    if not reads_only_texts(settings.model_path):
        model = VLM.load(*where)
    else:
        longest = max((Bundle.peek(path).target.tokens for path in settings.bundles), default=0)
        model = LM.load(*where, text_tokens=longest or TEXT_TOKENS)
    if settings.dtype == "float32" and rounds(settings):
        round_linears(model.decoder)
    return model


def load_bundles(settings: Settings, target: KVLayout) -> list[Bundle]:
    """Load the settings' bundles, each checked against the live model.

    Args:
        settings: where they are, and whose signatures are trusted.
        target: the live model's cache layout.

    Raises:
        BundleMissingError, BundleCorruptError, BundleLayoutError, BundleFormatError: a bundle
            cannot be used.
        SignatureError: trusted keys are set and none of them signed a bundle.
        ConfigError: two bundles are for the same edge model.
    """
    trusted = TrustedKeys.load(settings.trusted_keys) if settings.trusted_keys is not None else None
    loaded: dict[str, Bundle] = {}  # by edge model
    for path in settings.bundles:
        info = Bundle.peek(path)
        bundle = Bundle.load(path, info.source, target, trusted=trusted).sharing(loaded.values())
        twin = loaded.setdefault(info.source.fingerprint, bundle)
        if twin is not bundle:
            raise ConfigError(
                f"bundles '{twin.info.id}' and '{info.id}' ({path}) are for the same edge "
                "model; a frame could not tell them apart: serve one of them"
            )
    return list(loaded.values())


def batch_bytes(settings: Settings, model: VLM | LM, rows: int) -> int:
    """Most bytes of a running batch: its caches, those of the next step, and those of a join.

    Args:
        settings: the longest answer.
        model: its shapes.
        rows: most answers in it.
    """
    longest = len(model.prefix_ids) + model.layout.tokens + model.max_question_tokens
    tokens = rows * (longest + settings.max_new_tokens)
    key = model.constant_prefix()[0][0]
    per_token = 2 * model.layout.layers * model.layout.kv_heads * model.layout.head_dim
    return 3 * tokens * per_token * key.element_size()


def offer(bundle: Bundle) -> Offer:
    """What the front end tells edges about a bundle."""
    info, feedback = bundle.info, bundle.feedback
    names = {point.index: point.name for point in info.points}
    verdict = verdict_of(bundle.certificate, names[info.default_point])
    return Offer(
        bundle_id=info.id,
        bundle_version=str(info.version),
        bundle_digest=bundle.digest,
        encoder_digest=bundle.encoder.digest,
        source_fingerprint=info.source.fingerprint,
        source_layout_json=info.source.to_json(),
        target_layout_json=info.target.to_json(),
        operating_points_json=points_to_json(info.points),
        default_point=names[info.default_point],
        ladder=[names[index] for index in info.ladder],
        encoder=bundle.encoder.to_bytes(),
        feedback_decoder=feedback.decoder.to_bytes() if feedback else b"",
        feedback_points_json=points_to_json(feedback.decoder.points) if feedback else "",
        verdict="" if verdict.good else verdict.state,
        why=verdict.why,
        canary=bundle.canary.to_bytes() if bundle.canary else b"",
        service_risk=bundle.service_risk.to_bytes() if bundle.service_risk else b"",
        differ=shares_that_differ(bundle.certificate),
        tokens=bundle.encoder.tokens,
    )
