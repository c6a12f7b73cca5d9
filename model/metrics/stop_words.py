"""Words of English that say nothing of an image.

Source: the Snowball stemmer's list, https://snowballstem.org/algorithms/english/stop.txt, without the
contractions, whose parts stand here instead.
"""

_WORDS = """
i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she her hers
herself it its itself they them their theirs themselves what which who whom this that these those
am is are was were be been being have has had having do does did doing would should could ought
s t d m ll re ve
a an the and but if or because as until while of at by for with about against between into through during
before after above below to from up down in out on off over under again further then once here there when
where why how all any both each few more most other some such no nor not only own same so than too very
"""

STOP_WORDS = frozenset(_WORDS.split())
