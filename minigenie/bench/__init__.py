"""How fast this machine is, and how far from its limit."""
