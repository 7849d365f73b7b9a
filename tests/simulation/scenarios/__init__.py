"""What is simulated, and what must hold at every step of it."""
