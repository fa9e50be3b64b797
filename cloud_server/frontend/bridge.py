"""The gRPC service `neuralbridge.v1.Bridge`: which module answers which call.

`negotiate`, `receive`, `ask`, `feedback`, `shadowing/`, `updates` and `attend/` take calls;
`under_way` gives requests to the engine, `tell` passes its events on, `refuse` sends errors.
Nothing here touches a tensor library.
"""

from __future__ import annotations

import asyncio

import grpc

from cloud_server.engine.jobs import Offer
from cloud_server.frontend.access.access import Access
from cloud_server.frontend.access.gate import Gate
from cloud_server.frontend.admission.memory import Memory
from cloud_server.frontend.admission.openings import Openings
from cloud_server.frontend.admission.quotas import Quotas
from cloud_server.frontend.ask import Asker
from cloud_server.frontend.attend.attendance import Attendance
from cloud_server.frontend.attend.fleet import Fleet
from cloud_server.frontend.attend.report import ReportTaker
from cloud_server.frontend.crops import Crops
from cloud_server.frontend.engines.dispatch import Dispatch
from cloud_server.frontend.feedback import FeedbackSender
from cloud_server.frontend.negotiate import Negotiator
from cloud_server.frontend.outbox import Outboxes
from cloud_server.frontend.receive import Receiver
from cloud_server.frontend.refuse import Refusals
from cloud_server.frontend.scenes import HeldScenes
from cloud_server.frontend.sessions import Session, Sessions
from cloud_server.frontend.shadowing.shadows import Shadows
from cloud_server.frontend.telemetry import Telemetry
from cloud_server.frontend.tell import Teller
from cloud_server.frontend.under_way import UnderWay
from cloud_server.frontend.updates import Updates
from cloud_server.frontend.versions.plans import front_end_name
from cloud_server.settings import Settings
from cloud_server.throttle import Throttle
from protos.calls import SERVICE
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.process.logs import Logger


