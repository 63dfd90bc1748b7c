"""What ships to a hub: configuration, processing and modeling."""
