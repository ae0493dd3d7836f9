"""Links that are saved in the background: the runner of durable jobs."""
