"""The published definitions once more, plainly, with NLTK as it is: what scoring must equal.

Only the vocabulary of CHAIR (a list, checked by its hash in the tests) is shared with the library.
"""

from functools import cache

import nltk
from nltk.stem import WordNetLemmatizer

from reverse.evaluation.reading.chair_words import _OBJECT_OF, _PAIRS

LEMMATIZER = WordNetLemmatizer()


# ---------------------------------------------------------------------- CHAIR
@cache
def chair_words(text):
    """(objects mentioned, number of words) of a caption."""
    tagged = nltk.pos_tag(nltk.word_tokenize(text.lower()))
    words = []
    for word, tag in tagged:
        pos = "a" if tag[0] == "J" else tag[0].lower() if tag[0] in "VNR" else "n"
        words.append(LEMMATIZER.lemmatize(word, pos=pos))
    merged = []
    while words:
        first = words.pop(0)
        if words and first + " " + words[0] in _PAIRS:
            first = _PAIRS[first + " " + words.pop(0)]
        merged.append(first)
    kept = merged
    if "toilet" in merged and "seat" in merged:
        kept = [word for word in merged if word != "seat"]
    return [_OBJECT_OF[word] for word in kept if word in _OBJECT_OF], len(merged)


def chair(captions, truths):
    """CHAIRs, CHAIRi, recall, mean length; truths: a set of objects for each caption."""
    bad_captions = bad = said = found = there = length = 0
    for text, truth in zip(captions, truths, strict=True):
        objects, words = chair_words(text)
        invented = [name for name in objects if name not in truth]
        bad_captions += bool(invented)
        bad += len(invented)
        said += len(objects)
        found += len(set(objects) & truth)
        there += len(truth)
        length += words
    return bad_captions / len(captions), bad / said, found / there, length / len(captions)


def coco_objects(instances, captions):
    """image id: objects, from loaded annotation files."""
    name = {c["id"]: c["name"] for c in instances["categories"]}
    truth = {image["id"]: set() for image in instances["images"]}
    for a in instances["annotations"]:
        truth[a["image_id"]].add(_OBJECT_OF[name[a["category_id"]]])
    for a in captions["annotations"]:
        truth[a["image_id"]].update(chair_words(a["caption"])[0])
    return truth


# ---------------------------------------------------------------------- AMBER
def amber_captions(answers, items, relation, safe_words, similar):
    """The four figures that are printed; answers: texts in the order of the items.

    The published procedure with its flat lists: words that relatives stand for come first and carry the
    number of their object, then the objects themselves with a flag each.
    """
    net = set(relation) | {w for ws in relation.values() for w in ws}
    m = dict.fromkeys(("chair", "nouns", "cover", "objects", "cog", "hallu", "clean", "n"), 0)
    for key in ("nouns", "objects", "hallu", "n"):
        m[key] = 0.001
    for text, item in zip(answers, items, strict=True):
        tagged = nltk.pos_tag(nltk.word_tokenize(text))
        nouns = [LEMMATIZER.lemmatize(w) for w, t in tagged if t.startswith("NN")]
        nouns = [w for w in nouns if w in net]

        def flat(objects):
            words, numbers = [], []
            for i, name in enumerate(objects):
                words += relation.get(name, [])
                numbers += [i] * len(relation.get(name, []))
            return words + list(objects), numbers + [0] * len(objects)

        good, good_list = flat(item["truth"])
        bad, bad_list = flat(item["hallu"])
        n_good, n_bad = len(item["truth"]), len(item["hallu"])

        def mark(j, flags, n):
            flags[flags[j] + len(flags) - n if j < len(flags) - n else j] = 1

        wrong = 0
        for noun in nouns:
            if noun in safe_words:
                continue
            if noun in good:
                mark(good.index(noun), good_list, n_good)
                continue
            if noun in bad:
                mark(bad.index(noun), bad_list, n_bad)
            for j, word in enumerate(bad):
                if similar(noun, word):
                    mark(j, bad_list, n_bad)
                    break
            for j, word in enumerate(good):
                if similar(noun, word):
                    mark(j, good_list, n_good)
                    break
            else:
                wrong += 1
        m["chair"] += wrong
        m["nouns"] += len(nouns)
        m["cover"] += sum(good_list[-n_good:])
        m["objects"] += len(good_list[-n_good:])
        m["cog"] += sum(bad_list[-n_bad:])
        m["hallu"] += len(bad_list[-n_bad:])
        m["clean"] += wrong == 0
        m["n"] += 1
    return {
        "CHAIR": round(m["chair"] / m["nouns"] * 100, 1),
        "Cover": round(m["cover"] / m["objects"] * 100, 1),
        "Hal": round(100 - m["clean"] / m["n"] * 100, 1),
        "Cog": round(m["cog"] / m["hallu"] * 100, 1),
    }


def amber_questions(texts, truths, added=0.0001):
    """Accuracy, precision, recall, F1 as printed."""
    right = n = no_right = no_truth = no_said = 0
    for text, truth in zip(texts, truths, strict=True):
        said = text
        if text.lower().find("yes") >= 0:
            said = "Yes"
        elif text.lower().find("no") >= 0:
            said = "No"
        n += 1
        right += (truth, said) in (("yes", "Yes"), ("no", "No"))
        no_truth += truth == "no"
        no_said += said == "No"
        no_right += truth == "no" and said == "No"
    accuracy = round(right / (n + 0.001) * 100, 1)
    precision = round(no_right / (no_said + 0.001) * 100, 1)
    recall = round(no_right / (no_truth + 0.001) * 100, 1)
    p, r = precision / 100, recall / 100
    return {
        "Accuracy": accuracy,
        "Precision": precision,
        "Recall": recall,
        "F1": round(2 * p * r / (p + r + added) * 100, 1),
    }


# ---------------------------------------------------------------------- POPE, MME
def pope(texts, labels):
    """F1, accuracy, precision, recall, share of yes; "yes" positive."""
    said = []
    for text in texts:
        if "." in text:
            text = text[: text.index(".")]
        words = "".join(c for c in text if c != ",").split(" ")
        said.append(not ({"No", "not", "no"} & set(words)))
    truth = [label != "no" for label in labels]
    tp = sum(s and t for s, t in zip(said, truth, strict=True))
    fp = sum(s and not t for s, t in zip(said, truth, strict=True))
    fn = sum(not s and t for s, t in zip(said, truth, strict=True))
    precision, recall = tp / (tp + fp + 1e-8), tp / (tp + fn + 1e-8)
    return {
        "f1": 2 * precision * recall / (precision + recall + 1e-8),
        "accuracy": (len(said) - fp - fn) / len(said),
        "precision": precision,
        "recall": recall,
        "yes_share": sum(said) / len(said),
    }


def mme(pairs):
    """Score of a task from [((text, label), (text, label)), …]."""

    def reading(text):
        text = text.rstrip().lower()
        if text in ("yes", "no"):
            return text
        return "yes" if "yes" in text[:4] else "no" if "no" in text[:4] else "other"

    scores = []
    for pair in pairs:
        correct = sum(reading(text) == label for text, label in pair)
        scores.append((correct / 2 + (correct == 2)) * 100)
    return sum(scores) / len(scores)
