"""Tell English from other languages, as precisely as reading yes and no needs it.

    is_english(["yes", "there", "is"]), is_english(["oui"]), is_english(["是"])      # True, False, False

This needs no language model: it looks for letters of another script, and for frequent words of other
languages that are neither English words nor parts of names. Short answers without any of them count as
English.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["is_english"]

_ENGLISH_TEXT = """
    a an the is are was were be been am do does did has have had can cannot could will would there here
    this that these those it its he she they we you i in on at of to by for from with without into near
    behind under and or but so as if than then because not yes none image picture photo visible shown see
    seen looks appears one two three any some right left answer"""
_FOREIGN_TEXT = """
    sí si hay está esta están imagen una uno con por para que muy pero ningún ninguna hombre mujer
    não nao sim há uma imagem são também nenhum tem
    oui non il elle est une un dans sur avec pas cette c'est n'est l'image aucun chien
    ja nein nicht kein keine keinen ist es das der ein eine einen auf dem bild und sind wird gibt
    sì è c'è nella nell'immagine sono gli nessun anche
    nee geen het een niet zijn afbeelding deze
    nej ikke inte ingen ingenting det är och på finns
    tak nie jest są tego nema není jsou áno
    evet hayır hayir yok değil
    tidak bukan iya gambar
    không vâng phải
    este sunt
    kyllä igen nem nincs
    da nyet hai iie"""
_ENGLISH = frozenset(_ENGLISH_TEXT.split())
_FOREIGN = frozenset(_FOREIGN_TEXT.split())


def is_english(words: Sequence[str]) -> bool:
    """Whether words in lower case are English, or too few to tell that they are not."""
    latin = other = 0
    for word in words:
        for letter in word:
            if letter.isalpha():
                if _is_latin(letter):
                    latin += 1
                else:
                    other += 1
    if other > latin:
        return False
    foreign = sum(word in _FOREIGN for word in words)
    return not foreign or foreign < sum(word.partition("'")[0] in _ENGLISH for word in words)


def _is_latin(letter: str) -> bool:
    return letter < "\u0250" or "\u1e00" <= letter < "\u1f00" or "\uff21" <= letter <= "\uff5a"
