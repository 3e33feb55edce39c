"""An agent as ONNX files, and a planner of numpy and onnxruntime alone that runs them.

Nothing is imported here: `tdmpc2.export.numpy_agent` needs no torch, `tdmpc2.export.files` does.
"""
