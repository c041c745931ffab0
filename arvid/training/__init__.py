"""Training: LightningModules, callbacks, optimiser and schedule, checkpoints, tokenizer files."""
