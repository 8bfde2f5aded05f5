"""How good a world is: fidelity, controllability, and the report with its pictures."""
