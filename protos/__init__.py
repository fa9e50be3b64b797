"""The contract between edge and cloud: messages, cache layout, codecs, framing, distortion.

Knows NumPy, protobuf and gRPC. Knows no tensor library, no model and no socket.
"""
