"""The built-in demo provider: a scripted upstream that answers as Anthropic and OpenAI do, without key or network.

It stands behind ``kgb serve --demo`` and ``kgb demo``. Every reply says that it is a demo. It is an upstream like any
other: it knows nothing of the gateway in front of it, and the gateway nothing of it.
"""

from kgb_gateway.demo.provider import create_demo_app
from kgb_gateway.demo.serving import demo_upstream

__all__ = ["create_demo_app", "demo_upstream"]
