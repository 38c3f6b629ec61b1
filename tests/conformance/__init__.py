"""What every provider promises, caused for real: over the conversations, brokers and files that it is made for."""
