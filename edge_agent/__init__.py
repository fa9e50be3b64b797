"""The device. This is the way of one frame, each step by file and function.

 1. `cli.main` → `assemble.run_agent`: settings, model, uplink; then `agent.Agent.run`, the loop.
 2. `sources/`: `Agent._next` takes the next `Capture`, a picture or a text.
 3. `prefill`: `FrameMaker.see` has the small model read it: a `Sight` with its `KVState`.
 4. `uplink/delivery`: `Uplink.credit` waits for room, then `Uplink.deliver` takes a `Request`.
 5. `plan.choose_point` names the operating point; `uplink/point_controller` follows the link.
 6. `select.keep_tokens` and `encode.encode_state` make the `Frame`.
 7. `guard.within_limit` passes the frame, or puts a better one or the picture in its place.
 8. `uplink/request`: `Request.seal` packs it for the session: a `Sealed` message.
 9. `uplink/connection` carries it; `Uplink.deliver` repeats it until its event: an `Outcome`.
10. `record.record_of` makes an `AnswerRecord`; `output.RecordWriter` writes it as one line.

Threads: the event loop runs the agent and the uplink; it alone touches streams, outcomes and
records. Worker threads take captures (2), run the small model (3, and its own answers) and make
frames (5 to 8). Both sides use `FrameMaker`, the models, `PointController`, and the frame numbers
and base of a `Session`: each has a lock. The metrics port (`protos/process/health`) has a thread
that only reads metrics.

Torch is imported only behind `prefill`, once a model is loaded.
"""
