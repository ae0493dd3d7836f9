"""How the catalog's tables came to be, one step a version."""
