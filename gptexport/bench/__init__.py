"""How fast is it, beside what: each side warm and in a process of its own, in interleaved rounds, as paired ratios."""
