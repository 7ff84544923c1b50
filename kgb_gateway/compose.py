"""KGB's chain: the one file that knows Fiedler's policy.

``fiedler`` in KGB's chain stands for Fiedler's own links, in this process; without it the relay goes straight to the
one base URL.
"""

from fiedler_proxy.app import compose_draft, compose_settings
from fiedler_proxy.chain import Chain
from fiedler_proxy.config import Faults
from fiedler_proxy.settings import FIEDLER, Draft, Settings

NAME = "kgb_gateway"


FIEDLER_LINKS = "fiedler"
"""The name in the chain that stands for Fiedler's own."""


IN_PROCESS = tuple(name for name in FIEDLER.chain if name != "fiedler_key")
"""Fiedler's links behind KGB's in one process, which asks itself for no key."""


def expanded(names: tuple[str, ...], faults: Faults | None = None) -> tuple[str, ...]:
    """``names`` with Fiedler's links in the place of ``fiedler``, which must come once, and last."""
    if FIEDLER_LINKS not in names:
        return names
    if faults is not None and names[-1] != FIEDLER_LINKS:
        faults.add("chain", "'fiedler' must be the last: behind it there is only the relay")
    if faults is not None and names.count(FIEDLER_LINKS) > 1:
        faults.add("chain", "'fiedler' stands in the chain more than once")
    place = names.index(FIEDLER_LINKS)
    rest = tuple(name for name in names[place + 1 :] if name != FIEDLER_LINKS)
    return (*names[:place], *IN_PROCESS, *rest)


def compose_chain(settings: Settings) -> Chain:
    """The chain of ``settings``. SettingsError holds every fault."""
    return compose_settings(settings, expanded(settings.document.chain), gateway=NAME)


def check_chain(draft: Draft, faults: Faults) -> None:
    """Compose as far as ``draft`` goes, and collect what is wrong."""
    own = Faults()
    names = expanded(draft.settings.document.chain, own)
    draft.place(own, faults)
    compose_draft(draft, names, faults, gateway=NAME, known=(FIEDLER_LINKS,))