class Bridge:
    """The service (see `Part`).

    Args:
        settings: limits and sizes.
        dispatch: sends jobs to the engines.
        scenes: holds accepted frames.
        telemetry: counts and times requests; with the service's metrics.
        log: a bound logger.
        access: identities and TLS.

    Attributes:
        asker: answers questions about scenes that are held.
        under_way: sends requests to the engine.
        quotas: counts requests against quotas.
        shadows: measures shadowed pictures.
        teller: says how each request ended.
        fleet: the devices that take orders here.
    """

    def __init__(
        self,
        settings: Settings,
        dispatch: Dispatch,
        scenes: HeldScenes,
        telemetry: Telemetry,
        log: Logger,
        access: Access,
    ) -> None:
        self._access = access
        self._metrics = metrics = telemetry.metrics
        self._log, self._drain_s = log, settings.drain_s
        self.quotas = quotas = Quotas(access.quota_of)
        gate, memory = Gate(access.identities), Memory(metrics)
        self._beside: list[asyncio.Task[None]] = []
        self._few = few = Throttle(settings.log_burst, self._more, settings.log_interval_s)
        self.under_way = under_way = UnderWay(settings, dispatch, metrics, access.quota_of, memory)
        self._sessions = sessions = Sessions(
            settings.sessions,
            settings.fresh_sessions,
            self._session_dropped,
            memory.room("sessions"),
        )
        metrics.sessions.set_function(lambda: len(sessions))
        metrics.fresh_sessions.set_function(lambda: sessions.fresh)
        limits, refusals = settings.limits, Refusals(telemetry, log, few)
        crops = Crops(settings, under_way, metrics, log, quotas, few)
        self.teller = teller = Teller(telemetry, sessions, scenes, under_way, refusals, log, crops)
        self._outboxes = outboxes = Outboxes(
            memory.room("outboxes"), settings.outbox_memory_bytes, settings.reader_s
        )
        openings = Openings(settings.negotiations_per_s, settings.negotiation_burst)
        self._negotiator = Negotiator(
            settings, sessions, metrics, refusals, log, few, gate, openings
        )
        self._receiver = Receiver(
            settings,
            sessions,
            under_way,
            teller,
            telemetry,
            refusals,
            log,
            few,
            gate,
            quotas,
            openings,
            outboxes,
            crops,
        )
        self.asker = Asker(
            limits, sessions, under_way, teller, telemetry, refusals, gate, quotas, outboxes
        )
        self._updates = Updates(
            access.store, settings.directory, gate, openings, metrics, refusals, log
        )
        self._feedback = FeedbackSender(
            limits, sessions, under_way, telemetry, refusals, log, gate, quotas
        )
        self.fleet = fleet = Fleet(access.store, metrics, log, few)
        self._attendance = Attendance(
            access.store, access.live, gate, metrics, refusals, log, few, front_end_name(), fleet
        )
        self._reports = ReportTaker(
            access.store, access.live, gate, quotas, metrics, refusals, log, fleet
        )
        self.shadows = Shadows(
            settings,
            access.store,
            sessions,
            scenes,
            under_way,
            metrics,
            refusals,
            log,
            gate,
            quotas,
            memory.room("shadows"),
        )

    def handler(self) -> grpc.GenericRpcHandler:
        """The RPCs, for `grpc.aio.Server.add_generic_rpc_handlers`.

        Requests arrive as raw bytes, so that this service refuses a bad one itself.
        """
        event = pb.InferEvent.SerializeToString
        methods = {
            "Negotiate": grpc.unary_unary_rpc_method_handler(
                self._negotiator.negotiate,
                response_serializer=pb.NegotiateResponse.SerializeToString,
            ),
            "FetchEncoder": grpc.unary_stream_rpc_method_handler(
                self._negotiator.fetch_encoder, response_serializer=pb.Chunk.SerializeToString
            ),
            "Infer": grpc.stream_stream_rpc_method_handler(
                self._receiver.infer, response_serializer=event
            ),
            "Events": grpc.unary_stream_rpc_method_handler(
                self._receiver.events, response_serializer=event
            ),
            "Ask": grpc.unary_stream_rpc_method_handler(self.asker.ask, response_serializer=event),
            "Feedback": grpc.unary_unary_rpc_method_handler(
                self._feedback.feedback, response_serializer=pb.FeedbackResponse.SerializeToString
            ),
            "CheckUpdate": grpc.unary_unary_rpc_method_handler(
                self._updates.check, response_serializer=pb.CheckUpdateResponse.SerializeToString
            ),
            "FetchUpdate": grpc.unary_stream_rpc_method_handler(
                self._updates.fetch, response_serializer=pb.Chunk.SerializeToString
            ),
            "Attend": grpc.unary_stream_rpc_method_handler(
                self._attendance.attend, response_serializer=pb.Order.SerializeToString
            ),
            "Report": grpc.unary_unary_rpc_method_handler(
                self._reports.report, response_serializer=pb.ReportResponse.SerializeToString
            ),
            "Shadow": grpc.stream_unary_rpc_method_handler(
                self.shadows.shadow, response_serializer=pb.ShadowResponse.SerializeToString
            ),
        }
        return grpc.method_handlers_generic_handler(SERVICE, self._access.guarded(methods))

    # ------------------------------------------------------------------ start, engine, end

    async def start(self) -> None:
        """See `Part`: begin to send requests to the engine."""
        self.under_way.start()
        self._updates.start()
        self._beside = [
            asyncio.create_task(self._outboxes.watch()),
            asyncio.create_task(self._attendance.run()),
            asyncio.create_task(self.fleet.run()),
            asyncio.create_task(self.shadows.run()),
        ]

    def engine_up(self, offers: list[Offer]) -> None:
        """A (re)started engine takes jobs."""
        self._metrics.bundle_doubtful.clear()
        for offer in offers:
            if offer.doubt:
                self._metrics.bundle_doubtful.labels(offer.bundle_id, offer.verdict).set(1)
                self._log.warning("bundle in doubt", bundle=offer.bundle_id, doubt=offer.doubt)
        self.under_way.engine_ready = True
        self._metrics.engine_up.set(1)

    def engine_down(self) -> None:
        """There is no engine; its jobs have been ended by the link."""
        self.under_way.engine_ready = False
        self._metrics.engine_up.set(0)

    @property
    def sessions(self) -> Sessions:
        """The sessions held."""
        return self._sessions

    async def move(self, session: Session) -> None:
        """End a session after its requests are answered; its device then negotiates again."""
        await self._receiver.move(session, self._drain_s)

    async def drain(self) -> None:
        """See `Part`."""
        self._log.info("draining", under_way=self.under_way.depth)
        self._negotiator.leaving = True
        self._attendance.leave()
        leave = asyncio.gather(self.under_way.drain(), self._receiver.leave())
        try:
            await asyncio.wait_for(leave, self._drain_s)
        except asyncio.TimeoutError:
            self._log.warning("drain timed out", under_way=self.under_way.depth)

    async def close(self) -> None:
        """See `Part`: send the engine nothing more, and log what was only counted so far."""
        for task in self._beside:
            task.cancel()
        await self._updates.close()
        await self.under_way.stop()
        self._few.flush()

    def _session_dropped(self, session: Session) -> None:
        """A session was pushed out by others, or its bundle is gone: keep nothing of it."""
        self.under_way.forget(session.id, session.owner)
        self._metrics.sessions_dropped.inc()

    def _more(self, name: str, count: int) -> None:
        self._log.warning("more of the same", what=name, count=count)
