"""The reference network in plain PyTorch, its checkpoint, and its folded inference form."""
