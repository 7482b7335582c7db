"""gptexport: take a GPT trained in PyTorch out of the notebook. Torch is imported only by the parts that need it."""

__version__ = "0.1.0"
