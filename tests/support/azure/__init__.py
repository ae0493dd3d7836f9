"""Azure Blob Storage in tests: Azurite, a server by Microsoft, in a process of its own."""
