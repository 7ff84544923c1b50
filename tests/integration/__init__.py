"""The relay as its callers and upstreams meet it: through AppRunner, on raw sockets."""
