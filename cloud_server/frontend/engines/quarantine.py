"""Quarantine: requests that ended an engine, by the digest of their bytes.

    in an engine that ended ─▶ suspect: refused, to be sent again; then it runs alone
    alone, and its engine ended again ─▶ quarantined: refused from now on, never tried again

An engine that was killed from outside (`kill -9`, not the kernel's want of memory) says little
about the request that ran alone. It stays a suspect, and is quarantined only if that happens over
and over.

The memory is bounded; the tenant that fills it loses its own oldest entries.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from cloud_server.crowd import Crowd
from cloud_server.engine.jobs import Job
from protos.errors import BridgeError, QuarantinedError
from protos.process.files import write_file
from protos.process.logs import Logger

_MOST = 4096
_MOST_KILLS = 4
"""Times in a row that an engine is killed from outside under a request that runs alone."""
_MOST_FILES = 256
_MOST_BYTES = 16 << 20


class Quarantine:
    """The suspects, and what is quarantined.

    Args:
        folder: where quarantined requests' bytes are written; None writes none.
        log: a bound logger.
        most: entries of either kind.
    """

    def __init__(self, folder: Path | None, log: Logger, most: int = _MOST) -> None:
        self._folder, self._log, self._most = folder, log, most
        self._suspects: Crowd[bytes] = Crowd()
        self._kills: dict[bytes, int] = {}
        self._held: Crowd[bytes] = Crowd()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def suspects(self) -> int:
        """Requests that were in an engine when it ended, and have not been answered since."""
        return len(self._suspects)

    def check(self, job: Job) -> bool:
        """Whether a request is a suspect, that must run alone.

        Raises:
            QuarantinedError: it is quarantined.
        """
        if not self._suspects and not self._held:
            return False
        digest = digest_of(job)
        if digest in self._held:
            raise _refusal(digest)
        return digest in self._suspects

    def suspect(self, job: Job) -> None:
        """A request was in an engine that ended."""
        self._add(self._suspects, job, digest_of(job))

    def clear(self, job: Job) -> None:
        """A suspect ran alone, and its engine lives."""
        digest = digest_of(job)
        self._kills.pop(digest, None)
        if digest in self._suspects:
            self._suspects.remove(digest)

    def blame(self, job: Job, error: BridgeError, from_outside: bool) -> BridgeError:
        """A suspect ran alone, and its engine ended; returns what to refuse it with.

        Args:
            job: the suspect.
            error: how its engine ended.
            from_outside: whether someone else killed or stopped the engine.
        """
        digest = digest_of(job)
        kills = self._kills.get(digest, 0) + 1
        if from_outside and kills < _MOST_KILLS and digest in self._suspects:
            self._kills[digest] = kills
            return error
        return self.convict(job, error.message)

    def convict(self, job: Job, reason: str) -> QuarantinedError:
        """Quarantine a request; returns its refusal."""
        self.clear(job)
        digest = digest_of(job)
        self._add(self._held, job, digest)
        written = self._write(job, digest)
        self._log.error(
            "request quarantined",
            digest=digest.hex(),
            owner=job.owner,
            request_id=job.request_id,
            session=job.session,
            frame=job.frame_number,
            reason=reason,
            written=written,
        )
        return _refusal(digest)

    def _add(self, crowd: Crowd[bytes], job: Job, digest: bytes) -> None:
        if digest in crowd:
            crowd.touch(digest)
            return
        crowd.add((job.owner.partition("/")[0],), digest)
        if len(crowd) > self._most:
            gone = crowd.next_to_go()
            crowd.remove(gone)
            self._kills.pop(gone, None)

    def _write(self, job: Job, digest: bytes) -> str:
        """Write a request's bytes if the operator allows it; returns the file, or why not."""
        if self._folder is None:
            return "no: --quarantine-dir is not set"
        if len(job.body) > _MOST_BYTES:
            return f"no: its {len(job.body)} bytes are more than {_MOST_BYTES}"
        path = self._folder / f"{digest.hex()}.json"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if len(list(self._folder.iterdir())) >= _MOST_FILES:
                return f"no: {self._folder} holds {_MOST_FILES} files already"
            plain = {
                name: value.hex() if isinstance(value, bytes) else value
                for name, value in asdict(job).items()
            }
            write_file(path, json.dumps(plain, indent=2).encode())
        except OSError as error:
            return f"no: {error.strerror or error}"
        return str(path)


def digest_of(job: Job) -> bytes:
    """Of the bytes that the engine works on, whoever sends them under whatever id."""
    about = "" if job.has_frame else f"{job.session}/{job.frame_number}"
    plain = (job.bundle, job.point, job.question, job.base >= 0, job.differences, job.feedback)
    made = hashlib.sha256(json.dumps([*plain, about]).encode())
    for part in (job.kept, job.body):
        made.update(len(part).to_bytes(8, "big"))
        made.update(part)
    return made.digest()


def _refusal(digest: bytes) -> QuarantinedError:
    return QuarantinedError(
        f"this request ended an engine twice; it is quarantined as {digest.hex()[:16]} and not "
        "tried again: tell the operator"
    )
