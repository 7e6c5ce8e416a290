"""The model in PyTorch -> a checked ONNX graph."""
