"""GPTs as people write them: parts that are put together, and the catalogue of what is made of them."""
