"""English number words from zero to ninety-nine."""

_UNITS = "zero one two three four five six seven eight nine ten eleven twelve".split()
_UNITS += "thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()

NUMBER_WORDS = [*_UNITS, *(ten + unit for ten in _TENS for unit in ("", *(f"-{word}" for word in _UNITS[1:10])))]
