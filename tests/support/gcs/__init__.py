"""Google Cloud Storage in tests: fake-gcs-server in a process of its own."""
