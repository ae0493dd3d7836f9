"""The HTTP edge: requests in, answers out; decides nothing that is not about HTTP."""
