"""Fake engines by fork from one process that has imported everything, the nest.

A service under test needs an engine of its own. A new process imports for a second; a fork is
there at once. Each engine has a connection to the nest: the order to make it goes up, then
`{"started": pid}` and `{"ended": status}` come back. The engine ends with its connection.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from cloud_server.engine import process
from cloud_server.settings import Settings
from protos.process import children
from tests.cloud_server import processes

_MOST_BYTES = 1 << 20


# --------------------------------------------------------------------------- the nest's own process


def _fork(order: dict[str, Any], stderr: int, close: list[int]) -> int:
    nest = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        children.die_with_parent(nest)
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for descriptor in close:
            os.close(descriptor)
        for standard in (1, 2):
            os.dup2(stderr, standard)
        os.close(stderr)
        os.environ.clear()
        os.environ.update(order["environ"])
        code = process.main(order["arguments"])
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        os._exit(code)


def _reply(connection: socket.socket, **said: int) -> None:
    with contextlib.suppress(OSError):  # nobody waits for it any more
        connection.send(json.dumps(said).encode() + b"\n")


def _keep(listener: socket.socket) -> None:
    wake, alarm = os.pipe()
    for end in (wake, alarm):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(alarm)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # without a handler nothing wakes us
    engines: dict[socket.socket, int] = {}
    gc.freeze()
    while True:
        ready, _, _ = select.select([listener, wake, *engines], [], [])
        if wake in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(wake, 4096)
        for connection in [each for each in engines if each in ready]:
            os.kill(engines[connection], signal.SIGKILL)  # the front end is gone
        if listener in ready:
            connection, _ = listener.accept()
            data, (stderr,), _, _ = socket.recv_fds(connection, _MOST_BYTES, 1)
            held = [listener.fileno(), wake, alarm, connection.fileno()]
            held += [each.fileno() for each in engines]
            engines[connection] = _fork(json.loads(data), stderr, held)
            os.close(stderr)
            _reply(connection, started=engines[connection])
        _bury(engines)


def _bury(engines: dict[socket.socket, int]) -> None:
    for connection, pid in list(engines.items()):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            _reply(connection, ended=os.waitstatus_to_exitcode(status))
            connection.close()
            del engines[connection]


# -------------------------------------------------------------------------- the side of the service


@functools.cache
def _nest() -> tuple[int, str]:
    """This process's nest, which the first call starts: its process id, and where it listens."""
    folder = tempfile.mkdtemp(prefix="nest-")
    path = Path(folder) / "nest.sock"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(path))
    listener.listen(64)
    command = [sys.executable, "-m", __name__, str(os.getpid()), str(listener.fileno())]
    nest = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[listener.fileno()])
    listener.close()

    def end() -> None:
        nest.kill()
        nest.wait()
        path.unlink(missing_ok=True)
        os.rmdir(folder)

    atexit.register(end)
    return nest.pid, str(path)


def engines() -> list[int]:
    """Process ids of the engines that this process's nest has made and that run."""
    return list(processes.children(_nest()[0]))


class _Engine:
    """One engine, as `cloud_server.engine.spawn.EngineProcess`."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.pid = 0
        self.returncode: int | None = None
        self._started, self._ended = asyncio.Event(), asyncio.Event()
        self._task = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while said := await loop.sock_recv(self._connection, 4096):
                told = json.loads(said)
                self.pid = told.get("started", self.pid)
                self._started.set()
                if "ended" in told:
                    self.returncode = told["ended"]
                    break
        finally:
            self._connection.close()
            self._started.set()
            self._ended.set()

    async def begun(self) -> None:
        await self._started.wait()
        if not self.pid:
            raise OSError("the nest is gone")

    async def wait(self) -> int:
        await self._ended.wait()
        return self.returncode or 0

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


class FromNest:
    """Starts fake engines, as `cloud_server.engine.spawn.Spawn`.

    Args:
        settings: the front end's, handed on as JSON.
        address: where the front end listens.
    """

    spare_pid = 0

    def __init__(self, settings: Settings, address: str) -> None:
        handed = settings.model_copy(update={"database": ""}).model_dump_json()
        self._arguments = ["--address", address, "--settings", handed]

    async def __call__(self, identity: str) -> _Engine:
        order = {
            "environ": dict(os.environ),
            "arguments": [*self._arguments, "--identity", identity],
        }
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect(_nest()[1])
        socket.send_fds(connection, [json.dumps(order).encode()], [2])
        connection.setblocking(False)
        engine = _Engine(connection)
        await engine.begun()
        return engine

    async def close(self) -> None:
        """The nest stays for the next test."""


if __name__ == "__main__":
    children.die_with_parent(int(sys.argv[1]))
    from cloud_server import engine as engine_names
    from tests.cloud_server import fake_engine, stage  # noqa: F401  forks have it already

    stage.offer()
    engine_names.ENGINES["fake"] = ("tests.cloud_server.fake_engine", "FakeEngine")
    _keep(socket.socket(fileno=int(sys.argv[2])))
