"""Checks of the libraries: each backend is imported and runs a small computation."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Iterator

from cloud_server.settings import Settings
from protos.process.findings import GREEN, RED, YELLOW, Finding


def torch_works(settings: Settings) -> Iterator[Finding]:
    """Torch and transformers, which run the large model, on its device."""
    try:
        torch = importlib.import_module("torch")
        importlib.import_module("transformers")
    except Exception as error:
        yield Finding(
            "torch",
            RED,
            f"cannot be imported: {error}",
            "pip install 'neural-bridge[cloud]' (on a GPU: the build of torch for its CUDA)",
        )
        return
    found = f"torch {torch.__version__}, transformers {_version('transformers')}"
    try:
        made = torch.ones((8, 8), device=settings.device, dtype=getattr(torch, settings.dtype))
        if float((made @ made).sum()) != 512.0:
            raise ValueError("a product of two 8 × 8 matrices of ones is wrong")
    except Exception as error:
        yield Finding(
            "torch",
            RED,
            f"{found}; {settings.device} in {settings.dtype} does not work: {_first(error)}",
            "install the build of torch that fits the driver, or set --device cpu",
        )
        return
    yield Finding("torch", GREEN, f"{found}; {settings.device} in {settings.dtype} works")


def onnxruntime_works(settings: Settings) -> Iterator[Finding]:
    """ONNX Runtime and the providers that it has."""
    used = settings.backend in ("auto", "onnxruntime")
    try:
        runtime = importlib.import_module("onnxruntime")
    except Exception as error:
        yield Finding(
            "onnxruntime",
            RED if used else YELLOW,
            f"cannot be imported: {error}",
            "pip install onnxruntime (on a GPU: onnxruntime-gpu)",
        )
        return
    providers = ", ".join(
        name.removesuffix("ExecutionProvider") for name in runtime.get_available_providers()
    )
    found = f"onnxruntime {runtime.__version__}, providers: {providers}"
    wanted = settings.backend_device.partition(":")[0]
    needs = {"cuda": "CUDA", "tensorrt": "Tensorrt"}.get(wanted, "CPU")
    if used and needs not in providers.split(", "):
        yield Finding(
            "onnxruntime",
            RED,
            f"{found}; --backend-device {settings.backend_device} needs {needs}",
            "pip install onnxruntime-gpu, or set --backend-device cpu",
        )
    else:
        yield Finding("onnxruntime", GREEN, found)


def tensorrt_works(settings: Settings) -> Iterator[Finding]:
    """TensorRT, which only its own backend needs."""
    from projector.serving import tensorrt_build
    from protos.errors import ConfigError

    used = settings.backend == "tensorrt"
    try:
        library = tensorrt_build.load_library()
    except ConfigError as error:
        if used:
            yield Finding("tensorrt", RED, error.message, "pip install tensorrt, on a GPU machine")
        else:
            yield Finding("tensorrt", GREEN, f"not installed; --backend is {settings.backend}")
        return
    found = f"{library.__name__} {library.__version__}"
    capability = tensorrt_build.gpu_capability()
    if capability is None:
        yield Finding(
            "tensorrt",
            RED if used else GREEN,
            f"{found}; the driver sees no GPU",
            "serve with --backend onnxruntime here" if used else "",
        )
    else:
        yield Finding("tensorrt", GREEN, f"{found}, for sm{capability}")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "of an unknown version"


def _first(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
