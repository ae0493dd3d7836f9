"""The program of a derive process, the only one that decodes pictures."""
