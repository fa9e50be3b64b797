"""The spans of a job that is traced: where the engine's time went, for the front end to send."""

from __future__ import annotations

import time

from cloud_server.engine.work import Work

_NS = 1e9


def of_scene(work: Work, project_s: float, inject_s: float) -> list[tuple[str, int, int]]:
    """Spans until a scene is held, which is now; none for a job that is not traced."""
    if not work.job.trace:
        return []
    held_ns = time.monotonic_ns()
    inject_ns = held_ns - round(inject_s * _NS)
    project_ns = inject_ns - round(project_s * _NS)
    decoded_ns = work.decoded_ns or project_ns
    return [
        ("decode", decoded_ns - round(work.decode_s * _NS), decoded_ns),
        ("project", project_ns, inject_ns),
        ("inject", inject_ns, held_ns),
    ]


def of_answer(work: Work) -> list[tuple[str, int, int]]:
    """Spans of an answer whose last token is made now; none for a job that is not traced."""
    if not work.job.trace:
        return []
    begun_ns = work.prefilled_ns - round(work.prefill_s * _NS)
    return [
        ("prefill", begun_ns, work.prefilled_ns),
        ("generate", work.prefilled_ns, time.monotonic_ns()),
    ]
