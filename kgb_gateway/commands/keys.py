"""``kgb keys``: make, list, rotate and revoke the keys by which callers are known.

Owns the command's words and what it prints. The token of a key goes to standard output once, when it is made;
everything else that is said about it goes to standard error. The file itself is keys_edit's matter.
"""

import argparse
import json
import math
import os
import re
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from fiedler_proxy.config import Faults
from fiedler_proxy.settings import read
from kgb_gateway.keys_edit import create_key, revoke_key, rotate_key
from kgb_gateway.keys_file import Key, KeysFileError, read_keys_file, timestamp
from kgb_gateway.settings import KGB, keys_file

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_LAST = datetime(9999, 1, 1, tzinfo=UTC).timestamp()


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``keys`` and its four commands."""
    parser = subparsers.add_parser("keys", help="make, list, rotate and revoke the keys of callers")
    commands = parser.add_subparsers(dest="keys_command", required=True, metavar="COMMAND")
    create = _command(commands, "create", "make a key and print its token, once", _create)
    create.add_argument("name", metavar="NAME", help="who the key is for; stands in the access log")
    create.add_argument(
        "--scope", action="append", default=[], metavar="S", help="path:/PREFIX, may be repeated; none: everything"
    )
    create.add_argument(
        "--expires", metavar="WHEN", help="90d, 12h, ... from now, or an ISO date (UTC); default: never"
    )
    _command(commands, "list", "show the keys, never their tokens", _list)
    rotate = _command(commands, "rotate", "give a key a new token and print it, once", _rotate)
    rotate.add_argument("name", metavar="NAME|ID")
    rotate.add_argument("--grace", metavar="TIME", default="0s", help="how long the old token still works; default: 0s")
    revoke = _command(commands, "revoke", "take a key out of force, at once and for good", _revoke)
    revoke.add_argument("name", metavar="NAME|ID")


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, text: str, act: object
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--keys-file", type=Path, metavar="FILE", help="the keys file itself")
    where.add_argument("--config", type=Path, metavar="FILE", help="the gateway's configuration, which names it")
    where.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="the gateway's data directory, for one without configuration"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run, act=act)
    return parser


def run(args: argparse.Namespace) -> int:
    """Exit code: 0 done, 1 not possible as things stand, 2 asked for in wrong words."""
    try:
        result: int = args.act(args, keys_file_of(args, os.environ))
    except KeysFileError as error:
        print(f"kgb keys: {error}", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"kgb keys: {error}", file=sys.stderr)
        return 2
    return result


def keys_file_of(args: argparse.Namespace, environ: Mapping[str, str]) -> Path:
    """The keys file that is named, or the one that ``kgb serve`` uses with the same options and environment."""
    if args.keys_file is not None:
        return Path(args.keys_file)
    given = {"config": args.config, "data_dir": args.data_dir}
    flags = {key: str(value) for key, value in given.items() if value is not None}
    faults = Faults()
    draft = read(KGB, flags, environ, faults)
    if not draft.complete:
        raise KeysFileError(f"the configuration cannot be read: {faults.found[0]}")
    return keys_file(draft.settings)


def parse_duration(text: str) -> float:
    """Seconds of ``90d``, ``2w``, ``12h``, ``30m`` or ``45s``. ValueError says how to write one."""
    match = re.fullmatch(r"([0-9]{1,9})([smhdw])", text)
    if match is None:
        raise ValueError(f"{text!r} is no length of time; write a number and s, m, h, d or w, for example 90d")
    return float(match[1]) * _UNITS[match[2]]


def parse_expiry(text: str, now: float) -> float:
    """Seconds since the epoch of an expiry: a length of time from ``now``, or an ISO date or time (UTC unless it
    names its zone; a date is its first moment). ValueError when it is none, or not in the future.
    """
    if re.fullmatch(r"[0-9]+[a-z]", text):
        moment = now + parse_duration(text)
    else:
        try:
            parsed = datetime.fromisoformat(text)
        except ValueError:
            raise ValueError(f"{text!r} is no expiry; write for example 90d, 12h, 2027-01-31") from None
        moment = (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
    if not now < moment < _LAST:
        raise ValueError(f"{text!r} is no moment in the future that a calendar knows")
    return math.floor(moment)


def _create(args: argparse.Namespace, path: Path) -> int:
    now = time.time()
    expires = None if args.expires is None else parse_expiry(args.expires, now)
    is_first = not path.exists()
    key, token = create_key(path, args.name, scopes=tuple(args.scope), expires=expires)
    _show_token(args, path, key, token)
    _say(f"made the key {key.name!r} in {path}; its token is shown this once")
    if is_first:
        _say(
            "from now on a gateway with this keys file asks every caller for a key, unless auth.required says otherwise"
        )
    return 0


def _rotate(args: argparse.Namespace, path: Path) -> int:
    grace = parse_duration(args.grace)
    key, token = rotate_key(path, args.name, grace=grace)
    _show_token(args, path, key, token)
    still = f"the old one works until {timestamp(key.hashes[1].until)}" if grace else "the old one is out of force"
    _say(f"rotated the key {key.name!r}; its new token is shown this once, {still}")
    return 0


def _revoke(args: argparse.Namespace, path: Path) -> int:
    key = revoke_key(path, args.name)
    if args.json:
        print(json.dumps(_facts(key, time.time())))
    _say(f"the key {key.name!r} ({key.id}) is revoked")
    return 0


def _list(args: argparse.Namespace, path: Path) -> int:
    try:
        keys = read_keys_file(path)[0].keys
    except FileNotFoundError:
        keys = ()
        _say(f"there is no keys file {path}; `kgb keys create NAME` makes one")
    rows = [_facts(key, time.time()) for key in keys]
    if args.json:
        print(json.dumps(rows, indent=1))
    elif rows:
        _print_table([_columns(row) for row in rows])
    return 0


def _facts(key: Key, now: float) -> dict[str, object]:
    """What may be shown of a key."""
    grace = max((entry.until for entry in key.hashes if entry.until is not None and entry.until > now), default=None)
    return {
        "id": key.id,
        "name": key.name,
        "scopes": list(key.scopes),
        "created": timestamp(key.created),
        "expires": timestamp(key.expires),
        "state": key.state(now),
        "grace_until": timestamp(grace),
    }


def _columns(row: dict[str, object]) -> tuple[str, ...]:
    state = f"{row['state']}, old token until {row['grace_until']}" if row["grace_until"] else str(row["state"])
    scopes = row["scopes"] if isinstance(row["scopes"], list) else []
    return (
        str(row["name"]),
        str(row["id"]),
        str(row["created"]),
        str(row["expires"] or "never"),
        " ".join(scopes) or "everything",
        state,
    )


def _print_table(rows: list[tuple[str, ...]]) -> None:
    table = [("NAME", "ID", "CREATED", "EXPIRES", "SCOPES", "STATE"), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(6)]
    for row in table:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def _show_token(args: argparse.Namespace, path: Path, key: Key, token: str) -> None:
    if args.json:
        print(json.dumps({**_facts(key, time.time()), "token": token, "keys_file": str(path)}), flush=True)
    else:
        print(token, flush=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr)
