"""The form of an update: one file with wheels, a model or an edge half, and a signed list of them.

A ZIP archive without compression, so that nothing in it can grow. Its members, in this order:

    update.json      number, version, machine, Python, JetPack, and each file's size and SHA-256
    signature.json   an Ed25519 signature over a prefix and update.json
    KIND/…           the files: agent (wheels), model (an edge export), bundle (an edge half)
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Any

from protos.errors import FrameMalformedError, UpdateError
from protos.strict_json import read_json

FORMAT = 1
SUFFIX = ".nbupdate"
MANIFEST, SIGNATURE = "update.json", "signature.json"
KINDS = ("agent", "model", "bundle")
SIGNED = b"neural-bridge update 1\n"
"""Prefix of what is signed: an update's signature is valid for nothing else."""
MAX_MANIFEST_BYTES = 4 << 20
MAX_SIGNATURE_BYTES = 1024
MAX_FILES = 10_000
MAX_BYTES = (1 << 32) - 1
"""Of the whole file: a ZIP archive without the 64-bit extension."""
ANY = "any"
_NAME = re.compile(r"[A-Za-z0-9_+][A-Za-z0-9_.+!-]{0,199}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_WORD = re.compile(r"[A-Za-z0-9_.+-]{1,64}")


@dataclass(frozen=True)
class UpdateFile:
    """One file of an update: its size in bytes, and the hexadecimal SHA-256 of its bytes."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """`update.json`.

    Attributes:
        number: a higher number is a newer update.
        version: its name for people.
        machine: processor that its wheels are for, as `uname -m` has it; "any" for every one.
        python: the Python that they are for ("3.10"); "any" for every one.
        files: by their names, KIND/….
        jetpack: major version of JetPack that it is for ("6"); "any" for every device.
    """

    number: int
    version: str
    machine: str
    python: str
    files: dict[str, UpdateFile]
    jetpack: str = ANY

    def fits(self, machine: str, python: str, jetpack: str) -> bool:
        """Whether it is for such a device.

        Args:
            machine: its processor.
            python: its Python.
            jetpack: its JetPack.
        """
        wanted = ((self.machine, machine), (self.python, python), (self.jetpack, jetpack))
        return all(mine in (ANY, its) for mine, its in wanted)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The parts that it brings."""
        found = {name.partition("/")[0] for name in self.files}
        return tuple(kind for kind in KINDS if kind in found)

    def to_json(self) -> bytes:
        """The one form in which it is written; without `jetpack` if that is "any"."""
        plain = {"format": FORMAT, **asdict(self)}
        if self.jetpack == ANY:
            del plain["jetpack"]  # agents that do not know it read the others
        return (json.dumps(plain, sort_keys=True) + "\n").encode()

    @classmethod
    def from_json(cls, blob: bytes) -> Manifest:
        """Read and check it.

        Raises:
            UpdateError: it is no list of an update's files, or a name would leave its folder.
        """
        try:
            plain = read_json(blob, MAX_MANIFEST_BYTES, MANIFEST)
            if plain["format"] != FORMAT:
                raise UpdateError(
                    f"format {plain['format']!r}, this agent reads {FORMAT}: update the agent first"
                )
            files = {str(name): UpdateFile(**file) for name, file in plain["files"].items()}
            made = cls(
                plain["number"],
                plain["version"],
                plain["machine"],
                plain["python"],
                files,
                plain.get("jetpack", ANY),
            )
        except (FrameMalformedError, KeyError, TypeError, AttributeError) as error:
            raise UpdateError(f"{MANIFEST} is not an update's list of files: {error}") from error
        made._check()
        if made.to_json() != blob:
            raise UpdateError(f"{MANIFEST} is not in its canonical form")
        return made

    def _check(self) -> None:
        if not _whole(self.number) or not 1 <= self.number < 1 << 53:
            raise UpdateError(f"number {self.number!r} is not a whole number from 1 on")
        for word in (self.version, self.machine, self.python, self.jetpack):
            if not isinstance(word, str) or not _WORD.fullmatch(word):
                raise UpdateError(f"{word!r} is not a version, machine, Python or JetPack")
        if not 1 <= len(self.files) <= MAX_FILES:
            raise UpdateError(f"{len(self.files)} files, an update has 1 to {MAX_FILES}")
        for name, file in self.files.items():
            check_name(name)
            if not _whole(file.bytes) or not 0 <= file.bytes <= MAX_BYTES:
                raise UpdateError(f"{name}: {file.bytes!r} is not a size in bytes")
            if not isinstance(file.sha256, str) or not _DIGEST.fullmatch(file.sha256):
                raise UpdateError(f"{name} has no SHA-256")
        folded = {name.lower() for name in self.files}
        if len(folded) != len(self.files):
            raise UpdateError("two names differ only in upper and lower case")
        inner = {name.rpartition("/")[0].lower() for name in self.files}
        if folded & inner:
            raise UpdateError("a name is both a file and a folder")


def check_name(name: str) -> None:
    """Refuse a name that is not KIND/… with plain words.

    Raises:
        UpdateError: an absolute path, a step up, a hidden file, another kind, or too deep.
    """
    kind, *rest = name.split("/")
    if kind not in KINDS or not 1 <= len(rest) <= 8 or not all(map(_NAME.fullmatch, rest)):
        raise UpdateError(f"{name!r} is not a name that a file of an update may have")


def _whole(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)
