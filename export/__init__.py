"""From a folded network to a verified engine file (imported as `tkfnet_engine.export`)."""
