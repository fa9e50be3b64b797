"""The embedded engine: one frozen `transformers` model in this process.

A step: jobs that wait join as a group (decode → project → inject → prefill of their questions),
then every running answer gets one more token. Knows bundles, the model and its scenes; knows no
socket.
"""

from __future__ import annotations

import io
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
import structlog
import torch
from PIL import Image
from torch import Tensor

from cloud_server.engine.base import Emit, Engine
from cloud_server.engine.batch import Row, RunningBatch
from cloud_server.engine.jobs import (
    Accepted,
    Answered,
    Compressed,
    Dropped,
    Failed,
    Job,
    JobEvent,
    Offer,
    Status,
    TokenMade,
    failed,
)
from cloud_server.engine.memory import LatentMemory, Scene, SceneMemory
from cloud_server.engine.owners import FrameNumbers
from cloud_server.engine.reader import PictureReader, Read
from cloud_server.engine.scenes import Name
from cloud_server.settings import Settings
from projector.bundle.bundle import Bundle
from projector.bundle.grades import verdict_of
from projector.bundle.signing import TrustedKeys
from projector.codec.encoder import Floats, Held, Mask
from projector.models import cache as kv
from projector.models.lm import LM, TEXT_TOKENS, reads_only_texts
from projector.models.vlm import VLM, Prepared
from projector.serving.backends import Backend
from protos.errors import (
    BridgeError,
    ConfigError,
    FrameMalformedError,
    FrameNumberError,
    MissingKeyFrameError,
    NoFeedbackError,
    NonFiniteError,
    PictureError,
    UnknownSceneError,
    from_code,
)
from protos.points import PICTURE_POINT, RAW_KV_FP8, RAW_KV_FP8_POINT, points_to_json
from protos.process import threads
from protos.state import KVState

_TEXT_PAGE_TOKENS = 16
_WARM_UP = "warm-up"
_WARM_UP_PX = 64


Picture: TypeAlias = Image.Image | Prepared


@dataclass
class _Work:
    """One job on its way through a step."""

    job: Job
    taken_ns: int
    read: Read[Picture] | None = None
    question: list[int] = field(default_factory=list)
    decode_s: float = 0.0
    scene: Scene | None = None
    tokens: int = 0  # of a text; 0 for all of a picture's
    prefill_s: float = 0.0
    prefilled_ns: int = 0
    told: str = ""
    warnings: list[str] = field(default_factory=list)

    @property
    def queue_s(self) -> float:
        return max(0.0, (self.taken_ns - self.job.received_ns) / 1e9)


