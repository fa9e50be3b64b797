"""`projector head`: train and test a small classifier on top of a frozen map."""

from __future__ import annotations

from typing import Any

from projector.commands.arguments import add_group
from projector.commands.head import test, train


def register(commands: Any) -> None:
    """Add `head` and its two commands to the program's parser."""
    inner = add_group(
        commands,
        "head",
        "train and test a small classifier on top of a frozen map",
        ("train", "test"),
        "projector head train map/ photos/ corpus/ heads/fire --task fire "
        "--source models/edge-a --target models/cloud",
        "projector head test map/ held-out/ held-out-corpus/ heads/fire "
        "--source models/edge-a --target models/cloud",
    )
    train.register(inner)
    test.register(inner)
