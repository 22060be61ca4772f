"""The demo model's small vocabulary: names, places, things and the grammar of articles and plurals."""

_HERS = "Mia Anna Lily Emma Sara Ella Nora Lucy Ruby Zoe Maya Ivy Rosa Clara Alice Mei Lin Yuki Aisha Nina Jane Mary Eva Kate"
_HIS = "Tom Ben Sam Max Leo Jack Noah Finn Owen Luke Adam Hugo Ali Wei Kofi Omar Paul Dan Tim Oscar Peter Jun Ravi John Bob"
NAMES = [(n, "She") for n in _HERS.split()] + [(n, "He") for n in _HIS.split()]

PLACES = {
    **dict.fromkeys("garden park forest kitchen library school house barn cave castle tower tent attic cellar "
                    "bakery shop village meadow".split(), "in"),
    **dict.fromkeys("market river beach lake bridge station farm harbour well mill pond zoo museum".split(), "at"),
}
COLOURS = "red blue green yellow white black brown pink orange purple silver golden".split()
THINGS = ("kite ball book lantern cup hat key coin map boat drum bell scarf basket flute rope lamp umbrella "
          "pencil box bottle mirror button ring feather stone blanket spoon whistle balloon apple candle clock "
          "doll letter shoe coat bag violin puzzle").split()
COUNTABLE = ("shells apples coins stones berries eggs flowers nuts marbles stars pears cards leaves cookies "
             "feathers buttons").split()
SPOTS = [f"{p} the {o}" for p, os in {
    "under": "bed table bench stairs tree bridge rug", "on": "table chair shelf roof bench windowsill",
    "in": "box drawer cupboard chest well bag basket", "behind": "door sofa curtain wall fence",
}.items() for o in os.split()]
PETS = "dog cat rabbit parrot pony turtle goat mouse hamster duck".split()
PET_NAMES = "Rex Coco Biscuit Luna Pip Shadow Poppy Milo Bella Rocky Daisy Spot".split()
FEELINGS = [(f, r) for f, rs in {
    "happy": "the sun was shining|a friend came to visit|it was a birthday|the cake was sweet",
    "sad": "the rain did not stop|a toy was broken|a friend moved away|the flowers had died",
    "tired": "the road was long|it was very late|the work was hard",
    "afraid": "the night was dark|the thunder was loud|there was a strange noise",
    "angry": "the door was locked|the milk was gone|someone told a lie",
    "proud": "the race was won|the work was done|the boat did not sink",
    "hungry": "there was no bread|lunch was late",
    "surprised": "the room was full of light|the box was empty|a bird began to sing",
    "excited": "the circus was coming|the train was near|it was almost a holiday",
    "lonely": "everyone had gone home|no one came to play",
    "calm": "the sea was quiet|the music was soft",
    "cold": "the snow was deep|the wind was strong",
}.items() for r in rs.split("|")]
FILLERS = ["It was a warm day.", "The wind was soft.", "It began to rain.", "The birds were singing.",
           "The sky was grey.", "It was early in the morning.", "The stars came out.", "It was a quiet evening."]
NUMBERS = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
           "seventeen eighteen nineteen twenty").split()


def a(words):
    """The words with the right article: `a red kite`, `an apple`."""
    return ("an " if words[0].lower() in "aeiou" else "a ") + words


def singular(noun):
    """One of a countable: `shells` -> `shell`, `berries` -> `berry`, `leaves` -> `leaf`."""
    if noun == "leaves":
        return "leaf"
    if noun.endswith("ies") and noun != "cookies":
        return noun[:-3] + "y"
    return noun[:-1]
