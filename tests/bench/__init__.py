"""The bench: figures of several proxies side by side, on one machine, in one run (``python -m tests.bench --help``)."""
