"""A page that runs a bundle in the browser, and the proof that it is the same model there."""

from gptexport.web.site import Site, is_site, write_site

__all__ = ["Site", "is_site", "write_site"]
