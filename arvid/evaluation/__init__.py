"""Protocols, the harness that runs them, and the records of what came out."""
