"""The gateway as foreign callers meet it: official SDKs, other clients, recorded replies."""
