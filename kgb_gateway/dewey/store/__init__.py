"""The conversation store: one interface, and one module for each database that can be behind it."""
