"""The contract between edge and cloud: messages, cache layout, codecs, framing, distortion.

It uses NumPy, protobuf and gRPC, but no tensor library and no model.
"""
