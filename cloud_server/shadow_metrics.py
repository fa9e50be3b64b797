"""What is counted of shadowed pictures: rows of the service's table of metrics."""

from __future__ import annotations

from protos.process.metric_kinds import Label
from protos.process.metric_rows import FIDELITY, FLEET, SLO, CounterRow, GaugeRow, HistogramRow
from protos.process.metrics import BUNDLE, RATIO, MetricSet

SHADOWS = ("measured", "late", "refused")
_NATS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3)


class ShadowMetrics(MetricSet):
    """These rows; a base class of the service's metrics."""

    shadows = CounterRow(
        "shadows_total",
        "pictures",
        "Shadowed pictures by outcome; late: no engine had time for it",
        FIDELITY,
        Label("outcome", SHADOWS),
    )
    shadow_answers = CounterRow(
        "shadow_answers_total",
        "answers",
        "Answers that were compared with those from the shadowed picture",
        (FIDELITY, SLO),
        BUNDLE,
        Label("same", ("yes", "no")),
    )
    shadow_error = HistogramRow(
        "shadow_error_ratio",
        "ratio",
        "Relative error of a projected cache against the picture's own, mean over the layers",
        FIDELITY,
        BUNDLE,
        buckets=RATIO,
    )
    shadow_layer_error = GaugeRow(
        "shadow_layer_error_ratio",
        "ratio",
        "The same by layer, moving average over some 50 frames of this front end",
        FIDELITY,
        BUNDLE,
        Label("layer", bound="layers of the large model", most=128),
    )
    shadow_kl = HistogramRow(
        "shadow_kl_nats",
        "nats",
        "Divergence of an answer's first token from the one made from the picture",
        FIDELITY,
        BUNDLE,
        buckets=_NATS,
    )
    shadow_last = GaugeRow(
        "shadow_last_timestamp_seconds",
        "seconds",
        "When a shadowed picture was measured last, seconds since 1970, by any front end",
        (FIDELITY, SLO),
        BUNDLE,
    )
    drift_devices = GaugeRow(
        "drift_devices",
        "devices",
        "Devices whose camera sees what the map no longer fits",
        (FIDELITY, FLEET, SLO),
        BUNDLE,
    )
    drift_alarms = CounterRow(
        "drift_alarms_total",
        "alarms",
        "Alarms of drift that began at this front end",
        FIDELITY,
        BUNDLE,
    )
