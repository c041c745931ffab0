"""Several runs trained and scored side by side: what the scripts of benchmarks/ have in common."""
