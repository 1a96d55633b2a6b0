"""Training on several devices, applied from outside the model."""
