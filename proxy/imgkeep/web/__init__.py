"""The HTTP edge: calls services for requests and makes responses; decides nothing that is not about HTTP."""
