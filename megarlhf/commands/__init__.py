"""Commands that take options instead of a configuration: each file adds one to the command line."""
