"""Makes a reference bundle with the product's own commands: `python -m reference.recipe edge-c`.

Runs `projector corpus | train | validate | export | calibrate | guard` on pictures of the yard,
with the flags of `reference/recipes/EDGE.toml`. A finished step is not run again; a stopped one
goes on. Choices are made on the validation split alone.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protos.errors import BridgeError, ConfigError
from protos.process.files import text_of, write_files
from protos.process.stopping import Stopping

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).parent
RECIPES = HERE / "recipes"
TABLES = ("corpus", "train", "validate", "export", "calibrate", "guard")
SPLITS = {"train": ("train", 0), "validation": ("validation", 0), "guard": ("validation", 1024)}
"""Split of the yard and first picture; the guard's pictures follow those used for choices."""


@dataclass(frozen=True)
class Step:
    """One command, and the file that it writes last.

    Attributes:
        name: its name in messages and in the record.
        command: module and arguments.
        made: the file that the command writes last.
    """

    name: str
    command: tuple[str, ...]
    made: Path


@dataclass(frozen=True)
class Recipe:
    """A bundle's recipe.

    Attributes:
        edge: name of the edge model.
        pictures: number of pictures of each split.
        flags: flags of each command, by its name.
    """

    edge: str
    pictures: Mapping[str, int]
    flags: Mapping[str, Mapping[str, Any]]

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """From a TOML file named after the edge model.

        Raises:
            ConfigError: it cannot be read, is not TOML, or has missing or unknown tables.
        """
        try:
            plain = tomllib.loads(text_of(path.read_bytes(), path))
        except OSError as error:
            raise ConfigError(f"no recipe at {path}: {error.strerror or error}") from error
        except ValueError as error:
            raise ConfigError(f"{path}: is not TOML: {error}") from error
        pictures = plain.pop("pictures", None)
        if not isinstance(pictures, dict) or set(pictures) != set(SPLITS):
            raise ConfigError(f"{path}: [pictures] has a count for each of {', '.join(SPLITS)}")
        for split, count in pictures.items():
            if type(count) is not int or count < 1:
                raise ConfigError(f"{path}: pictures.{split} = {count!r}: expected 1 or more")
        if not set(plain) <= set(TABLES) or not all(isinstance(t, dict) for t in plain.values()):
            raise ConfigError(f"{path}: tables are pictures, {', '.join(TABLES)}")
        return cls(path.stem, pictures, plain)

    def steps(self, models: Path, work: Path, out: Path) -> Iterator[Step]:
        """The commands, in order.

        Args:
            models: folder of the checkpoints.
            work: folder of pictures, pairs and intermediate results.
            out: folder of the bundle.
        """
        mine = work / self.edge
        folder = {
            split: work / "pictures" / f"{split}-{count}" for split, count in self.pictures.items()
        }
        pairs = {"train": mine / "corpus", "validation": mine / "corpus-validation"}
        sides = ("--source", str(models / self.edge), "--target", str(models / "cloud"))

        def projector(name: str, *places: Path | str, made: Path, step: str = "") -> Step:
            typed = (name, *map(str, places), *sides, *_typed(self.flags.get(name, {})))
            return Step(step or name, ("projector", *typed), made)

        for split, count in self.pictures.items():
            asked = ("--questions", "0") if split == "train" else ()
            name, start = SPLITS[split]
            which = ("--split", name, "--start", str(start), "--count", str(count))
            command = ("reference.export_yard", str(folder[split]), *which, *asked)
            yield Step(f"pictures-{split}", command, folder[split] / "labels.jsonl")
        for split, shards in pairs.items():
            last = f"{(self.pictures[split] - 1) // 256 * 256:07d}.safetensors"
            yield projector(
                "corpus", folder[split], shards, made=shards / last, step=f"corpus-{split}"
            )
        training = folder["train"], pairs["train"]
        held = folder["validation"], pairs["validation"]
        map_, report = mine / "map", mine / "report"
        yield projector("train", *training, map_, made=map_ / "training.json")
        yield projector("validate", map_, *held, report, made=report / "report.json")
        bundles = {name: mine / name for name in ("exported", "calibrated")}
        judged = ("--report", str(report / "report.json"), "--id", f"{self.edge}-cloud")
        yield projector(
            *("export", map_, *training, bundles["exported"], *judged),
            made=bundles["exported"] / "bundle.json",
        )
        yield projector(
            *("calibrate", bundles["exported"], *training, *held, bundles["calibrated"]),
            made=bundles["calibrated"] / "bundle.json",
        )
        asked_so_far = ("--work", str(mine / "asked"))
        yield projector(
            *("guard", bundles["calibrated"], folder["guard"], out, *asked_so_far),
            made=out / "bundle.json",
        )


