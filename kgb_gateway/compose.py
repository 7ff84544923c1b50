"""KGB's chain: the one file that knows Fiedler's policy.

``fiedler`` in KGB's chain stands for Fiedler's own links, in this process; without it the relay goes straight to the
one base URL.
"""

from fiedler_proxy.app import compose_draft, compose_settings
from fiedler_proxy.chain import Chain
from fiedler_proxy.config import Faults
from fiedler_proxy.settings import FIEDLER, Draft, Settings

NAME = "kgb_gateway"


def expanded(names: tuple[str, ...], faults: Faults | None = None) -> tuple[str, ...]:
    """``names`` with Fiedler's links in the place of ``fiedler``, which must come last."""
    if "fiedler" not in names:
        return names
    if names[-1] != "fiedler" and faults is not None:
        faults.add("chain", "'fiedler' must be the last: behind it there is only the relay")
    place = names.index("fiedler")
    rest = tuple(name for name in names[place + 1 :] if name != "fiedler")
    return (*names[:place], *FIEDLER.chain, *rest)


def compose_chain(settings: Settings) -> Chain:
    """The chain of ``settings``. SettingsError holds every fault."""
    return compose_settings(settings, expanded(settings.document.chain), gateway=NAME)


def check_chain(draft: Draft, faults: Faults) -> None:
    """Compose as far as ``draft`` goes, and collect what is wrong."""
    compose_draft(draft, expanded(draft.chain, faults), faults, gateway=NAME)
