"""Data: video files, clips and their motion scores, datasets, cached tokens, batches."""
