"""Makes a prepared dataset from photographs, on disk and on the Hub."""
