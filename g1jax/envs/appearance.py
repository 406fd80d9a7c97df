"""Appearance: named colors, palettes and backgrounds. They change how a board is drawn, never its meaning."""

Color = tuple[int, int, int]
"""Red, green, blue, 0 to 255."""

COLORS: dict[str, Color] = {
    "Red": (226, 38, 38),
    "Green": (28, 158, 60),
    "Blue": (44, 84, 226),
    "Yellow": (248, 208, 20),
    "Magenta": (226, 48, 204),
    "Cyan": (24, 204, 220),
    "Orange": (250, 138, 22),
    "Purple": (122, 50, 182),
    "Brown": (136, 84, 42),
    "Pink": (255, 158, 188),
    "Lime": (166, 232, 40),
    "Navy": (22, 34, 104),
    "Teal": (14, 122, 122),
    "Olive": (132, 132, 24),
    "Gray": (138, 138, 138),
    "Black": (24, 24, 24),
}
"""Tile colors by their name in the board text. Games use the first ones."""

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "diamond", "cross", "star")
"""Tile shapes by their name in the board text. Games use the first ones."""

PALETTES: tuple[str, ...] = ("classic", "pastel", "deep")
"""Transformations of all tile colors of a game; see `shade`."""

BACKGROUNDS: dict[str, tuple[Color, Color, Color]] = {
    "light": ((246, 245, 241), (214, 211, 203), (234, 232, 226)),
    "white": ((255, 255, 255), (226, 226, 226), (255, 255, 255)),
    "sand": ((236, 222, 190), (206, 188, 148), (222, 206, 170)),
    "slate": ((104, 114, 128), (78, 86, 98), (90, 99, 112)),
    "dark": ((44, 46, 52), (72, 75, 84), (30, 31, 36)),
}
"""Background name -> colors of (cell, grid line, margin around the board)."""


def shade(color: Color, palette: str) -> Color:
    """A color in a palette: `pastel` mixes in white, `deep` darkens.

    >>> shade((200, 100, 0), "deep")
    (144, 72, 0)
    """
    if palette == "pastel":
        return mix(color, (255, 255, 255), 0.38)
    if palette == "deep":
        return mix(color, (0, 0, 0), 0.28)
    return color


def mix(a: Color, b: Color, share: float) -> Color:
    """Color `a` with a share of `b` mixed in.

    >>> mix((0, 0, 0), (200, 100, 0), 0.5)
    (100, 50, 0)
    """
    red, green, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue


def luminance(color: Color) -> float:
    """Perceived brightness, 0 to 255 (ITU-R BT.601 weights)."""
    return 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
