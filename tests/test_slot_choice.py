"""The choice of a slot: what each step does, what a restart finds, and that a session never changes sides."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fiedler_proxy.slot_choice import LOG_MOST, Choice, ChoiceFile, fraction

SLOTS = ("blue", "green", "red")


def file(tmp_path: Path, instance: str = "a", environment: str = "http://one") -> ChoiceFile:
    return ChoiceFile(tmp_path / "data" / "slots.json", instance, environment)


def test_a_share_of_the_sessions_within_a_third_of_a_point() -> None:
    for share in (0.001, 0.05, 0.5, 0.9):
        choice = Choice("blue").with_canary("green", share, "test")
        canary = sum(choice.slot_of(f"session-{number}") == "green" for number in range(100_000))
        assert abs(canary / 100_000 - share) <= 0.003


def test_a_session_never_flips_and_a_canary_that_grows_keeps_those_it_has() -> None:
    small, large = (Choice("blue").with_canary("green", share, "test") for share in (0.05, 0.2))
    for number in range(20_000):
        first = small.slot_of(f"s{number}")
        assert all(small.slot_of(f"s{number}") == first for _ in range(3))
        if first == "green":
            assert large.slot_of(f"s{number}") == "green"


def test_who_has_no_name_gets_the_active_slot() -> None:
    assert Choice("blue").with_canary("green", 0.999, "test").slot_of("") == "blue"


def test_what_was_chosen_is_there_after_a_restart(tmp_path: Path) -> None:
    made = file(tmp_path).update(SLOTS, "blue", lambda choice: choice.using("green", "me"))
    assert file(tmp_path).load(SLOTS, "blue") == made
    assert (tmp_path / "data" / "slots.json").stat().st_mode & 0o777 == 0o600


def test_the_environment_wins_when_it_has_changed_and_only_then(tmp_path: Path) -> None:
    file(tmp_path).update(SLOTS, "blue", lambda choice: choice.using("green", "me"))
    assert file(tmp_path).load(SLOTS, "blue").active == "green"
    changed = file(tmp_path, environment="http://two").load(SLOTS, "blue")
    assert (changed.active, changed.log[-1].by) == ("blue", "environment")
    again = file(tmp_path, environment="http://two").update(SLOTS, "blue", lambda choice: choice.using("green", "me"))
    assert again.active == file(tmp_path, environment="http://two").load(SLOTS, "blue").active == "green"


def test_each_instance_has_an_environment_of_its_own(tmp_path: Path) -> None:
    for instance in ("a", "b"):
        file(tmp_path, instance, f"http://{instance}").update(
            SLOTS, "blue", lambda choice: choice.using("green", "me"), "1"
        )
    assert file(tmp_path, "a", "http://a").load(SLOTS, "blue").active == "green"
    assert file(tmp_path, "b", "http://b").load(SLOTS, "blue").active == "green"
    assert len(file(tmp_path, "b", "http://b").load(SLOTS, "blue").log) == 1


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"active": 3}', '{"active": "gone"}', '{"share": "x"}', "[" * 100_000, '{"log": [1, {"x": 1}]}'],
)
def test_a_file_that_makes_no_sense_is_as_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "slots.json").write_text(text)
    assert file(tmp_path).load(SLOTS, "blue") == Choice("blue")
    assert file(tmp_path).update(SLOTS, "blue", lambda choice: choice.using("red", "me")).active == "red"


def test_a_slot_that_is_no_longer_configured_is_left(tmp_path: Path) -> None:
    file(tmp_path).update(SLOTS, "blue", lambda choice: choice.using("red", "me"))
    file(tmp_path).update(SLOTS, "blue", lambda choice: choice.with_canary("green", 0.1, "me"))
    assert file(tmp_path).load(("blue", "red"), "blue").canary == ""
    assert file(tmp_path).load(("blue", "green"), "blue").active == "blue"


def test_a_change_that_cannot_be_made_leaves_the_file(tmp_path: Path) -> None:
    file(tmp_path).update(SLOTS, "blue", lambda choice: choice.using("green", "me"))
    before = (tmp_path / "data" / "slots.json").read_bytes()
    with pytest.raises(ValueError, match="the active slot"):
        file(tmp_path).update(SLOTS, "blue", lambda choice: choice.with_canary("green", 0.1, "me"))
    assert (tmp_path / "data" / "slots.json").read_bytes() == before
    assert sorted(os.listdir(tmp_path / "data")) == [".slots.json.lock", "slots.json"]


def test_the_log_is_bounded(tmp_path: Path) -> None:
    choice = Choice("blue")
    for number in range(LOG_MOST + 10):
        choice = choice.using(SLOTS[number % 3], "me")
    assert len(choice.log) == LOG_MOST
    assert choice.log[-1].slot == SLOTS[(LOG_MOST + 9) % 3]


@attrs.define
class Model:
    """What people think is in force."""

    active: str = "blue"
    previous: str = ""
    canary: str = ""
    share: float = 0.0


class Slots(RuleBasedStateMachine):
    """Switch, canary, rollback, a failed guard, restart: two instances on one file against a model of it."""

    @initialize(directory=st.uuids())
    def begin(self, directory: object) -> None:

        self.home = Path(tempfile.mkdtemp())
        self.files = [ChoiceFile(self.home / "slots.json", name, "u") for name in "ab"]
        self.model = Model()
        self.changes = 0

    def change(self, step: object) -> None:
        self.changes += 1
        made = [each.update(SLOTS, "blue", step, str(self.changes)) for each in self.files]  # type: ignore[arg-type]
        assert made[0] == made[1]

    @rule(slot=st.sampled_from(SLOTS))
    def use(self, slot: str) -> None:
        self.change(lambda choice: choice.using(slot, "me"))
        before = self.model.previous if slot == self.model.active else self.model.active
        self.model = Model(slot, before)

    @rule(slot=st.sampled_from(SLOTS), share=st.floats(0.01, 0.99))
    def canary(self, slot: str, share: float) -> None:
        if slot == self.model.active:
            with pytest.raises(ValueError, match="active"):
                self.change(lambda choice: choice.with_canary(slot, share, "me"))
            return
        self.change(lambda choice: choice.with_canary(slot, share, "me"))
        self.model.canary, self.model.share = slot, share

    @precondition(lambda self: bool(self.model.canary))
    @rule()
    def guard_takes_back(self) -> None:
        canary = self.model.canary
        self.change(lambda choice: choice.rolled_back("guard", "why") if choice.canary == canary else choice)
        self.model.canary, self.model.share = "", 0.0

    @precondition(lambda self: not self.model.canary)
    @rule()
    def rollback(self) -> None:
        if not self.model.previous:
            with pytest.raises(ValueError, match="nothing to roll back to"):
                self.change(lambda choice: choice.rolled_back("me"))
            return
        self.change(lambda choice: choice.rolled_back("me"))
        self.model = Model(self.model.previous, self.model.active)

    @rule()
    def restart(self) -> None:
        self.files = [ChoiceFile(each.path, each.instance, each.environment) for each in self.files]

    @rule()
    def killed_while_writing(self) -> None:
        (self.home / ".slots.json.1").write_text('{"active": "gre')

    @invariant()
    def what_is_on_disk_is_what_is_in_force(self) -> None:
        for each in self.files:
            choice = each.load(SLOTS, "blue")
            found = Model(choice.active, choice.previous, choice.canary, choice.share)
            assert found == self.model
            for number in range(20):
                slot = choice.slot_of(f"s{number}")
                assert slot in (choice.active, choice.canary)
                assert (slot == choice.canary and bool(choice.canary)) == (fraction(f"s{number}") < self.model.share)

    def teardown(self) -> None:

        if hasattr(self, "home"):
            shutil.rmtree(self.home)


TestSlots = Slots.TestCase
TestSlots.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)


def test_the_file_says_what_people_can_read(tmp_path: Path) -> None:
    file(tmp_path).update(SLOTS, "blue", lambda choice: choice.with_canary("green", 0.05, "me"))
    said = json.loads((tmp_path / "data" / "slots.json").read_text())
    assert (said["active"], said["canary"], said["share"], said["log"][0]["action"]) == (
        "blue",
        "green",
        0.05,
        "canary 5%",
    )
