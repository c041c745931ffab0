"""Video metrics with the interface of torchmetrics. Their input is uint8 video (B, T, H, W, 3)."""
