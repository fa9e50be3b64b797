"""Quarantine of requests that ended an engine, by the digest of their bytes.

    in an engine that ended ─▶ suspect: refused once; when it is sent again, it runs alone
    alone, and its engine ended again ─▶ quarantined: always refused

If the engine was killed from outside (`kill -9`, but not by the kernel for lack of memory), the
request that ran alone is probably innocent. It stays a suspect, and is quarantined only if that
happens several times.

Requests whose bytes were written stay quarantined after a restart. To release one, remove its file
and restart.

Memory is bounded; a tenant that fills it loses its own oldest entries.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

from msgspec.structs import asdict

from cloud_server.crowd import Crowd
from cloud_server.engine.jobs import Job
from protos.errors import BridgeError, QuarantinedError
from protos.process.files import write_file
from protos.process.logs import Logger

_MOST = 4096
_MOST_KILLS = 4
"""Kills from outside in a row after which a request that ran alone is quarantined."""
_MOST_FILES = 256
_MOST_BYTES = 16 << 20


class Quarantine:
    """The suspects and the quarantined requests.

    Args:
        folder: folder for the bytes of quarantined requests, read at the start; None writes
            nothing.
        log: a bound logger.
        most: most entries of each kind.
    """

    def __init__(self, folder: Path | None, log: Logger, most: int = _MOST) -> None:
        self._folder, self._log, self._most = folder, log, most
        self._suspects: Crowd[bytes] = Crowd()
        self._kills: dict[bytes, int] = {}
        self._held: Crowd[bytes] = Crowd()
        self._read()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def suspects(self) -> int:
        """Number of requests that were in an engine when it ended and are not answered since."""
        return len(self._suspects)

    def check(self, job: Job) -> bool:
        """Whether a request is a suspect and must run alone.

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
        """Called for a request that was in an engine when it ended."""
        self._add(self._suspects, job, digest_of(job))

    def clear(self, job: Job) -> None:
        """Called when a suspect ran alone and its engine did not end."""
        digest = digest_of(job)
        self._kills.pop(digest, None)
        if digest in self._suspects:
            self._suspects.remove(digest)

    def blame(self, job: Job, error: BridgeError, from_outside: bool) -> BridgeError:
        """Called when a suspect ran alone and its engine ended; returns the error for its caller.

        Args:
            job: the suspect.
            error: how its engine ended.
            from_outside: whether the engine was killed or stopped from outside.
        """
        digest = digest_of(job)
        kills = self._kills.get(digest, 0) + 1
        if from_outside and kills < _MOST_KILLS and digest in self._suspects:
            self._kills[digest] = kills
            return error
        return self.convict(job, error.message)

    def convict(self, job: Job, reason: str) -> QuarantinedError:
        """Quarantine a request; returns the error for its caller."""
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

    def _read(self) -> None:
        """Take up what was written before."""
        if self._folder is None:
            return
        try:
            for path in sorted(self._folder.glob("*.json"))[: self._most]:
                with contextlib.suppress(ValueError):  # it is another file
                    self._held.add(("",), bytes.fromhex(path.stem))
        except OSError as error:
            self._log.error("quarantine cannot be read", cause=error.strerror or str(error))

    def _write(self, job: Job, digest: bytes) -> str:
        """Write a request's bytes if a folder is set; returns the file's name, or why not."""
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
    """Digest of the bytes that the engine works on, without sender and ids."""
    about = "" if job.has_frame and not job.box else f"{job.session}/{job.frame_number}"
    if job.look:
        about += "/look"
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
