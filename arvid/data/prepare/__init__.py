"""Prepare published datasets, one module each: from the download to manifests and split lists."""
