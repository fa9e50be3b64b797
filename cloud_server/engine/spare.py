"""The spare: a process that has everything loaded and makes engines by fork.

An engine's start is slow because it imports libraries and reads weights. The spare does both once
and then waits. Each engine is a fork of it, ready in a moment, and shares its memory until one of
them writes. It talks to the front end by lines:

    stdin   ◀── the identity of the engine to make (end of file: the front end is gone)
    stdout  ──▶ {"waiting": pid} every second until there is an engine, {"started": pid},
                {"ended": pid, "status": exit code or minus the signal}

A fork copies one thread only. So `prepare` runs in a thread of its own: OpenMP's helper threads
belong to that thread and end with it. `prepare` must start no thread that outlives it.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable

from protos.process import children, logs

_FAILED = 1
_BEAT_S = 1.0


def keep(prepare: Callable[[], None], live: Callable[[str], int]) -> int:
    """Prepare, then fork an engine for each identity that is asked for, one at a time.

    Args:
        prepare: loads; an error in it ends the spare.
        live: an engine's life, in the fork; given the identity, returns the exit code.

    Returns:
        0, when the front end is gone.
    """
    replies = os.dup(1)
    os.dup2(2, 1)  # what a library prints must not look like a reply
    wake, alarm = os.pipe()
    for end in (wake, alarm):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(alarm)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # without a handler nothing wakes us
    failed: list[BaseException] = []
    prepared = threading.Event()

    def work() -> None:
        try:
            prepare()
        except BaseException as error:
            failed.append(error)
        prepared.set()
        os.write(alarm, b"p")

    loader = threading.Thread(target=work, name="prepare")
    loader.start()
    begun, wanted, engine = b"", "", 0
    while True:
        ready, _, _ = select.select([0, wake], [], [], None if engine else _BEAT_S)
        if 0 in ready:
            said = os.read(0, 4096)
            if not said:
                if engine:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(engine, signal.SIGKILL)
                os._exit(0)  # the loader may still be at work
            *lines, begun = (begun + said).split(b"\n")
            wanted = lines[-1].decode() if lines else wanted
        if wake in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(wake, 4096)
        if engine:
            pid, status = os.waitpid(engine, os.WNOHANG)
            if pid:
                _reply(replies, ended=pid, status=os.waitstatus_to_exitcode(status))
                engine = 0
        if wanted and not engine and prepared.is_set():
            loader.join()
            if failed:
                raise failed[0]
            engine = _fork(live, wanted, (replies, wake, alarm))
            wanted = ""
            _reply(replies, started=engine)
        elif not engine:
            _reply(replies, waiting=os.getpid())


def _reply(replies: int, **said: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # the end of stdin tells us too
        os.write(replies, json.dumps(said).encode() + b"\n")


def _fork(live: Callable[[str], int], identity: str, pipes: tuple[int, ...]) -> int:
    """Start an engine; returns its process id, in the spare only."""
    logs.drain()
    gc.collect()
    gc.freeze()  # else the first collection in the fork writes to, and so copies, every page
    spare = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = _FAILED
    try:
        children.die_with_parent(spare)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for pipe in pipes:
            os.close(pipe)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        logs.forked()
        code = live(identity)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            logs.drain()
            sys.stderr.flush()
        os._exit(code)
