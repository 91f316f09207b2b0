"""A slow, independent statement of the simulator's core in plain torch loops; it shares no code with the package."""
