"""Preparations of published datasets, one module each: from what is downloaded to manifests and split lists."""
