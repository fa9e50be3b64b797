"""The fleet in the terminal (Textual): the same events as the live page, over HTTP."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.widgets import DataTable, Footer, Input, Static

from protos.errors import BridgeError
from protos.process.console import printable

COLUMNS = ("device", "state", "newest scene", "answers", "risk", "on its disk", "power", "heat")
_AGAIN_S = 3.0
_STYLES = {
    "alive": "green",
    "believed": "green",
    "silent": "bold red",
    "doubted": "bold red",
    "unknown": "yellow",
    "not heard yet": "yellow",
}
Events = Callable[[], Iterator[tuple[str, dict[str, Any]]]]


class Top(App[BridgeError]):
    """Shows the fleet until the user ends it; returns the error that ended it, if one did.

    Args:
        follow: opens the feed of the fleet: names of events and what they say.
    """

    TITLE = "Neural Bridge"
    CSS = """
    #summary { height: 1; padding: 0 1; }
    #why { height: auto; max-height: 4; padding: 0 1; }
    #search { display: none; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        ("q", "quit", "End"),
        ("slash", "search", "Search"),
        ("escape", "leave_search", "All devices"),
    ]

    def __init__(self, follow: Events) -> None:
        super().__init__()
        self._follow = follow
        self._rows: dict[str, dict[str, Any]] = {}
        self._silent_s, self._ahead_s = 0.0, 0.0
        self._lost = ""

    def compose(self) -> ComposeResult:
        """The parts of the screen."""
        yield Static("connecting…", id="summary")
        yield Input(placeholder="device begins with", id="search")
        yield DataTable(cursor_type="row", zebra_stripes=True)
        yield Static("", id="why")
        yield Footer()

    def on_mount(self) -> None:
        """Begin to follow."""
        self.query_one(DataTable).add_columns(*COLUMNS)
        self.query_one(DataTable).focus()
        self.set_interval(1.0, self._draw)
        # A daemon: it may wait for the service's next word when the user has left already.
        threading.Thread(target=self._read, name="feed", daemon=True).start()

    def _read(self) -> None:
        """Follow the feed, and open it again whenever it breaks, until the screen is gone."""
        with contextlib.suppress(RuntimeError):  # the application has ended
            while True:
                try:
                    for name, said in self._follow():
                        if name == "fleet":
                            self.call_from_thread(self.heard, said)
                    cause = "the service ended the feed"
                except BridgeError as error:
                    if not error.retryable:
                        self.call_from_thread(self.exit, error)
                        return
                    cause = error.message
                self.call_from_thread(self._broke, cause)
                time.sleep(_AGAIN_S)

    def heard(self, said: dict[str, Any]) -> None:
        """Take an event of the feed."""
        if said["whole"]:
            self._rows = {}
        self._rows |= {f"{row['tenant']}/{row['device']}": row for row in said["rows"]}
        self._silent_s, self._ahead_s, self._lost = said["silent_s"], said["now"] - time.time(), ""
        self._draw()

    def action_search(self) -> None:
        """Show the field for a name."""
        field = self.query_one(Input)
        field.display = True
        field.focus()

    def action_leave_search(self) -> None:
        """Show all devices again."""
        field = self.query_one(Input)
        field.value, field.display = "", False
        self.query_one(DataTable).focus()

    def on_input_changed(self) -> None:
        """The name changed."""
        self._draw()

    def on_input_submitted(self) -> None:
        """Back to the table."""
        self.query_one(DataTable).focus()

    def on_data_table_row_highlighted(self) -> None:
        """Another device is marked."""
        if self.query(DataTable):  # gone already while the application ends
            self._tell()

    def _broke(self, cause: str) -> None:
        self._lost = cause
        self._draw()

    def _draw(self) -> None:
        if not self.query(DataTable):
            return
        now_s, begins = time.time() + self._ahead_s, self.query_one(Input).value
        rows = [
            (state_of(row, now_s, self._silent_s), key, row)
            for key, row in self._rows.items()
            if row["device"].startswith(begins)
        ]
        rows.sort(key=lambda one: (attention_of(one[0], one[2]), one[1]))
        table = self.query_one(DataTable)
        marked = table.cursor_row
        table.clear()
        several = len({row["tenant"] for row in self._rows.values()}) > 1
        for state, key, row in rows:
            name = key if several else row["device"]
            table.add_row(*cells_of(name, state, row, now_s), key=key)
        table.move_cursor(row=min(marked, max(0, len(rows) - 1)))
        count = [state for state, _, _ in rows].count
        told = f"{len(rows)} devices: {count('alive')} alive, {count('silent')} silent"
        if self._lost:
            told = f"THE SERVICE DOES NOT ANSWER: {printable(self._lost)}; what you see is old"
        self.query_one("#summary", Static).update(Text(told, "bold red" if self._lost else "bold"))
        self._tell()

    def _tell(self) -> None:
        table, told = self.query_one(DataTable), ""
        if table.is_valid_row_index(table.cursor_row):
            key = table.coordinate_to_cell_key((table.cursor_row, 0)).row_key.value or ""  # type: ignore[arg-type]
            row = self._rows.get(key)
            if row is not None:
                scene = row["scene"]
                told = f"{key}: {row['why']}"
                if scene is not None:
                    told += f"\nscene {scene['id']}, point {scene['point']}, "
                    told += f"{scene['payload_bytes']} bytes"
        self.query_one("#why", Static).update(Text(printable_lines(told)))


def state_of(row: dict[str, Any], now_s: float, silent_s: float) -> str:
    """Whether a device is there, in one word or three."""
    if not row["enabled"]:
        return "disabled"
    if row["attends"]:
        return "alive"
    if row["heard_at"] is None:
        return "not heard yet"
    return "silent" if now_s - row["heard_at"] > silent_s else "alive"


def attention_of(state: str, row: dict[str, Any]) -> int:
    """Whether someone has to look at a device; 0 before all others."""
    if state == "alive":
        return 1 if row["belief"] == "doubted" else 3
    return {"silent": 0, "not heard yet": 1}.get(state, 2)


def cells_of(name: str, state: str, row: dict[str, Any], now_s: float) -> list[Text]:
    """A device's cells, in the order of `COLUMNS`."""
    scene, status = row["scene"], row["status"]
    age = "never" if scene is None else f"{max(0.0, now_s - scene['accepted_at']):.0f} s ago"
    risk = "–" if scene is None or scene["risk"] is None else f"{scene['risk']:.1%}"
    disk = power = heat = "–"
    if status is not None:
        disk = f"{status['spool_frames']} frames" if status["spool_frames"] else "empty"
        if status["watts"] is not None:
            power = f"{status['watts']:.1f} W"
        if status["celsius"] is not None:
            heat = f"{status['celsius']:.0f} °C" + (" throttled" if status["throttled"] else "")
    told = (name, state, age, row["belief"], risk, disk, power, heat)
    return [Text(printable(one), _STYLES.get(one, "")) for one in told]


def printable_lines(text: str) -> str:
    """A text that is safe for a terminal; line breaks stay."""
    return "\n".join(printable(line) for line in text.split("\n"))
