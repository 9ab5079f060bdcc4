"""A web page that encodes and decodes photographs in the browser, with exported models. Needs no torch."""
