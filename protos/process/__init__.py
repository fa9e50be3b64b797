"""What the processes of both halves do alike: console, logs, files, addresses, child processes.

Knows no model, no frame and no gRPC; imports nothing of ours but `protos.errors`.
"""