class TransformersEngine(Engine):
    """See `Engine`. Model, device, bundles, backend and sizes come from the settings."""

    def __init__(self, settings: Settings, emit: Emit) -> None:
        self._settings, self._emit = settings, emit
        self._waiting: deque[Job] = deque()
        self._scenes: SceneMemory  # by `load`, which knows the model's shapes
        self._latents = LatentMemory(settings.latent_memory_bytes)
        self._read_bundles: list[Bundle] = []
        self._pictures: PictureReader[Picture] = PictureReader(
            self._ready_for_model,
            settings.max_picture_px,
            settings.picture_px_per_s,
            settings.picture_burst_px,
            lambda: self.wake(),
        )
        self._seen: deque[Read[Picture]] = deque()
        self._numbers = FrameNumbers(self._holds)
        self._bundles: dict[str, tuple[Bundle, Backend]] = {}
        self._log = structlog.get_logger(component="engine")

    def prepare(self) -> None:
        """Read the model and the bundles; on a GPU nothing, as its driver survives no fork.

        Raises:
            BridgeError: as `load`.
        """
        if torch.device(self._settings.device).type == "cpu":
            self._read()

    def load(self) -> list[Offer]:
        """Load the model and every bundle against it, and try them out.

        Raises:
            ModelError, UnsupportedModelError: the model cannot be used.
            BundleMissingError, BundleCorruptError, BundleLayoutError, BundleFormatError: a bundle.
            SignatureError: trusted keys are set and none of them signed a bundle.
            ConfigError: two bundles are for the same edge model, or the backend cannot be had.
            ContextError: the longest text of a bundle would outgrow the model's windows.
        """
        settings = self._settings
        used = threads.use(settings.threads, torch.set_num_threads)
        threads.tell(used, self._log)
        if not self._read_bundles:
            self._read()
        for bundle in self._read_bundles:
            backend = bundle.backend(
                settings.backend, threads=used.count, device=settings.backend_device
            )
            self._bundles[bundle.digest] = (bundle, backend)
        layout = self._model.layout
        self._scenes = SceneMemory(
            settings.scene_memory_bytes,
            self._model.constant_prefix()[0][0],
            layout.layers,
            layout.kv_heads,
            layout.head_dim,
            # every picture has as many tokens, texts have from one to the longest
            min(layout.tokens, _TEXT_PAGE_TOKENS) if isinstance(self._model, LM) else layout.tokens,
        )
        self._cap_bytes = (
            settings.scene_memory_bytes + settings.latent_memory_bytes + self._batch_bytes()
        )
        self._warm_up()
        return [_offer(bundle) for bundle in self._read_bundles]

    def _read(self) -> None:
        """What needs no thread: the model, its prefix, the bundles checked against it."""
        settings = self._settings
        threads.use(settings.threads, torch.set_num_threads)
        self._model = self._load_model()
        self._batch: RunningBatch[_Work] = RunningBatch(self._model)
        self._model.constant_prefix()
        trusted = None
        if settings.trusted_keys is not None:
            trusted = TrustedKeys.load(settings.trusted_keys)
        for path in settings.bundles:
            info = Bundle.peek(path)
            bundle = Bundle.load(path, info.source, self._model.layout, trusted=trusted)
            source = info.source.fingerprint
            twin = next(
                (b for b in self._read_bundles if b.info.source.fingerprint == source), None
            )
            if twin is not None:
                raise ConfigError(
                    f"bundles '{twin.info.id}' and '{info.id}' ({path}) are for the same edge "
                    "model; a frame could not tell them apart: serve one of them"
                )
            self._read_bundles.append(bundle)

    def _warm_up(self) -> None:
        """Answer a question over every bundle, about a picture, then a full batch of them.

        The first use of each library allocates, compiles and starts threads; what a full batch
        takes belongs to what the engine holds at rest; and what cannot answer this cannot answer
        anything.

        Raises:
            BridgeError: what the answer failed with.
        """
        said: list[JobEvent] = []
        emit, self._emit = self._emit, said.append
        try:
            for jobs in self._warm_up_jobs():
                for job in jobs:
                    if job.point == PICTURE_POINT:
                        self._seen.append(self._pictures.read_now(job))
                        continue
                    self.submit(job)
                while self.busy:
                    self.step()
        finally:
            self._emit = emit
            self.forget(_WARM_UP)
        for event in said:
            if isinstance(event, Failed):
                raise from_code(event.code, event.message)

    def _warm_up_jobs(self) -> Iterator[list[Job]]:
        blank = Job(0, _WARM_UP, 0, "", "What is this?", 2, time.monotonic_ns())
        for bundle in self._read_bundles:
            info, encoder = bundle.info, bundle.encoder
            usual = np.broadcast_to(encoder.x_mean, (info.source.tokens, len(encoder.x_mean)))
            state = KVState.from_flat(usual, info.source, np.arange(info.source.tokens))
            point = encoder.point(info.default_point)
            encoded = encoder.encode(state, point)
            frame = replace(
                blank,
                bundle=bundle.digest,
                point=point.index,
                tokens=len(encoded.kept),
                kept=np.packbits(encoded.kept, bitorder="little").tobytes(),
                body=encoded.payload,
            )
            yield [frame]
        if isinstance(self._model, VLM):
            file, side = io.BytesIO(), min(_WARM_UP_PX, self._settings.max_picture_px)
            Image.effect_noise((side, side), 64).convert("RGB").save(file, "PNG")
            yield [replace(blank, point=PICTURE_POINT, body=file.getvalue())]
        yield [blank] * self._settings.batch_size

    def _batch_bytes(self) -> int:
        """Most that the running batch takes: its caches, those of the next step, and of a join."""
        model, settings = self._model, self._settings
        longest = len(model.prefix_ids) + model.layout.tokens + model.max_question_tokens
        rows = settings.batch_size * (longest + settings.max_new_tokens)
        key = model.constant_prefix()[0][0]
        per_token = 2 * model.layout.layers * model.layout.kv_heads * model.layout.head_dim
        return 3 * rows * per_token * key.element_size()

    def _load_model(self) -> VLM | LM:
        """What sees pictures, or reads texts of at most what the bundles are for."""
        settings = self._settings
        where = settings.model_path, settings.device, settings.dtype
        if not reads_only_texts(settings.model_path):
            return VLM.load(*where)
        longest = max((Bundle.peek(path).target.tokens for path in settings.bundles), default=0)
        return LM.load(*where, text_tokens=longest or TEXT_TOKENS)

    @property
    def model_id(self) -> str:
        """Of the loaded model."""
        return self._model.layout.model_id

    @property
    def busy(self) -> bool:
        """Whether a job waits or an answer is being made."""
        return bool(self._waiting or self._seen) or self._pictures.ready or len(self._batch) > 0

    def submit(self, job: Job) -> None:
        """Take a job; it joins at a later step, a picture once it was read."""
        if job.point == PICTURE_POINT:
            try:
                self._numbers.check(job.scene, job.request_id)
                self._pictures.submit(job)
            except BridgeError as error:
                self._emit(failed(job.id, error))
        else:
            self._waiting.append(job)

    def cancel(self, job: int, begun: bool) -> None:
        """Let go of a job: of one that waits, and if it may have begun, of its row too."""
        if self._pictures.cancel(job, begun) or self._leaves_queue(job, begun):
            self._emit(Dropped(job))

    def _leaves_queue(self, job: int, begun: bool) -> bool:
        for waiting in self._waiting:
            if waiting.id == job:
                self._waiting.remove(waiting)
                return True
        if not begun:
            return False
        for read in self._seen:
            if read.job.id == job:
                self._seen.remove(read)
                return True
        for row in self._batch.rows:
            if row.owner.job.id == job:
                row.done = True
                self._batch.leave()
                return True
        return False

    def _holds(self, name: Name) -> bool:
        return name in self._scenes or name in self._latents

    def _ready_for_model(self, picture: Image.Image) -> Picture:
        """In the reader's thread."""
        if isinstance(self._model, LM):
            raise PictureError(f"{self._model.layout.model_id} reads texts, it sees no pictures")
        return self._model.prepare(picture)

    def forget(self, session: str) -> None:
        """Let go of a session's scenes."""
        self._scenes.forget(session)
        self._latents.forget(session)

    def status(self) -> Status:
        """The present load."""
        return Status(
            waiting=len(self._waiting) + self._pictures.waiting,
            running=len(self._batch),
            scenes=len(self._scenes),
            scene_bytes=self._scenes.bytes,
            pool_bytes=self._scenes.pool_bytes + self._latents.pool_bytes,
            cap_bytes=self._cap_bytes,
        )

    def step(self) -> None:
        """Let waiting jobs join, then make one more token for every running answer."""
        group = self._next_group()
        if group:
            self._admit(group)
        if len(self._batch):
            self._tell(self._batch.step())

    # -- joining ---------------------------------------------------------------------------------

    def _next_group(self) -> list[_Work]:
        """Pictures that were read and waiting jobs, in order, as many as there is room for."""
        most = self._settings.batch_size
        free = most - len(self._batch)
        group: list[_Work] = []
        self._seen.extend(self._pictures.take(most - len(self._seen)))
        while self._seen and len(group) < most:
            if self._seen[0].job.question and self._seen[0].error is None:
                if not free:
                    break
                free -= 1
            read = self._seen.popleft()
            group.append(_Work(read.job, read.taken_ns, read))
        while self._waiting and len(group) < most:
            if self._waiting[0].question:
                if not free:
                    break
                free -= 1
            group.append(_Work(self._waiting.popleft(), time.monotonic_ns()))
        return group

    def _admit(self, group: list[_Work]) -> None:
        asking = [work for work in group if self._understand(work)]
        self._hold([work for work in asking if work.job.has_frame])
        for work in asking:
            if not work.job.has_frame:
                try:
                    work.scene = self._scenes.get(work.job.scene)
                    if work.job.back >= 0:
                        self._emit(self._compress(work, work.scene))
                except BridgeError as error:
                    self._emit(failed(work.job.id, error))
        by_length: dict[int, list[tuple[_Work, Scene]]] = {}  # one, but for texts
        for work in asking:
            if work.scene is not None and work.job.question and self._fits(work, work.scene):
                by_length.setdefault(work.scene.tokens, []).append((work, work.scene))
        for ready in by_length.values():
            self._prefill([work for work, _ in ready], [scene for _, scene in ready])
        self._scenes.end_step()

    def _fits(self, work: _Work, scene: Scene) -> bool:
        """Whether the model's windows see the answer's last token and the scene's first at once."""
        job, model = work.job, self._model
        length = len(model.prefix_ids) + scene.tokens + len(work.question) + job.max_new_tokens
        try:
            model.layout.require_window(length, "a context with its question and answer")
        except BridgeError as error:
            self._emit(failed(job.id, error))
            return False
        return True

    def _understand(self, work: _Work) -> bool:
        """Tokenize the question first: refusing it costs least here."""
        if not work.job.question:
            return True
        try:
            work.question = self._model.question_ids(work.job.question)
        except BridgeError as error:
            self._emit(failed(work.job.id, error))
            return False
        return True

    def _hold(self, group: list[_Work]) -> None:
        """Decode, project and keep the scenes of a group of frames."""
        pictures: dict[object, list[tuple[_Work, Picture]]] = {}  # by shapes
        frames: dict[str, list[tuple[_Work, Floats, Mask]]] = {}
        for work in group:
            job, started = work.job, time.perf_counter()
            try:
                self._numbers.claim(job.scene, job.request_id)
                if work.read is not None:
                    picture = _picture(work.read)
                    work.decode_s = work.read.seconds
                    work.warnings = list(work.read.warnings)
                    shapes = picture.shapes if isinstance(picture, Prepared) else None
                    pictures.setdefault(shapes, []).append((work, picture))
                    continue
                held = self._decode(job)  # before the group exists: it may refuse
                frames.setdefault(job.bundle, []).append((work, held.latents, held.kept))
            except FrameNumberError as error:
                self._emit(failed(job.id, error))
                continue
            except BridgeError as error:
                self._numbers.release(job.scene)
                self._emit(failed(job.id, error))
                continue
            work.decode_s = time.perf_counter() - started
        for digest, decoded in frames.items():
            self._project(*self._bundles[digest], decoded)
        for alike in pictures.values():
            self._see(alike)
        self._numbers.end_step()

    def _project(
        self, bundle: Bundle, backend: Backend, decoded: Sequence[tuple[_Work, Floats, Mask]]
    ) -> None:
        """Latents of a group of frames of one bundle to scenes; texts are padded to the longest."""
        started = time.perf_counter()
        shape = (len(decoded), bundle.info.source.tokens)
        latents = np.zeros((*shape, bundle.info.rank), dtype=np.float32)
        every = np.zeros(shape, dtype=np.bool_)
        for row, (work, grid, kept) in enumerate(decoded):
            latents[row, : len(grid)], every[row, : len(grid)] = grid, kept
            work.tokens = len(grid) if bundle.encoder.text else 0
        keys, values = backend.project(latents, every, self._model.positions)
        whole = [
            bool(np.isfinite(keys[:, row]).all() and np.isfinite(values[:, row]).all())
            for row in range(len(decoded))
        ]
        for (work, _, _), good in zip(decoded, whole, strict=True):
            if not good:
                large = NonFiniteError(
                    "the latents are so large that the projected cache overflows"
                )
                self._emit(failed(work.job.id, large))
        self._inject(
            [work for (work, _, _), good in zip(decoded, whole, strict=True) if good],
            torch.from_numpy(np.ascontiguousarray(keys[:, whole])),
            torch.from_numpy(np.ascontiguousarray(values[:, whole])),
            time.perf_counter() - started,
        )

    def _decode(self, job: Job) -> Held:
        """What is known of a scene after its frame; kept for delta frames to come."""
        held = self._bundles.get(job.bundle)
        if held is None:
            raise FrameMalformedError(f"no bundle {job.bundle[:12]}… is loaded")
        encoder = held[0].encoder
        raw = job.point == RAW_KV_FP8_POINT and all(
            p.index != RAW_KV_FP8_POINT for p in encoder.points
        )
        point = RAW_KV_FP8 if raw else encoder.point(job.point)
        base = self._base(job)
        kept = job.kept_mask()
        try:
            z_hat = encoder.decode(job.body, kept, point, base, bool(job.differences))
            now = encoder.hold(z_hat, kept, base)
        except (ValueError, TypeError, IndexError, ArithmeticError, MemoryError) as error:
            # A codec that trips over untrusted bytes must not take everyone's engine down.
            self._log.exception("a codec failed", request_id=job.request_id, point=point.name)
            raise FrameMalformedError(f"the payload cannot be decoded: {error}") from error
        if job.hold:
            self._latents.put(job.scene, now)
        return now

    def _base(self, job: Job) -> Held | None:
        """What a delta frame changes."""
        if job.base < 0:
            return None
        try:
            return self._latents.get((job.session, job.base))
        except UnknownSceneError as error:
            raise MissingKeyFrameError(
                f"frame {job.frame_number} changes frame {job.base}, which is not held (any more): "
                "send it as a key frame"
            ) from error

    def _compress(self, work: _Work, scene: Scene) -> Compressed:
        """A scene's state, as the model holds it, through the bundle's way back."""
        started, model, job = time.perf_counter(), self._model, work.job
        held = self._bundles.get(job.bundle)
        if held is None or held[0].reverse is None:
            raise NoFeedbackError(f"bundle {job.bundle[:12]}… is not loaded, or has no way back")
        encoder = held[0].reverse.encoder
        tokens = scene.tokens
        keys, values = self._scenes.read(scene)
        state = kv.to_states(
            keys.unsqueeze(1),
            values.unsqueeze(1),
            model.layout,
            model.positions,
            torch.full((1, tokens), 1 / tokens),
        )[0]
        every = np.ones(tokens, dtype=np.bool_)
        encoded = encoder.encode(state, encoder.point(job.back), every)
        return Compressed(
            job=job.id,
            queue_s=work.queue_s,
            compress_s=time.perf_counter() - started,
            quantize=encoded.distortion.quantize,
            latent_residual=encoded.distortion.latent_residual,
            unfamiliarity=encoded.distortion.unfamiliarity,
            body=encoded.payload,
        )

    def _see(self, pictures: Sequence[tuple[_Work, Picture]]) -> None:
        """The picture point: the model's own prefill of a group of pictures."""
        started, model = time.perf_counter(), self._model
        try:
            if isinstance(model, LM):
                raise PictureError(f"{model.layout.model_id} reads texts, it sees no pictures")
            made = model.prefill([picture for _, picture in pictures], attention=False)
        except PictureError as error:
            if len(pictures) == 1:
                self._emit(failed(pictures[0][0].job.id, error))
            else:  # one of them spoils the group
                for pair in pictures:
                    self._see([pair])
            return
        start = made.prefix_tokens
        self._inject(
            [work for work, _ in pictures],
            torch.stack([key[:, :, start:] for key in made.keys]),
            torch.stack([value[:, :, start:] for value in made.values]),
            time.perf_counter() - started,
        )

    def _inject(
        self, group: Sequence[_Work], keys: Tensor, values: Tensor, project_s: float
    ) -> None:
        """Keep the scenes `[layers, group, kv_heads, N, head_dim]` in the model's own format."""
        started = time.perf_counter()
        with torch.inference_mode():
            for index, work in enumerate(group):
                held = slice(work.tokens or None)
                work.scene = self._scenes.put(
                    work.job.scene if work.job.hold else None,
                    keys[:, index, :, held],
                    values[:, index, :, held],
                    use=bool(work.job.question),
                )
        inject_s = time.perf_counter() - started
        for work in group:
            self._emit(
                Accepted(
                    job=work.job.id,
                    queue_s=work.queue_s,
                    decode_s=work.decode_s,
                    project_s=project_s,
                    inject_s=inject_s,
                    warnings=work.warnings,
                )
            )

    def _prefill(self, group: Sequence[_Work], scenes: Sequence[Scene]) -> None:
        """Put the scenes behind the model's own prefix and run the questions over them."""
        started = time.perf_counter()
        with torch.inference_mode():
            keys, values = zip(*map(self._scenes.read, scenes), strict=True)
            layers = self._model.scene_cache(torch.stack(keys, dim=1), torch.stack(values, dim=1))
        rows = self._batch.join(
            layers,
            [work.question for work in group],
            group,
            [work.job.max_new_tokens for work in group],
        )
        prefill_s, now = time.perf_counter() - started, time.monotonic_ns()
        for work in group:
            work.prefill_s, work.prefilled_ns, work.scene = prefill_s, now, None
        self._tell(rows)

    # -- answering -------------------------------------------------------------------------------

    def _tell(self, rows: Sequence[Row[_Work]]) -> None:
        """Emit what each row has that was not told yet, and free the rows that are done."""
        for row in rows:
            work, text = row.owner, self._model.text(row.tokens)
            if row.fresh:
                # A character may still be missing bytes; the text of an answer is authoritative.
                whole = text.startswith(work.told) and not text.endswith("\ufffd")
                piece = text[len(work.told) :] if whole else ""
                work.told += piece
                self._emit(TokenMade(job=work.job.id, index=len(row.tokens) - 1, text=piece))
            if row.done:
                self._emit(
                    Answered(
                        job=work.job.id,
                        text=text,
                        tokens=len(row.tokens),
                        queue_s=work.queue_s,
                        prefill_s=work.prefill_s,
                        generate_s=(time.monotonic_ns() - work.prefilled_ns) / 1e9,
                    )
                )
        self._batch.leave()


def _picture(read: Read[Picture]) -> Picture:
    """What was read.

    Raises:
        BridgeError: what reading it ended in.
    """
    if read.prepared is None:
        raise read.error or PictureError("the picture was not read")
    return read.prepared


def _offer(bundle: Bundle) -> Offer:
    info, reverse = bundle.info, bundle.reverse
    names = {point.index: point.name for point in info.points}
    verdict = verdict_of(bundle.certificate, names[info.default_point])
    return Offer(
        bundle_id=info.id,
        bundle_version=str(info.version),
        bundle_digest=bundle.digest,
        encoder_digest=bundle.encoder.digest,
        source_fingerprint=info.source.fingerprint,
        source_layout_json=info.source.to_json(),
        target_layout_json=info.target.to_json(),
        operating_points_json=points_to_json(info.points),
        default_point=names[info.default_point],
        ladder=[names[index] for index in info.ladder],
        encoder=bundle.encoder.to_bytes(),
        reverse_decoder=reverse.decoder.to_bytes() if reverse else b"",
        reverse_points_json=points_to_json(reverse.decoder.points) if reverse else "",
        verdict="" if verdict.good else verdict.state,
        why=verdict.why,
    )
