"""What sessions agree on: the operating points that both the edge and the bundle can do."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from cloud_server.engine.jobs import Offer
from projector.codec.risk import RiskModel
from protos.errors import UnknownQuantizerError
from protos.layout import KVLayout
from protos.points import PICTURE, RAW_KV_FP8, OperatingPoint, points_from_json


@dataclass(frozen=True)
class Terms:
    """What sessions of the same edge model and codecs have in common.

    Attributes:
        source: the edge model's cache layout.
        points: operating points that both sides can do, by index.
        default_point: name of the point to start with.
        ladder: names of points, fewest bytes first.
        target: the large model's cache layout, if the bundle has feedback.
        feedback: operating points of feedback that the edge can decode; may be empty.
        risk: the service's guard, if the bundle has one.
    """

    offer: Offer
    source: KVLayout
    points: dict[int, OperatingPoint]
    default_point: str
    ladder: list[str]
    target: KVLayout | None = None
    feedback: tuple[OperatingPoint, ...] = ()
    risk: RiskModel | None = None


def terms_of(offer: Offer, source: KVLayout, codecs: Collection[str]) -> Terms:
    """What sessions of this edge model and these codecs agree on.

    Raises:
        UnknownQuantizerError: the edge can encode none of the bundle's operating points.
    """
    points = {p.index: p for p in points_from_json(offer.operating_points_json)}
    for reserved in (RAW_KV_FP8,) if source.of_text else (RAW_KV_FP8, PICTURE):
        points.setdefault(reserved.index, reserved)
    usable = {i: p for i, p in points.items() if p.kind == "picture" or p.quantizer in codecs}
    if all(p.kind == "picture" for p in usable.values()):
        wanted = ", ".join(sorted({p.quantizer for p in points.values()}))
        raise UnknownQuantizerError(
            f"the edge can encode {sorted(codecs)}; the bundle's operating points need one of "
            f"{wanted} (fp8_e4m3 is the simplest)"
        )
    names = {p.name for p in usable.values()}
    ladder = [name for name in offer.ladder if name in names]
    default = offer.default_point
    if default not in names:
        default = ladder[0] if ladder else next(iter(usable.values())).name
    feedback: tuple[OperatingPoint, ...] = ()
    target = None
    if offer.feedback_points_json:
        target = KVLayout.from_json(offer.target_layout_json)
        every = points_from_json(offer.feedback_points_json)
        feedback = tuple(point for point in every if point.quantizer in codecs)
    risk = RiskModel.from_bytes(offer.service_risk) if offer.service_risk else None
    return Terms(offer, source, usable, default, ladder, target, feedback, risk)
