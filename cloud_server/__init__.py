"""The service. One frame, from its bytes to its answer, and what each process and thread may touch.

    front end, one asyncio thread: sessions, queues, answers; never a tensor library
      Receiver._read → ._take      frontend/receive.py     parse, digest, point, credit
      UnderWay.submit → Admission  frontend/under_way.py   fair turns; FrontLink.submit
    engine, main thread: the model, scenes and latents; in engine/process.py, step by step
      EngineLink.receive, .send    engine/link.py          Job in, events out
      TransformersEngine.step      engine/transformers.py  decode → project → inject → answer,
                                                           each a file of that name in engine/
    engine, thread `engine-link`: heartbeats, over the same socket under a lock
    engine, thread `pictures`: files and pixels, never the weights (engine/reader.py)
    front end again: Teller.hear → Computation → Outbox → Teller.write (frontend/tell.py)
    front end, threads of the metrics port: they read figures, and touch nothing else

A third process, the spare (engine/spare.py), has everything loaded and makes engines by fork.
"""