def _typed(flags: Mapping[str, Any]) -> Iterator[str]:
    """A table's entries as command-line arguments."""
    for name, value in flags.items():
        if isinstance(value, dict):
            value = [f"{key}={_plain(inner)}" for key, inner in value.items()]
        for one in value if isinstance(value, list) else [value]:
            yield f"--{name}"
            if one is not True:
                yield _plain(one)


def _plain(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | bool) else str(value)


def run(steps: Sequence[Step], record: Path, common: Sequence[str] = ()) -> int:
    """Run every step that is not done, each in a process of its own; stop at the first failure.

    A step is done if its file exists and the record says that the same command made it. It is run
    again if an earlier step was.

    Args:
        steps: in their order.
        record: JSON file of the commands that are done.
        common: flags for every command that runs a model; they change no result.

    Returns:
        The exit code of the last.
    """
    done = _recorded(record)
    anew = False
    for number, step in enumerate(steps, start=1):
        shown = f"recipe: step {number} of {len(steps)}, {step.name}"
        if not anew and done.get(step.name) == list(step.command) and step.made.exists():
            print(f"{shown}: done", flush=True)
            continue
        anew = True
        command = [*step.command, *(common if step.command[0] == "projector" else ())]
        print(f"{shown}: python -m {shlex.join(command)}", flush=True)
        if code := run_module(command):
            return code
        done[step.name] = list(step.command)
        write_files(record.parent, {record.name: (json.dumps(done, indent=1) + "\n").encode()})
    return 0


def _recorded(record: Path) -> dict[str, Any]:
    """The commands that are done; none if there is no record yet.

    Raises:
        ConfigError: the record is damaged.
    """
    try:
        done = json.loads(text_of(record.read_bytes(), record))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{record}: cannot be read ({error}): remove it to start anew") from error
    if not isinstance(done, dict):
        raise ConfigError(f"{record}: is no record of a recipe: remove it to start anew")
    return done


def run_module(command: Sequence[str]) -> int:
    """Run `python -m command` in a process of its own.

    Returns:
        Its exit code; 128 plus the signal's number if this process was asked to stop.
    """
    with Stopping(patient=True) as stopping:
        # Ctrl-C reaches the step as well, which keeps its state before it goes.
        process = subprocess.Popen([sys.executable, "-m", *command])
        code = ended(process, stopping)
    return 128 + stopping.asked if stopping.asked else code


def ended(process: subprocess.Popen[bytes], stopping: Stopping) -> int:
    """Wait for a step; returns its exit code. A SIGTERM that only this process got is passed on."""
    handed = False
    while True:
        try:
            return process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            if stopping.asked == signal.SIGTERM and not handed:
                process.send_signal(signal.SIGTERM)
                handed = True


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("edge", help="the edge model, or the path of a recipe")
    parser.add_argument("--models", type=Path, default=HERE / "models", help="checkpoints")
    parser.add_argument(
        "--work", type=Path, default=Path("build/recipes"), help="pictures, pairs, states; resumes"
    )
    parser.add_argument("--out", type=Path, help="the bundle (default: WORK/EDGE/EDGE-cloud)")
    parser.add_argument("--threads", help="CPU threads of every command")
    parser.add_argument("--device", help="where models run and the map is trained, such as cuda")
    parser.add_argument("--list", action="store_true", help="show the commands and stop")
    args = parser.parse_args(argv)
    path = Path(args.edge) if args.edge.endswith(".toml") else RECIPES / f"{args.edge}.toml"
    common = [
        part
        for name in ("threads", "device")
        if getattr(args, name) is not None
        for part in (f"--{name}", getattr(args, name))
    ]
    try:
        recipe = Recipe.read(path)
        mine = args.work / recipe.edge
        out = args.out or mine / f"{recipe.edge}-cloud"
        steps = list(recipe.steps(args.models, args.work, out))
        if not args.list:
            return run(steps, mine / "done.json", common)
    except BridgeError as error:
        print(f"recipe: {error.name}: {error}", file=sys.stderr)
        return error.exit_code
    for step in steps:
        print(shlex.join(("python", "-m", *step.command)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
