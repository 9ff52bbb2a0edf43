"""The vocabulary of the bundled models: a sentencepiece unigram model with which T5Tokenizer in transformers agrees with us.

The pieces are chosen here. Each word of the tasks is one piece, as a model this small should not have to assemble words;
so are option letters and two-digit numbers, which makes dates and sums lookups. Any other English word is written with
its first two letters as one piece, by which words are sorted, then parts that sentencepiece finds. Any ASCII text can be
spelled. There are no user-defined symbols and no byte pieces, which the two libraries treat differently.
"""

import io
import re
from collections import Counter
from collections.abc import Iterable
from string import ascii_lowercase

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from support.grammars.sorting import WORDS
from support.options import option_letter

SIZE = 2048
# Pieces never cross the borders of these parts of a text. A space belongs to the word after it; before a number it is
# separate.
PART = re.compile(r" ?\([A-Z]{1,2}\)| ?[A-Za-z]+|\d\d|.")
# Scores act as log-probabilities: a word beats its parts. All are multiples of 1/16, so that their sums are exact, and
# the two libraries, which add in different precisions, break ties alike.
WHOLE, BEGINNING, PART_BELOW, CHARACTER = -5.0, -6.0, -5.0, -20.0


def vocabulary(texts: Iterable[str]) -> bytes:
    """A sentencepiece model for texts like these. Special ids as T5's: pad 0, end of sequence 1, unknown 2."""
    counts = Counter(part for text in texts for line in text.split("\n") for part in PART.findall(" " + line))
    whole = [f" {option_letter(i)}" for i in range(40)] + [f"{number:02}" for number in range(100)]
    whole += [part for part, count in counts.most_common() if count >= 5 and len(part) > 1]
    beginnings = sorted({f" {word[:2]}" for word in WORDS})
    characters = [" ", *map(chr, range(33, 127)), *(f" {letter}" for letter in ascii_lowercase)]
    scores = {}
    for base, pieces in ((WHOLE, whole), (BEGINNING, beginnings), (CHARACTER, characters)):
        for piece in pieces:
            scores.setdefault(piece.replace(" ", "▁"), base)
    model, parts = learned_parts()
    for piece, score in parts[: SIZE - 3 - len(scores)]:
        scores.setdefault(piece, round(16 * score) / 16 + PART_BELOW)
    return with_pieces(model, scores, [piece for piece, _ in parts])


def learned_parts() -> tuple[bytes, list[tuple[str, float]]]:
    """What sentencepiece learns from the rests of English words: its model, and (part, score), the likeliest first."""
    model = io.BytesIO()
    rests = iter(word[2:] for word in WORDS if len(word) > 2)
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    how = {"model_type": "unigram", "treat_whitespace_as_suffix": False, "add_dummy_prefix": False, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=rests, model_writer=model, vocab_size=1300, **ids, **how)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    parts = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(3, pieces.get_piece_size())]
    return model.getvalue(), [(piece, score) for piece, score in parts if piece.isalpha() and len(piece) > 1]


def with_pieces(model: bytes, scores: dict[str, float], more: list[str]) -> bytes:
    """This sentencepiece model with other pieces, and with a space before the first word, as T5 has it."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    del proto.pieces[3:]
    for piece in more:  # until there are enough
        if len(scores) < SIZE - 3:
            scores.setdefault(piece, CHARACTER)
    for piece, score in list(scores.items())[: SIZE - 3]:
        proto.pieces.add(piece=piece, score=score)
    proto.normalizer_spec.add_dummy_prefix = True
    proto.trainer_spec.vocab_size = SIZE
    return proto.SerializeToString()
