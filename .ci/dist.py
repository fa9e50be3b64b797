"""`make dist`: everything of a release, in `dist/`.

In order: source archives → wheels, built from those archives, which thereby prove to hold
everything → an archive to deploy with (`deploy/` and the wheels) → release notes, cut from
CHANGELOG.md → for each kind of install a bare environment with the wheel in it, and from that
environment its bill of materials (CycloneDX) and the licences.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from setuptools_scm import get_version

ROOT = Path(__file__).resolve().parent.parent
INSTALLS = {"edge": "edge,video", "cloud": "cloud,otlp,postgresql"}
"""From the name of a bill of materials to the extras that are installed for it."""
BOM_TOOL = "cyclonedx-bom==7.5.0"
_HEADING = re.compile(r"^## \[(?P<version>[^\]]+)\].*$", re.MULTILINE)


def release_notes(changelog: str, version: str) -> str:
    """The section of a version; of an untagged one the section `Unreleased`.

    Args:
        changelog: text in the form of Keep a Changelog.
        version: such as `0.2.0`, or `0.2.1.dev3+g0123456` between two tags.

    Raises:
        ValueError: the changelog has no such section, or an empty one.
    """
    wanted = "Unreleased" if "dev" in version else version
    headings = list(_HEADING.finditer(changelog))
    for at, heading in enumerate(headings):
        if heading["version"] == wanted:
            end = headings[at + 1].start() if at + 1 < len(headings) else len(changelog)
            if body := changelog[heading.end() : end].strip():
                return f"# Neural Bridge {version}\n\n{body}\n"
    raise ValueError(
        f"CHANGELOG.md says nothing under '## [{wanted}]': write it before the release"
    )


def licences(bill: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Name, version and licence of each component of a CycloneDX bill, by name.

    A component says its licence as an SPDX expression, as the names of licences, or not at all.
    """
    rows = []
    for part in bill["components"]:
        said = [
            each.get("expression") or each["license"].get("id") or each["license"].get("name")
            for each in part.get("licenses", [])
        ]
        short = dict.fromkeys(str(name).strip().partition("\n")[0] for name in said)
        rows.append((part["name"], part.get("version", ""), " or ".join(short) or "not stated"))
    return sorted(rows, key=lambda row: row[0].lower())


def licence_table(bills: dict[str, dict[str, Any]]) -> str:
    """A Markdown page: for each kind of install a table of what it brings."""
    page = ["# Licences of what Neural Bridge depends on\n"]
    for name, bill in bills.items():
        page += [
            f"## neural-bridge[{INSTALLS[name]}]\n",
            "| Package | Version | Licence |",
            "|---|---|---|",
        ]
        page += [f"| {' | '.join(row)} |" for row in licences(bill)]
        page.append("")
    return "\n".join(page)


def build(out: Path) -> dict[str, Path]:
    """Build source archives and wheels; returns the wheels by distribution."""
    # One version for both, also where the tree changes meanwhile.
    version = get_version(root=str(ROOT), fallback_version="0.1.dev0")
    environ = os.environ | {
        "SETUPTOOLS_SCM_PRETEND_VERSION": version,
        "SOURCE_DATE_EPOCH": _commit_time(),
    }
    for project in (ROOT, ROOT / "reference"):
        _run("uv", "build", "--quiet", "--no-build-isolation", "--python", sys.executable,
             "--out-dir", str(out), str(project), environ=environ)  # fmt: skip
    return {path.name.partition("-")[0]: path for path in out.glob("*.whl")}


def deploy_archive(wheels: dict[str, Path], version: str, out: Path) -> None:
    """Pack `deploy/`, its guide and the wheels: all that a machine needs besides its packages."""
    top = f"neural-bridge-{version}"

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        return None if "__pycache__" in member.name else member

    with tarfile.open(out / f"{top}-deploy.tar.gz", "w:gz", compresslevel=1) as archive:
        archive.add(ROOT / "deploy", f"{top}/deploy", filter=plain)
        archive.add(ROOT / "docs/deploy.md", f"{top}/README.md", filter=plain)
        archive.add(ROOT / "LICENSE", f"{top}/LICENSE", filter=plain)
        for wheel in wheels.values():
            archive.add(wheel, f"{top}/wheels/{wheel.name}", filter=plain)


def bill_of_materials(wheel: Path, extras: str, folder: Path, out: Path) -> dict[str, Any]:
    """Install a wheel into a new environment and write down what came with it."""
    _run(sys.executable, "-m", "venv", "--without-pip", str(folder))
    python = str(folder / "bin/python")
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-compile")
    _run(*pip, "-c", str(ROOT / ".ci/constraints.txt"), f"{wheel}[{extras}]")
    _run("uv", "tool", "run", "--quiet", "--from", BOM_TOOL, "cyclonedx-py", "environment", python,
         "--pyproject", str(ROOT / "pyproject.toml"), "--mc-type", "application",
         "--output-reproducible", "--output-format", "JSON", "--output-file", str(out))  # fmt: skip
    bill: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return bill


def _commit_time() -> str:
    """The newest commit's time, so that the same commit gives the same wheel."""
    command = ["git", "log", "-1", "--format=%ct"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return told or "315532800"


def _run(program: str, *words: str, environ: dict[str, str] | None = None) -> None:
    beside = str(Path(sys.executable).parent)
    path = shutil.which(program, path=f"{beside}{os.pathsep}{os.environ['PATH']}") or program
    subprocess.run([path, *words], cwd=ROOT, env=environ, check=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make everything; 1 if a step failed."""
    parser = argparse.ArgumentParser(prog="make dist", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder (default: dist)")
    parser.add_argument(
        "--no-bom", action="store_true", help="install nothing: no bill of materials"
    )
    given = parser.parse_args(arguments)
    out: Path = given.out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    try:
        print("dist: source archives and wheels")
        wheels = build(out)
        version = wheels["neural_bridge"].name.split("-")[1]
        deploy_archive(wheels, version, out)
        changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
        (out / "RELEASE.md").write_text(release_notes(changelog, version), encoding="utf-8")
        bills = {}
        for name, extras in INSTALLS.items() if not given.no_bom else ():
            print(f"dist: neural-bridge[{extras}] in a bare environment, for its bill of materials")
            with tempfile.TemporaryDirectory() as folder:
                bills[name] = bill_of_materials(
                    wheels["neural_bridge"], extras, Path(folder), out / f"{name}.cdx.json"
                )
        if bills:
            (out / "LICENCES.md").write_text(licence_table(bills), encoding="utf-8")
    except (subprocess.CalledProcessError, ValueError) as error:
        print(f"dist: failed: {error}", file=sys.stderr)
        return 1
    for path in sorted(out.iterdir()):
        print(f"dist: {path.stat().st_size / 1e6:7.1f} MB  {path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
