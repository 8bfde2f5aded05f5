"""The parts that the three models share."""
