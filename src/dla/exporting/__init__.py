"""Export networks to files for other programs: ONNX, OpenVINO and torch.export."""
