"""The shapes of a codec's large weights, to compare with a file before memory for the codec is allocated."""

from collections.abc import Mapping

from codec.description.architecture import KEEP_GDN, Architecture

Shape = tuple[int, ...]

BLOCKS = (1, 3, 5)
"""Places of the blocks in a transform: between its four convolutions."""


def weight_shapes(architecture: Architecture) -> dict[str, Shape]:
    """The shape of every weight that grows with the product of two widths, by its name in the state dict.

    All others grow with one width. Replacement blocks are left out.
    """
    n, m = architecture.N, architecture.M
    widths = {"g_a": [(n, 3), (n, n), (n, n), (m, n)], "g_s": [(m, n), (n, n), (n, n), (n, 3)]}
    sizes = {"g_a": [5] * 4, "g_s": [5] * 4, "h_a": [3, 5, 5], "h_s": [5, 5, 3]}
    if architecture.arch == "bmshj2018_hyperprior":
        widths |= {"h_a": [(n, m), (n, n), (n, n)], "h_s": [(n, n), (n, n), (m, n)]}
    if architecture.arch == "mbt2018_mean":
        wide = m * 3 // 2
        widths |= {"h_a": [(n, m), (n, n), (n, n)], "h_s": [(n, m), (m, wide), (2 * m, wide)]}
    shapes: dict[str, Shape] = {
        f"{part}.{2 * i}.weight": (*pair, sizes[part][i], sizes[part][i])
        for part, pairs in widths.items()
        for i, pair in enumerate(pairs)
    }
    for part in ("g_a", "g_s"):
        if getattr(architecture, part).name == KEEP_GDN:
            shapes |= {f"{part}.{i}.gamma": (n, n) for i in BLOCKS}
    return shapes


def check_shapes(architecture: Architecture, found: Mapping[str, Shape]) -> None:
    """Raises ValueError if the widths, from which a codec is built, contradict the shapes of a file's weights."""
    for name, shape in weight_shapes(architecture).items():
        if found.get(name) != shape:
            has = found.get(name, "none")
            raise ValueError(
                f"N={architecture.N}, M={architecture.M} ask for {name} of shape {shape}, and it has {has}"
            )
