"""Transcripts: what the bytes of an exchange mean, dialect by dialect, without any I/O.

``model`` holds the words; each dialect has a module that reads its requests and its replies.
"""
