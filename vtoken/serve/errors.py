"""Errors as OpenAI's clients expect them: a status and ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

from typing import Any

from vtoken.errors import VtokenError

TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class Refused(VtokenError):
    """A request that is not answered.

    Attributes:
        status: of HTTP.
        param: the field of the request that is wrong.
        code: a word for programs.
    """

    def __init__(self, message: str, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


def body(message: str, status: int, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The JSON of an error."""
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
