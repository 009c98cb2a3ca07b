"""Ways to build the second run: one factor a file, each a function that returns a `Result`."""
