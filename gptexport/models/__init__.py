"""Names of version 0.1: see gptexport.architectures."""
