"""Find the 80 COCO objects that a caption names, with the vocabulary that defines CHAIR.

    find_mentions("A dog and a kitten.")     # ([("dog", "dog"), ("kitten", "cat")], 6): words, objects,
    length

Published with "Object Hallucination in Image Captioning" (https://arxiv.org/abs/1809.02156; the list:
https://github.com/LisaAnne/Hallucination, data/synonyms.txt, from "Neural Baby Talk"), and used since by an
evaluator that lemmatises each word by its part of speech. Errors of that evaluator are part of all reported
numbers, so they are kept here, as missing words: "motor bike" in two words, "cheesecake" (both stand behind
two spaces in the list) and "iPhone" (words are lower-cased) name nothing; "stove top oven" has three words,
where two are joined.
"""

from __future__ import annotations

from functools import lru_cache

from reverse.evaluation.reading.english_words import Tags, lemmatize, tokenize, wordnet_pos

__all__ = ["OBJECTS", "find_mentions", "join_pairs"]

# object: words that name it beside itself
_SYNONYMS = {
    "person": (
        "girl boy man woman kid child chef baker people adult rider children baby worker passenger "
        "sister biker policeman cop officer lady cowboy bride groom male female guy traveler mother "
        "father gentleman pitcher player skier snowboarder skater skateboarder foreigner caller offender "
        "coworker trespasser patient politician soldier grandchild serviceman walker drinker doctor "
        "bicyclist thief buyer teenager student camper driver solider hunter shopper villager"
    ),
    "bicycle": "bike unicycle minibike trike",
    "car": "automobile van minivan sedan suv hatchback cab jeep coupe taxicab limo taxi",
    "motorcycle": "scooter motor_cycle motorbike moped",
    "airplane": "jetliner plane air_plane monoplane aircraft jet airbus biplane seaplane",
    "bus": "minibus trolley",
    "train": "locomotive tramway caboose",
    "truck": "pickup lorry hauler firetruck",
    "boat": (
        "ship liner sailboat motorboat dinghy powerboat speedboat canoe skiff yacht kayak catamaran "
        "pontoon houseboat vessel rowboat trawler ferryboat watercraft tugboat schooner barge ferry "
        "sailboard paddleboat lifeboat freighter steamboat riverboat battleship steamship"
    ),
    "traffic light": "street_light traffic_signal stop_light streetlight stoplight",
    "fire hydrant": "hydrant",
    "stop sign": "",
    "parking meter": "",
    "bench": "pew",
    "bird": (
        "ostrich owl seagull goose duck parakeet falcon robin pelican waterfowl heron hummingbird "
        "mallard finch pigeon sparrow seabird osprey blackbird fowl shorebird woodpecker egret chickadee "
        "quail bluebird kingfisher buzzard willet gull swan bluejay flamingo cormorant parrot loon "
        "gosling waterbird pheasant rooster sandpiper crow raven turkey oriole cowbird warbler magpie "
        "peacock cockatiel lorikeet puffin vulture condor macaw peafowl cockatoo songbird"
    ),
    "cat": "kitten feline tabby",
    "dog": (
        "puppy beagle pup chihuahua schnauzer dachshund rottweiler canine pitbull collie pug terrier "
        "poodle labrador doggie doberman mutt doggy spaniel bulldog sheepdog weimaraner corgi cocker "
        "greyhound retriever brindle hound whippet husky"
    ),
    "horse": "colt pony racehorse stallion equine mare foal palomino mustang clydesdale bronc bronco",
    "sheep": "lamb ram goat ewe",
    "cow": "cattle oxen ox calf holstein heifer buffalo bull zebu bison",
    "elephant": "",
    "bear": "panda",
    "zebra": "",
    "giraffe": "",
    "backpack": "knapsack",
    "umbrella": "",
    "handbag": "wallet purse briefcase",
    "tie": "bow bow_tie",
    "suitcase": "suit_case luggage",
    "frisbee": "",
    "skis": "ski",
    "snowboard": "",
    "sports ball": "ball",
    "kite": "",
    "baseball bat": "",
    "baseball glove": "",
    "skateboard": "",
    "surfboard": "longboard skimboard shortboard wakeboard",
    "tennis racket": "racket",
    "bottle": "",
    "wine glass": "",
    "cup": "",
    "fork": "",
    "knife": "pocketknife knive",
    "spoon": "",
    "bowl": "container",
    "banana": "",
    "apple": "",
    "sandwich": "burger sub cheeseburger hamburger",
    "orange": "",
    "broccoli": "",
    "carrot": "",
    "hot dog": "",
    "pizza": "",
    "donut": "doughnut bagel",
    "cake": "cupcake shortcake coffeecake pancake",
    "chair": "seat stool",
    "couch": "sofa recliner futon loveseat settee chesterfield",
    "potted plant": "houseplant",
    "bed": "",
    "dining table": "table desk",
    "toilet": "urinal commode lavatory potty",
    "tv": "monitor televison television",
    "laptop": "computer notebook netbook lenovo macbook laptop_computer",
    "mouse": "",
    "remote": "",
    "keyboard": "",
    "cell phone": "mobile_phone phone cellphone telephone phon smartphone",
    "microwave": "",
    "oven": "stovetop stove",
    "toaster": "",
    "sink": "",
    "refrigerator": "fridge freezer",
    "book": "",
    "clock": "",
    "vase": "",
    "scissors": "",
    "teddy bear": "teddybear",
    "hair drier": "hairdryer",
    "toothbrush": "",
}
OBJECTS = tuple(_SYNONYMS)
_OBJECT_OF = {name: name for name in OBJECTS} | {
    word.replace("_", " "): name for name, words in _SYNONYMS.items() for word in words.split()
}

