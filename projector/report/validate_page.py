"""A validation report for people: tables on a terminal, one self-contained HTML page with plots.

Knows what `validate.Validator.report` returns. Measures nothing.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib

from projector.bundle.certificate import CANNOT_BE_JUDGED, GOOD
from projector.report.tables import print_tables, table
from projector.training.dataset import Dataset, Texts
from projector.validation.literature import COVERAGE

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402  (after the backend is chosen)

_TEMPLATE = Path(__file__).with_name("validate.html.jinja")


def show(report: Mapping[str, Any]) -> None:
    """Print the figures that matter first, controls beside them."""
    accuracy = [
        (name, f"{a['mean']:.1%}", f"{a['low']:.1%} to {a['high']:.1%}")
        for name, a in report["accuracy"].items()
    ]
    kinds = report["accuracy_by_kind"]
    by_kind = [
        (
            kind,
            f"{kinds['native'][kind]:.1%}",
            f"{kinds['mapped'][kind]:.1%}",
            f"{kinds['blind'][kind]:.1%}",
            *(_shown(report["attention_amplification"][kind][key]) for key in ("d_task", "c_attn")),
        )
        for kind in kinds["native"]
    ]
    fit = report["reconstruction"]
    figures = ("cosine", "mse", "relative_l2", "r2")
    reconstruction = [
        (name, *(_shown(fit[name][key]) for key in figures)) for name in ("whole", "keys", "values")
    ] + [
        (f"layer {row['layer']} {name}", *(_shown(row[name][key]) for key in figures))
        for row in fit["layers"]
        for name in ("keys", "values")
    ]
    print_tables(
        [
            table(
                f"{report['questions']} questions about {report['pictures']} pictures",
                ("cache", "right", "95 % interval"),
                accuracy,
            ),
            table("the map's answers beside the native cache's", ("", ""), agreed(report)),
            table("by kind", ("kind", "native", "mapped", "blind", "D_task", "C_attn"), by_kind),
            table(
                "reconstruction, z-scores", ("", "cosine", "MSE", "rel. L2", "R²"), reconstruction
            ),
            table("diagnostics", ("", "", "wanted"), diagnosed(report)),
            *_bound(report["bound"]),
            *_way_back(report.get("way_back")),
            *_literature(report),
        ]
    )
    worst = ", ".join(row["picture"] for row in report["worst_pictures"])
    print(f"worst {len(report['worst_pictures'])}, by KL (shown on the page): {worst}")
    if (warning := seen(report)) is not None:
        print(warning)
    print(
        f"retention {_shown(report['retention'])}: tier {_said(report['tier_by_answers'])} and "
        f"grade {_said(report['grade_by_answers'])} by answers, grade "
        f"{report['grade_by_reconstruction']} by reconstruction"
    )
    if (doubt := doubted(report)) is not None:
        print(doubt)


def doubted(report: Mapping[str, Any]) -> str | None:
    """What is to be said of a map that cannot be judged, or is no better than its controls."""
    if report["verdict"] == GOOD:
        return None
    return f"{report['verdict'].upper()}: {report['why']}"


def _said(grade: str | None) -> str:
    return CANNOT_BE_JUDGED if grade is None else grade


def seen(report: Mapping[str, Any]) -> str | None:
    """What is to be said where a map is judged on what it was made from; None where it is not."""
    count = report.get("seen_in_training")
    if count is None:
        return (
            "not known to be held out: nothing beside this map says what it was trained on "
            "(training it again with `projector train` does)"
        )
    if not count:
        return None
    return (
        f"NOT HELD OUT: {count} of these {report['pictures']} were trained on or chosen by; every "
        "figure flatters the map"
    )


def agreed(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How the map's answers stand to the native ones: name and figure."""
    agreement, gap = report["agreement"], report["mapped_minus_native"]
    other = report["other_picture_labels"]
    rows = [
        ("same first token", f"{agreement['first_token']:.1%}"),
        ("same full answer", f"{agreement['full_answer']:.1%}"),
        ("KL of the answer, nats", f"{agreement['kl_nats']:.3f}"),
        (
            "right, mapped minus native, points",
            "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * gap[k] for k in ("mean", "low", "high"))),
        ),
    ]
    if other["questions"]:
        rows += [
            (
                f"another picture's cache, {other['questions']} questions",
                f"{other['other_picture']:.1%}",
            ),
            ("that picture's labels, same questions", f"{other['labels']:.1%}"),
        ]
    return rows


