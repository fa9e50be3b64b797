"""A validation on a terminal, controls beside every figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from projector.bundle.certificate import CANNOT_BE_JUDGED
from projector.report.tables import print_tables, table
from projector.report.validate_words import (
    agreed,
    diagnosed,
    doubted,
    grade_text,
    number,
    seen,
    yes_no,
)
from projector.validation.literature import COVERAGE


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
            *(number(report["attention_amplification"][kind][key]) for key in ("d_task", "c_attn")),
        )
        for kind in kinds["native"]
    ]
    fit = report["reconstruction"]
    figures = ("cosine", "mse", "relative_l2", "r2")
    reconstruction = [
        (name, *(number(fit[name][key]) for key in figures)) for name in ("whole", "keys", "values")
    ] + [
        (f"layer {row['layer']} {name}", *(number(row[name][key]) for key in figures))
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
    tier, grade = (grade_text(report[f"{name}_by_answers"]) for name in ("tier", "grade"))
    print(
        f"retention {number(report['retention'])}: tier {tier} and grade {grade} by answers, grade "
        f"{report['grade_by_reconstruction']} by reconstruction"
    )
    if (doubt := doubted(report)) is not None:
        print(doubt)


def _bound(bound: Mapping[str, Any]) -> list[Any]:
    if "none" in bound:
        return [table("distortion bound", ("",), [(f"none: {bound['none']}",)])]
    rows = [
        ("guaranteed: Lip(C)", f"{bound['lipschitz']:.3f}", ""),
        ("frames beyond the guarantee", f"{bound['guarantee_violations']:.0f}", "0"),
        ("statistical: 99 % quantile of the error", f"{bound['residual']:.1f}", ""),
        ("coverage of other frames", f"{bound['coverage']:.2%}", f"{COVERAGE:.1%} or more"),
        ("bound over actual error", number(bound["bound_over_actual"]), ""),
        ("expected-error estimate over actual", number(bound["estimate_over_actual"]), "near 1"),
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
            "–" if row["measured"] is None else number(row["measured"]["distortion"]),
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
    return number(measured["c_attn"]), f"{measured['d_task']:.3f}", yes_no(measured["within"])


def _number(row: Mapping[str, float] | None, arm: str) -> str:
    return "–" if row is None else f"{row[arm]:,.4g}"
