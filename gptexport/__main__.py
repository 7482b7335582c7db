"""`python -m gptexport`."""

from gptexport.cli import main

main()
