"""`projector update`: put wheels and an edge export into one signed file for devices."""

from __future__ import annotations

import argparse
import hashlib
import json
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from projector.bundle.keys import SigningKey
from projector.commands.arguments import add_command
from projector.commands.settings import check, settings_of
from protos.errors import ConfigError, UpdateError
from protos.process.files import writing
from protos.update import ANY, KINDS, MANIFEST, SIGNATURE, SIGNED, Manifest, UpdateFile, check_name

_CHUNK_BYTES = 1 << 20


def register(commands: Any) -> None:
    """Add the command to the program's parser."""
    update = add_command(
        commands,
        "update",
        "put an agent's wheels, an edge export or an edge half into one signed file for devices",
        _run,
        (),
        (
            "projector update 7.nbupdate --number 7 --version 0.2.0 --key signing.pem "
            "--agent wheelhouse --machine aarch64 --python 3.10",
            "projector update 8.nbupdate --number 8 --version fire-2 --key signing.pem "
            "--model exports/edge-a",
        ),
    )
    update.add_argument("out", type=Path, metavar="OUT", help="the file to write")
    update.add_argument("--number", type=int, required=True, help="higher than the last update's")
    update.add_argument("--version", required=True, help="its name for people")
    update.add_argument("--key", type=Path, required=True, help="the private key, in PEM")
    update.add_argument("--agent", type=Path, help="folder with the agent's wheel and all it needs")
    update.add_argument("--model", type=Path, help="an edge export")
    update.add_argument("--bundle", type=Path, help="folder with an edge half")
    update.add_argument("--machine", default=ANY, help="processor of the wheels (uname -m)")
    update.add_argument("--python", default=ANY, help="Python of the wheels, such as 3.10")
    update.add_argument("--jetpack", default=ANY, help="JetPack's major version, such as 6")


def _run(args: argparse.Namespace) -> int:
    chosen = settings_of(args)
    if args.check_config:
        return check(chosen)
    files = {}
    for kind in KINDS:
        folder: Path | None = getattr(args, kind)
        if folder is None:
            continue
        if not folder.is_dir():
            raise ConfigError(f"{folder} is no folder")
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not any(p.startswith(".") for p in path.parts[-1:]):
                files[f"{kind}/{path.relative_to(folder).as_posix()}"] = path
    if not files:
        raise ConfigError("nothing to send: give --agent, --model or --bundle")
    try:
        for name in files:
            check_name(name)
        listed = {name: _file(path) for name, path in files.items()}
        manifest = Manifest(
            args.number, args.version, args.machine, args.python, listed, args.jetpack
        )
        blob = Manifest.from_json(manifest.to_json()).to_json()
    except UpdateError as error:
        raise ConfigError(str(error)) from error
    signature = SigningKey.load(args.key).sign(SIGNED + blob)
    draft = args.out.with_name(f".{args.out.name}.part")
    with writing(args.out):
        with zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED, allowZip64=False) as archive:
            archive.writestr(zipfile.ZipInfo(MANIFEST), blob)
            archive.writestr(zipfile.ZipInfo(SIGNATURE), json.dumps(asdict(signature)))
            for name, path in files.items():
                with path.open("rb") as read, archive.open(zipfile.ZipInfo(name), "w") as out:
                    while chunk := read.read(_CHUNK_BYTES):
                        out.write(chunk)
        draft.replace(args.out)
    total = sum(file.bytes for file in listed.values())
    print(
        f"wrote {args.out}: number {args.number}, {len(files)} files, {total / 1e6:.1f} MB; "
        f'devices trust the key if it is listed under [keys]:\n"NAME" = "{signature.key}"'
    )
    return 0


def _file(path: Path) -> UpdateFile:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return UpdateFile(size, digest.hexdigest())
