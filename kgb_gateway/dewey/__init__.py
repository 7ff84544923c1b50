"""Dewey, the conversation store: what the librarian does."""
