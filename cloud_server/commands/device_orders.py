"""`cloud-server devices configure|restart|capture|logs|orders|reports`: care from afar."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloud_server.commands.database import actor, add_verb, opened, reading, tenant_of
from cloud_server.commands.output import as_json, facts, minute, moment, say, table, told
from protos.errors import ConfigError, MissingError
from protos.process.progress import Waiting
from protos.remote import LONGEST_CAMERA

if TYPE_CHECKING:
    from cloud_server.state.orders import DeviceOrder
    from cloud_server.state.store import Store
    from protos.neuralbridge.v1 import bridge_pb2 as pb

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_LOOK_S = 0.5
_SPANS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def add(verbs: Any) -> None:
    """Add the commands."""
    configure = _verb(
        verbs,
        "configure",
        "set what a device allows the service to set",
        _configure,
        ("gate-3 hold_every_s=60 log_level=debug", "gate-3 --unset log_level", "gate-3 --show"),
    )
    configure.add_argument(
        "settings",
        nargs="*",
        metavar="KEY=VALUE",
        help="settings of the agent, as in its settings file; a key given twice makes a list",
    )
    configure.add_argument("--file", type=Path, metavar="FILE", help="TOML file of such settings")
    configure.add_argument(
        "--unset",
        action="append",
        default=[],
        metavar="KEY",
        help="go back to the device's own value; 'all' for every one",
    )
    configure.add_argument("--show", action="store_true", help="show what is set, change nothing")
    _waits(configure, 0.0)

    restart = _verb(
        verbs, "restart", "have a device's agent start again", _restart, ("gate-3 --wait 120",)
    )
    _waits(restart, 0.0)

    capture = _verb(
        verbs,
        "capture",
        "have a device take its cameras' next pictures, whatever their triggers say",
        _capture,
        ("gate-3", "gate-3 --camera yard --wait 30"),
    )
    capture.add_argument(
        "--camera", default="", metavar="CAMERA", help="only this camera (default: every one)"
    )
    _waits(capture, 0.0)

    logs = _verb(
        verbs,
        "logs",
        "fetch the newest lines of a device's log",
        _logs,
        ("gate-3 --lines 50", "gate-3 --since 2h", "gate-3 --order 5f2a"),
    )
    logs.add_argument("--lines", type=int, default=0, metavar="N", help="at most so many lines")
    logs.add_argument(
        "--since",
        type=_since,
        default=0.0,
        metavar="TIME",
        help="only newer ones: 90s, 30m, 2h, 1d, or seconds since 1970",
    )
    logs.add_argument("--order", metavar="ID", help="show what came for an earlier order")
    _waits(logs, 60.0)

    listing = _verb(
        verbs, "orders", "list a device's orders and how they ended", _orders, ("gate-3",)
    )
    listing.add_argument("--cancel", metavar="ID", help="take back an order that waits")

    reports = _verb(
        verbs,
        "reports",
        "list a device's crash reports and fetched logs",
        _reports,
        ("gate-3", "gate-3 --show 5f2a"),
    )
    reports.add_argument("--show", metavar="ID", help="show one, by its id or first digits")


def _verb(
    verbs: Any, name: str, text: str, run: Any, examples: tuple[str, ...]
) -> argparse.ArgumentParser:
    lines = tuple(f"cloud-server devices {name} {one}" for one in examples)
    parser = add_verb(verbs, name, text, run, lines, tenant=True)
    parser.add_argument("name", metavar="NAME", help="the device's name")
    return parser


def _waits(parser: argparse.ArgumentParser, usual_s: float) -> None:
    parser.add_argument(
        "--wait",
        type=float,
        default=usual_s,
        metavar="SECONDS",
        help=f"how long to wait for the device (default: {usual_s:g})",
    )


def _since(text: str) -> float:
    """Seconds since 1970."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r}: 90s, 30m, 2h, 1d, or seconds since 1970")
    number = float(found[1])
    return time.time() - number * _SPANS[found[2]] if found[2] else number


# ---------------------------------------------------------------------- the commands


