"""One picture through every step, the token grid drawn at each: `python -m examples.steps`.

Reads like a notebook: cells begin with `# %%`, and editors that know them run one at a time.
"""

# %% The edge model, the cloud model, and the bundle that maps one cache to the other.
import html
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from transformers.utils import logging

from edge_agent.sources import open_source
from projector.bundle.load import Bundle
from projector.models.cache import to_states
from projector.models.vlm import VLM
from protos.header import Header, pack_header, unpack_header
from protos.requests import wire_bytes

ROOT = Path(__file__).resolve().parents[1]
REFERENCE, OUT = ROOT / "reference", ROOT / "build" / "examples" / "steps"
POINT = "x6-q6-t12"  # the cheapest point of this bundle: 12 of 36 tokens travel

OUT.mkdir(parents=True, exist_ok=True)
logging.disable_progress_bar()
torch.set_num_threads(1)
small = VLM.load(REFERENCE / "models" / "edge-a")
large = VLM.load(REFERENCE / "models" / "cloud")
bundle = Bundle.load(REFERENCE / "bundles" / "edge-a-cloud", small.layout, large.layout)
encoder = bundle.encoder
point = next(point for point in encoder.points if point.name == POINT)

# %% source: one picture of the yard, with questions.
(capture,) = open_source("yard://test?start=11&count=1&questions=4")
picture = capture.picture
assert picture is not None
page: list[str] = []


def draw(step: str, told: str, numbers: npt.ArrayLike) -> None:
    """Print what a step did, and draw one number per token, `[36]`, over the picture."""
    print(f"{step:8} {told}")
    figure = Figure(figsize=(4.4, 3.6))
    axes = figure.add_subplot(title=step, xticks=[], yticks=[])
    axes.imshow(np.asarray(picture), extent=(0, 6, 6, 0))
    grid = np.asarray(numbers, dtype=np.float64).reshape(6, 6)
    shown = axes.imshow(grid, extent=(0, 6, 6, 0), alpha=0.6, cmap="magma")
    figure.colorbar(shown, ax=axes)
    figure.savefig(OUT / f"{step}.png", dpi=110, bbox_inches="tight")
    page.append(
        f"<figure><img src={step}.png><figcaption>{html.escape(told)}</figcaption></figure>"
    )


lightness = np.asarray(picture.convert("L").resize((6, 6)))
draw("source", f"{capture.name}, {picture.width} x {picture.height} pixels: lightness", lightness)

# %% prefill: the edge model reads the picture once. Its cache, keys un-rotated, is the state x.
(state,) = small.states(small.prefill([picture]))
x = state.flat()
draw("prefill", f"{len(x)} tokens of {x.shape[1]} numbers: attention received", state.attention)

# %% select: the bundle's selector keeps as many tokens as the point says.
selector = encoder.selecting()
kept = selector.keep(state, point.tokens)
draw("select", f"{selector.name} keeps {kept.sum()} of {len(kept)} tokens: 1 is kept", kept)

# %% encode: z = Vᵀ·N(x); its distance from the mean z at each position is rounded to steps, coded.
z = encoder.project(x)
encoded = encoder.encode(state, point, kept)
steps_away = np.linalg.norm((z - encoder.centre) / encoder.steps[point.steps], axis=1)
told = f"{encoder.rank} numbers a token, {len(encoded.payload)} bytes in all"
draw("encode", f"{told}: distance from the mean token, in steps", steps_away)

# %% send: a short header says which tokens these are, and what was lost.
sent = Header(point.index, frame_number=0, kept=kept, distortion=encoded.distortion)
header, body = pack_header(sent, encoded.payload)
told = f"header {header.hex()}, body {body.hex()}: about {wire_bytes(sent, encoded.payload)} bytes"
draw("send", f"{told} on the wire", kept)

# %% decode: the cloud reads the latents back; a token that was not sent gets the mean.
frame, payload = unpack_header(header, body)
latents = encoder.scatter(encoder.decode(payload, frame.kept, point), frame.kept)
known = np.where(frame.kept[:, None], latents, encoder.centre)
lost = np.linalg.norm(known - z, axis=1) / np.linalg.norm(z, axis=1)
draw("decode", "error of each latent, 1 is as large as the latent itself", lost)

# %% project: latents become the cloud model's keys and values, keys rotated to its positions.
backend = bundle.backend()
keys, values = backend.project(latents[None], frame.kept[None], large.positions)
attention = torch.from_numpy(state.attention)[None]
cache = torch.from_numpy(keys), torch.from_numpy(values)
(projected,) = to_states(*cache, large.layout, large.positions, attention)
(own,) = large.states(large.prefill([picture]))  # the cloud model's own cache of the picture
apart = np.linalg.norm(projected.flat() - own.flat(), axis=1) / np.linalg.norm(own.flat(), axis=1)
draw("project", f"{own.flat().shape[1]} numbers a token: distance from its own cache", apart)

# %% inject: the projected tokens follow the cloud model's own first tokens.
scene = large.scene_cache(keys, values)
first = int(large.positions[0])
told = f"{len(large.positions)} tokens behind {first} of its own: their positions"
draw("inject", told, large.positions)

# %% answer: the cloud model answers. Which tokens matter? Leave out one at a time.
question = capture.questions[0]
without = np.repeat(frame.kept[None], len(kept), axis=0) & ~np.eye(len(kept), dtype=np.bool_)
many = backend.project(np.repeat(latents[None], len(kept), axis=0), without, large.positions)
ids = large.question_ids(question)
usual = large.first_token(scene, [ids])
changed = np.abs(large.first_token(large.scene_cache(*many), [ids] * len(kept)) - usual).sum(axis=1)
draw("answer", f"{question}: how much the answer changes without a token", changed / 2)
seen = large.prefill([picture]).layers()
for question in capture.questions:
    (injected,), (native,) = (large.generate_text(held, [question]) for held in (scene, seen))
    print(f"         {question} -> {injected} (seeing the picture: {native})")

(OUT / "index.html").write_text(f"<!doctype html><title>steps</title>{''.join(page)}", "utf-8")
print(f"drawn: {OUT.relative_to(ROOT)}/index.html")
