"""The version of this code, for the build and for what is written; installed or run from a checkout, it is the same."""

VERSION = "0.1.0"
