"""T5's tokenizer from SentencePiece alone."""

import os
import re
from contextlib import suppress
from pathlib import Path

import sentencepiece

from support import checkpoint_files
from support.checkpoint_files import CheckpointError

MAX_SPARE = 1000  # rows of the embedding beyond the vocabulary; published models have up to 127


class Tokenizer:
    """T5's SentencePiece vocabulary, followed by the sentinels `<extra_id_99>` ... `<extra_id_0>`.

    The ids are those of T5Tokenizer in transformers 5, which has one variant: a special token in the text is that
    token, and white space around it is dropped. (Only look-alikes such as `＜pad＞` differ: text here, a token there.)
    """

    def __init__(self, spiece_path: str | os.PathLike, extra_ids: int = 100):
        self.model_proto = checkpoint_files.read_file(Path(spiece_path))  # kept, to be written with a checkpoint
        complete = False
        if self.model_proto:
            with suppress(RuntimeError, UnicodeDecodeError):
                self.pieces = pieces = sentencepiece.SentencePieceProcessor(model_proto=self.model_proto)
                pieces.id_to_piece(list(range(pieces.get_piece_size())))  # each piece must be a text
                complete = min(pieces.pad_id(), pieces.eos_id(), pieces.unk_id()) >= 0
        if not complete:
            raise CheckpointError(
                f"{spiece_path}: is not a SentencePiece model with <pad>, </s> and <unk>; fetch it again."
            )
        self.extra_ids = extra_ids
        self.pad_token_id, self.eos_token_id = self.pieces.pad_id(), self.pieces.eos_id()
        special = {self.pieces.id_to_piece(i): i for i in (self.pad_token_id, self.eos_token_id, self.pieces.unk_id())}
        self.special = special | {f"<extra_id_{i}>": self.vocab_size - 1 - i for i in range(extra_ids)}
        self.special_pattern = re.compile(f"({'|'.join(map(re.escape, self.special))})")

    @classmethod
    def load(cls, directory: Path) -> "Tokenizer":
        """The tokenizer of a checkpoint."""
        options = directory / "tokenizer_config.json"  # which the oldest checkpoints lack
        extra_ids = checkpoint_files.read_json(options).get("extra_ids", 100) if options.is_file() else 100
        if type(extra_ids) is not int or not 0 <= extra_ids <= 10_000:
            raise CheckpointError(f"{options}: extra_ids is {extra_ids!r}, not a number between 0 and 10,000.")
        return cls(directory / "spiece.model", extra_ids)

    def check_fit(self, config, directory: Path) -> None:
        """Raise CheckpointError unless a model of this configuration (T5Config) means the same by its token ids."""
        if not 0 <= config.vocab_size - self.vocab_size <= MAX_SPARE:
            raise CheckpointError(
                f"{directory}: spiece.model and extra_ids make {self.vocab_size} tokens, where vocab_size in config.json "
                f"is {config.vocab_size}; the two belong to different models."
            )
        for name in ("pad_token_id", "eos_token_id"):
            ours, theirs = getattr(self, name), getattr(config, name)
            if ours != theirs:
                raise CheckpointError(f"{directory}: {name} is {ours} in spiece.model and {theirs} in config.json.")

    def save(self, directory: Path) -> None:
        """Write what `load` and transformers read."""
        checkpoint_files.write_file(directory / "spiece.model", self.model_proto)
        options = {"tokenizer_class": "T5Tokenizer", "extra_ids": self.extra_ids}
        checkpoint_files.write_json(directory / "tokenizer_config.json", options)

    @property
    def vocab_size(self) -> int:
        """Pieces and sentinels. The output layer of published models is padded to a few more entries."""
        return self.pieces.get_piece_size() + self.extra_ids

    def encode(self, text: str) -> list[int]:
        """Token ids, ending in `</s>`."""
        ids = []
        for i, part in enumerate(self.special_pattern.split(text)):  # special tokens are at the odd places
            # U+0085 is white space to transformers, and the only such character that SentencePiece takes for text.
            ids += [self.special[part]] if i % 2 else self.pieces.encode(part.replace("\x85", " "))
        return [*ids, self.eos_token_id]

    def decode(self, ids: list[int]) -> str:
        """The text of the ids, whatever they are: special tokens and ids beyond the vocabulary have none."""
        hidden = (self.pad_token_id, self.eos_token_id, self.pieces.unk_id())
        return self.pieces.decode([int(i) for i in ids if 0 <= i < self.pieces.get_piece_size() and i not in hidden])
