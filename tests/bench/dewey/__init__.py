"""What Dewey is to reach: its size on disk, how fast it takes in, what the gateway pays, how fast it finds again."""
