"""Any odd photograph to an upright RGB picture, and the geometry of its crops."""
