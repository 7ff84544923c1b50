"""The links that the gateway brings along. None imports another: they meet on the exchange."""