def _bound(bound: Mapping[str, Any]) -> list[Any]:
    if "none" in bound:
        return [table("distortion bound", ("",), [(f"none: {bound['none']}",)])]
    rows = [
        ("guaranteed: Lip(C)", f"{bound['lipschitz']:.3f}", ""),
        ("frames beyond the guarantee", f"{bound['guarantee_violations']:.0f}", "0"),
        ("statistical: 99 % quantile of the error", f"{bound['residual']:.1f}", ""),
        ("coverage of other frames", f"{bound['coverage']:.2%}", f"{COVERAGE:.1%} or more"),
        ("bound over actual error", _shown(bound["bound_over_actual"]), ""),
        ("expected-error estimate over actual", _shown(bound["estimate_over_actual"]), "near 1"),
    ]
    return [table("distortion bound", ("", "", "wanted"), rows)]


def _way_back(found: Mapping[str, Any] | None) -> list[Any]:
    if found is None:
        return []
    sent = f"sent ({found['bytes']:,.0f} bytes, rank {found['rank']})"
    rows = [
        (
            sent if name == "sent" else name,
            f"{a['mean']:.1%}",
            f"{a['low']:.1%} to {a['high']:.1%}",
        )
        for name, a in found["accuracy"].items()
    ]
    ranks = [
        (r["rank"], f"{r['bytes']:,.0f}", f"{r['round_trip']:.3f}", f"{r['accuracy']:.1%}")
        for r in found["by_rank"]
    ]
    title = "the way back: the edge model's answers"
    if not found.get("judged", True):
        title += f" ({CANNOT_BE_JUDGED}: its own cache does no better than none)"
    return [
        table(title, ("cache", "right", "95 % interval"), rows),
        table("sent back in FP8", ("rank", "#bytes", "#round trip (< 0.10)", "#right"), ranks),
    ]


