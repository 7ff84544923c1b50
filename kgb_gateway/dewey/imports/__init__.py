"""Reading conversations that others have kept: Claude Code's transcripts, HAR, and our own JSONL.

Pure: lines or bytes in, turns out. What cannot be read is told, by line and reason, and the rest is read. A turn's exchange id is the
same each time it is read, so that importing twice adds nothing.
"""

from .claude import ClaudeReader
from .har import read_har
from .lines import Fault, OnFault, read_jsonl

__all__ = ["ClaudeReader", "Fault", "OnFault", "read_har", "read_jsonl"]
