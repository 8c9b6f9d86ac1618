"""An engine behind NVIDIA Triton Inference Server: the model repository, the models in it, and a local server."""
