"""What clients send, read into values, and what they get, written from values: JSON and Arrow, no routes."""
