"""What is KGB's own in the settings: its port, its chain, and the names the origin system gave its environment."""

from fiedler_proxy.settings import Program

KGB = Program(
    "kgb",
    8089,
    ("request_id", "access_log", "auth"),
    {
        "KGB_HOST": "host",
        "KGB_PORT": "port",
        "KGB_DATA_DIR": "data_dir",
        "KGB_INSTANCE": "instance",
        "DEWEY_URL": "dewey_url",
    },
    ("KGB_TARGET_URL", "ANTHROPIC_PROXY_URL", "ANTHROPIC_BASE_URL"),
    "KGB_CONFIG",
)
"""KGB as a program: ``https://api.anthropic.com`` as upstream is the origin's blue, a Fiedler URL its green."""
