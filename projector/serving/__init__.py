"""Prepares a cloud half for serving: ONNX graph and TensorRT plan."""
