"""Jobs: links that are saved in the background, and the webhooks that report the end of a job."""
