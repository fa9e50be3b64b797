"""Sequences of a fixed camera: our key and delta frames against video, bytes per frame.

Every frame is sent and could be asked about; accuracy is measured on every eighth. The bytes of a
message are computed; what the transport adds to it was measured before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.compare.arms import Frame, Pair, seeing
from benchmarks.compare.figures import WITHIN
from benchmarks.compare.wire import Shot
from benchmarks.rate.video import VIDEOS, Video, available, picture_bytes
from edge_agent.encode import encode_state
from edge_agent.frame import Frame as EdgeFrame
from edge_agent.plan import Plan
from edge_agent.uplink.session import Base
from projector.codec.answers import same_answer
from projector.models.vlm import VLM
from projector.validation.estimate import clustered, paired, pareto, thin
from protos.digest import CONSTANTS_BYTES
from protos.distortion import Distortion
from protos.header import Header, pack_header
from protos.points import PICTURE_POINT, OperatingPoint
from protos.requests import seal
from protos.state import KVState
from reference.demo.terminal import Terminal
from reference.demo.testset import Asked
from reference.yard import render, sample_sequence

EVERY = 8
QUESTIONS = 6
FRONTIER = 8
SWEPT_SEQUENCES, SWEPT_FRAMES = 8, 32
_SEED = 0


@dataclass(frozen=True)
class Film:
    """Some sequences of a split, with questions about every eighth frame of each.

    Attributes:
        pictures: the frames of all sequences, one after the other.
        frames: number of frames in each sequence.
        asked: questions, each with the index of its picture.
    """

    pictures: list[Image.Image]
    frames: int
    asked: list[Asked]

    @classmethod
    def load(cls, split: str, sequences: int, frames: int, questions: int) -> Film:
        """Render the first sequences of a split and note the true answers."""
        pictures: list[Image.Image] = []
        asked: list[Asked] = []
        for number in range(sequences):
            made = sample_sequence(split, number, 0, frames)
            first = len(pictures)
            pictures += [Image.fromarray(pixels) for pixels in render(made.drawn)]
            for frame in range(EVERY - 1, frames, EVERY):
                found = made.ask(frame, questions, _SEED)
                asked += [Asked(first + frame, q.text, q.kind, q.answer) for q in found]
        return cls(pictures, frames, asked)

    def right(self, answers: Sequence[str]) -> list[bool]:
        """Which of the answers, one per question, are right."""
        return [same_answer(a, q.truth) for a, q in zip(answers, self.asked, strict=True)]

    def row(
        self, name: str, kind: str, answers: Sequence[str], native: Sequence[bool], **figures: Any
    ) -> dict[str, Any]:
        """One line of `sequences[]`; intervals are clustered by sequence.

        `accuracy_by_frame` is by the frame's number in its sequence. If only the first is a key
        frame, that is the number of deltas that an answer depends on.
        """
        right = self.right(answers)
        clusters = [q.picture // self.frames for q in self.asked]
        frame = np.array([q.picture % self.frames for q in self.asked])
        return {
            "name": name,
            "kind": kind,
            "edge_model": "",
            "seed": 0,
            "accuracy": round(float(np.mean(right)), 5),
            "interval": clustered([float(r) for r in right], clusters).to_json(),
            "minus_cloud_image": paired(right, native, clusters).to_json(),
            "accuracy_by_frame": {
                int(at): round(float(np.mean(np.array(right)[frame == at])), 5)
                for at in np.unique(frame)
            },
            **figures,
        }


def message_bytes(header: Header, payload: bytes) -> int:
    """Bytes of one frame's message, without what the transport adds."""
    request = seal(bytes(CONSTANTS_BYTES), b"", *pack_header(header, payload))
    return int(request.ByteSize())


def transport_bytes(picture_overhead: float) -> float:
    """What the transport adds to a message, from what the wire adds to a picture's file."""
    file = bytes(500)
    header = Header(PICTURE_POINT, 500, np.zeros(0, dtype=np.bool_), 100)
    return picture_overhead - (message_bytes(header, file) - len(file))


