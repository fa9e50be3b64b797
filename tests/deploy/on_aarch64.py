"""A program: every module loads, an agent without torch runs, a signature is verified.

It prints figures that must be the same on every processor.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import json
import pkgutil
import platform
import sys
import tempfile
import threading
from pathlib import Path

from PIL import Image

import edge_agent
import protos
from edge_agent import assemble, cli
from projector.bundle.keys import SigningKey, TrustedKeys
from tests.fakes.fake_bridge import FakeBridge
from tests.fakes.fake_edge import FakeModel, make_encoder


def main() -> int:
    """Run the agent over three pictures against a server in this process."""
    for package in (edge_agent, protos):
        for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if not found.name.endswith(("__main__", "protos.generate")):
                importlib.import_module(found.name)
    folder = Path(tempfile.mkdtemp())
    pictures, model = folder / "pictures", folder / "model"
    pictures.mkdir()
    model.mkdir()
    for each in range(3):
        picture = Image.new("RGB", (9, 9), (each * 50, 1, 2))
        picture.putpixel((8, 0), (255, 1, 2))
        picture.save(pictures / f"{each}.png")
    (model / "config.json").write_text("{}")
    setattr(assemble, "load", lambda *_: FakeModel())  # noqa: B010
    served = FakeBridge(make_encoder())
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    asyncio.run_coroutine_threadsafe(served.start(), loop).result(60)
    out = folder / "answers.jsonl"
    words = ["run", "--model", model, "--server", served.address, "--source", pictures]
    words += ["--question", "x", "--output", out, "--state-dir", folder / "state"]
    words += ["--spool", folder / "spool", "--log-level", "error"]
    code = cli.main([str(word) for word in words])
    records = [json.loads(line) for line in out.read_text().splitlines()]
    key = SigningKey.create(folder / "key.pem")
    signer = TrustedKeys({key.public: "me"}).verify(b"m", key.sign(b"m"))
    frames = hashlib.sha256(make_encoder().to_bytes()).hexdigest()
    print(
        json.dumps(
            {
                "machine": platform.machine(),
                "code": code,
                "answers": sorted((r["capture"], r["answer"], r["payload_bytes"]) for r in records),
                "signer": signer,
                "encoder": frames,
            }
        )
    )
    return code


if __name__ == "__main__":
    sys.exit(main())
