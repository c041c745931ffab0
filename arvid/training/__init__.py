"""Training: the LightningModules, the optimiser and its schedule, and tokenizers in files."""
