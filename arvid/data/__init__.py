"""Video in and out: reading and writing files, clips and their motion score, datasets, cached tokens."""
