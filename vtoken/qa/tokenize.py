"""Text to ids, so that what a user typed stays text: it cannot close its turn, open another, or place a video."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
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
    """Text of users in which control tokens are set apart, until the whole prompt is tokenized.

    Control tokens are the words that the tokenizer adds to its vocabulary, but for blanks.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added = {str(word): i for word, i in tokenizer.get_added_vocab().items() if str(word).strip()}
        self._ids = set(added.values()) - {getattr(tokenizer, "unk_token_id", None)}
        self._control = _any_of(added)
        self._special = _any_of(w for w in added if w in set(map(str, tokenizer.all_special_tokens)))
        self._found: list[str] = []

    def safe(self, text: str, answer: bool = False) -> str:
        """The text with a mark in place of every control token.

        Args:
            answer: an earlier answer of the model, in which templates look for words such as ``</think>``; there only
                special tokens are set apart.

        Raises:
            InputError: the tokenizer makes a control token of other letters.
        """
        marked = self._marked(text, answer)
        if answer or not self._hidden(marked):
            return marked
        normalizer = getattr(getattr(self._tokenizer, "backend_tokenizer", None), "normalizer", None)
        marked = self._marked(normalizer.normalize_str(text), answer) if normalizer is not None else marked
        if self._hidden(marked):
            raise InputError(
                f"text {text!r:.80} holds letters that the tokenizer reads as a control token; leave them out"
            )
        return marked

    def _marked(self, text: str, answer: bool) -> str:
        def mark(match: re.Match[str]) -> str:
            self._found.append(match[0])
            return f"{OPEN}{len(self._found) - 1}{CLOSE}"

        return (self._special if answer else self._control).sub(mark, text)

    def _hidden(self, marked: str) -> bool:
        """Whether a control token is left between the marks."""
        with LOCK:
            parts = re.split(f"{OPEN}[0-9]+{CLOSE}", marked)
            return any(self._ids & set(self._plain(part)) for part in parts if part)

    def ids(self, prompt: str, special: bool = False) -> list[int]:
        """Ids of a prompt; what was marked becomes the ids of its letters.

        Args:
            special: whether the tokenizer adds its begin token (and an end token, where it has one).
        """
        first, *rest = re.split(f"{OPEN}([0-9]+){CLOSE}", prompt)
        with LOCK:
            begin, end = self._around(first or "a") if special else ([], [])
            out = begin + self._plain(first)
            for number, text in zip(rest[::2], rest[1::2], strict=True):
                out += self._as_text(self._found[int(number)])
                out += self._behind(text) if text else []
        return out + end

    def _around(self, text: str) -> tuple[list[int], list[int]]:
        """Ids that the tokenizer writes before and behind a text."""
        plain, whole = self._plain(text), list(self._tokenizer(text, add_special_tokens=True)["input_ids"])
        start = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
        return whole[:start], whole[start + len(plain) :]

    def _plain(self, text: str, **options: Any) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, **options)["input_ids"])

    def _behind(self, text: str, **options: Any) -> list[int]:
        """Ids of text that is not the first: without the blank that SentencePiece puts before a text."""
        line = self._plain("\n")
        ids = self._plain("\n" + text, **options)
        return ids[len(line) :] if line and ids[: len(line)] == line else self._plain(text, **options)

    def _as_text(self, word: str) -> list[int]:
        """Ids of a control token's letters."""
        ids = self._behind(word, split_special_tokens=True)
        if not self._ids & set(ids):
            return ids
        pieces = [self._behind(part) for part in (word[:1], word[1:]) if part]
        return [i for piece in pieces for i in piece if i not in self._ids]


def _any_of(words: Iterable[str]) -> re.Pattern[str]:
    """Any of the words, the longest first, or a private character."""
    found = sorted(words, key=len, reverse=True)
    return re.compile("|".join([f"[{OPEN}{CLOSE}]", *map(re.escape, found)]))
