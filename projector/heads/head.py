"""Task heads: small classifiers on a picture's states, with everything below frozen (torch).

There are two kinds. A picture head pools tokens by learned queries and classifies the picture (fire
or none, how many, which scene). A tracking head reads the states where objects were marked in
earlier pictures and where one is marked in this picture. It says which of those objects this is;
their order means nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.nn import functional

from projector.heads.samples import Samples
from projector.models.foreign import in_words
from protos.errors import BundleFormatError, BundleLayoutError, FitError

METADATA = "neural_bridge_head"
HEAD_FILE = "head.safetensors"
MOST_CLASSES = 1000

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class HeadConfig:
    """What a head is for, and its shape.

    Attributes:
        task: name of the labels it was trained on.
        classes: names of the classes; numbers from 1 for a tracking head.
        tracks: whether it is a tracking head.
        view: what it looks at, one of `views.VIEWS`.
        owner: digest of the map, bundle or model that makes the states.
        dim: numbers per token, d.
        grid: rows and columns of tokens.
        components: numbers per token after the lens, p.
        width: size of the hidden layer.
        queries: number of learned queries of a picture head.
    """

    task: str
    classes: tuple[str, ...]
    tracks: bool
    view: str
    owner: str
    dim: int
    grid: tuple[int, int]
    components: int = 128
    width: int = 64
    queries: int = 8

    def __post_init__(self) -> None:
        """Check classes and sizes.

        Raises:
            FitError: fewer than two classes, or a size out of range.
        """
        if not 2 <= len(self.classes) <= MOST_CLASSES:
            raise FitError(
                f"'{self.task}' has {len(self.classes)} classes ({', '.join(self.classes[:5])}): "
                f"expected 2 to {MOST_CLASSES}"
            )
        sizes = (self.dim, *self.grid, self.components, self.width, self.queries)
        if any(not 0 < size <= 1 << 20 for size in sizes) or self.components > self.dim:
            raise FitError(f"a head cannot have the sizes {sizes}")


class Head(nn.Module):
    """A head's weights: a lens fitted in closed form, then pooling and two trained layers.

    The lens projects z-scores of a token's d numbers onto the first p principal components, scaled
    to variance 1. 128 of them keep all that the reference cloud model's answers need
    (`docs/log.md`).
    """

    mean: Tensor
    lens: Tensor
    counts: Tensor

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(config.dim))
        self.register_buffer("lens", torch.zeros(config.dim, config.components))
        self.register_buffer("counts", torch.zeros(len(config.classes), dtype=torch.long))
        self.inward = nn.Linear(config.components, config.width)
        if config.tracks:
            self.log_radius = nn.Parameter(torch.tensor(0.5).log())
            self.outward = nn.Linear(config.width, config.width)
        else:
            self.queries = nn.Linear(config.width, config.queries)
            self.hidden = nn.Linear(config.queries * config.width, config.width)
            self.outward = nn.Linear(config.width, len(config.classes))

    def fit_lens(self, states: Floats) -> None:
        """Fit the lens to states `[n, N, d]` of training pictures."""
        x = torch.from_numpy(states).flatten(0, 1)
        self.mean.copy_(x.mean(0))
        scale = x.std(0)
        scale = scale + 1e-3 * scale.max() + 1e-6
        z = (x - self.mean) / scale
        _, deviation, axes = torch.pca_lowrank(z, q=self.config.components, center=False, niter=1)
        deviation = deviation / len(z) ** 0.5
        self.lens.copy_(axes / scale[:, None] / (deviation + 1e-3 * deviation[0]))

    def through_lens(self, states: Floats) -> Floats:
        """Project states `[n, N, d]` through the lens: the trained layers' input, `[n, N, p]`."""
        with torch.inference_mode():
            seen: Floats = ((torch.from_numpy(states) - self.mean) @ self.lens).numpy()
        return seen

    def logits(self, samples: Samples, rows: Ints, keep: float = 1.0) -> Tensor:
        """Logits `[B, classes]` of the samples `rows`; dropout keeps a share `keep` (1: all)."""
        labels = samples.labels
        now = torch.from_numpy(samples.states[labels.pictures[rows]])
        if not self.config.tracks:
            return self._classify(now, keep)
        before = torch.from_numpy(samples.states[labels.before[rows]])
        places, mark = (torch.from_numpy(a[rows]) for a in (labels.places, labels.mark))
        known = self._feature(self._at(before, places), keep).mean(dim=1)  # [B, K, width]
        asked = self._feature(self._at(now, mark[:, None]), keep)  # [B, 1, width]
        scores: Tensor = (known * asked).sum(-1) / self.config.width**0.5
        return scores

    def groups(self) -> list[dict[str, Any]]:
        """One group of all parameters, for an optimiser."""
        return [{"params": list(self.parameters()), "scale": 1.0}]

    def _classify(self, x: Tensor, keep: float) -> Tensor:
        tokens = functional.gelu(self.inward(x))  # [B, N, width]
        weights = self.queries(tokens).sigmoid()  # [B, N, Q]; a sum, so that it can count
        pooled = torch.einsum("bnq,bnw->bqw", weights, tokens) / tokens.shape[1] ** 0.5
        hidden = functional.gelu(self.hidden(_dropped(pooled.flatten(1), keep)))
        logits: Tensor = self.outward(_dropped(hidden, keep))
        return logits

    def _feature(self, x: Tensor, keep: float) -> Tensor:
        feature: Tensor = self.outward(_dropped(functional.gelu(self.inward(x)), keep))
        return feature

    def _at(self, x: Tensor, places: Tensor) -> Tensor:
        """States averaged by a soft window around places `[..., K, 2]` (x, y from 0 to 1)."""
        rows, columns = self.config.grid
        row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        centres = torch.stack([column + 0.5, row + 0.5], dim=-1).view(-1, 2)
        there = places[..., None, :] * torch.tensor([columns, rows])
        apart = (there - centres).square().sum(-1)  # [..., K, N], in tokens
        return (-0.5 * apart / self.log_radius.mul(2).exp()).softmax(-1) @ x

    def to_bytes(self) -> bytes:
        """The weights as safetensors, the configuration in the metadata."""
        plain = json.dumps(asdict(self.config), sort_keys=True)
        tensors = {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}
        blob: bytes = save_tensors(tensors, metadata={METADATA: plain})
        return blob

    @classmethod
    def from_bytes(cls, blob: bytes) -> Head:
        """Read what `to_bytes` wrote.

        Raises:
            BundleFormatError: not such a blob, or tensors that do not fit its configuration.
        """
        try:
            tensors: dict[str, Tensor] = load_tensors(blob)
            header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
            config = _config(json.loads(header["__metadata__"][METADATA]))
            with torch.device("meta"):  # allocates nothing: the file states the sizes
                head = cls(config)
            head.load_state_dict(tensors, assign=True)
        except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, FitError) as error:
            raise BundleFormatError(f"not a task head: {in_words(error)}") from error
        if not all(torch.isfinite(t).all() for t in tensors.values()):
            raise BundleFormatError("a task head with weights that are not finite")
        return head.eval()

    def require(self, owners: Sequence[str], what: str) -> None:
        """Refuse states that the head does not belong to.

        Raises:
            BundleLayoutError: they are of another map, bundle or model.
        """
        if self.config.owner not in owners:
            raise BundleLayoutError(
                f"the head for '{self.config.task}' was trained on the {self.config.view} states "
                f"of {self.config.owner[:12]}, {what} is {owners[0][:12]}: train one with it"
            )


