"""The embedded engine: one frozen `transformers` model in this process, worked in steps.

A step: waiting jobs join as a group (`decode` → `project` → `inject` → `answer.prefill`), then
every running answer gets one more token (`answer.step`).
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from functools import lru_cache

import structlog
import torch
from PIL import Image
from torch import Tensor

from cloud_server.engine import crop, feedback, inject, load, spans, warm_up
from cloud_server.engine.answer import Answering
from cloud_server.engine.base import Emit, Engine
from cloud_server.engine.bundles import LoadedBundles
from cloud_server.engine.decode import decode, far_of, moments_score
from cloud_server.engine.frame_numbers import FrameNumbers
from cloud_server.engine.jobs import (
    Accepted,
    Dropped,
    Failed,
    Job,
    JobEvent,
    Load,
    Offer,
    PartWanted,
    Status,
    failed,
)
from cloud_server.engine.latents import LatentMemory
from cloud_server.engine.prefill_pictures import prefill_pictures, prepare_picture
from cloud_server.engine.project import project
from cloud_server.engine.reader import PictureReader, Read
from cloud_server.engine.scenes import Scene, SceneMemory
from cloud_server.engine.shadow import SHADOW_ROWS, Shadowing
from cloud_server.engine.store import Name
from cloud_server.engine.values import Values
from cloud_server.engine.waiting import Waiting
from cloud_server.engine.work import Picture, Work
from cloud_server.settings import Settings
from projector.bundle.load import Bundle
from projector.codec.deltas import Held
from projector.models.lm import LM
from projector.models.pixels import Prepared
from projector.serving.backends import Backend
from protos.crop import Box
from protos.errors import (
    BridgeError,
    FrameMalformedError,
    FrameNumberError,
    NonFiniteError,
    PictureError,
    from_code,
)
from protos.points import PICTURE_POINT
from protos.process import threads

_TEXT_PAGE_TOKENS = 16
_QUESTIONS = 1024
"""Most questions whose tokens are cached: devices repeat their questions."""


class TransformersEngine(Engine):
    """See `Engine`. Model, device, bundles, backend and sizes come from the settings."""

    def __init__(self, settings: Settings, emit: Emit) -> None:
        self._settings, self._emit = settings, emit
        self._waiting = Waiting()
        self._scenes: SceneMemory  # made by `load`, which knows the model's shapes
        self._latents = LatentMemory(settings.latent_memory_bytes)
        self._read_bundles: list[Bundle] = []
        self._pictures: PictureReader[Picture] = PictureReader(
            self._prepare_picture,
            settings.max_picture_px,
            settings.picture_px_per_s,
            settings.picture_burst_px,
            lambda: self.wake(),
        )
        self._pictures_read: deque[Read[Picture]] = deque()
        self._numbers = FrameNumbers(self._holds)
        self._bundles = LoadedBundles(settings, lambda: self.wake())
        self._log = structlog.get_logger(component="engine")

    # -- loading ---------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Read the model and the bundles; on a GPU read nothing: its driver survives no fork.

        Raises:
            BridgeError: as `load`.
        """
        if torch.device(self._settings.device).type == "cpu":
            self._read()

    def load(self) -> list[Offer]:
        """Load the model and every bundle against it, and try them out.

        Raises:
            ModelError, UnsupportedModelError: the model cannot be used.
            BundleMissingError, BundleCorruptError, BundleLayoutError, BundleFormatError: a bundle
                cannot be used.
            SignatureError: trusted keys are set and none of them signed a bundle.
            ConfigError: two bundles are for the same edge model, or the backend is not available.
            ContextError: the longest text of a bundle does not fit into the model's windows.
        """
        settings = self._settings
        used = threads.use(settings.threads, torch.set_num_threads)
        threads.tell(used, self._log)
        if not self._read_bundles:
            self._read()
        layout = self._model.layout
        offers = self._bundles.open(self._read_bundles, layout, used.count)
        self._scenes = SceneMemory(
            settings.scene_memory_bytes,
            self._model.constant_prefix()[0][0],
            layout.layers,
            layout.kv_heads,
            layout.head_dim,
            # all pictures have the same number of tokens, texts have one to the longest
            min(layout.tokens, _TEXT_PAGE_TOKENS) if isinstance(self._model, LM) else layout.tokens,
        )
        self._cap_bytes = (
            settings.scene_memory_bytes
            + settings.latent_memory_bytes
            + load.batch_bytes(settings, self._model, settings.batch_size + SHADOW_ROWS)
        )
        self._warm_up()
        return offers

    def _read(self) -> None:
        """Read what starts no thread: the model, its prefix, the bundles checked against it."""
        settings = self._settings
        threads.use(settings.threads, torch.set_num_threads)
        self._model = load.load_model(settings)
        self._question_ids = lru_cache(_QUESTIONS)(self._model.question_ids)
        self._answering = Answering(self._model)
        self._values = Values(self._model)
        self._shadows = Shadowing(self._model, self._question_ids, lambda said: self._emit(said))
        self._model.constant_prefix()
        self._read_bundles = load.load_bundles(settings, self._model.layout)

    def _warm_up(self) -> None:
        """Answer the questions of `warm_up`.

        Raises:
            BridgeError: the error of the answer that failed.
        """
        said: list[JobEvent] = []
        emit, self._emit = self._emit, said.append
        try:
            for jobs in warm_up.jobs(self._settings, self._model, self._read_bundles):
                for job in jobs:
                    if job.point == PICTURE_POINT:
                        self._pictures_read.append(self._pictures.read_now(job))
                        continue
                    self.submit(job)
                while self.busy:
                    self.step()
        finally:
            self._emit = emit
            self.forget(warm_up.SESSION)
        for event in said:
            if isinstance(event, Failed):
                raise from_code(event.code, event.message)

    @property
    def model_id(self) -> str:
        """The loaded model's id."""
        return self._model.layout.model_id

    # -- jobs come and go ------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether a job waits or an answer is being made."""
        waiting = bool(self._waiting or self._pictures_read) or self._pictures.ready
        working = len(self._answering) > 0 or self._shadows.busy
        return waiting or working or self._bundles.ready

    def submit(self, job: Job) -> None:
        """Take a job; it joins at a later step, a picture after it was read."""
        if job.point == PICTURE_POINT:
            try:
                if not job.shadow:  # it brings no scene
                    self._numbers.check(job.scene, job.request_id)
                self._pictures.submit(job)
            except BridgeError as error:
                self._emit(failed(job.id, error))
        else:
            self._waiting.add(job)

    def cancel(self, job: int, begun: bool) -> None:
        """Drop a job that waits; with `begun`, also one whose picture or answer is being made."""
        if self._pictures.cancel(job, begun) or self._leaves(job, begun):
            self._emit(Dropped(job))

    def _leaves(self, job: int, begun: bool) -> bool:
        if self._waiting.drop(job):
            return True
        if not begun:
            return False
        for read in self._pictures_read:
            if read.job.id == job:
                self._pictures_read.remove(read)
                return True
        return self._shadows.cancel(job) or self._answering.cancel(job)

    def forget(self, session: str) -> None:
        """Let go of a session's scenes."""
        self._scenes.forget(session)
        self._latents.forget(session)

    def drop(self, name: Name, base: bool) -> None:
        """Let go of one scene; with `base` not of its latents."""
        self._scenes.drop(name)
        if not base:
            self._latents.drop(name)

    def load_bundle(self, asked: Load) -> None:
        """Load one more bundle in a thread."""
        self._bundles.load(asked)

    def unload_bundle(self, digest: str) -> None:
        """Unload a bundle."""
        self._bundles.unload(digest)

    def _holds(self, name: Name) -> bool:
        return name in self._scenes or name in self._latents

    def _prepare_picture(self, picture: Image.Image, job: Job) -> Picture:
        """Called in the reader's thread."""
        if job.box:
            picture = crop.on_canvas(picture, Box(*job.box), self._settings.max_picture_px)
        return prepare_picture(self._model, picture)

    def status(self) -> Status:
        """The present load."""
        return Status(
            waiting=len(self._waiting) + self._pictures.waiting + len(self._shadows),
            running=len(self._answering),
            scenes=len(self._scenes),
            scene_bytes=self._scenes.bytes,
            pool_bytes=self._scenes.pool_bytes + self._latents.pool_bytes,
            cap_bytes=self._cap_bytes,
        )

    # -- a step ----------------------------------------------------------------------------------

    def step(self) -> None:
        """Let waiting jobs join, then make one more token for every running answer."""
        for news in self._bundles.take():
            self.news(news)
        group = self._next_group()
        if group:
            self._join(group)
        answering = len(self._answering) > 0
        if answering:
            for event in self._answering.step():
                self._emit(event)
        self._shadows.step(not group and not answering, self._scenes)

    def _next_group(self) -> list[Work]:
        """Pictures that were read, then waiting jobs, as many as there is room for."""
        most = self._settings.batch_size
        free = most - len(self._answering)
        group: list[Work] = []
        for read in self._pictures.take(most - len(self._pictures_read)):
            if read.job.shadow:
                self._shadows.add(read)
            else:
                self._pictures_read.append(read)
        while self._pictures_read and len(group) < most:
            if self._pictures_read[0].job.question and self._pictures_read[0].error is None:
                if not free:
                    break
                free -= 1
            read = self._pictures_read.popleft()
            group.append(Work(read.job, read.taken_ns, read))
        rows = len(self._answering) + len(group)
        jobs = self._waiting.take(rows, most - len(group), free)
        return group + [Work(job, time.monotonic_ns()) for job in jobs]

    def _join(self, group: list[Work]) -> None:
        """Hold the frames of a group, then prefill its questions."""
        asking = [work for work in group if self._tokenize(work)]
        self._decode([work for work in asking if work.job.has_frame])
        for work in asking:
            if not work.job.has_frame:
                self._recall(work)
        ready = [
            (work, work.scene)
            for work in asking
            if work.scene is not None and work.job.question and self._fits(work, work.scene)
        ]
        if ready:
            scenes = [scene for _, scene in ready]
            contexts = inject.behind_prefix(self._model, self._scenes, scenes)
            self.flush()
            for event in self._answering.prefill([work for work, _ in ready], contexts):
                self._emit(event)
            self.flush()
        self._scenes.end_step()

    def _tokenize(self, work: Work) -> bool:
        """Tokenize the question first: refusing it costs least here."""
        if work.job.question:
            try:
                work.question = self._question_ids(work.job.question)
                work.added = self._values.added(work.job.values, work.job.gain)
            except BridgeError as error:
                self._fail(work, error)
                return False
        return True

    def _decode(self, group: list[Work]) -> None:
        """Decode a group of frames, so that each can fail alone; project them by cloud half."""
        pictures: dict[object, list[tuple[Work, Picture]]] = {}  # by shapes
        frames: dict[Backend, list[tuple[Work, Held]]] = {}  # by cloud half
        for work in group:
            job, started = work.job, time.perf_counter()
            try:
                self._numbers.claim(job.scene, job.request_id)
                if work.read is not None:
                    picture = _picture(work.read)
                    if job.box:
                        work.scene = self._scenes.get(job.scene)
                    work.decode_s, work.warnings = work.read.seconds, list(work.read.warnings)
                    work.moments_score = -math.inf
                    shapes = picture.shapes if isinstance(picture, Prepared) else None
                    pictures.setdefault(shapes, []).append((work, picture))
                    continue
                if job.bundle not in self._bundles:
                    raise FrameMalformedError(f"no bundle {job.bundle[:12]}… is loaded")
                bundle, backend = self._bundles[job.bundle]
                held = decode(job, bundle.encoder, self._latents)
                work.tokens = len(held.latents) if bundle.encoder.text else 0
                work.moments_score = moments_score(bundle, job, held)
                work.far = far_of(bundle, job, held)
                frames.setdefault(backend, []).append((work, held))
            except FrameNumberError as error:
                self._fail(work, error)
                continue
            except BridgeError as error:
                self._numbers.release(job.scene)
                self._fail(work, error)
                continue
            work.decode_s, work.decoded_ns = time.perf_counter() - started, time.monotonic_ns()
        for backend, decoded in frames.items():
            self._project(backend, decoded)
        for alike in pictures.values():
            self._prefill_pictures(alike)
        self._numbers.end_step()

    def _project(self, backend: Backend, frames: Sequence[tuple[Work, Held]]) -> None:
        """Project a group of frames of one cloud half, and hold their scenes."""
        started = time.perf_counter()
        made = project(backend, [held for _, held in frames], self._model.positions)
        for (work, _), finite in zip(frames, made.finite, strict=True):
            if not finite:
                overflow = "the latents are so large that the projected cache overflows"
                self._fail(work, NonFiniteError(overflow))
        good = [work for (work, _), finite in zip(frames, made.finite, strict=True) if finite]
        self._inject(good, made.keys, made.values, time.perf_counter() - started)

    def _prefill_pictures(self, pictures: Sequence[tuple[Work, Picture]]) -> None:
        """See a group of pictures of the same shapes, and hold their scenes."""
        started = time.perf_counter()
        try:
            keys, values = prefill_pictures(self._model, [picture for _, picture in pictures])
        except PictureError as error:
            if len(pictures) == 1:
                self._fail(pictures[0][0], error)
            else:  # one bad picture fails the group
                for pair in pictures:
                    self._prefill_pictures([pair])
            return
        works = [work for work, _ in pictures]
        crop.put_into_scenes(self._model.layout.grid, self._scenes, works, keys, values)
        self._inject(works, keys, values, time.perf_counter() - started)

    def _inject(
        self, group: Sequence[Work], keys: Tensor, values: Tensor, project_s: float
    ) -> None:
        """Hold the scenes `[layers, group, kv_heads, N, head_dim]`, and say so."""
        started = time.perf_counter()
        inject.hold(self._scenes, group, keys, values)
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
                    moments_score=work.moments_score,
                    far=work.far,
                    spans=spans.of_scene(work, project_s, inject_s),
                )
            )

    def _recall(self, work: Work) -> None:
        """Find the scene that a job without a frame is about; send its state back if asked to."""
        try:
            work.scene = self._scenes.get(work.job.scene)
            if work.job.feedback >= 0:
                bundle = self._bundles.get(work.job.bundle)
                made = feedback.compress(work, work.scene, self._scenes, bundle, self._model)
                self._emit(made)
            elif work.job.look:
                box, attention = crop.wanted(
                    self._model,
                    self._scenes.read(work.scene),
                    inject.prefix_of(self._model),
                    work.question,
                    work.job.look,
                    work.job.most_share,
                )
                edges = [box.left, box.top, box.right, box.bottom]
                self._emit(PartWanted(work.job.id, edges, attention))
                work.scene = None  # nothing is answered
        except BridgeError as error:
            self._fail(work, error)

    def _fits(self, work: Work, scene: Scene) -> bool:
        try:
            self._answering.require_fit(work, scene)
        except BridgeError as error:
            self._fail(work, error)
            return False
        return True

    def _fail(self, work: Work, error: BridgeError) -> None:
        self._emit(failed(work.job.id, error))


def _picture(read: Read[Picture]) -> Picture:
    """The picture that was read.

    Raises:
        BridgeError: the error of reading it.
    """
    if read.prepared is None:
        raise read.error or PictureError("the picture was not read")
    return read.prepared
