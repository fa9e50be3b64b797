"""What the processes of both halves do alike: settings, logs, metrics, health port, files, console.

Knows no model and no gRPC.
"""
