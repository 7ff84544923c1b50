"""JSON as strangers write it: read whatever can be read, never crash on the rest.

Pure. Duplicate members: the last one counts. Numbers that Python will not hold (too many digits, infinite) and NaN stay as the
text that they were. Lone surrogates and NUL stay. Nesting that is too deep is not readable. Owns no dialect.
"""

import json
import re

from .model import Json, NotReadable


def _whole(text: str) -> Json:
    """An int, or its text where it has more digits than Python converts (``sys.set_int_max_str_digits``)."""
    try:
        return int(text)
    except ValueError:
        return text


def _float(text: str) -> Json:
    value = float(text)
    return text if value in (float("inf"), float("-inf")) else value


_FAST = json.JSONDecoder(parse_float=_float, parse_constant=str)
_PATIENT = json.JSONDecoder(parse_float=_float, parse_constant=str, parse_int=_whole)
_LAX = json.JSONDecoder(parse_float=_float, parse_constant=str, parse_int=_whole, strict=False)
"""Takes control characters inside strings: what is wrong by the letter, and yet clear."""


def text_of_bytes(data: bytes) -> str:
    """``data`` as text: UTF-8 with or without a BOM, UTF-16 and UTF-32 as RFC 4627 tells them apart."""
    coding = json.detect_encoding(data[:4]) if data else "utf-8"
    try:
        return data.decode(coding)
    except UnicodeDecodeError:
        pass
    return data.decode(coding, "surrogatepass" if coding.startswith("utf-8") and _is_wtf8(data) else "replace")


def _is_wtf8(data: bytes) -> bool:
    """Whether ``data`` is UTF-8 but for lone surrogates, which some senders write as three bytes each."""
    try:
        data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return False
    return True


def loads(data: bytes | str) -> Json:
    """The JSON value in ``data``. NotReadable: it is none, or is nested too deeply."""
    text = text_of_bytes(data) if isinstance(data, bytes) else data
    text = text.strip("\ufeff \t\r\n")
    try:
        return _decode(text)
    except RecursionError:
        raise NotReadable("the JSON is nested too deeply") from None
    except ValueError as error:
        raise NotReadable(f"no JSON: {str(error)[:200]}") from None


def _decode(text: str) -> Json:
    try:
        value: Json = _FAST.decode(text)
    except json.JSONDecodeError as error:
        if error.msg.startswith("Invalid control character"):
            return _LAX.decode(text)
        raise
    except ValueError:
        return _PATIENT.decode(text)
    return value


_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+"|[{}\[\],:]|[^\s"{}\[\],:]++', re.DOTALL)
_SPACE = re.compile(r"[ \t\r\n]*+")
_BROKEN_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?\Z")
_HALF_A_PAIR = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}\Z")
_DEEPEST = 500


def close(text: str) -> str:
    """``text``, the beginning of a JSON text, ended where it stops: an open string is closed, a member without a value
    goes, brackets are closed; what was whole is as it was. "" if nothing can be made of it.
    """
    text = text.strip("\ufeff \t\r\n")
    brackets: list[str] = []
    safe, closing = 0, ""
    key = False  # whether a string here would be the name of a member
    at = _SPACE.match(text).end()  # type: ignore[union-attr]
    while (match := _TOKEN.match(text, at)) is not None:
        token, end = match[0], match.end()
        if token in "{[":
            brackets.append("}" if token == "{" else "]")
        elif token in "}]" and (not brackets or brackets.pop() != token):
            return ""
        value = token not in ",:" and not key and (token[0] in '"{}[]' or end < len(text) or token in _WORDS)
        key = token == "{" or (token == "," and brackets[-1:] == ["}"]) or (key and token != ":")
        if value or token in "}]":
            safe, closing = end, "".join(reversed(brackets))
        if len(brackets) > _DEEPEST:
            return ""
        at = _SPACE.match(text, end).end()  # type: ignore[union-attr]
    if text[at : at + 1] == '"' and not key:
        return text[:at] + _string(text[at:]) + "".join(reversed(brackets))
    return text[:safe] + closing


_WORDS = ("true", "false", "null")
"""What is whole even at the very end; of a number one cannot know."""


def _string(cut: str) -> str:
    """A string that was cut, ended; half an escape goes, and half of a surrogate pair."""
    for broken in (_BROKEN_ESCAPE, _HALF_A_PAIR):
        match = broken.search(cut, max(0, len(cut) - 6))
        if match is not None:
            before = cut[: match.start()]
            if (len(before) - len(before.rstrip("\\"))) % 2 == 0:
                cut = before
    return cut + '"'