def read(path: Path) -> Head:
    """Read a head from its file or folder.

    Raises:
        FitError: there is no such file.
        BundleFormatError: it is not a head.
    """
    file = path / HEAD_FILE if path.is_dir() else path
    try:
        blob = file.read_bytes()
    except OSError as error:
        raise FitError(f"no head at {file}: {error.strerror}") from error
    return Head.from_bytes(blob)


def _dropped(x: Tensor, keep: float) -> Tensor:
    return x if keep == 1 else functional.dropout(x, 1 - keep)


def _config(plain: dict[str, Any]) -> HeadConfig:
    """A configuration from JSON; any field of another type is refused."""
    kinds = {"task": str, "view": str, "owner": str, "tracks": bool, "classes": list, "grid": list}
    for field in fields(HeadConfig):
        if type(plain[field.name]) is not kinds.get(field.name, int):
            raise ValueError(f"field '{field.name}' holds {plain[field.name]!r}")
    if not all(isinstance(name, str) for name in plain["classes"]):
        raise ValueError("classes are text")
    if [type(n) for n in plain["grid"]] != [int, int]:
        raise ValueError("a grid has two sides")
    lists = {"classes": tuple(plain["classes"]), "grid": tuple(plain["grid"])}
    return HeadConfig(**{**plain, **lists})
