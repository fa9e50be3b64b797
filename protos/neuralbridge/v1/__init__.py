"""Generated stubs of `neuralbridge.v1` (see `protos/generate.py`); knows only bridge.proto."""
