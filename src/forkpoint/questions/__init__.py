"""Ways to build the second run: one question a file, each a function that returns a `Result`."""
