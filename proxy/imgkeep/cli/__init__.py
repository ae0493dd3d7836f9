"""The command line: one module a group of commands. They are handed what they work with, print, and return a status."""
