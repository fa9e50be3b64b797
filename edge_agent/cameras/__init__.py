"""Cameras: each in a process of its own that hands over frames by shared memory.

`camera.py` (the agent's side) starts and watches `process.py` (the camera's side).
"""
