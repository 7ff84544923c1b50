"""What a request, an event and a body cost in instructions, told against a yardstick (``python -m tests.bench.instructions --help``)."""
