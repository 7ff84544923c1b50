"""Which slot is active: chosen by people, kept over restarts, with a log of who changed what and why.

Owns the file. A change is on disk before it is in force, so that what a restart finds is what was in force last; the instances that share a
data directory share the choice, and a change that was given to each of them is made once.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

import attrs

LOG_MOST = 200
"""Changes that are kept."""


@attrs.frozen
class Change:
    """One line of the log. ``at``: seconds since the epoch; ``by``: who did it (a person's command, the guard, the environment);
    ``id``: the same for every instance that was told of one change."""

    at: float
    action: str
    slot: str
    by: str
    why: str = ""
    id: str = ""


@attrs.frozen
class Choice:
    """``active`` serves everybody but ``share`` (0 to 1) of the sessions, which ``canary`` serves. ``previous`` is what rollback goes to."""

    active: str
    previous: str = ""
    canary: str = ""
    share: float = 0.0
    log: tuple[Change, ...] = ()

    def using(self, slot: str, by: str, why: str = "") -> "Choice":
        """``slot`` for everybody from now on."""
        return self._changed("use", slot, by, why, active=slot, previous=self._before(slot), canary="", share=0.0)

    def rolled_back(self, by: str, why: str = "") -> "Choice":
        """No canary where there is one; else the slot before this one. ValueError when there was none."""
        if self.canary:
            return self._changed("rollback", self.active, by, why, canary="", share=0.0)
        if not self.previous:
            raise ValueError("there is nothing to roll back to: no other slot was active before")
        return self._changed("rollback", self.previous, by, why, active=self.previous, previous=self.active)

    def with_canary(self, slot: str, share: float, by: str) -> "Choice":
        """``share`` of the sessions to ``slot``. ValueError when that makes no sense."""
        if slot == self.active:
            raise ValueError(f"{slot} is the active slot: it serves everybody already")
        if not 0 < share < 1:
            raise ValueError(
                "a canary serves more than 0 % and less than 100 %; `kgb slot use` makes it the active one"
            )
        return self._changed(f"canary {share:.4%}".replace(".0000%", "%"), slot, by, "", canary=slot, share=share)

    def marked(self, identity: str) -> "Choice":
        """This one, its last change known as ``identity``."""
        if not self.log:
            return self
        return attrs.evolve(self, log=(*self.log[:-1], attrs.evolve(self.log[-1], id=identity)))

    def _before(self, slot: str) -> str:
        return self.previous if slot == self.active else self.active

    def _changed(self, action: str, slot: str, by: str, why: str, **values: object) -> "Choice":
        change = Change(time.time(), action, slot, by, why)
        return attrs.evolve(self, log=(*self.log, change)[-LOG_MOST:], **values)  # type: ignore[arg-type]

    def slot_of(self, sticky: str) -> str:
        """The slot of whoever ``sticky`` names (a session, else a caller): the same one as long as the choice stands, and a canary that
        grows keeps those it has."""
        if self.share and sticky and fraction(sticky) < self.share:
            return self.canary
        return self.active


def fraction(text: str) -> float:
    """A number from 0 to 1, evenly spread, that is always the same for ``text``."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=7).digest()) / 2**56


Stamp = tuple[int, int, int] | None


@attrs.frozen
class ChoiceFile:
    """The choice on disk. ``instance``: who asks; ``environment``: what its environment says of the upstream; where that has changed
    since, it wins, and ``blue`` is active: the slot that goes there."""

    path: Path
    instance: str = ""
    environment: str = ""
    blue: str = "blue"

    def load(self, slots: Collection[str], default: str) -> Choice:
        """What was chosen last, as far as there still are such slots. A file that cannot be read is as none; it is not touched."""
        said = self._read()
        choice = _choice(said, slots, default)
        known = said.get("environments")
        before = known.get(self.instance) if isinstance(known, Mapping) else None
        if before is not None and before != self.environment and choice.active != self.blue:
            why = "the variable that names the upstream has another value now"
            return choice.using(self.blue, "environment", why)
        return choice

    def stamp(self) -> Stamp:
        """What changes whenever the file does; None for no file."""
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size

    def update(
        self, slots: Collection[str], default: str, change: Callable[[Choice], Choice], identity: str = ""
    ) -> Choice:
        """Make ``change`` to what is on disk, and keep it there; what is in force then. A change whose ``identity`` is in the log was made
        by another instance, and is taken over. OSError when it cannot be kept, ValueError from ``change``."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._locked():
            choice = self.load(slots, default)
            if not identity or identity not in (each.id for each in choice.log):
                choice = change(choice).marked(identity)
            self._save(choice)
        return choice

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        fd = os.open(self.path.with_name(f".{self.path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _save(self, choice: Choice) -> None:
        known = self._read().get("environments")
        said = attrs.asdict(choice)
        said["environments"] = {**(known if isinstance(known, dict) else {}), self.instance: self.environment}
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            json.dump(said, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _read(self) -> dict[str, object]:
        try:
            said = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return said if isinstance(said, dict) else {}


def _choice(said: dict[str, object], slots: Collection[str], default: str) -> Choice:
    active, previous, canary = (_known(said.get(key), slots) for key in ("active", "previous", "canary"))
    share, log = said.get("share"), said.get("log")
    changes = []
    for each in log if isinstance(log, list) else ():
        try:
            changes.append(Change(**each))
        except TypeError:
            continue
    sound = bool(active and canary) and isinstance(share, float) and 0 < share < 1
    return Choice(
        active or default, previous, canary if sound else "", share if sound and isinstance(share, float) else 0.0,
        tuple(changes),
    )  # fmt: skip


def _known(name: object, slots: Collection[str]) -> str:
    return name if isinstance(name, str) and name in slots else ""
