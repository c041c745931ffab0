"""Network blocks that paradigms and tokenizers share. Look here before you write a second attention."""