def _configure(given: argparse.Namespace) -> int:
    from cloud_server.state import device_settings

    values = _values(given)
    if given.show or not (values or given.unset or given.file):
        return _show_settings(given)
    whole = "all" in given.unset
    with opened(given) as store:
        with store.write(actor(), quiet=True) as tx:
            tenant = tenant_of(given, tx.session)
            wanted, order = device_settings.change(
                tx, tenant, given.name, values, given.unset, whole
            )
        said = f"settings {wanted.revision} of device '{given.name}': {json.dumps(wanted.settings)}"
        return _tell(given, store, tenant, order, said)


def _values(given: argparse.Namespace) -> dict[str, Any]:
    from protos.process.files import text_of

    values: dict[str, Any] = {}
    if given.file is not None:
        try:
            values.update(tomllib.loads(text_of(given.file.read_bytes(), given.file)))
        except OSError as error:
            raise ConfigError(f"{given.file}: cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise ConfigError(f"{given.file}: is not TOML: {error}") from error
    typed: dict[str, list[str]] = {}
    for text in given.settings:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ConfigError(f"{text!r}: KEY=VALUE is expected")
        typed.setdefault(name.strip().replace("-", "_"), []).append(value)
    for name, found in typed.items():
        values[name] = found if len(found) > 1 else found[0]
    return values


def _show_settings(given: argparse.Namespace) -> int:
    from cloud_server.state import device_reports, device_settings

    with reading(given) as session:
        tenant = tenant_of(given, session)
        wanted = device_settings.show(session, tenant, given.name)
        stands = device_reports.standing(session, tenant, given.name)
    if given.json:
        as_json({**vars(wanted), "device": None if stands is None else vars(stands)})
        return 0
    facts(
        {
            "wanted": f"revision {wanted.revision}" if wanted.revision else "nothing",
            "changed": moment(wanted.changed_s),
            "by": wanted.changed_by or None,
            "in force": None if stands is None else f"revision {stands.revision}",
        }
    )
    say("")
    refused = {} if stands is None else {one["name"]: one["message"] for one in stands.refused}
    table(
        ("setting", "wanted"),
        [
            (name, json.dumps(value, ensure_ascii=False), refused.get(name))
            for name, value in wanted.settings.items()
        ],
        "no settings are set from here",
        below=True,
    )
    return 0


def _restart(given: argparse.Namespace) -> int:
    from protos.neuralbridge.v1 import bridge_pb2 as pb

    return _give(given, pb.Order(restart=pb.Restart()), f"device '{given.name}' is to start again")


def _capture(given: argparse.Namespace) -> int:
    from protos.neuralbridge.v1 import bridge_pb2 as pb

    if len(given.camera) > LONGEST_CAMERA:
        raise ConfigError(f"--camera: a name has at most {LONGEST_CAMERA} characters")
    whose = f"camera '{given.camera}'" if given.camera else "every camera"
    return _give(
        given,
        pb.Order(capture=pb.TakePicture(camera=given.camera)),
        f"device '{given.name}' is to take the next picture of {whose}",
    )


def _logs(given: argparse.Namespace) -> int:
    from cloud_server.state import device_reports, devices, orders
    from protos.neuralbridge.v1 import bridge_pb2 as pb

    with opened(given) as store:
        if given.order is not None:
            with store.read() as session:
                tenant = tenant_of(given, session)
                found = [
                    one
                    for one in orders.of(session, tenant, given.name, time.time())
                    if one.id.startswith(given.order.lower()) and one.kind == "send_logs"
                ]
            if len(found) != 1:
                raise MissingError(
                    f"no order for a log begins with {given.order[:80]!r} (cloud-server devices "
                    f"orders {given.name})"
                )
            order = found[0]
        else:
            if given.lines < 0:
                raise ConfigError(f"--lines {given.lines}: it is not below 0")
            asked = pb.SendLogs(lines=given.lines, since_s=given.since)
            with store.write(actor(), quiet=True) as tx:
                tenant = tenant_of(given, tx.session)
                order = orders.give(tx, tenant, given.name, pb.Order(send_logs=asked))
            order = _outcome(given, store, tenant, order)
        with store.read() as session:
            device = devices.find(session, tenant, given.name)
            lines = device_reports.log_of(session, device.id, order.id)
    if given.json:
        as_json({"order": vars(order), "lines": lines})
    elif order.state == "done":
        for line in lines:
            say(line)
    else:
        say(
            f"{_state(order)}\nlater: cloud-server devices logs {given.name} --order "
            f"{order.id[:12]}"
        )
    return 0


def _orders(given: argparse.Namespace) -> int:
    from cloud_server.state import orders

    if given.cancel is not None:
        with opened(given) as store, store.write(actor(), quiet=True) as tx:
            tenant = tenant_of(given, tx.session)
            taken = orders.cancel(tx, tenant, given.name, given.cancel)
        told(given.json, vars(taken), f"cancelled order {taken.id[:12]} ({taken.kind})")
        return 0
    with reading(given) as session:
        found = orders.of(session, tenant_of(given, session), given.name, time.time())
    if given.json:
        as_json([vars(one) for one in found])
        return 0
    table(
        ("order", "kind", "given", "by", "state", "ended"),
        [
            (
                one.id[:12],
                one.kind,
                minute(one.given_s),
                one.given_by,
                one.state,
                minute(one.ended_s),
                one.cause,
            )
            for one in found
        ],
        "no orders were given to this device",
        below=True,
    )
    return 0


def _reports(given: argparse.Namespace) -> int:
    from cloud_server.state import device_reports

    with reading(given) as session:
        tenant = tenant_of(given, session)
        if given.show is not None:
            one = device_reports.find(session, tenant, given.name, given.show)
            if given.json:
                as_json(vars(one))
                return 0
            for line in one.lines:
                say(line)
            for name, value in (one.crash or {}).items():
                if name not in ("cause", "log"):
                    say(f"{name}: {json.dumps(value, ensure_ascii=False)}")
            if one.crash is not None:
                say(str(one.crash.get("cause", "")).rstrip())
                for line in _texts(one.crash.get("log")):
                    say(line)
            return 0
        found = device_reports.of(session, tenant, given.name)
    if given.json:
        as_json([{k: v for k, v in vars(one).items() if k != "lines"} for one in found])
        return 0
    table(
        ("report", "kind", "made (device's clock)", "received", "bytes"),
        [
            (one.id[:12], one.kind, minute(one.at_s), minute(one.received_s), one.size)
            for one in found
        ],
        "no reports of this device",
    )
    return 0


def _texts(value: object) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else []


# ---------------------------------------------------------------------- giving and waiting


def _give(given: argparse.Namespace, order: pb.Order, said: str) -> int:
    from cloud_server.state import orders

    with opened(given) as store:
        with store.write(actor(), quiet=True) as tx:
            tenant = tenant_of(given, tx.session)
            made = orders.give(tx, tenant, given.name, order)
        return _tell(given, store, tenant, made, said)


def _tell(
    given: argparse.Namespace, store: Store, tenant: str, order: DeviceOrder, said: str
) -> int:
    order = _outcome(given, store, tenant, order)
    told(given.json, vars(order), f"{said}\n{_state(order)}")
    return 0


def _state(order: DeviceOrder) -> str:
    text = f"order {order.id[:12]} ({order.kind}): {order.state}"
    return f"{text}: {order.cause}" if order.cause else text


def _outcome(
    given: argparse.Namespace, store: Store, tenant: str, order: DeviceOrder
) -> DeviceOrder:
    """The order once it has ended, or as it is after the time to wait."""
    from cloud_server.state import orders

    if not math.isfinite(given.wait) or given.wait < 0:
        raise ConfigError(f"--wait {given.wait}: a number of seconds, 0 or more")
    ends = time.monotonic() + given.wait
    shown = Waiting(f"waiting for {given.name}") if given.wait else nullcontext()
    with shown:
        while order.ended_s is None and time.monotonic() < ends:
            time.sleep(min(_LOOK_S, given.wait))
            with store.read() as session:
                every = orders.of(session, tenant, given.name, time.time())
            order = next((one for one in every if one.id == order.id), order)
    return order
