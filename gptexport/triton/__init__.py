"""A model repository for NVIDIA Triton, which KServe reads too: an artifact's graphs, and generation. Torch-free."""

from gptexport.triton.repository import Serving, write_repository

__all__ = ["Serving", "write_repository"]
