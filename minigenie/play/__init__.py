"""Live play: a learned world in the browser, at the keyboard."""
