"""Labels by hand: short clips of the footage, and the keys that are held while they play."""
