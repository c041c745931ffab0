"""Metrics in the manner of torchmetrics. Every one takes uint8 video (B, T, H, W, 3) at its door."""
