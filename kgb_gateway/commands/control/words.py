"""Numbers as the commands write and read them."""


def percent(share: float) -> str:
    """``share`` of 1 in percent, without more digits than it has."""
    return f"{share * 100:.4f}".rstrip("0").rstrip(".") + "%"


def share_of(text: str) -> float:
    """What ``5%``, ``0.5%`` or ``0.05`` says, as a share of 1. ValueError says how to write it."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise ValueError(f"{text!r} is no share: write it like 5%, more than 0% and less than 100%")
    return value
