"""The portable graph, standard operators only, on ONNX Runtime: slow, and the reference for other engines."""
