"""Commands that speak to running gateways over their control sockets."""
