"""The service: receive → decode → project → inject → answer.

Two processes: a front end (gRPC, sessions, metrics; no tensor library) and one engine per device,
which owns the large model. Knows the contract (`protos`) and the base and serving modules of
`projector`; knows nothing of the edge agent or of any reference model.
"""
