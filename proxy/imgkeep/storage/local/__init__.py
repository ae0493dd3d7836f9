"""The local store: a folder with the stored layout."""
