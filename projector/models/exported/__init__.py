"""An edge export: the small model as ONNX graphs, run without torch and transformers.

`projector export-edge` writes one (`projector/serving/edge_export.py`), the agent reads it here.
"""
