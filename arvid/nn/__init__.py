"""Blocks that paradigms and tokenizers share. Look here before writing a second attention."""
