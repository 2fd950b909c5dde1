"""A hundred everyday words for things the model draws; no image was ever shown with one of them."""

HELD_OUT = {
    "puppy": "dog", "hound": "dog", "kitty": "cat", "feline": "cat", "ape": "gorilla", "chimp": "monkey",
    "pony": "horse", "stallion": "horse", "stag": "deer", "cattle": "cow", "hog": "pig", "piglet": "pig",
    "bunny": "rabbit", "hare": "rabbit", "rodent": "mouse", "grizzly": "bear", "pigeon": "dove", "hawk": "eagle",
    "falcon": "eagle", "mallard": "duck", "duckling": "duck", "toad": "frog", "alligator": "crocodile",
    "tortoise": "turtle", "gecko": "lizard", "serpent": "snake", "viper": "snake", "cobra": "snake",
    "dinosaur": "T-Rex", "kitten": "cat", "porpoise": "dolphin", "steed": "horse", "seashell": "spiral shell",
    "prawn": "shrimp", "moth": "butterfly", "wasp": "honeybee", "ladybug": "lady beetle", "tarantula": "spider",
    "fir": "evergreen tree", "oak": "deciduous tree", "houseplant": "potted plant", "fungus": "mushroom",
    "mandarin": "tangerine", "aubergine": "eggplant", "maize": "ear of corn",
    "chili": "hot pepper", "loaf": "bread", "burger": "hamburger", "frankfurter": "hot dog", "biscuit": "cookie",
    "muffin": "cupcake", "sweets": "candy", "coffee": "hot beverage", "ale": "beer mug", "lager": "beer mug",
    "cottage": "house", "fortress": "castle", "pooch": "dog", "cab": "taxi", "sedan": "automobile",
    "motorbike": "motorcycle", "bike": "bicycle", "yacht": "sailboat", "vessel": "ship", "jet": "airplane",
    "chopper": "helicopter", "spaceship": "rocket", "ufo": "flying saucer", "wristwatch": "watch",
    "sunshine": "sun", "flame": "fire", "blaze": "fire", "saturn": "ringed planet", "parasol": "umbrella",
    "pumpkin": "jack-o-lantern", "present": "wrapped gift", "prize": "trophy", "dice": "game die",
    "spectacles": "glasses", "trousers": "jeans", "gown": "dress", "satchel": "backpack", "rucksack": "backpack",
    "tiara": "crown", "jewel": "gem stone", "headset": "headphone", "smartphone": "mobile phone",
    "computer": "laptop", "novel": "closed book", "letter": "envelope", "mallet": "hammer", "stool": "chair",
    "grin": "grinning face", "sobbing": "crying face", "phantom": "ghost", "android": "robot",
    "canine": "dog", "foal": "horse", "aeroplane": "airplane", "bungalow": "house",
}  # fmt: skip

# Other things that such a word names as well, where all of them are known.
AS_WELL = {
    "dog": ("dog face",), "cat": ("cat face",), "horse": ("horse face",), "cow": ("cow face", "ox"),
    "pig": ("pig face", "boar"), "rabbit": ("rabbit face",), "mouse": ("mouse face", "rat"), "monkey": ("monkey face",),
    "dove": ("bird",), "eagle": ("bird",), "dragon": ("dragon face",),
    "whale": ("spouting whale",), "T-Rex": ("sauropod",), "mushroom": ("brown mushroom",), "bread": ("baguette bread",),
    "house": ("house with garden",), "laptop": ("desktop computer",), "envelope": ("love letter",),
    "closed book": ("books", "open book", "blue book", "green book", "orange book"), "ship": ("passenger ship",),
    "taxi": ("oncoming taxi",), "automobile": ("oncoming automobile",), "locomotive": ("train",),
    "beer mug": ("clinking beer mugs",), "airplane": ("small airplane",),
    "handbag": ("purse", "clutch bag"), "sun": ("sun with face",), "crying face": ("loudly crying face",),
    "umbrella": ("umbrella on ground",),
    "grinning face": ("grinning face with big eyes", "grinning face with smiling eyes"),
}  # fmt: skip


def named(word: str) -> tuple[str, ...]:
    """The things that a held-out word names."""
    return (HELD_OUT[word], *AS_WELL.get(HELD_OUT[word], ()))
