"""What a delivery costs on this machine."""
