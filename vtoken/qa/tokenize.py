"""Text to ids, so that what a user typed stays text: it cannot close its turn, open another, or place a video."""

from __future__ import annotations

import re
import threading
from typing import Any

from vtoken.errors import InputError

LOCK = threading.Lock()  # a fast tokenizer keeps its options as state
OPEN, CLOSE = "\ue000", "\ue001"  # private characters around the number of a control token


def tokenizer_of(processor: Any) -> Any:
    """The tokenizer of a processor, or the tokenizer itself.

    Raises:
        InputError: neither of the two.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    if not hasattr(tokenizer, "convert_ids_to_tokens"):
        raise InputError(f"processor={type(processor).__name__} is neither a processor nor a tokenizer")
    return tokenizer


class UserText:
    """Text of users in which control tokens are set apart, until the whole prompt is tokenized."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        words = sorted((str(t) for t in tokenizer.get_added_vocab()), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, words))) if words else None
        self._found: list[str] = []

    def safe(self, text: str) -> str:
        """The text with a mark in place of every control token; private characters of its own are dropped."""
        text = text.replace(OPEN, "").replace(CLOSE, "")
        if self._control is None:
            return text

        def mark(match: re.Match[str]) -> str:
            self._found.append(match[0])
            return f"{OPEN}{len(self._found) - 1}{CLOSE}"

        return self._control.sub(mark, text)

    def ids(self, prompt: str, special: bool = False) -> list[int]:
        """Ids of a prompt; what was marked becomes the ids of its letters.

        Args:
            special: whether the tokenizer adds its begin token.
        """
        parts = re.split(f"{OPEN}([0-9]+){CLOSE}", prompt)
        with LOCK:
            out = list(self._tokenizer(parts[0], add_special_tokens=special)["input_ids"])
            for number, rest in zip(parts[1::2], parts[2::2], strict=True):
                out += self._as_text(self._found[int(number)])
                out += self._tokenizer(rest, add_special_tokens=False)["input_ids"] if rest else []
        return out

    def _as_text(self, word: str) -> list[int]:
        """Ids of a control token's letters."""
        control = set(self._tokenizer.get_added_vocab().values())
        ids = self._tokenizer(word, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        if not control & set(ids):
            return list(ids)
        parts = [part for part in (word[:1], word[1:]) if part]
        pieces = [self._tokenizer(part, add_special_tokens=False)["input_ids"] for part in parts]
        unknown = getattr(self._tokenizer, "unk_token_id", None)
        return [i for piece in pieces for i in piece if i not in control or i == unknown]
