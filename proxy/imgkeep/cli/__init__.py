"""
The command line: one module a command, or a pair of them.

Rules:
- The module of a command has `run`, which `dispatch.py` calls. It returns the exit status, or a coroutine that does.
- `run` reads standard input, files of links and folders of documents before an event loop runs: Ctrl-C then ends the
  reading.
- A command imports and opens no more than it needs: `inspect` and `sign` need neither a store nor an HTTP library.
"""
