"""What a method is: the protocols, the registry and plans."""
