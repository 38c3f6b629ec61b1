"""What every provider with an HTTP API promises, caused over real conversations."""
