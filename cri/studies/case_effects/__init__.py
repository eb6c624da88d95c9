"""What one training case changes in an answer: by offset, by what it shares, and what the instrument can see at all."""
