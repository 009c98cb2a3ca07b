"""The format of a scene: what is in its folder, as records, and how it is read without trusting it."""
