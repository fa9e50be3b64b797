"""A cloud half made ready to run: ONNX graph, TensorRT engine, backends."""
