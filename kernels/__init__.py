"""Triton kernels and the launch plan (imported as `tkfnet_engine.kernels`)."""