def code(
    pair: Pair, states: Sequence[KVState], frames: int, point: OperatingPoint, delta: bool
) -> Iterator[EdgeFrame]:
    """Every frame as the agent codes it when no frame is lost.

    Args:
        pair: the models and the bundle.
        states: states of every frame of all sequences.
        frames: number of frames in each sequence; each begins with a key frame.
        point: an operating point of kind `latent`.
        delta: send what changed since the frame before; else key frames only.
    """
    plan = Plan()
    base: Base | None = None
    for number, state in enumerate(states):
        if not delta or number % frames == 0:
            base = None
        coded = encode_state(state, pair.bundle.encoder, point, plan, base=base)
        if coded.held is not None:
            base = Base(number, coded.held)
        yield coded


def _sizes(coded: Sequence[EdgeFrame]) -> tuple[float, float]:
    """Mean bytes of payload and of message."""
    messages = [
        message_bytes(
            Header(
                each.point.index,
                number,
                each.kept,
                100,
                each.distortion or Distortion(),
                each.base,
                each.differences,
            ),
            each.payload,
        )
        for number, each in enumerate(coded)
    ]
    return float(np.mean([len(each.payload) for each in coded])), float(np.mean(messages))


def ours(
    film: Film, name: str, pair: Pair, native: Sequence[bool], show: Terminal
) -> list[dict[str, Any]]:
    """Every low-rate operating point, with key frames only and with delta frames.

    Bytes on the wire are the message's, without the transport's.
    """
    states: list[KVState] = []
    with show.stage(f"{name}: prefill of sequences", len(film.pictures)) as advance:
        for at in range(0, len(film.pictures), 256):
            states += pair.states(film.pictures[at : at + 256])
            advance(len(states) - at)
    points = [
        p
        for p in pair.bundle.encoder.points
        if p.kind == "latent" and p.quantizer not in ("none", "fp8_e4m3")
    ]
    asked = [(q.picture, q.text) for q in film.asked]
    rows = []
    for point in points:
        for delta in (False, True):
            coded = list(code(pair, states, film.frames, point, delta))
            shown = [
                Frame(Shot(point.index, b""), each.held.latents, each.held.kept)
                for each in coded
                if each.held is not None
            ]
            kind = "delta frames" if delta else "key frames only"
            with show.stage(f"{name}: {point.name}, {kind}", len(asked)) as advance:
                answers = pair.injected(shown, asked, advance)
            payload, message = _sizes(coded)
            rows.append(
                film.row(
                    f"{point.name}, {kind}",
                    "ours",
                    answers,
                    native,
                    edge_model=name,
                    series=f"{name}, {kind}",
                    point=point.name,
                    default=point.index == pair.bundle.info.default_point,
                    payload_bytes=round(payload, 2),
                    wire_bytes=round(message, 2),
                    bytes_per_frame=round(message, 2),
                    tokens_per_frame=round(float(np.mean([c.kept.sum() for c in coded])), 2),
                )
            )
    return rows


def video_row(video: Video, film: Film, cloud: VLM, native: Sequence[bool]) -> dict[str, Any]:
    """One video codec; the cloud decodes the stream and sees the result.

    Only coded pictures are counted. Each frame travels in a message, as ours do; the bytes on the
    wire do not contain the message's yet.
    """
    stream = video.encode(film.pictures, film.frames)
    seen = video.decode(stream, len(film.pictures))
    answers = seeing(cloud, seen, film.asked, lambda _: None)
    payload = round(picture_bytes(video.codec, stream) / len(film.pictures), 2)
    return film.row(
        video.name,
        "video",
        answers,
        native,
        payload_bytes=payload,
        wire_bytes=payload,
        bytes_per_frame=payload,
        stream_bytes=round(len(stream) / len(film.pictures), 2),
    )


def summary(rows: Sequence[Mapping[str, Any]], cloud_image: float) -> dict[str, Any]:
    """The smallest of ours and of video within two points of the cloud model seeing the frames.

    Returns:
        `video` and, by edge model, `ours` with `video_over_ours` (bytes on the wire) and
        `video_over_ours_payload` (bytes of payload).
    """
    fit = [r for r in rows if r["accuracy"] >= cloud_image - WITHIN]

    def smallest(kind: str, edge: str, size: str) -> Mapping[str, Any] | None:
        mine = [r for r in fit if r["kind"] == kind and r["edge_model"] == edge]
        return min(mine, key=lambda r: float(r[size]), default=None)

    least = smallest("video", "", "bytes_per_frame")
    found: dict[str, Any] = {"video": least and _brief(least)}
    for edge in sorted({r["edge_model"] for r in rows if r["kind"] == "ours"}):
        over = {}
        for size in ("bytes_per_frame", "payload_bytes"):
            video, best = smallest("video", "", size), smallest("ours", edge, size)
            over[size] = video and best and round(video[size] / best[size], 2)
        best = smallest("ours", edge, "bytes_per_frame")
        found[edge] = best and {
            **_brief(best),
            "video_over_ours": over["bytes_per_frame"],
            "video_over_ours_payload": over["payload_bytes"],
        }
    return found