# Two words that are one: themselves ("home plate" and "train track" so that they name nothing), a young or
# grown animal without its "baby" or "adult" (which are persons), a vehicle without its "passenger".
_PAIRS = {
    pair: pair
    for pair in (
        "motor bike", "motor cycle", "air plane", "traffic light", "street light", "traffic signal",
        "stop light", "fire hydrant", "stop sign", "parking meter", "suit case", "sports ball",
        "baseball bat", "baseball glove", "tennis racket", "wine glass", "hot dog", "cell phone",
        "mobile phone", "teddy bear", "hair drier", "potted plant", "laptop computer", "home plate",
        "train track",
    )
} | {
    f"{young} {animal}": animal
    for young in ("baby", "adult")
    for animal in ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe",
                   "animal", "cub")
} | {
    "passenger jet": "jet", "passenger train": "train",
    "bow tie": "tie", "toilet seat": "toilet", "wine glas": "wine glass",
}  # fmt: skip
_FIRST = frozenset(pair.split()[0] for pair in _PAIRS)
_RELEVANT = frozenset(word for pair in _PAIRS for word in pair.split()) | frozenset(_OBJECT_OF)


def find_mentions(caption: str) -> tuple[list[tuple[str, str]], int]:
    """Return (word, object) of every mention, in order and with repeats, and the caption's length in words.

    The length counts tokens, punctuation included, and pairs once, as the published evaluator reports it.
    """
    words = join_pairs(tokenize(caption.lower()))
    length = len(words)
    if "toilet" in words and "seat" in words:  # "the seat of the toilet" is not a chair
        words = [word for word in words if word != "seat"]
    return [(word, _OBJECT_OF[word]) for word in words if word in _OBJECT_OF], length


def join_pairs(words: list[str]) -> list[str]:
    """Return the lemmas that the vocabulary needs, with pairs of words joined from left to right."""
    tags = Tags(words)
    base = []
    for i, word in enumerate(words):
        forms = _forms(word)
        base.append(forms if isinstance(forms, str) else forms[wordnet_pos(tags[i])])
    out = []
    i = 0
    while i < len(base):
        pair = f"{base[i]} {base[i + 1]}" if base[i] in _FIRST and i + 1 < len(base) else ""
        out.append(_PAIRS.get(pair, base[i]))
        i += 2 if pair in _PAIRS else 1
    return out


@lru_cache(maxsize=1 << 17)
def _forms(word: str) -> str | dict[str, str]:
    """Return the lemma of a word, or one for each part of speech if the vocabulary distinguishes them."""
    forms = {pos: lemmatize(word, pos) for pos in "nvar"}
    relevant = {form if form in _RELEVANT else None for form in forms.values()}
    return forms["n"] if len(relevant) == 1 else forms
