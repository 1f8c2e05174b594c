"""The words the model understands besides objects, and what each looks like (sRGB, 0 to 255)."""

RGB = tuple[int, int, int]

BACKGROUNDS: dict[str, RGB] = {
    "white": (255, 255, 255),
    "black": (18, 18, 20),
    "gray": (150, 150, 155),
    "red": (222, 40, 45),
    "orange": (250, 140, 30),
    "yellow": (252, 216, 50),
    "green": (55, 170, 75),
    "blue": (45, 100, 225),
    "purple": (130, 65, 190),
    "pink": (250, 150, 195),
    "brown": (130, 80, 50),
    "cyan": (60, 200, 205),
}
# What a prompt that names no background may get: white or a pastel, so that two seeds differ at a glance. The object
# itself stays as it is, since what varies in it would have to be learnt.
PALE: tuple[RGB, ...] = (
    (255, 255, 255),
    (255, 236, 204),
    (255, 247, 200),
    (255, 221, 226),
    (211, 232, 255),
    (208, 242, 245),
    (214, 243, 221),
    (232, 220, 252),
)
COLOURS: dict[str, RGB] = {
    "red": (225, 45, 50),
    "orange": (245, 135, 35),
    "yellow": (245, 205, 45),
    "green": (60, 170, 75),
    "blue": (50, 105, 225),
    "purple": (135, 65, 190),
    "pink": (245, 120, 180),
    "brown": (130, 82, 50),
    "black": (48, 48, 54),
    "white": (236, 236, 240),
    "gray": (145, 147, 152),
}
COLOUR_SYNONYMS = {
    "gray": ("gray", "grey"),
    "cyan": ("cyan", "teal", "turquoise"),
    "purple": ("purple", "purple", "violet"),
}
SCENES = {
    "space": ("in space", "in outer space", "among the stars", "in the night sky", "at night"),
    "grass": ("on the grass", "on green grass", "in a field", "in a meadow", "in a park"),
    "beach": ("on the beach", "at the beach", "on the sand", "by the sea"),
    "snow": ("in the snow", "in winter", "on snow", "on the ice"),
    "sunset": ("at sunset", "in the sunset", "at sunrise", "in front of a sunset"),
    "underwater": ("underwater", "under the sea", "in the ocean", "under water", "in the sea"),
}
SIZES = {
    "tiny": ("tiny", "small", "little"),
    "huge": ("huge", "big", "giant", "large"),
}


def listed(text: str) -> list[str]:
    """The parts of "this|that"."""
    return text.split("|")


def synonyms(colour: str) -> tuple[str, ...]:
    """The words for a colour."""
    return COLOUR_SYNONYMS.get(colour, (colour,))
