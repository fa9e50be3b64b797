"""The device: source → vlm → select → encode → uplink, one answer per question.

Knows the contract (`protos`) and the base modules of `projector`; knows nothing of the
service's code or of any reference model. Torch is imported only behind `edge_agent.prefill`.
"""