def diagnosed(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What can be wrong with a map besides its answers: name, figure, what is wanted."""
    found, fit, trip = report["diagnostics"], report["reconstruction"], report["round_trip"]
    rank, condition = found["effective_rank"], found["condition_number"]
    flagged = " FLAGGED" if found.get("condition_flagged") else ""
    return [
        ("effective rank (above 1 % of the largest)", "–" if rank is None else str(rank), ""),
        (
            "condition number",
            "not linear" if condition is None else f"{condition:.4g}{flagged}",
            "below 1000",
        ),
        ("operator norm", _shown(found["operator_norm"]), ""),
        ("residual variance", _shown(fit["residual_variance"]), ""),
        ("ε, RMSE of a z-score", f"{fit['epsilon']:.3f}", ""),
        ("round trip", "no way back" if trip is None else f"{trip:.3f}", "below 0.10"),
    ]


def _literature(report: Mapping[str, Any]) -> list[Any]:
    """The published tables, ours beside them."""
    found = report["literature"]
    tasks = [
        (
            row["task"],
            row["kind"] or "a head's",
            f"{row['published']['c_attn']:.1f}",
            f"{row['published']['d_task']:.3f}",
            *(("–", "–", "–") if row["measured"] is None else _task(row["measured"])),
        )
        for row in found["tasks"]
    ]
    ways = [
        (
            row["configuration"],
            f"{row['published']['success']:.0%}",
            "–" if row["measured"] is None else f"{row['measured']['success']:.1%}",
            f"{row['published']['distortion']:.2f}",
            "–" if row["measured"] is None else _shown(row["measured"]["distortion"]),
        )
        for row in found["configurations"]
    ]
    costs = [
        (
            row["figure"],
            *(_number(row["published"], arm) for arm in ("projected", "full")),
            *(_number(row["measured"], arm) for arm in ("projected", "full")),
            "–" if row["ratio"] is None else f"1/{row['ratio']:.1f}",
        )
        for row in found["costs"]
    ]
    rank = [(str(r["rank"]), f"{r['retention']:.3f}") for r in report["retention_by_rank"]]
    precision = [
        (
            r["precision"],
            f"{r['accuracy']:.1%}",
            f"{r['answers_changed']:.2%}",
            f"{r['cosine']:.5f}",
        )
        for r in report["precision"]
    ]
    said = [(s["claim"], s["measured"], yes_no(s["holds"])) for s in found["statements"]]
    costly = report.get("costs", {})
    basis = f"energy: CPU time at a stated {costly.get('watts', 0):g} W"
    if costs and costly["full"]["energy_j"] is None:
        basis = f"on one {costly['device']}; of its energy there is no estimate"
    named: list[tuple[str, tuple[str, ...], Sequence[Sequence[object]]]] = [
        (
            "published tasks, limit 0.1",
            ("task", "ours", "#C_attn", "#D_task", "#C_attn here", "#D_task here", "within"),
            tasks,
        ),
        (
            "published configurations (their distortion is 1 - success)",
            ("", "#success", "#here", "#distortion", "#D_task here"),
            ways,
        ),
        (
            f"costs to the first token ({basis})",
            ("", "#projected", "#full", "#projected here", "#full here", "#ratio here"),
            costs,
        ),
        ("retention against rank", ("rank", "#retention"), rank),
        ("weights in fewer bits", ("", "#right", "#answers changed", "#cosine"), precision),
        ("what the literature says", ("statement", "here", "holds"), said),
    ]
    return [table(title, columns, rows) for title, columns, rows in named if rows]


def _task(measured: Mapping[str, Any]) -> tuple[str, str, str]:
    return _shown(measured["c_attn"]), f"{measured['d_task']:.3f}", yes_no(measured["within"])


def yes_no(holds: bool | None) -> str:
    """A statement's answer."""
    return CANNOT_BE_JUDGED if holds is None else "yes" if holds else "NO"


def _number(row: Mapping[str, float] | None, arm: str) -> str:
    return "–" if row is None else f"{row[arm]:,.4g}"


def html(report: Mapping[str, Any], data: Dataset) -> str:
    """The page: one file, plots and the worst pictures inside."""
    names = {file.name: index for index, file in enumerate(data.files)}
    worst = []
    for row in report["worst_pictures"]:
        shown = {"image": "", "text": ""}
        if isinstance(data, Texts):
            shown["text"] = data.text(names[row["picture"]])
        else:
            stream = io.BytesIO()
            data.picture(names[row["picture"]]).save(stream, "PNG")
            shown["image"] = base64.b64encode(stream.getvalue()).decode()
        worst.append({**row, **shown})
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page: str = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        report=report,
        seen=seen(report),
        worst=worst,
        layers=_layers(report["reconstruction"]["layers"]),
        singular=_singular(report["diagnostics"].get("singular_values")),
        ranks=_ranks(report),
        diagnosed=diagnosed(report),
        doubted=doubted(report),
        shown=_shown,
        said=_said,
        yes_no=yes_no,
        way_back=report.get("way_back"),
        frames=_frames(report["bound"].get("frames")),
    )
    return page


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _layers(rows: list[dict[str, Any]]) -> str:
    figure, axes = pyplot.subplots(figsize=(7, 3))
    for part in ("keys", "values"):
        axes.plot([r["layer"] for r in rows], [r[part]["r2"] for r in rows], "o-", label=part)
    axes.set_xlabel("layer of the large model")
    axes.set_ylabel("R²")
    axes.legend()
    return _png(figure)


def _singular(values: list[float] | None) -> str:
    if not values:
        return ""
    figure, axes = pyplot.subplots(figsize=(7, 3))
    axes.semilogy(range(1, len(values) + 1), values)
    axes.set_xlabel("index")
    axes.set_ylabel("singular value")
    return _png(figure)


def _ranks(report: Mapping[str, Any]) -> str:
    rows = report["retention_by_rank"]
    if not rows:
        return ""
    figure, axes = pyplot.subplots(figsize=(7, 3))
    axes.semilogx([r["rank"] for r in rows], [r["retention"] for r in rows], "o-", base=2)
    if report["retention"] is not None:
        axes.axhline(report["retention"], color="grey", lw=0.8, label="the whole map")
    axes.set_xlabel("rank that the map is cut to")
    axes.set_ylabel("retention")
    axes.legend()
    return _png(figure)


def _frames(frames: Mapping[str, list[float]] | None) -> str:
    if not frames:
        return ""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6))
    left.scatter(frames["actual"], frames["bound"], s=6)
    left.set_xlabel("actual error of a frame")
    left.set_ylabel("bound")
    right.scatter(frames["added"], frames["estimate"], s=6)
    right.set_xlabel("what FP8 latents add")
    right.set_ylabel("expected-error estimate")
    for axes in (left, right):
        most = max(axes.get_xlim()[1], axes.get_ylim()[1])
        axes.plot([0, most], [0, most], color="grey", lw=0.8)
    return _png(figure)


def _png(figure: Any) -> str:
    stream = io.BytesIO()
    figure.tight_layout()
    figure.savefig(stream, format="png", dpi=110)
    pyplot.close(figure)
    return base64.b64encode(stream.getvalue()).decode()
