"""`make fuzz`: a minute of coverage-guided fuzzing (atheris, on libFuzzer) of what strangers send.

`python -m tests.fuzz --seconds 60`. Starts from the corpus in the repository, keeps what reaches
new code in build/fuzz/corpus, and leaves an input that breaks something in build/fuzz/ and ends
with a status that is not 0. To keep such a find: copy the file to tests/fuzz/corpus (`make test`
replays all of them). `--keep` copies what reaches code that the corpus does not reach yet.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=["protos", "projector.codec.encoder", "cloud_server.engine.picture"]
):
    from tests.fuzz import target

CORPUS = Path(__file__).parent / "corpus"
OUT = Path(__file__).resolve().parents[2] / "build" / "fuzz"
LONGEST_BYTES = 2048
SLOW_S, MEMORY_MB = 5, 2048


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=60, help="how long; default: %(default)s")
    parser.add_argument(
        "--keep", action="store_true", help="do not fuzz: add what earlier runs found to the corpus"
    )
    given, own = parser.parse_known_args()  # libFuzzer calls back with options of its own
    found = OUT / "corpus"
    found.mkdir(parents=True, exist_ok=True)
    if not own:
        own = [
            f"-max_len={LONGEST_BYTES}",
            f"-timeout={SLOW_S}",
            f"-rss_limit_mb={MEMORY_MB}",
            f"-artifact_prefix={OUT}/",
        ]
        if given.keep:
            own += ["-merge=1", str(CORPUS), str(found)]
        else:
            own += [f"-max_total_time={given.seconds}", str(found), str(CORPUS)]
    target.encoder()
    atheris.Setup([f"{sys.executable} -m tests.fuzz", *own], target.check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