def _brief(row: Mapping[str, Any]) -> dict[str, Any]:
    return {k: row[k] for k in ("name", "bytes_per_frame", "payload_bytes", "accuracy")}


def sweep(
    videos: Sequence[Video], film: Film, cloud: VLM, progress: Callable[[int], None]
) -> dict[str, Any]:
    """Size and accuracy of every setting: `native` and `rows`, as the picture codecs' sweep."""
    native = film.right(seeing(cloud, film.pictures, film.asked, lambda _: None))
    rows = []
    for video in videos:
        row = video_row(video, film, cloud, native)
        rows.append({**asdict(video), "bytes": row["payload_bytes"], "accuracy": row["accuracy"]})
        progress(1)
    return {"native": float(np.mean(native)), "rows": rows}


def measure(
    args: Any,
    cloud: VLM,
    pairs: Mapping[str, tuple[str, Callable[[], Pair]]],
    keep: Callable[[str, str, Callable[[], Any]], Any],
    show: Terminal,
) -> dict[str, Any]:
    """All rows: ours by edge model, and the video codecs that were best on validation.

    Args:
        args: `sequences` and `sequence_frames`.
        cloud: the cloud model.
        pairs: by edge model, a digest of its bundle and how to load it.
        keep: the bench's kept results.
        show: the bench's terminal.

    Returns:
        `sequences`, `sequences_cloud_image`, and `sequences_skipped` with a reason if there is no
        ffmpeg.
    """
    size = f"{args.sequences} {args.sequence_frames} {cloud.layout.fingerprint}"
    film = Film.load("test", args.sequences, args.sequence_frames, QUESTIONS)

    def seen() -> list[bool]:
        with show.stage("sequences: the frames themselves", len(film.asked)) as advance:
            return film.right(seeing(cloud, film.pictures, film.asked, advance))

    native = keep("sequences-native", size, seen)
    rows: list[dict[str, Any]] = []
    for name, (digest, load) in pairs.items():
        make = partial(_ours, film, name, load, native, show)
        rows += keep(f"sequences-ours-{name}", f"{size} {digest}", make)
    found: dict[str, Any] = {}
    if available():
        for video in _frontier(args, cloud, keep, show):
            one = partial(video_row, video, film, cloud, native)
            rows.append(keep(f"sequences-{video.name}", size, one))
    else:
        found["sequences_skipped"] = "no ffmpeg to compare with (Debian: apt-get install ffmpeg)"
        show.say(f"sequences: {found['sequences_skipped']}")
    cloud_image = float(np.mean(native))
    return {
        "sequences": rows,
        "sequences_cloud_image": round(cloud_image, 5),
        **found,
    }


def _ours(
    film: Film, name: str, load: Callable[[], Pair], native: Sequence[bool], show: Terminal
) -> list[dict[str, Any]]:
    return ours(film, name, load(), native, show)


def _frontier(
    args: Any, cloud: VLM, keep: Callable[[str, str, Callable[[], Any]], Any], show: Terminal
) -> list[Video]:
    """Video settings worth measuring: chosen on validation."""

    def make() -> dict[str, Any]:
        film = Film.load("validation", SWEPT_SEQUENCES, SWEPT_FRAMES, QUESTIONS)
        with show.stage("validation: H.264, H.265, AV1", len(VIDEOS)) as advance:
            return sweep(VIDEOS, film, cloud, advance)

    swept = keep("sequences-sweep", f"{cloud.layout.fingerprint} {VIDEOS}", make)
    rows = swept["rows"]
    chosen = thin(rows, pareto(rows), FRONTIER, swept["native"] - WITHIN)
    fields = ("codec", "rate", "px", "group")
    return [Video(**{k: rows[i][k] for k in fields}) for i in chosen]
