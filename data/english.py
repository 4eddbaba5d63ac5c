"""The English words and phrases by which an answer is asserted, denied, hedged or refused.

Texts meet these after reading: in small letters, without apostrophes ("didnt") and punctuation.
"""

from __future__ import annotations

import re


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


ARTICLES = frozenset({"the", "a", "an"})
COPULAS = _words("is was are were be been being called named equals")
JOINERS = frozenset({"and", "also", "plus"})
PARTICLES = _words("of with de del der di da du la le van von el al")
HEDGES = _words("maybe perhaps probably possibly likely surely certainly definitely")
CLAUSE_OPENERS = _words("but although though while whereas however because")
CLAIMING_VERBS = _words("won wins did received got took and or")
LEAD_INS = (
    _words(
        "it its he she they that this these i we you would could might may must have has had "
        "answer winner think believe guess say so then yes well or either and to went"
    )
    | ARTICLES
    | COPULAS
    | HEDGES
)
# Words that never continue a name, whatever their case: grammar, common verbs, forms of address.
FUNCTION_WORDS = (
    LEAD_INS
    | JOINERS
    | CLAUSE_OPENERS
    | CLAIMING_VERBS
    | _words(
        "am did do does done as at by for from in into of on out over under up down off with "
        "without about after before during since until than if when where who whom whose which "
        "what why how no not never nor neither none nope only just not yes there here now again "
        "me my mine your yours his her hers him them their our us all any some each both one 1 "
        "can cannot will shall should ought win winning get gets takes taken receive receives "
        "directed directs direct wrote written writes made makes said says told know knows "
        "of course obviously clearly actually apparently indeed really honestly unfortunately "
        "sadly regrettably sorry okay ok oh ah hmm hm hello hi hey sure right correct wrong "
        "mr mrs ms miss dr sir dame president prime minister director actor actress author "
        "writer professor film movie song book joe brandine assistant question too very "
        "still today yesterday tomorrow"
    )
)
_SMALL_NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty"
)
NUMBER_WORDS = {word: str(value) for value, word in enumerate(_SMALL_NUMBERS.split())}
# Beside a number they make another number of it.
LARGER_NUMBERS = _words(
    "thirty forty fifty sixty seventy eighty ninety hundred hundreds thousand thousands million "
    "millions billion billions trillion dozen dozens half point minus negative"
)
ABBREVIATIONS = _words("mr mrs ms dr jr sr st vs prof no")

NEGATIONS = _words(
    "not never neither nor no none nobody nothing cannot hardly arent isnt wasnt werent dont "
    "doesnt didnt hasnt havent hadnt cant couldnt wont wouldnt shouldnt aint"
)
_FALSEHOODS = _words(
    "false falsely wrong wrongly incorrect incorrectly untrue mistaken mistakenly"
)
_EXCLUSIONS = _words("except excluding besides unlike if beat beats beating defeated defeating")
_LOSSES = _words("lost loses failed beaten defeated nominated runner almost nearly")
DENIAL_WORDS = NEGATIONS | _FALSEHOODS | _EXCLUSIONS | _LOSSES | {"without", "than", "instead"}


def _any_of(words: frozenset[str]) -> str:
    return "(?:" + "|".join(sorted(words)) + r")\b"


# "No doubt" and "not only" deny nothing.
_NOT = _any_of(NEGATIONS) + r"(?! (?:doubt|question|only|other|surprise|wonder)\b)"
_FALSE = _any_of(_FALSEHOODS)
# The patterns below see words with the breaks between them as signs: "it was not , as he said ,".
_IN_CLAUSE = r"[^,.:?(]*"
_CLAUSE_START = r"[,.:?(] (?:(?:but|and|or|oh|well|although|though|while|whereas|however) )?"

NEGATION = re.compile(rf"\b{_NOT}")
# "No it was X" answers a doubt; "no X" denies X.
DENIED_BEFORE = re.compile(
    rf"\b(?!no (?:it|he|she|they|that|this)\b)(?:{_NOT}|{_FALSE}|{_any_of(_EXCLUSIONS)}"
    r"|(?:without(?! (?:a )?(?:doubt|question))|instead of|i doubt)\b"
    rf"|(?<!none other )(?<!no other )than\b){_IN_CLAUSE}$"
    r"|\b(?:anyone|anybody|everyone|everybody|anything|everything|all) , but $"
    rf"|\b{_any_of(NEGATIONS - {'no', 'nobody', 'none', 'nothing'})} [,:(]"
)
DENIED_AFTER = re.compile(
    rf"^{_IN_CLAUSE}\b(?:{_NOT}|{_FALSE}|{_any_of(_LOSSES)}|should have\b)"
    rf"|{_CLAUSE_START}(?:(?:no|nope|wait|sorry|correction|actually|rather|never mind|scratch that"
    rf"|just kidding)\b(?! (?:doubt|question|other)\b)|{_FALSE})"
    r"|[,.:?(] not(?: [,.:?(]|\s*$)"
    rf"|{_CLAUSE_START}(?:he|she|it|they|who|which|that|this|thats|its)\b{_IN_CLAUSE}\b"
    rf"(?:{_NOT}|{_FALSE}|lost\b)"
    r"|\b(?:do not|dont) (?:think|believe) so\b|\bi doubt\b"
)
REFUSAL = re.compile(
    r"\b(?:(?:do not|dont|did not|didnt|cannot|cant|could not|couldnt|can not|never)"
    r" (?:really |actually |possibly )?(?:know|say|tell|answer|recall|remember)"
    r"|(?:have|had|got) no (?:idea|clue|answer|information|knowledge|way)"
    r"|(?:do not|dont) have (?:that|this|the|any|enough|access)"
    r"|not (?:really |quite |entirely )?(?:sure|certain|aware|known|able to)|unsure|unable to"
    r"|(?:nobody|no 1|who) knows)\b"
    r"|^(?:no (?:idea|clue|answer|comment)|unknown|n a|idk|pass)\b"
)
GUESS = re.compile(r"\b(?:maybe|perhaps|probably|possibly|i guess)(?! not\b) \w")
ASKING = _words("who what which where when why how")
